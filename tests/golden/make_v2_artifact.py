"""Makes v2_artifact/, v2_compressed.npz and v2_expected.npz: artifacts as the older tools write them, and the weights
they stand for.

    pip install numpy
    python tests/golden/make_v2_artifact.py

Nothing here knows our writer: keys, rounding, manifest and loose files follow the description of format version 2
alone, with what makes readers stumble:

- every kind of weight (1 bit, ternary, 2, 4 and 8 bit, full precision), in sizes that do not fill a byte;
- zero points of every kind: q4 of `k_proj` in layer 0 is symmetric by construction, the rest is not;
- `NAME_shape` as i32 and i64, `NAME_pc_axis` there and not there, one row of zeros;
- a ternary weight that the manifest knows only by its dequantized copy;
- no final norm, no rms_norm_eps, no head_dim; `kv_groups` counts the query heads of a group;
- v2_compressed.npz: the NPZ alone, deflated, with the architecture in `_config_*` arrays.
"""

import json
import pathlib
import shutil

import numpy as np

HERE = pathlib.Path(__file__).parent
VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 21, 30, 13, 2, 5, 1, 6
rng = np.random.default_rng(20261123)
arrays, weights, expected = {}, {}, {}
out = HERE / "v2_artifact"
shutil.rmtree(out, ignore_errors=True)
out.mkdir()


def save(name, array):
    np.save(out / f"{name}.npy", array)
    return f"{name}.npy"


def text(name, scales):
    (out / f"{name}.txt").write_text("".join(f"{float(s)!r}\n" for s in scales))
    return f"{name}.txt"


def entry(name, core, shape, **fields):
    axis = {"index": 0, "name": "out_features"}
    weights[name] = {"shape": list(shape), "scale_axis": axis, "scale_dtype": "float32", **fields}
    if ".self_attn." in name:
        weights[name] |= {"NHEADS": HEADS, "num_attention_heads": HEADS}


def mean_scale(w):
    scale = np.abs(w).mean(axis=1, dtype=np.float64).astype(np.float32)
    return np.where(scale == 0, np.float32(1), scale)


def one_bit(name, core, w, copy=False):
    scale = mean_scale(w)
    signs = w >= 0
    arrays[f"{name}_1bit"] = packed = np.packbits(signs, axis=1)
    arrays[f"{name}_scales"] = scale
    arrays[f"{name}_shape"] = np.array(w.shape, np.int64 if "up" in name else np.int32)
    if "gate" not in name:
        arrays[f"{name}_pc_axis"] = np.array(0, np.int32)
    (out / f"{name}_1bit.bin").write_bytes(packed.tobytes())
    expected[core] = np.where(signs, scale[:, None], -scale[:, None])
    entry(name, core, w.shape, packed=f"{name}_1bit.bin", scales=save(f"{name}_scales", scale), bit_width=1,
          scales_txt=text(f"{name}_scales", scale), packed_format="numpy.packbits(msb_first,row-major)")
    if copy:
        weights[name]["fp32"] = save(f"{name}_fp32", expected[core])
        arrays[f"{name}_fp32"] = expected[core]


def ternary(name, core, w):
    scale = mean_scale(w)
    mean = np.abs(w).mean(axis=1, dtype=np.float64)[:, None]
    codes = np.where(np.abs(w) < 0.5 * mean, 0, np.sign(w)).astype(np.int8)
    arrays[f"{name}_ternary"] = codes
    arrays[f"{name}_scales"] = scale
    expected[core] = codes.astype(np.float32) * scale[:, None]
    weights[name] = {"fp32": save(f"{name}_fp32", expected[core]), "dtype": "fp32"}


def integer(bits, name, core, w):
    low, high = w.min(axis=1), w.max(axis=1)
    scale = ((high - low) / np.float32(2**bits - 1)).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    zero_point = np.round(-low / scale).astype(np.int32)
    q = np.clip(np.round(w / scale[:, None]) + zero_point[:, None], 0, 2**bits - 1).astype(np.uint8)
    arrays[f"{name}_q{bits}"] = q
    arrays[f"{name}_q{bits}_scales"] = scale
    arrays[f"{name}_q{bits}_zero_point"] = zero_point
    expected[core] = (q.astype(np.int32) - zero_point[:, None]).astype(np.float32) * scale[:, None]
    entry(name, core, w.shape, q=save(f"{name}_q{bits}", q), q_scales=save(f"{name}_q{bits}_scales", scale),
          q_scales_txt=text(f"{name}_q{bits}_scales", scale), bit_width=bits,
          q_zero_point=save(f"{name}_q{bits}_zero_point", zero_point), quantization={"type": "perrow_int"})


def full(name, core, w):
    arrays[f"{name}_fp32"] = expected[core] = w
    weights[name] = {"fp32": save(f"{name}_fp32", w), "dtype": "fp32"}


def random(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def symmetric(*shape):
    codes = rng.integers(-8, 8, shape)
    codes[:, 0], codes[:, 1] = -8, 7
    return (codes * 0.125).astype(np.float32)


integer(8, "embedding.weight", "embed_tokens.weight", random(VOCAB, HIDDEN))
for layer in range(LAYERS):
    def names(part):
        return f"transformer.layers.{layer}.{part}.weight", f"layers.{layer}.{part}.weight"

    full(*names("input_layernorm"), 1 + 0.1 * random(HIDDEN))
    full(*names("post_attention_layernorm"), 1 + 0.1 * random(HIDDEN))
    query, key = (HEADS * HEAD_DIM, HIDDEN), (KV_HEADS * HEAD_DIM, HIDDEN)
    if layer == 0:
        one_bit(*names("self_attn.q_proj"), random(*query), copy=True)
        integer(4, *names("self_attn.k_proj"), symmetric(*key))
        ternary(*names("self_attn.v_proj"), random(*key))
        zero_row = random(HIDDEN, HEADS * HEAD_DIM)
        zero_row[3] = 0
        one_bit(*names("self_attn.o_proj"), zero_row)
    else:
        integer(2, *names("self_attn.q_proj"), random(*query))
        integer(4, *names("self_attn.k_proj"), random(*key) + 3)
        constant = random(*key)
        constant[1] = 0.75
        integer(8, *names("self_attn.v_proj"), constant)
        full(*names("self_attn.o_proj"), random(HIDDEN, HEADS * HEAD_DIM))
    one_bit(*names("mlp.gate_proj"), random(FFN, HIDDEN))
    one_bit(*names("mlp.up_proj"), random(FFN, HIDDEN))
    ternary(*names("mlp.down_proj"), random(HIDDEN, FFN))
full("lm_head.weight", "lm_head.weight", random(VOCAB, HIDDEN))

config = {
    "hidden_size": np.array([HIDDEN]),
    "intermediate_size": np.array([FFN]),
    "num_layers": np.array([LAYERS]),
    "num_heads": np.array(HEADS),
    "vocab_size": np.array([VOCAB], np.int32),
    "rope_theta": np.array([500000.0]),
}
arrays |= {f"_config_{key}": value for key, value in config.items()}
manifest = {
    "format_version": 2,
    "model": {"primary_family": "llama", "families": ["llama"], "source_npz": "model_quantized.npz", "notes": ""},
    "architecture": {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "context_length": 256,
        "attention": {"variant": "mqa", "num_heads": HEADS, "kv_groups": HEADS // KV_HEADS, "window_size": None},
        "activation": "swiglu",
        "norm": "rmsnorm",
        "rope": {"base_theta": 500000.0, "scale": 1.0},
    },
    "quantization": {
        "bit_width": "mixed",
        "supported_bit_widths": [1, 2, 4, 8],
        "scale": {"type": "per-row", "dtype": "float32"},
        "activation_dtype": "float32",
        "packing": {
            "1bit": {"layout": "row-major", "endianness": "msb_first", "library": "numpy.packbits", "bits_per_chunk": 8},
            "integer": {"layout": "row-major"},
        },
    },
    "weights": weights,
    **weights,
}
(out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
np.savez(out / "model_quantized.npz", **arrays)
np.savez_compressed(HERE / "v2_compressed.npz", **arrays)
np.savez_compressed(HERE / "v2_expected.npz", **expected)
