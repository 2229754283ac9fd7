"""Makes gguf_blocks.json: random blocks of each format and their values, by the `gguf` package (pip install gguf numpy).

Values are written as the bits of their float32, so that a test can ask for equality.
"""

import json
import pathlib

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

BLOCKS = 3
rng = np.random.default_rng(0)
golden = {}
for kind in (T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0):
    length, size = GGML_QUANT_SIZES[kind]
    values = rng.standard_normal((BLOCKS, 32)).astype(np.float32)
    values[1] *= 1e-3
    rows = quantize(values, kind).view(np.uint8).reshape(-1)
    if length > 1:
        # Every bit pattern of the quants, not only those that quantizing gives; the scales stay finite.
        noise = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        scales = 4 if kind in (T.Q4_1, T.Q5_1) else 2
        rows = rows.reshape(BLOCKS, size)
        rows[-1, scales:] = noise[-1, scales:]
        rows = rows.reshape(-1)
    restored = dequantize(rows.view(np.float32) if kind == T.F32 else rows.view(np.float16) if kind == T.F16 else rows, kind)
    bits = restored.astype(np.float32).reshape(-1).view(np.uint32)
    golden[kind.name] = {"bytes": rows.tolist(), "bits": bits.tolist()}
text = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in golden.items())
(pathlib.Path(__file__).parent / "gguf_blocks.json").write_text("{\n" + text + "\n}\n")
