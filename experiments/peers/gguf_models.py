#!/usr/bin/env python3
"""Make the GGUF files that llama.cpp and ik_llama.cpp are timed with, and keep them for the next run.

    gguf_models.py --config ../../configs/tinyllama-1.1b.json --type TQ2_0 --cache DIR     # random weights, seed 0
    gguf_models.py --gguf MODEL.gguf --type Q4_0 --cache DIR                               # the weights of a model
    gguf_models.py --gguf MODEL.gguf --type Q4_K_M --mixture --cache DIR                   # as llama-quantize makes it
    gguf_models.py --gguf MODEL.gguf --type IQ4_KS --ik BIN_DIR --cache DIR                # by ik_llama.cpp's llama-quantize

Prints one JSON object: the path, its bytes, how many weights have which type (null where a type is not known to the package
`gguf`, as most of ik_llama.cpp's), and bits per weight with everything but metadata counted. llama.cpp falls back to another type where the columns of a matrix are no multiple of a block, so the type that
was asked for is not always the one it gets.
"""

import argparse
import collections
import ctypes
import hashlib
import json
import os
import pathlib
import subprocess
import sys

# `llama_ftype` of llama.cpp's `include/llama.h`.
FTYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_0": 8, "Q5_1": 9, "Q5_K_S": 16, "Q5_K_M": 17, "Q4_0": 2, "Q4_1": 3,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q2_K": 10, "Q2_K_S": 21, "IQ4_NL": 25, "IQ4_XS": 30,
    "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22, "IQ3_XXS": 23, "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31,
    "IQ1_S": 24, "TQ2_0": 37, "TQ1_0": 36, "Q1_0": 40, "Q2_0": 41,
}
SEED = 0
# A log level of llama.cpp.
ERROR = 4


def head_dim_of(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def writer(config, path, file_type):
    """A GGUF of `path` that has what a Hugging Face `config.json` says, but no vocabulary and no weights."""
    import gguf

    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    out.add_key_length(head_dim_of(config))
    out.add_value_length(head_dim_of(config))
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(head_dim_of(config))
    out.add_rope_freq_base(config["rope_theta"])
    out.add_vocab_size(config["vocab_size"])
    out.add_file_type(file_type)
    return out


def finish_header(out):
    out.write_header_to_file()
    out.write_kv_data_to_file()


def write_random(config, path, seed=SEED):
    """A GGUF of F16 matrices drawn from N(0, 1 / columns), in the shape of a Hugging Face `config.json`."""
    import gguf
    import numpy as np

    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = head_dim_of(config)
    vocab = config["vocab_size"]
    rng = np.random.default_rng(seed)

    out = writer(config, path, gguf.LlamaFileType.MOSTLY_F16)
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
    finish_header(out)
    out.write_tensors_to_file()
    out.close()


def quantize(source, path, kind, mixture=False, embedding=None):
    """Every matrix of `source` as `kind`, embedding and head too unless they have a type of their own; as a `mixture`, with
    those and some others in more bits, which is llama.cpp's default."""
    import llama_cpp

    errors = []

    @llama_cpp.llama_log_callback
    def log(level, text, data):
        if level == ERROR and text.strip(b"=\n "):
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[kind]
    params.allow_requantize = True
    params.pure = not mixture
    if embedding:
        import gguf

        params.token_embedding_type = params.output_tensor_type = gguf.GGMLQuantizationType[embedding]
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params))
    # `log` ends with this function.
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))
    if failed:
        sys.exit(f"llama.cpp could not make {kind} of {source}: {errors[-1] if errors else 'it does not say why'}")


def quantize_by_ik(bin_dir, source, path, kind, mixture=False, embedding=None):
    """As [`quantize`], by ik_llama.cpp, which has types of its own."""
    command = [str(pathlib.Path(bin_dir) / "llama-quantize"), "--allow-requantize"]
    command += [] if mixture else ["--pure"]
    command += ["--token-embedding-type", embedding.lower(), "--output-tensor-type", embedding.lower()] if embedding else []
    done = subprocess.run([*command, str(source), str(path), kind], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ik_llama.cpp could not make {kind} of {source}: {(done.stderr or done.stdout).strip()[-500:]}")


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


def name_of(path):
    """A name that changes with the file."""
    path = pathlib.Path(path)
    stat = path.stat()
    return f"{path.stem}-{hashlib.sha256(f'{path.resolve()} {stat.st_size} {stat.st_mtime_ns}'.encode()).hexdigest()[:8]}"


def source_of(cache, config=None, gguf_file=None):
    """The GGUF that is quantized, `gguf_file` or one with random weights in the shape of `config` (paths), and its name."""
    if gguf_file:
        return pathlib.Path(gguf_file), name_of(gguf_file)
    text = pathlib.Path(config).read_text()
    name = f"{pathlib.Path(config).stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-random-{SEED}"
    return keep(pathlib.Path(cache) / f"{name}.gguf", lambda path: write_random(json.loads(text), path)), name


def model(kind, cache, config=None, gguf_file=None, mixture=False, embedding=None, ik=None):
    """The path of a GGUF of `kind`, made of [`source_of`] by llama.cpp, or by the ik_llama.cpp in the folder `ik`."""
    source, name = source_of(cache, config, gguf_file)
    if ik:
        version, make = "ik", lambda path: quantize_by_ik(ik, source, path, kind, mixture, embedding)
    else:
        import llama_cpp

        version, make = llama_cpp.__version__, lambda path: quantize(source, path, kind, mixture, embedding)
    shown = f"{kind}-mixture" if mixture else kind
    shown += f"-{embedding}" if embedding else ""
    return keep(pathlib.Path(cache) / f"{name}-{shown}-{version}.gguf", make)


def weights_by_type(path):
    """How many elements of matrices have which type, the most frequent first. A type that `gguf` does not know is a
    `ValueError`."""
    import gguf

    count = collections.Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            count[tensor.tensor_type.name] += int(tensor.n_elements)
    return dict(count.most_common())


def bits_per_weight(path, source):
    """Of all weights together, norms included. The metadata of `source`, which has the same weights, are left out: `path` has
    as many, but `gguf` may not know its types."""
    import gguf

    reader = gguf.GGUFReader(source)
    return 8 * (path.stat().st_size - reader.data_offset) / sum(int(tensor.n_elements) for tensor in reader.tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="a Hugging Face config.json: random weights in that shape")
    source.add_argument("--gguf", help="a model in GGUF")
    parser.add_argument("--type", required=True, help=f"one of {', '.join(FTYPES)}, or with --ik a type of its llama-quantize")
    parser.add_argument("--mixture", action="store_true", help="embeddings and some matrices in more bits, as llama.cpp does by default")
    parser.add_argument("--embedding", metavar="TYPE", help="type of embedding and head")
    parser.add_argument("--ik", metavar="BIN_DIR", help="folder with the llama-quantize of ik_llama.cpp, to quantize by that")
    parser.add_argument("--cache", required=True, help="folder that keeps the files")
    args = parser.parse_args()
    if not args.ik and args.type not in FTYPES:
        parser.error(f"--type {args.type}: llama.cpp has {', '.join(FTYPES)}")
    path = model(args.type, args.cache, args.config, args.gguf, args.mixture, args.embedding, args.ik)
    source, _ = source_of(args.cache, args.config, args.gguf)
    try:
        weights = weights_by_type(path)
    except ValueError:
        weights = None
    print(json.dumps({
        "path": str(path),
        "bytes": path.stat().st_size,
        "weights": weights,
        "bits_per_weight": bits_per_weight(path, source),
    }))


if __name__ == "__main__":
    main()
