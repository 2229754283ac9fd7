#!/usr/bin/env python3
"""Make the GGUF files that llama.cpp is timed with, and keep them for the next run.

    gguf_models.py --config ../../configs/tinyllama-1.1b.json --type TQ2_0 --cache DIR     # random weights, seed 0
    gguf_models.py --gguf MODEL.gguf --type Q4_0 --cache DIR                               # the weights of a model

Prints one JSON object: the path, its bytes, and how many weights have which type. llama.cpp falls back to another type
where the columns of a matrix are no multiple of a block, so the type that was asked for is not always the one it gets.
"""

import argparse
import collections
import ctypes
import hashlib
import json
import os
import pathlib
import sys

FTYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "TQ2_0": 37}
SEED = 0


def write_random(config, path, seed=SEED):
    """A GGUF of F16 matrices drawn from N(0, 1 / columns), in the shape of a Hugging Face `config.json`."""
    import gguf
    import numpy as np

    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    vocab = config["vocab_size"]
    rng = np.random.default_rng(seed)

    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(hidden)
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(ffn)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(head_dim)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_vocab_size(vocab)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    # The vocabulary is there only because the loader wants one: no text is ever tokenized.
    kinds = gguf.TokenType
    out.add_tokenizer_model("llama")
    out.add_token_list([b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)] + [b"w%d" % i for i in range(vocab - 259)])
    out.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * (vocab - 259))
    out.add_token_scores([0.0] * vocab)

    def add(name, *shape):
        if len(shape) == 1:
            return out.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
        values = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[1], dtype=np.float32)
        out.add_tensor(f"{name}.weight", values.astype(np.float16))

    add("token_embd", vocab, hidden)
    if not config["tie_word_embeddings"]:
        add("output", vocab, hidden)
    add("output_norm", hidden)
    for i in range(config["num_hidden_layers"]):
        add(f"blk.{i}.attn_norm", hidden)
        add(f"blk.{i}.attn_q", heads * head_dim, hidden)
        add(f"blk.{i}.attn_k", kv_heads * head_dim, hidden)
        add(f"blk.{i}.attn_v", kv_heads * head_dim, hidden)
        add(f"blk.{i}.attn_output", hidden, heads * head_dim)
        add(f"blk.{i}.ffn_norm", hidden)
        add(f"blk.{i}.ffn_gate", ffn, hidden)
        add(f"blk.{i}.ffn_up", ffn, hidden)
        add(f"blk.{i}.ffn_down", hidden, ffn)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def quantize(source, path, kind):
    """Every matrix of `source` as `kind`, the embeddings too (llama.cpp would keep those in more bits)."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def no_log(level, text, data):
        pass

    llama_cpp.llama_log_set(no_log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[kind]
    params.allow_requantize = True
    params.pure = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not make {kind} of {source}")


def keep(path, make):
    """`path`, which `make` writes unless it is there. A run that is cut off leaves no half-written file behind."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            make(partial)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def model(kind, cache, config=None, gguf_file=None):
    """The path of a GGUF of `kind`, from `gguf_file` or with random weights in the shape of `config` (paths)."""
    import llama_cpp

    cache = pathlib.Path(cache)
    if gguf_file:
        source = pathlib.Path(gguf_file)
        stat = source.stat()
        name = f"{source.stem}-{hashlib.sha256(f'{source.resolve()} {stat.st_size} {stat.st_mtime_ns}'.encode()).hexdigest()[:8]}"
    else:
        text = pathlib.Path(config).read_text()
        name = f"{pathlib.Path(config).stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        source = keep(cache / f"{name}-random-{SEED}.gguf", lambda path: write_random(json.loads(text), path))
        name += f"-random-{SEED}"
    return keep(cache / f"{name}-{kind}-{llama_cpp.__version__}.gguf", lambda path: quantize(source, path, kind))


def weights_by_type(path):
    """How many elements of matrices have which type, the most frequent first."""
    import gguf

    count = collections.Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            count[tensor.tensor_type.name] += int(tensor.n_elements)
    return dict(count.most_common())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="a Hugging Face config.json: random weights in that shape")
    source.add_argument("--gguf", help="a model in GGUF")
    parser.add_argument("--type", required=True, choices=FTYPES)
    parser.add_argument("--cache", required=True, help="folder that keeps the files")
    args = parser.parse_args()
    path = model(args.type, args.cache, args.config, args.gguf)
    print(json.dumps({"path": str(path), "bytes": path.stat().st_size, "weights": weights_by_type(path)}))


if __name__ == "__main__":
    main()
