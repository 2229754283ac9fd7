#!/usr/bin/env python3
"""Hold exported GGUF files against llama.cpp: the same weights to the bit, and the same perplexity.

    gguf_exports.py MODEL --types q4_0 q8_0 --text ../../data/austen/persuasion.txt --work DIR

MODEL is anything that `bitllama-train quantize --model` takes. For each type (or mix: `--types q4_k_m`) it is rounded to the scheme
`gguf:TYPE`, exported with `--exact`, and then

- every tensor that ggml dequantizes is compared with the rounded weights (`export --to hf`), bit by bit, rows of
  `q_proj` and `k_proj` put back into Hugging Face's order where the file has llama.cpp's;
- llama.cpp's perplexity (with 8-bit activations, by its protocol) is set beside that of `bitllama eval` with f32 and with int8
  activations;
- with --full also that of a GGUF of the same numbers in F32, with which llama.cpp computes in f32: what is left of the difference
  then is llama.cpp's rounding of activations.

Ends with 1 if a weight differs, a perplexity is farther away than --within, or one of F32 farther than 0.05 %.
"""

import argparse
import ctypes
import json
import math
import pathlib
import shutil
import subprocess
import sys

import llama_cpp
import numpy as np

import llama_cpp_rows as rows

ROOT = pathlib.Path(__file__).resolve().parents[2]
TYPES = "q1_0 tq1_0 tq2_0 q2_0 q2_k q3_k q4_0 iq4_nl q4_k q4_1 q5_0 q5_k q5_1 q6_k q8_0".split()
MIXES = "q2_k_s q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m".split()
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_norm": "post_attention_layernorm",
}
# Gemma's: norms behind attention and feed-forward layer too.
GEMMA = {
    **NAMES, "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


class Traits(ctypes.Structure):
    """`ggml_type_traits` of ggml.h, as far as it is read."""
    _fields_ = [
        ("type_name", ctypes.c_char_p), ("blck_size", ctypes.c_int64), ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t), ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


class InitParams(ctypes.Structure):
    """`gguf_init_params` of gguf.h."""
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


class File:
    """A GGUF as llama.cpp reads it, its values dequantized by ggml itself: the Python package knows fewer types."""

    def __init__(self, path):
        library = next(pathlib.Path(llama_cpp.__file__).parent.glob("lib/libggml-base.*"))
        self.ggml = ctypes.CDLL(str(library))
        for name, kind in {
            "gguf_init_from_file": ctypes.c_void_p, "gguf_get_n_tensors": ctypes.c_int64, "gguf_get_tensor_name": ctypes.c_char_p,
            "gguf_get_tensor_offset": ctypes.c_size_t, "gguf_get_tensor_size": ctypes.c_size_t, "gguf_get_data_offset": ctypes.c_size_t,
            "gguf_get_tensor_type": ctypes.c_int, "gguf_find_key": ctypes.c_int64, "gguf_get_val_u32": ctypes.c_uint32,
            "gguf_get_val_str": ctypes.c_char_p, "ggml_get_type_traits": ctypes.POINTER(Traits),
        }.items():
            getattr(self.ggml, name).restype = kind
        self.ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
        self.context = ctypes.c_void_p(self.ggml.gguf_init_from_file(str(path).encode(), InitParams(True, None)))
        if not self.context:
            sys.exit(f"{path}: llama.cpp cannot read it")
        self.bytes = np.memmap(path, np.uint8, "r")

    def key(self, name, kind):
        id = ctypes.c_int64(self.ggml.gguf_find_key(self.context, name.encode()))
        found = getattr(self.ggml, f"gguf_get_val_{kind}")(self.context, id)
        return found.decode() if kind == "str" else found

    def tensors(self):
        """Name, type, bytes and values of each."""
        start = self.ggml.gguf_get_data_offset(self.context)
        for index in range(self.ggml.gguf_get_n_tensors(self.context)):
            index = ctypes.c_int64(index)
            name = self.ggml.gguf_get_tensor_name(self.context, index).decode()
            size = self.ggml.gguf_get_tensor_size(self.context, index)
            offset = start + self.ggml.gguf_get_tensor_offset(self.context, index)
            traits = self.ggml.ggml_get_type_traits(self.ggml.gguf_get_tensor_type(self.context, index)).contents
            data = np.ascontiguousarray(self.bytes[offset:offset + size])
            kind = traits.type_name.decode()
            if kind == "f32":
                values = data.view(np.float32)
            else:
                values = np.empty(size // traits.type_size * traits.blck_size, np.float32)
                traits.to_float(data.ctypes.data, values.ctypes.data, values.size)
            yield name, kind, size, values


def hf_name(name, names):
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"
    return f"{names[parts[0]]}.{parts[1]}"


def differing(path, folder):
    """Tensors of a GGUF whose values are not those of a Hugging Face directory to the bit."""
    from safetensors.numpy import load_file

    file = File(path)
    architecture = file.key("general.architecture", "str")
    names = GEMMA if architecture.startswith("gemma") else NAMES
    expected = load_file(folder / "model.safetensors")
    wrong, size, types = [], 0, {}
    for tensor, kind, tensor_bytes, values in file.tensors():
        size += tensor_bytes
        types[kind] = types.get(kind, 0) + values.size
        if tensor.startswith("rope_"):
            continue
        name = hf_name(tensor, names)
        wanted = expected.pop(name)
        part = tensor.split(".")[2] if tensor.startswith("blk.") else ""
        if architecture == "llama" and part in ("attn_q", "attn_k"):
            heads = file.key(f"llama.attention.head_count{'_kv' if part == 'attn_k' else ''}", "u32")
            wanted = wanted.reshape(heads, 2, wanted.shape[0] // heads // 2, -1).swapaxes(1, 2)
        if architecture.startswith("gemma") and "norm" in name:
            # Hugging Face's files hold the factor less 1.
            wanted = wanted + np.float32(1)
        # Zeros of both signs are equal.
        if not np.array_equal(values, wanted.reshape(-1)):
            wrong.append(tensor)
    weights = sum(types.values())
    shares = ", ".join(f"{count / weights:.0%} {kind}" for kind, count in types.items() if count * 200 > weights)
    return wrong + sorted(expected), size * 8 / weights, shares


def llama_cpp_perplexity(path, text, args):
    tokens, bos = rows.gguf_tokens(path, text.read_text(encoding="utf-8"))
    chunks = [tokens[i * args.ctx:(i + 1) * args.ctx] for i in range(args.chunks)]
    held = rows.Text("text", chunks, bos)
    nll = []
    for chunk, logits in zip(chunks, rows.each_chunk(path, held)):
        for row, target in zip(logits, chunk[args.ctx // 2 + 1:]):
            nll.append(-rows.log_softmax(row)[target])
    return math.exp(np.mean(nll))


def ours(model, args, activations):
    command = [args.bitllama, "eval", "--artifact", model, "--text", args.text, "--ctx", args.ctx, "--chunks", args.chunks]
    return json.loads(run(*command, "--activations", activations, "--json"))["perplexity"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--types", nargs="+", default=TYPES, metavar="TYPE", help=f"also {chr(32).join(MIXES)}")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--within", type=float, default=0.007, help="largest relative difference of perplexities (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="also compare llama.cpp on the same numbers in F32")
    parser.add_argument("--keep", action="store_true", help="keep what was written")
    parser.add_argument("--bitllama", default=ROOT / "target/release/bitllama")
    parser.add_argument("--train", default=ROOT / "target/release/bitllama-train")
    args = parser.parse_args()
    args.text = args.text.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    print(f"| type | bits | types | tensors that differ | bitllama, f32 activations | int8 | llama.cpp | to f32 | to int8 |{' of F32 |' if args.full else ''}")
    print(f"|---|---|---|---|---|---|---|---|---|{'---|' if args.full else ''}")
    failed = False
    for kind in args.types:
        artifact, file, folder = (args.work.resolve() / f"{kind}{suffix}" for suffix in ("", ".gguf", "-hf"))
        run(args.train, "quantize", "--model", args.model, "--scheme", f"gguf:{kind}", "--output", artifact)
        to = "gguf" if kind in MIXES else f"gguf:{kind}"
        run(args.train, "export", "--from", artifact, "--to", to, "--exact", "--output", file)
        run(args.train, "export", "--from", artifact, "--to", "hf", "--output", folder)
        wrong, bits, shares = differing(file, folder)
        exact, int8, theirs = ours(artifact, args, "f32"), ours(artifact, args, "int8"), llama_cpp_perplexity(file, args.text, args)
        apart = theirs / exact - 1, theirs / int8 - 1
        failed |= bool(wrong) or abs(apart[0]) > args.within
        print(f"| {kind} | {bits:.3f} | {shares} | {', '.join(wrong) or 0} | {exact:.4f} | {int8:.4f} | {theirs:.4f} | {apart[0]:+.3%} | {apart[1]:+.3%} |", end="", flush=True)
        if args.full:
            full = args.work.resolve() / f"{kind}-f32.gguf"
            run(args.train, "export", "--from", folder, "--to", "gguf", "--dtype", "f32", "--output", full)
            rest = llama_cpp_perplexity(full, args.text, args) / exact - 1
            failed |= abs(rest) > 0.0005
            print(f" {rest:+.3%} |", end="", flush=True)
            full.unlink()
        print(flush=True)
        if not args.keep:
            file.unlink()
            shutil.rmtree(artifact)
            shutil.rmtree(folder)
    sys.exit(failed)


if __name__ == "__main__":
    main()
