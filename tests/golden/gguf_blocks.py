"""Makes gguf_blocks.json: random blocks of each format and their values, by the `gguf` package (pip install gguf numpy).

Values are written as the bits of their float32 in hexadecimal digits, so that a test can ask for equality. Every bit pattern
of codes and small scales occurs; the numbers in half precision are finite. Formats that the package (0.19) lacks are computed
here, after the layouts of ggml-common.h and dequantize_row_q8_K, _q1_0 and _q2_0 of ggml-quants.c (ggml of August 2026).
"""

import json
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

rng = np.random.default_rng(0)

# Places of numbers in half precision in a block, in bytes.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ1_S": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ4_NL": [0], "IQ4_XS": [0],
    "TQ1_0": [52], "TQ2_0": [64], "Q1_0": [0], "Q2_0": [0],
}  # fmt: skip


def q8_k(blocks):
    """float d; int8_t qs[256]; int16_t bsums[16]"""
    d = blocks[:, :4].copy().view(np.float32)
    return d * blocks[:, 4:260].view(np.int8).astype(np.float32)


def q1_0(blocks):
    """ggml_half d; uint8_t qs[16]: value i is d where bit i % 8 of byte i / 8 is set, else -d"""
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return np.where(bits == 1, d, -d)


def q2_0(blocks):
    """ggml_half d; uint8_t qs[16]: value i is bits 2 * (i % 4) on of byte i / 4, less 1, times d"""
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8)) & 3
    return (codes.reshape(len(blocks), 64).astype(np.int32) - 1).astype(np.float32) * d


# Values and bytes of a block, and the reference.
OWN = {"Q8_K": (256, 292, q8_k), "Q1_0": (128, 18, q1_0), "Q2_0": (64, 18, q2_0)}


def random_blocks(name, count, size):
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    halves = rng.standard_normal((count, len(HALVES.get(name, [])))).astype(np.float16)
    # The last block's are subnormal.
    halves[-1:] *= np.float16(2e-6)
    for place, column in zip(HALVES.get(name, []), halves.T):
        blocks[:, place : place + 2] = column.copy().view(np.uint8).reshape(count, 2)
    if name == "Q8_K":
        blocks[:, :4] = rng.standard_normal(count).astype(np.float32).view(np.uint8).reshape(count, 4)
    if name == "MXFP4":
        # 0 and 1 have subnormal results.
        blocks[:, 0] = [0, 1, 2, 127, 140][:count]
    if name == "NVFP4":
        # Exponents and mantissas of all kinds, without a sign, which the format has not.
        blocks[:, :4] = np.array([0, 3, 0x7E, 0x7F, 0x08, 0x38, 0x41, 0x5D, 1, 7, 9, 0x77])[: 4 * count].reshape(count, 4)
    if name == "IQ1_M":
        # Half precision in the upper four bits of four words: an exponent below 31.
        blocks[:, 55] &= 0xBF
    return blocks


golden = {}
for kind in [t for t in T if t.name not in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "Q1_0")]:
    length, size = GGML_QUANT_SIZES[kind]
    if kind in (T.F32, T.F16, T.BF16):
        values = rng.standard_normal(72).astype(np.float32) * np.exp2(rng.integers(-12, 12, 72)).astype(np.float32)
        values[:4] = [0.0, -0.0, 6e-5, -3e-7]
        rows = values.view(np.uint8) if kind == T.F32 else None
        rows = values.astype(np.float16).view(np.uint8) if kind == T.F16 else rows
        rows = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8) if kind == T.BF16 else rows
        typed = {T.F32: np.float32, T.F16: np.float16, T.BF16: np.uint8}[kind]
        restored = dequantize(rows.view(typed), kind)
    else:
        rows = random_blocks(kind.name, 4 if length < 64 else 3 if length < 256 else 2, size)
        restored = dequantize(rows, kind)
    golden[kind.name] = (rows, restored)
for name, (length, size, reference) in OWN.items():
    rows = random_blocks(name, 2, size)
    golden[name] = (rows, reference(rows))
lines = []
for name, (rows, restored) in golden.items():
    assert np.isfinite(restored).all(), name
    bits = restored.astype(np.float32).reshape(-1).view(np.uint32).astype(">u4").tobytes().hex()
    lines.append(f"{json.dumps(name)}: {json.dumps({'bytes': rows.tobytes().hex(), 'bits': bits}, separators=(',', ':'))}")
(pathlib.Path(__file__).parent / "gguf_blocks.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
