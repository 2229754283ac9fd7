#!/usr/bin/env python3
"""Write a Hugging Face directory of a Llama as a GGUF in F32, which holds F16 and BF16 exactly.

    hf_to_gguf.py DIR OUT.gguf

The file has no vocabulary: texts go through the directory's own `tokenizer.json`, with the BOS rule of `bitllama eval`,
so that the tokens are those that bitllama is measured on.
"""

import argparse
import hashlib
import json
import pathlib
import sys

from gguf_models import finish_header, head_dim_of, keep, name_of, writer

NEEDED = ["hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "vocab_size"]


def read_config(directory):
    path = directory / "config.json"
    if not path.is_file():
        sys.exit(f"{directory}: no config.json, so this is no Hugging Face directory")
    try:
        config = json.loads(path.read_text())
    except ValueError as cause:
        sys.exit(f"{path}: {cause}")
    if absent := [key for key in NEEDED if key not in config]:
        sys.exit(f"{path}: no {', '.join(absent)} in it")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        sys.exit(f"{path}: scaled rotary positions are not converted; give a GGUF in place of the directory")
    if config.get("model_type") not in ("llama", "mistral") or config.get("sliding_window") or config.get("hidden_act") != "silu":
        sys.exit(f"{path}: only Llamas (silu, no sliding window) are converted; give a GGUF in place of the directory")
    config["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
    return config


def in_f32(tensor):
    import numpy as np

    raw = tensor.mmap_bytes()
    if tensor.dtype == "BF16":
        values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = raw.view({"F16": np.float16, "F32": np.float32}[tensor.dtype]).astype(np.float32)
    return values.reshape(tensor.shape)


def interleaved(rows, heads, head_dim):
    """Rows of queries or keys as llama.cpp turns them: the two rows of a pair stand beside each other, where Hugging
    Face has a head's first halves of all pairs, then the second ones."""
    return rows.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write(directory, path):
    import gguf
    import numpy as np

    config = read_config(directory)
    tied = config.get("tie_word_embeddings", False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config.get("num_key_value_heads") or config["num_attention_heads"]}
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            found = gguf.utility.SafetensorsLocal(file).tensors
        except (ValueError, KeyError) as cause:
            sys.exit(f"{file}: not a whole safetensors file: {cause}")
        for name, tensor in found.items():
            if tensor.data_range.offset + tensor.data_range.size > file.stat().st_size:
                sys.exit(f"{file}: it ends before {name} does; fetch it again")
            if tied and name == "lm_head.weight":
                continue
            short = names.get_name(name, try_suffixes=(".weight",))
            if short is None or tensor.dtype not in ("F16", "BF16", "F32"):
                sys.exit(f"{file}: {name} ({tensor.dtype}) has no place in llama.cpp's Llama; give a GGUF in place of the directory")
            tensors[short] = tensor
    if not tensors:
        sys.exit(f"{directory}: no *.safetensors in it")

    out = writer(config, path, gguf.LlamaFileType.ALL_F32)
    out.add_tokenizer_model("none")
    for short, tensor in tensors.items():
        out.add_tensor_info(short, tensor.shape, np.dtype(np.float32), 4 * int(np.prod(tensor.shape)))
    finish_header(out)
    out.write_ti_data_to_file()
    for short, tensor in tensors.items():
        values = in_f32(tensor)
        kind = short.split(".")[-2]
        out.write_tensor_data(interleaved(values, heads[kind], head_dim_of(config)) if kind in heads else values)
    out.close()


def convert(directory, cache):
    """The path of the GGUF in `cache`, which is written unless it is there."""
    read_config(directory)
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    key = hashlib.sha256(" ".join(map(name_of, files)).encode()).hexdigest()[:8]
    return keep(pathlib.Path(cache) / f"{directory.resolve().name}-{key}-F32.gguf", lambda path: write(directory, path))


def tokens(directory, text):
    """Tokens of `text`, and the BOS that the tokenizer puts in front of a text by itself, if any."""
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        sys.exit(f"{directory}: no tokenizer.json, which texts need")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as cause:  # The package raises no class of its own.
        sys.exit(f"{path}: {cause}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bos = read_config(directory).get("bos_token_id")
    return tokenizer.encode(text).ids, bos if tokenizer.encode("a").ids[:1] == [bos] else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    keep(args.out, lambda path: write(args.directory, path))


if __name__ == "__main__":
    main()
