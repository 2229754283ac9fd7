#!/usr/bin/env python3
"""Makes tests/golden/families/NAME.gguf: the tiny models of `make_families.py` as llama.cpp's converter writes them.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_family_ggufs.py LLAMA_CPP [NAME ...]

LLAMA_CPP is a checkout of llama.cpp with its folder `conversion` (the sources of the package llama-cpp-python 0.3.36 have one), whose
own `gguf` package is used. Only the vocabulary is put in by this script. Weights keep their type.

A file's logits are those of NAME/expected.json, unless the format has no place for a part of the config. Then there is a NAME.gguf.json
beside it, with the logits of the model that the file describes:

- architecture `llama` has no window, `qwen2` neither;
- `gemma2` and `gemma3` have no query scale; it is that of the head's width (but for 27B);
- yarn has no `mscale` (llama.cpp itself leaves the betas of `llama` out too, and the window of `phi3`, though the files have them);
- `bitnet` is the model with silu, and its converter makes the weights ternary.

But for that, llama.cpp computes the same (in f32, within 1e-4; Gemma's within 4e-3, as its GELU is a table in f16), with the long factors
of longrope from the first token on.

Beside the converter's files there are odd ones: `llama_linear` with a factor but no type (which means linear), with the key from before
there were types, and with the type `none`, which a factor does not change.
"""

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import make_families as families
import numpy as np
import torch
from safetensors.torch import load_file, save_file

OUT = families.OUT
# Where the file says less than the config: the config that it describes.
SAYS = {
    "mistral": {"sliding_window": None},
    "qwen2_tied_window": {"use_sliding_window": False, "layer_types": None},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 12},
    "llama_yarn_mscale": families.rope(10000.0, "yarn", **families.YARN),
}
NAMES = [
    "llama_mha", "llama_bias", "llama_linear", "llama_llama3", "llama_yarn", "llama_yarn_mscale",
    "mistral", "qwen2", "qwen2_tied_window", "qwen2_yarn", "qwen3", "gemma", "gemma2", "gemma3_text",
    "phi3", "phi3_longrope", "phi4mini", "phi4_partial", "smollm3", "olmo2", "granite", "bitnet_silu",
]  # fmt: skip


def converters(checkout):
    sys.path[:0] = [str(checkout), str(checkout / "gguf-py")]
    import conversion
    import gguf

    return conversion, gguf


def write_vocabulary(writer, gguf):
    tokenizer = json.loads((OUT / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["</s>"])
    writer.add_unk_token_id(vocab["<unk>"])


def convert(checkout, folder, path):
    conversion, gguf = converters(checkout)
    with torch.inference_mode():
        hparams = conversion.ModelBase.load_hparams(folder, False)
        base = conversion.get_model_class(conversion.get_model_architecture(hparams, conversion.ModelType.TEXT))

        class Tiny(base):
            model_arch = base.model_arch

            def set_vocab(self):
                write_vocabulary(self.gguf_writer, gguf)

        # What is in bf16 stays so.
        kind = gguf.LlamaFileType.MOSTLY_BF16 if hparams.get("dtype") == "bfloat16" else gguf.LlamaFileType.ALL_F32
        Tiny(folder, kind, path, model_name="tiny", eager=True).write()
    path.chmod(0o644)


def rename_sub_norms(path):
    """The converter knows the names of the first BitNet models, 1bitLLM/bitnet_b1_58-3B and its like, only."""
    names = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    state = load_file(path)
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    save_file(state, path, metadata={"format": "pt"})


def ternary(state):
    """The rounding that the converter of BitNet does."""
    for name, weight in state.items():
        if name.endswith("_proj.weight"):
            scale = 1.0 / weight.abs().mean()
            weight.copy_((weight * scale).round().clamp(-1, 1) / scale)


def check(path, gguf, folder):
    """The file holds the numbers of the folder: the embedding is a sample."""
    reader = gguf.GGUFReader(path)
    found = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    found = gguf.quants.dequantize(found.data, found.tensor_type)
    expected = families.load(folder).get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(found, expected), path


def write_expected(path, models_and_ids, prefixes):
    cases = []
    for model, ids in models_and_ids:
        logits = families.logits_of(model, ids)
        positions = families.positions_of(len(ids))
        cases.append({"input_ids": ids, "positions": positions, "logits": [[round(x, 6) for x in logits[at].tolist()] for at in positions]})
    model = models_and_ids[0][0]
    for prefix in prefixes:
        tokens = families.greedy(model, prefix, distinct=1)
        if tokens is not None:
            break
    else:
        raise SystemExit(f"{path}: no prefix is good")
    about = "made by tests/golden/make_family_ggufs.py; f32, eager attention"
    expected = {"about": about, "cases": cases, "greedy": {"prefix": prefix, "tokens": tokens}}
    path.write_text(json.dumps(expected, separators=(",", ":")) + "\n")


def make(checkout, name):
    path = OUT / f"{name}.gguf"
    source = OUT / name if name != "bitnet_silu" else OUT.parent / "hf" / name
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / name
        shutil.copytree(source, folder)
        # One converter counts the tokens of this file.
        shutil.copy(OUT / "tokenizer.json", folder)
        if name == "bitnet_silu":
            rename_sub_norms(folder / "model.safetensors")
        convert(checkout, folder, path)
    _, gguf = converters(checkout)
    check(path, gguf, source)
    expected = OUT / f"{name}.gguf.json"
    expected.unlink(missing_ok=True)
    if name in SAYS or name == "bitnet_silu":
        if name == "bitnet_silu":
            model = families.load(source)
            with torch.no_grad():
                ternary(dict(model.named_parameters()))
            ids = json.loads((source / "golden.json").read_text())["input_ids"]
        else:
            model = families.changed(families.MODELS[name], source, SAYS[name])
            ids = [case["input_ids"] for case in json.loads((source / "expected.json").read_text())["cases"]]
        generator = families.seeded(name, "gguf")
        prefixes = [[1, *torch.randint(3, 64, (families.PREFIX,), generator=generator).tolist()] for _ in range(200)]
        write_expected(expected, [(model, sequence) for sequence in ids], prefixes)
    size = path.stat().st_size
    assert size < 80_000, f"{path}: {size} bytes"
    print(f"{name}: {size / 1000:.0f} kB" + (", with logits of its own" if expected.exists() else ""))


def make_odd(checkout):
    """Other metadata over the tensors of llama_linear."""
    _, gguf = converters(checkout)
    odd = {
        "llama_factor_without_type": {"llama.rope.scaling.factor": 2.5},
        "llama_scale_linear": {"llama.rope.scale_linear": 2.5},
        "llama_type_none": {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.5},
    }
    reader = gguf.GGUFReader(OUT / "llama_linear.gguf")
    for name, metadata in odd.items():
        path = OUT / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, entry in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture" or ".rope.scaling." in key:
                continue
            kind = entry.types[0]
            sub = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, entry.contents(), kind, sub)
        for key, value in metadata.items():
            writer.add_string(key, value) if isinstance(value, str) else writer.add_float32(key, value)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        path.chmod(0o644)
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB")
    # The other two are llama_linear.
    plain = families.changed(families.MODELS["llama_linear"], OUT / "llama_linear", families.PLAIN_ROPE)
    expected = json.loads((OUT / "llama_linear" / "expected.json").read_text())
    generator = families.seeded("llama_type_none")
    prefixes = [[1, *torch.randint(3, 64, (families.PREFIX,), generator=generator).tolist()] for _ in range(200)]
    write_expected(OUT / "llama_type_none.gguf.json", [(plain, case["input_ids"]) for case in expected["cases"]], prefixes)


if __name__ == "__main__":
    families.logging.set_verbosity_error()
    families.logging.disable_progress_bar()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    checkout = Path(sys.argv[1]).resolve()
    for chosen in sys.argv[2:] or NAMES:
        make(checkout, chosen)
    make_odd(checkout)
