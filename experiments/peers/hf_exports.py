#!/usr/bin/env python3
"""Hold exported Hugging Face directories of packed weights against the programs that read them.

    hf_exports.py MODEL --work DIR [--formats compressed-tensors:int4 gptq:int4 ...] [--logits]

MODEL is anything that `bitllama-train quantize --model` takes. For each grid it is rounded (`quantize --scheme FORMAT:GRID`), exported with
`--exact` to FORMAT and to `hf` in f32, and then

- every weight that the format's own program dequantizes is compared with the rounded weights, bit by bit: compressed-tensors'
  `decompress`, GPTQModel's `TorchLinear`, MLX's `dequantize`, `transformers`' `unpack_weights`; scales are made f32 first, as codes
  times scales need more bits than f16 has;
- with `--logits` (not MLX's) `transformers` loads the directory in f32 and in 16 bits, and its logits are set beside those that it
  has of the `hf` directory: the largest difference, relative to the largest logit. For BitNet, whose layers round their inputs to 8
  bits, the layers of the `hf` directory get the same rounding, and both are in f32.

`gptq:int4:v2` exports to the second version of GPTQ. Ends with 1 if a weight differs or logits are farther away than 1e-3 (f32) or 1e-2
(f16).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

# Models are small and run once; compiling takes longer than running.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import numpy as np
import torch
from safetensors import safe_open

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRIDS = [
    "compressed-tensors:int4", "compressed-tensors:int8", "gptq:int2", "gptq:int3", "gptq:int4", "gptq:int8", "gptq:int3:v2", "gptq:int4:v2",
    "mlx:int2", "mlx:int3", "mlx:int4", "mlx:int6", "mlx:int8", "bitnet:i2_s",
]
TOKENS = [1, 17, 200, 3, 77, 451, 9, 12, 300, 64, 8, 411, 30, 5, 222, 101]
WITHIN = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-2}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def of_module(all_tensors, module):
    """Tensors of a module by the end of their names."""
    return {name.removeprefix(module + "."): value for name, value in all_tensors.items() if name.rpartition(".")[0] == module}


def compressed_tensors(parts, module, config):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    stated = QuantizationConfig.model_validate(config["quantization_config"])
    schemes = [scheme for scheme in stated.config_groups.values() if module in scheme.targets or "Linear" in scheme.targets]
    assert len(schemes) == 1 and module not in stated.ignore, module
    parts["weight_scale"] = parts["weight_scale"].float()
    return BaseCompressor.get_value_from_registry(stated.format).decompress(parts, schemes[0])["weight"]


def gptq(parts, module, config):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import dynamic_get
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    stated = config["quantization_config"]
    form = {key: dynamic_get(stated.get("dynamic"), module, key, stated[key]) for key in ("bits", "group_size", "sym")}
    rows, columns = parts["scales"].shape[1], parts["g_idx"].numel()
    layer = TorchLinear(**form, desc_act=False, in_features=columns, out_features=rows)
    layer.load_state_dict(parts, strict=True)
    if stated["checkpoint_format"] == "gptq":
        convert_gptq_v1_to_v2_format_module(layer, bits=form["bits"], pack_dtype=torch.int32)
    layer.scales = layer.scales.float()
    layer.eval()
    return layer.dequantize_weight().T


def mlx(parts, module, config):
    import mlx.core as mx

    stated = config["quantization"]
    form = stated.get(module, stated)
    weight, scales, biases = (mx.array(parts[name].view(torch.int32).numpy().view(np.uint32) if name == "weight" else parts[name].float().numpy()) for name in ("weight", "scales", "biases"))
    with mx.stream(mx.cpu):
        values = mx.dequantize(weight, scales, biases, group_size=form["group_size"], bits=form["bits"])
        return torch.from_numpy(np.array(values))


def bitnet(parts, module, config):
    from transformers.integrations.bitnet import unpack_weights

    return unpack_weights(parts["weight"], dtype=torch.float32) * parts["weight_scale"].float()


DEQUANTIZE = {"compressed-tensors": compressed_tensors, "gptq": gptq, "mlx": mlx, "bitnet": bitnet}
# A tensor that only packed modules have.
PACKED = {"compressed-tensors": "weight_packed", "gptq": "qweight", "mlx": "scales", "bitnet": "weight_scale"}


def differing(kind, folder, reference):
    """Weights of a directory that are not those of another to the bit; modules that are packed, and all; bits a weight."""
    config = json.loads((folder / "config.json").read_text())
    found, expected = tensors(folder), tensors(reference)
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    wrong, packed = [], 0
    for name, wanted in expected.items():
        module = name.removesuffix(".weight")
        parts = of_module(found, module)
        if PACKED[kind] in parts:
            packed += 1
            bias = parts.pop("bias", None)
            values = DEQUANTIZE[kind](parts, module, config)
        else:
            values = found[name]
        if values.shape != wanted.shape or not torch.equal(values.float(), wanted.float()):
            wrong.append(name)
    matrices = sum(value.ndim == 2 for value in expected.values())
    return wrong, packed, matrices, size * 8 / sum(value.numel() for value in expected.values())


def logits(folder, dtype, rounds_inputs=()):
    from transformers import AutoModelForCausalLM
    from transformers.integrations.bitnet import ActQuant

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    for name, module in model.named_modules():
        if name in rounds_inputs:
            module.register_forward_pre_hook(lambda _, inputs: (ActQuant.apply(inputs[0]), *inputs[1:]))
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].double()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--formats", nargs="+", default=GRIDS, metavar="FORMAT:GRID")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--logits", action="store_true")
    parser.add_argument("--embedding", default="f32", help="scheme of the embedding (default: %(default)s)")
    parser.add_argument("--bitllama-train", default=ROOT / "target/release/bitllama-train")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    work = args.work.resolve()
    print("| grid | bits | matrices packed | tensors that differ | type | f32 | f16 | bf16 |")
    print("|---|---|---|---|---|---|---|---|")
    failed = False
    for grid in args.formats:
        kind, scheme, *version = grid.split(":")
        name = grid.replace(":", "-")
        artifact, folder, reference = (work / f"{name}{suffix}" for suffix in ("", "-packed", "-hf"))
        run(args.bitllama_train, "quantize", "--model", args.model, "--scheme", f"{kind}:{scheme}", "--embedding", args.embedding, "--output", artifact)
        run(args.bitllama_train, "export", "--from", artifact, "--to", ":".join([kind, *version]), "--exact", "--output", folder, *(["--dtype", "f32"] if kind == "bitnet" else []))
        run(args.bitllama_train, "export", "--from", artifact, "--to", "hf", "--output", reference)
        wrong, packed, matrices, bits = differing(kind, folder, reference)
        failed |= bool(wrong)
        row = [grid, f"{bits:.3f}", f"{packed} of {matrices}", ", ".join(wrong) or "0", json.loads((folder / "config.json").read_text())["torch_dtype"]]
        config = json.loads((folder / "config.json").read_text())
        # `transformers` reads GPTQ of one form for all modules, and leaves what BitNet's files have in full precision as it is.
        rules = config.get("quantization_config", {}).get("dynamic", {})
        is_mixed = any(rule.startswith("+") for rule in rules)
        for dtype, within in WITHIN.items():
            if not args.logits or kind == "mlx" or is_mixed or kind == "bitnet" and dtype != config["torch_dtype"]:
                row.append("")
                continue
            modules = {name.removesuffix(".weight_scale") for name in tensors(folder) if name.endswith(".weight_scale")} if kind == "bitnet" else ()
            theirs, ours = logits(folder, getattr(torch, dtype)), logits(reference, getattr(torch, dtype), modules)
            apart = ((theirs - ours).abs().max() / ours.abs().max()).item()
            failed |= not apart <= within
            row.append(f"{apart:.1e}")
        print(f"| {' | '.join(row)} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
