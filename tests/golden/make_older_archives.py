"""Makes older_archives/: archives in the layouts of each exporter among the older tools, and the weights they stand for.

    pip install numpy
    python tests/golden/make_older_archives.py

Nothing here knows our writer or theirs: keys and rounding follow the description of format version 2, names and omissions what
their scripts leave in an archive. One tiny Llama stands in

- `binary.npz`: `_config_*` arrays with key-value heads, norms under their own names (`quantize_real_model.py`);
- `q2.npz`, `q4.npz`, `q8.npz`: no architecture; the embedding's signs beside its integers (`export_model_1bit.py`);
- `q4/any_manifest.json` with loose files, and the NPZ named by a path of another machine; `relu` and `layernorm`, which their
  exporter of manifests writes where nobody says otherwise;
- `ternary.npz`: `_ternary`, deflated (`distillation.py`), with a head that is the embedding's copy;
- `full.npz`: f32 alone;
- `norm/model.npz` and `norm/manifest.json`: the final norm and tokenizer are there, architecture and all;
- `easy.npz`: attention is left out (`easy_run.py`);
- `automated.npz`: names and transposed matrices of `convert_models_automated.py`; `student.npz`: those of `distillation.py`.

`final_norm.npy` is the norm that most of them lack; `expected.npz` has each archive's weights under `ARCHIVE/NAME`.
"""

import json
import pathlib
import shutil

import numpy as np

OUT = pathlib.Path(__file__).parent / "older_archives"
VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 12, 16, 20, 1, 2, 1, 8
rng = np.random.default_rng(20261130)
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir()


def random(*shape):
    return rng.standard_normal(shape).astype(np.float32)


matrices, norms = {"embedding.weight": random(VOCAB, HIDDEN)}, {}
for layer in range(LAYERS):
    block = f"transformer.layers.{layer}"
    for part, shape in {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }.items():
        matrices[f"{block}.{part}.weight"] = random(*shape)
    for part in ["input_layernorm", "post_attention_layernorm"]:
        norms[f"{block}.{part}.weight"] = 1 + 0.1 * random(HIDDEN)
matrices["lm_head.weight"] = random(VOCAB, HIDDEN)
final_norm = 1 + 0.1 * random(HIDDEN)
expected = {}


def ours(name):
    return name.removeprefix("transformer.").replace("embedding.", "embed_tokens.")


def mean_scale(w):
    scale = np.abs(w).mean(axis=1, dtype=np.float64).astype(np.float32)
    return np.where(scale == 0, np.float32(1), scale)


def signs(name, w):
    scale = mean_scale(w)
    arrays = {"_1bit": np.packbits(w >= 0, axis=1), "_shape": np.array(w.shape), "_scales": scale}
    return {name + suffix: array for suffix, array in arrays.items()}, np.where(w >= 0, scale[:, None], -scale[:, None])


def ternary(name, w):
    scale = mean_scale(w)
    codes = np.where(np.abs(w) < 0.5 * scale[:, None], 0, np.sign(w)).astype(np.int8)
    arrays = {"_ternary": codes, "_shape": np.array(w.shape), "_scales": scale, "_pc_axis": np.array(0)}
    return {name + suffix: array for suffix, array in arrays.items()}, codes.astype(np.float32) * scale[:, None]


def integers(bits, name, w):
    low, high = w.min(axis=1), w.max(axis=1)
    scale = ((high - low) / np.float32(2**bits - 1)).astype(np.float32)
    point = np.round(-low / scale).astype(np.int32)
    q = np.clip(np.round(w / scale[:, None]) + point[:, None], 0, 2**bits - 1).astype(np.uint8)
    arrays = {f"_q{bits}": q, "_shape": np.array(w.shape), f"_q{bits}_scales": scale, f"_q{bits}_zero_point": point}
    values = (q.astype(np.int32) - point[:, None]).astype(np.float32) * scale[:, None]
    return {name + suffix: array for suffix, array in arrays.items()}, values


def full(name, w):
    return {f"{name}_fp32": w}, w


def archive(key, form, norm_suffix="_fp32", weights=matrices, norm=final_norm):
    """Arrays of an archive; what it stands for goes into `expected`, with the final norm that is going to be given."""
    arrays = {name + norm_suffix: value for name, value in norms.items()}
    for name, w in weights.items():
        more, expected[f"{key}/{ours(name)}"] = form(name, w)
        arrays |= more
    expected.update({f"{key}/{ours(name)}": value for name, value in norms.items()})
    expected[f"{key}/norm.weight"] = norm
    return arrays


def manifest(folder, arrays, source, architecture):
    """A manifest with its loose files, as `export_quantized_for_apl.py` makes them of an NPZ."""
    folder.mkdir(exist_ok=True)
    weights = {}
    for key, array in arrays.items():
        axis = {"index": 0, "name": "out_features"}
        if key.endswith("_1bit"):
            name = key.removesuffix("_1bit")
            array.tofile(folder / f"{key}.bin")
            np.save(folder / f"{name}_scales.npy", arrays[f"{name}_scales"])
            np.savetxt(folder / f"{name}_scales.txt", arrays[f"{name}_scales"])
            weights[name] = {"packed": f"{key}.bin", "shape": list(arrays[f"{name}_shape"].tolist()), "scale_axis": axis,
                             "scales": f"{name}_scales.npy", "scales_txt": f"{name}_scales.txt", "bit_width": 1}
        elif key.endswith("_fp32"):
            np.save(folder / f"{key}.npy", array)
            weights[key.removesuffix("_fp32")] = {"fp32": f"{key}.npy", "dtype": "fp32"}
        elif key[-3:] in ("_q2", "_q4", "_q8"):
            name, bits = key[:-3], int(key[-1])
            for suffix in ["", "_scales", "_zero_point"]:
                np.save(folder / f"{key}{suffix}.npy", arrays[key + suffix])
            np.savetxt(folder / f"{key}_scales.txt", arrays[f"{key}_scales"])
            weights[name] = {"q": f"{key}.npy", "shape": list(arrays[f"{name}_shape"].tolist()), "bit_width": bits,
                             "q_scales": f"{key}_scales.npy", "q_scales_txt": f"{key}_scales.txt",
                             "q_zero_point": f"{key}_zero_point.npy", "scale_axis": axis,
                             "quantization": {"type": "perrow_int", "bits": bits}}
    model = {"primary_family": "llama", "families": ["llama"], "source_npz": source}
    return {"format_version": 2, "model": model, "architecture": architecture, "weights": weights, **weights}


def dump(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


sizes = {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_layers": LAYERS, "num_heads": HEADS,
         "num_kv_heads": KV_HEADS, "vocab_size": VOCAB, "rope_theta": 10000.0}
config = {f"_config_{key}": np.array([value]) for key, value in sizes.items()}
np.savez(OUT / "binary.npz", **config, **archive("binary", signs, norm_suffix=""))
for bits in [2, 4, 8]:
    arrays = archive(f"q{bits}", lambda name, w: integers(bits, name, w))
    # Their exporter forgets that it was not asked for signs.
    arrays |= signs("embedding.weight", matrices["embedding.weight"])[0]
    np.savez(OUT / f"q{bits}.npz", **arrays)
    if bits == 4:
        loose = {key: array for key, array in arrays.items() if not key.startswith("embedding.weight_1bit")}
        architecture = {"families": ["llama"], "num_layers": LAYERS, "attention": {"variant": "full"}, "activation": "relu",
                        "norm": "layernorm"}
        dump(OUT / "q4" / "any_manifest.json", manifest(OUT / "q4", loose, "models\\nano_q4.npz", architecture))
copied = matrices | {"lm_head.weight": matrices["embedding.weight"]}
np.savez_compressed(OUT / "ternary.npz", **archive("ternary", ternary, weights=copied))
np.savez(OUT / "full.npz", **archive("full", full))
complete = archive("norm", signs) | {"norm.weight_fp32": final_norm}
architecture = {"num_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": FFN, "vocab_size": VOCAB, "context_length": 64,
                "attention": {"variant": "mqa", "num_heads": HEADS, "kv_groups": KV_HEADS, "head_dim": HEAD_DIM},
                "activation": "swiglu", "norm": "rmsnorm", "rms_norm_eps": 1e-5, "rope": {"base_theta": 10000.0, "scale": 1.0}}
dump(OUT / "norm" / "manifest.json", manifest(OUT / "norm", complete, "model.npz", architecture))
np.savez(OUT / "norm" / "model.npz", **complete)
easy = archive("easy", signs)
np.savez(OUT / "easy.npz", **config, **{key: array for key, array in easy.items() if ".self_attn." not in key})
for key in [key for key in expected if key.startswith("easy/") and ".self_attn." in key]:
    expected[key] = expected[key.replace("easy/", "norm/")]
automated = {}
for name, w in [("layer_0_self_attn_q_proj_weight", random(HIDDEN, HIDDEN)), ("lm_head_weight", random(HIDDEN, VOCAB))]:
    automated |= integers(4, name, w)[0]
np.savez_compressed(OUT / "automated.npz", **automated)
student = signs("transformer.layers.0.self_attn.in_proj_weight", random(3 * HIDDEN, HIDDEN))[0]
student |= full("transformer.layers.0.linear1.bias", random(FFN))[0]
np.savez_compressed(OUT / "student.npz", **student)
np.save(OUT / "final_norm.npy", final_norm)
dump(OUT / "config.json", {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
})
words = {"model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(VOCAB)}, "unk_token": "t0"}}
dump(OUT / "tokenizer.json", {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                              "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, **words})
shutil.copy(OUT / "tokenizer.json", OUT / "norm" / "tokenizer.json")
np.savez_compressed(OUT / "expected.npz", **expected)
