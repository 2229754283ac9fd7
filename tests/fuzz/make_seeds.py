"""Makes the seeds of tests/fuzz/corpus that are no text: a GGUF of each block format, NumPy arrays, a teacher's cache.

    pip install gguf numpy
    python tests/fuzz/make_seeds.py

Seeds that are text are kept as they are; files of the repository that are seeds too stand in tests/fuzz/targets.rs.
"""

import json
import struct
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, quants

CORPUS = Path(__file__).parent / "corpus"


def place(target, name):
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    return CORPUS / target / name


def gguf():
    """A Llama of one block, 32 wide; its tokenizer has 12 tokens."""
    writer = GGUFWriter(place("gguf", "tiny.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<s>", "</s>", "a", "b", "Ġ", "1", "2", "ab", "Ġab", "12", "c", "<|x|>"])
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4])
    writer.add_token_merges(["a b", "Ġ ab", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)
    matrices = [
        ("token_embd", 12, Type.F16),
        ("blk.0.attn_q", 32, Type.Q8_0),
        ("blk.0.attn_k", 16, Type.Q4_0),
        ("blk.0.attn_v", 16, Type.Q4_1),
        ("blk.0.attn_output", 32, Type.Q5_0),
        ("blk.0.ffn_gate", 32, Type.Q5_1),
        ("blk.0.ffn_up", 32, Type.BF16),
        ("blk.0.ffn_down", 32, Type.F32),
    ]
    for name, rows, kind in matrices:
        values = rng.standard_normal((rows, 32)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", quants.quantize(values, kind), raw_dtype=kind)
    for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def arrays():
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(place("npy", "f32.npy"), numbers)
    np.save(place("npy", "i8.npy"), np.array([-1, 0, 1], np.int8))
    np.savez(place("npz", "stored.npz"), a=numbers, b=np.arange(3))
    np.savez_compressed(place("npz", "deflated.npz"), a=np.zeros((40, 40), np.float16))


def teacher_cache():
    """Three tokens of each of eight positions, in two rows."""
    index = {
        "format_version": 1,
        "top_k": 3,
        "dtype": "f16",
        "temperature": 1.0,
        "vocab_size": 50,
        "sequence_length": 4,
        "rows": 2,
        "rows_per_shard": 2,
        "tokenizer_sha256": "",
        "data": None,
        "teacher": {"path": "teacher", "bytes": 0},
        "evaluation": {
            "protocol": None,
            "perplexity": {
                "perplexity": 2.0,
                "perplexity_error": 0.1,
                "nll": 0.7,
                "tokens_scored": 10,
                "chunks": 1,
            },
        },
    }
    place("teacher-index", "index.json").write_text(json.dumps(index, indent=2) + "\n")
    tokens = struct.pack("<24H", *(n % 50 for n in range(24)))
    logarithms = np.log(np.tile([0.5, 0.2, 0.1], 8)).astype(np.float16).tobytes()
    rests = np.log(np.full(8, 0.2, np.float32)).tobytes()
    place("teacher-rows", "rows-000000.bin").write_bytes(tokens + logarithms + rests)


gguf()
arrays()
teacher_cache()
