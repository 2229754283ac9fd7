#!/usr/bin/env python3
"""Makes tests/golden/families: a tiny random model of every family, with what `transformers` computes of it.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_families.py [NAME ...]

Each folder has

- config.json as `save_pretrained` of transformers 5 writes it;
- config_4.json, the same model as transformers 4 spelled it (`rope_theta`, `rope_scaling`, `torch_dtype`), with and without the keys that
  published models of the family have or lack: what most people have on disk;
- model.safetensors, weights in bf16;
- expected.json: `cases`, each a sequence (longer than every window, beyond every threshold of a rotary scaling) with its logits at some
  positions, computed in f32 with eager attention and stored to six decimals; and `greedy`, a prefix with the 16 tokens that follow,
  each the largest logit by a margin that no rounding closes.

The tokenizer is one for all, families/tokenizer.json. families/refused has configs of models that are not read.

Weights are such that every feature shows: norm weights are not all one, biases not zero. A row names the changes of its config or weights
that must move the logits (`tells`), and those that must not (`same`); the script fails where it is otherwise. Seeds are fixed:
running it again gives the same bytes (on one CPU type; another may differ in the last digits of the logits).
"""

import copy
import hashlib
import json
import os
import re
import shutil
import sys
import unittest.mock
from dataclasses import dataclass, field
from pathlib import Path

# The integration of BitNet compiles its functions otherwise.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import bitnet
from transformers.utils import logging

OUT = Path(__file__).parent / "families"
LENGTH, EVERY, PREFIX, GREEDY = 40, 4, 5, 16
# The least that a feature moves a logit, and that the chosen token's logit exceeds the next.
VISIBLE, MARGIN = 3e-2, 2e-2
COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass
class Row:
    """A model: `config` beside COMMON; `tells`, changes that the logits must show; `same`, changes that they must not show.

    A change is a dict of config keys, or a function of the state dict. `old` and `dropped` are what config_4.json has beside, and lacks.
    """

    kind: str
    config: dict
    tells: dict = field(default_factory=dict)
    same: dict = field(default_factory=dict)
    old: dict = field(default_factory=dict)
    dropped: tuple = ()
    lengths: tuple = (LENGTH,)
    # Of what blocks add: larger where the embedding would drown it, so that each token would be followed by itself.
    gain: float = 1.0
    packed: bool = False


def rope(theta=10000.0, kind="default", **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def filled(pattern, value):
    """A change of weights: those whose names match get one value."""

    def change(state):
        names = [name for name in state if re.search(pattern, name)]
        assert names, pattern
        for name in names:
            state[name].fill_(value)

    return change


YARN = {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0, "beta_slow": 0.5}
SHORT, LONG = [1.0, 1.1, 1.3, 1.8, 2.2, 2.5, 3.0, 3.5], [1.2, 1.9, 3.1, 4.4, 6.0, 8.0, 11.0, 16.0]
LONGROPE = {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 24}
PLAIN_ROPE = rope()
NORMS = filled("norm", 1.0)
BIASES = filled("bias", 0.0)
PHI3_OLD = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attention_bias": False, "use_cache": True}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}


def gemma3_rope(**changes):
    parameters = copy.deepcopy(GEMMA3_ROPE)
    for kind, change in changes.items():
        parameters[kind].update(change)
    return {"rope_parameters": parameters}


def gemma3_tells():
    return {
        "window": {"sliding_window": 64},
        "local theta": gemma3_rope(sliding_attention={"rope_theta": 100000.0}),
        "global theta": gemma3_rope(full_attention={"rope_theta": 500.0}),
        "global scaling": gemma3_rope(full_attention={"factor": 1.0}),
        "query scale": {"query_pre_attn_scalar": 12},
        "q and k norms": filled("[qk]_norm", 0.0),
        "norms after": filled("post_attention_layernorm|post_feedforward", 0.0),
    }


MODELS = {
    # Llama
    "llama_mha": Row("llama", {"num_key_value_heads": 4, "tie_word_embeddings": False, **rope(500.0)}, {"theta": rope(1500.0), "norms": NORMS}, old={"pretraining_tp": 1}, dropped=("head_dim",)),
    "llama_bias": Row("llama", {"attention_bias": True, "mlp_bias": True, **PLAIN_ROPE}, {"attention": filled("self_attn.*bias", 0.0), "output": filled("o_proj.bias", 0.0), "mlp": filled("mlp.*bias", 0.0)}),
    "llama_linear": Row("llama", rope(10000.0, "linear", factor=2.5), {"scaling": PLAIN_ROPE}),
    "llama_dynamic": Row("llama", rope(10000.0, "dynamic", factor=2.0), same={"scaling within the context": PLAIN_ROPE}),
    "llama_llama3": Row(
        "llama",
        {"head_dim": 16, **rope(10000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)},
        {"scaling": PLAIN_ROPE, "linear": rope(10000.0, "linear", factor=8.0)},
    ),
    "llama_yarn": Row(
        "llama",
        {"head_dim": 16, "max_position_embeddings": 1024, **rope(10000.0, "yarn", factor=4.0, original_max_position_embeddings=256)},
        {"scaling": PLAIN_ROPE, "linear": rope(10000.0, "linear", factor=4.0), "attention factor": rope(10000.0, "yarn", factor=4.0, original_max_position_embeddings=256, attention_factor=1.0)},
    ),
    "llama_yarn_mscale": Row(
        "llama",
        {"head_dim": 16, "max_position_embeddings": 128, **rope(10000.0, "yarn", **YARN, mscale=1.5, mscale_all_dim=0.5)},
        {"mscale": rope(10000.0, "yarn", **YARN), "betas": rope(10000.0, "yarn", **YARN | {"beta_fast": 32.0, "beta_slow": 1.0}, mscale=1.5, mscale_all_dim=0.5)},
    ),
    "llama_yarn_truncate": Row(
        "llama",
        {"head_dim": 16, "max_position_embeddings": 128, **rope(10000.0, "yarn", **YARN, truncate=False, attention_factor=1.25)},
        {"truncate": rope(10000.0, "yarn", **YARN, attention_factor=1.25), "attention factor": rope(10000.0, "yarn", **YARN, truncate=False)},
    ),
    "llama_longrope": Row(
        "llama",
        {"head_dim": 16, "max_position_embeddings": 96, **rope(10000.0, "longrope", **LONGROPE)},
        {"scaling": PLAIN_ROPE, "attention factor": rope(10000.0, "longrope", **LONGROPE, attention_factor=1.0), "short": rope(10000.0, "longrope", **LONGROPE | {"short_factor": LONG})},
        lengths=(24, LENGTH),
    ),
    "llama_swish": Row("llama", {"hidden_act": "swish", **PLAIN_ROPE}, {"gelu": {"hidden_act": "gelu"}}, {"silu": {"hidden_act": "silu"}}),
    "llama_missing_tie": Row("llama", {"tie_word_embeddings": False, **PLAIN_ROPE}, old={"use_cache": True}, dropped=("tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim")),
    # Mistral
    "mistral": Row("mistral", {"head_dim": 12, "sliding_window": 8, **PLAIN_ROPE}, {"window": {"sliding_window": None}, "one more": {"sliding_window": 9}, "one less": {"sliding_window": 7}}),
    "mistral_null_window": Row("mistral", {"sliding_window": None, **rope(1000000.0)}, {"window": {"sliding_window": 8}}, dropped=("head_dim",)),
    "ministral": Row(
        "ministral",
        {"head_dim": 8, "num_hidden_layers": 3, "intermediate_size": 40, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **PLAIN_ROPE},
        {"window": {"sliding_window": 64}, "layers": {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}},
    ),
    # Qwen
    "qwen2": Row("qwen2", {"tie_word_embeddings": False, **rope(1000000.0)}, {"biases": BIASES}, {"window": {"sliding_window": 8}}, old={"sliding_window": 64, "max_window_layers": 2}, dropped=("layer_types",)),
    "qwen2_tied_window": Row(
        "qwen2",
        {"tie_word_embeddings": True, "num_hidden_layers": 3, "intermediate_size": 40, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, **rope(1000000.0)},
        {"biases": BIASES, "window": {"use_sliding_window": False, "layer_types": None}, "from": {"max_window_layers": 2, "layer_types": None}},
        dropped=("layer_types",),
    ),
    "qwen2_yarn": Row(
        "qwen2",
        {"tie_word_embeddings": True, "max_position_embeddings": 1024, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 32, **rope(10000.0, "yarn", factor=4.0, original_max_position_embeddings=256)},
        {"scaling": PLAIN_ROPE},
        dropped=("layer_types",),
    ),
    "qwen3": Row(
        "qwen3",
        {"head_dim": 12, "tie_word_embeddings": True, **rope(1000000.0)},
        {"q and k norms": filled("[qk]_norm", 1.0), "theta": rope(10000.0)},
        old={"max_window_layers": 2, "sliding_window": None},
        dropped=("layer_types",),
    ),
    "qwen3_window": Row(
        "qwen3",
        {"head_dim": 8, "tie_word_embeddings": False, "attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, **rope(1000000.0)},
        {"window": {"use_sliding_window": False, "layer_types": None}, "biases": BIASES},
        dropped=("layer_types",),
    ),
    # Gemma
    "gemma": Row(
        "gemma",
        {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1, **PLAIN_ROPE},
        {"norms": filled("norm", 0.0), "silu": {"hidden_act": "silu"}},
        # transformers reads "gelu" as the tanh approximation here.
        {"gelu": {"hidden_act": "gelu"}},
        gain=3.0,
        old={"hidden_act": "gelu", "hidden_activation": None},
    ),
    "gemma2": Row(
        "gemma2",
        {"num_hidden_layers": 3, "intermediate_size": 40, "head_dim": 8, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 2.5, "query_pre_attn_scalar": 12, "sliding_window": 8, **PLAIN_ROPE},
        {
            "attention cap": {"attn_logit_softcapping": None},
            "final cap": {"final_logit_softcapping": None},
            "query scale": {"query_pre_attn_scalar": 8},
            "window": {"sliding_window": 64},
            "layers": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "norms after": filled("post_attention_layernorm|post_feedforward", 0.0),
        },
        old={"hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "sliding_window_size": 8},
        dropped=("layer_types", "use_bidirectional_attention"),
    ),
    # llama.cpp expects a global layer after five local ones.
    "gemma3_text": Row(
        "gemma3_text",
        {"num_hidden_layers": 6, "intermediate_size": 24, "head_dim": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8, "query_pre_attn_scalar": 20, **gemma3_rope()},
        gemma3_tells(),
        old={"_sliding_window_pattern": 6, "attn_logit_softcapping": None, "use_cache": True},
    ),
    "gemma3_pattern": Row(
        "gemma3_text",
        {
            "num_hidden_layers": 3, "intermediate_size": 40, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **gemma3_rope(full_attention={"factor": 8.0}),
        },
        {"window": {"sliding_window": 64}, "final cap": {"final_logit_softcapping": None}, "layers": {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}},
        old={"sliding_window_pattern": 2, "cache_implementation": "hybrid"},
        dropped=("layer_types",),
    ),
    # Phi
    "phi3": Row("phi3", {"num_key_value_heads": 4, "intermediate_size": 40, "sliding_window": 8, "original_max_position_embeddings": 64, "tie_word_embeddings": False, **PLAIN_ROPE}, {"window": {"sliding_window": None}}, old=PHI3_OLD),
    "phi3_longrope": Row(
        "phi3",
        {
            "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 96, "original_max_position_embeddings": 24,
            "tie_word_embeddings": False, **rope(10000.0, "longrope", **LONGROPE),
        },
        {
            "scaling": PLAIN_ROPE,
            "long": rope(10000.0, "longrope", **LONGROPE | {"long_factor": SHORT}),
            "short": rope(10000.0, "longrope", **LONGROPE | {"short_factor": LONG}),
            "attention factor": rope(10000.0, "longrope", **LONGROPE, attention_factor=1.0),
        },
        old=PHI3_OLD,
        lengths=(24, LENGTH),
    ),
    "phi4mini": Row(
        "phi3",
        {
            "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 96, "original_max_position_embeddings": 24,
            "tie_word_embeddings": True, "sliding_window": 128,
            **rope(10000.0, "longrope", **LONGROPE | {"short_factor": SHORT[:6], "long_factor": LONG[:6]}, partial_rotary_factor=0.75),
        },
        {"partial": rope(10000.0, "longrope", **LONGROPE), "long": rope(10000.0, "longrope", **LONGROPE | {"short_factor": SHORT[:6], "long_factor": SHORT[:6]}, partial_rotary_factor=0.75)},
        {"window beyond the context": {"sliding_window": None}},
        old=PHI3_OLD | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "partial_rotary_factor": 0.75},
        lengths=(24, LENGTH),
    ),
    "phi4_partial": Row(
        "phi3",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 40, "original_max_position_embeddings": 64, "tie_word_embeddings": True, **rope(10000.0, partial_rotary_factor=0.5)},
        {"partial": rope(10000.0, partial_rotary_factor=1.0)},
        old=PHI3_OLD,
    ),
    # Others
    "smollm3": Row(
        "smollm3",
        {"num_hidden_layers": 4, "intermediate_size": 32, "tie_word_embeddings": True, **rope(10000.0)},
        {"layers": {"no_rope_layers": [1, 1, 1, 1]}},
        old={"max_window_layers": 28, "pretraining_tp": 2},
    ),
    "smollm3_layers": Row(
        "smollm3",
        {"num_hidden_layers": 3, "intermediate_size": 40, "tie_word_embeddings": False, "no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 8, **rope(10000.0)},
        {"layers": {"no_rope_layers": [1, 1, 1]}, "window": {"sliding_window": 64}, "other layers": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}},
        dropped=("layer_types",),
    ),
    "olmo2": Row("olmo2", {"num_key_value_heads": 4, "tie_word_embeddings": False, **rope(500000.0)}, {"q and k norms": filled("[qk]_norm", 1.0), "norms after": filled("post_", 1.0)}),
    "olmo2_gqa": Row("olmo2", {"num_key_value_heads": 2, "tie_word_embeddings": False, "attention_bias": True, **rope(500.0)}, {"q and k norms": filled("[qk]_norm", 1.0), "biases": BIASES}),
    "granite": Row(
        "granite",
        {"tie_word_embeddings": True, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.2, "logits_scaling": 1.5, **PLAIN_ROPE},
        {name: {name: 1.0} for name in ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"]},
        gain=3.0,
    ),
    "granite_bias": Row(
        "granite",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "embedding_multiplier": 6.0, "residual_multiplier": 0.8, "attention_multiplier": 0.25, "logits_scaling": 0.75, **PLAIN_ROPE},
        {"attention": filled("self_attn.*bias", 0.0), "mlp": filled("mlp.*bias", 0.0)},
    ),
    "bitnet": Row("bitnet", {"tie_word_embeddings": True, **rope(500000.0)}, {"sub-norms": filled("sub_norm", 1.0), "silu": {"hidden_act": "silu"}, "relu": {"hidden_act": "relu"}}),
    # As microsoft/bitnet-b1.58-2B-4T is published.
    "bitnet_packed": Row(
        "bitnet",
        {
            "tie_word_embeddings": True,
            "quantization_config": {"linear_class": "autobitlinear", "quant_method": "bitnet", "quantization_mode": "offline"},
            **rope(500000.0),
        },
        {"scales": filled("q_proj.weight_scale", 1.0), "sub-norms": filled("sub_norm", 1.0)},
        dropped=("attention_bias", "attention_dropout", "pad_token_id"),
        packed=True,
    ),
}
# Configs of models that are refused, with the words that the error must have.
EXPERTS = {"num_experts_per_tok": 2}
REFUSED = {
    "mixtral": ("mixtral", {"num_local_experts": 4, **EXPERTS}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, **EXPERTS}),
    "deepseek_v2": ("deepseek_v2", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, **EXPERTS}),
    "deepseek_v3": ("deepseek_v3", {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, **EXPERTS}),
    "gemma3": ("gemma3", None),
}


def seeded(*parts):
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))


def build(kind, config):
    """A model of the config in f32, on the CPU, with eager attention."""
    config = AutoConfig.for_model(kind, **copy.deepcopy(config))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def randomize(model, generator, gemma, gain):
    """Normal weights with a gain for each kind; norm weights around one, or around zero where the norm adds one."""
    # Above 1 for q and k: with gain 1 the scores are so flat that a wrong rotation would hardly show in the logits.
    gains = {"q_proj": 2.0, "k_proj": 2.0, "lm_head": 1.5, "o_proj": gain, "down_proj": gain}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = parameter.shape
            if "norm" in name:
                parameter.copy_(torch.rand(shape, generator=generator) + (-0.5 if gemma else 0.5))
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(shape, generator=generator) * 0.5)
            elif "embed_tokens" in name:
                parameter.copy_(torch.randn(shape, generator=generator) * 1.5 * shape[1] ** -0.5)
            elif "qkv_proj" in name:
                values = torch.randn(shape, generator=generator) * shape[1] ** -0.5
                values[: -model.config.num_key_value_heads * (shape[0] // (model.config.num_attention_heads + 2 * model.config.num_key_value_heads))] *= 2.0
                parameter.copy_(values)
            else:
                parameter.copy_(torch.randn(shape, generator=generator) * gains.get(name.split(".")[-2], 1.0) * shape[1] ** -0.5)


def pack(folder, generator):
    """Rewrites the matrices of a saved model as BitNet b1.58 2B4T has them: ternary, four to a byte, one scale each."""
    path = folder / "model.safetensors"
    state = load_file(path)
    for name in [name for name in state if name.endswith("_proj.weight")]:
        weight = state.pop(name).float()
        scale = weight.abs().mean()
        codes = (weight / scale).round().clamp(-1, 1)
        state[name] = bitnet.pack_weights(codes)
        gain = 0.5 + torch.rand(1, generator=generator)
        state[name + "_scale"] = (scale * gain).to(torch.bfloat16)
    save_file(dict(sorted(state.items())), path, metadata={"format": "pt"})


def load(folder, dtype=torch.float32):
    # What was packed does not follow `dtype`.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval().to(dtype)


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def positions_of(length):
    return sorted({*range(EVERY - 1, length, EVERY), length - 1})


def greedy(model, prefix, distinct=4):
    """The tokens that follow, if each is the largest by a margin and they are not all alike."""
    ids = list(prefix)
    for _ in range(GREEDY):
        best = logits_of(model, ids)[-1].topk(2)
        if best.values[0] - best.values[1] < MARGIN:
            return None
        ids.append(best.indices[0].item())
    found = ids[len(prefix):]
    return found if len(set(found)) >= distinct else None


def changed(row, folder, change):
    """The model of the folder with a changed config or changed weights."""
    if callable(change):
        model = load(folder)
        state = {name: tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        with torch.no_grad():
            change(state)
        return model
    config = json.loads((folder / "config.json").read_text())
    model = load(folder)
    other = build(row.kind, {key: value for key, value in (COMMON | config | change).items() if key not in ("architectures", "model_type", "dtype", "transformers_version")})
    # Strict: a change must not add or take weights.
    other.load_state_dict(model.state_dict())
    return other


def spell_as_transformers_4(config, row):
    """The config in the spelling of transformers 4: rotary parameters and the type at the top."""
    config = copy.deepcopy(config)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    parameters = config.pop("rope_parameters")
    if "full_attention" in parameters:
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    config["rope_theta"] = parameters.pop("rope_theta")
    partial = parameters.pop("partial_rotary_factor", 1.0)
    if partial != 1.0:
        config["partial_rotary_factor"] = partial
    kind = parameters.pop("rope_type")
    if kind == "longrope" and row.kind == "phi3":
        del parameters["original_max_position_embeddings"]
    # Llama 3.1's and Gemma 3's were spelled rope_type from the start.
    spelled = "rope_type" if kind == "llama3" or row.kind == "gemma3_text" else "type"
    config["rope_scaling"] = None if kind == "default" else {**parameters, spelled: kind}
    for key in row.dropped:
        config.pop(key, None)
    return dict(sorted({**config, **row.old}.items()))


def write_tokenizer():
    """A byte-level BPE over letters and signs with one merge, 64 tokens in all."""
    specials = ["<unk>", "<s>", "</s>"]
    # Byte-level BPE writes a space as U+0120 and a line feed as U+010A; printable ASCII stands for itself.
    letters = ["\u0120", "\u010a", *"etaoinshrdlcumwfgypbvkjxqz.,'-;!?ETAOINSHRDLCUMWFGYPBVKJXQZ"]
    vocab = {token: i for i, token in enumerate([*(specials + letters)[:63], "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    assert tokenizer.get_vocab_size() == 64
    tokenizer.save(str(OUT / "tokenizer.json"))


def make_weights(name, row, folder, attempt):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = seeded(name, attempt)
    model = build(row.kind, COMMON | {key: value for key, value in row.config.items() if key != "quantization_config"})
    randomize(model, generator, row.kind.startswith("gemma"), row.gain)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if row.packed:
        pack(folder, generator)
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"quantization_config": row.config["quantization_config"]}
        path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)
    return generator


def difference(a, b):
    return (a - b).abs().max().item()


def make(name):
    row, folder = MODELS[name], OUT / name
    for attempt in range(50):
        generator = make_weights(name, row, folder, attempt)
        model = load(folder)
        cases = []
        for length in row.lengths:
            ids = torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
            ids[0] = model.config.bos_token_id
            cases.append((ids, logits_of(model, ids)))
        # Rounding to whole numbers must not stand on edges, nor anything else be ill-conditioned.
        exact = load(folder, torch.float64)
        steady = all(difference(logits_of(exact, ids), logits) < 1e-4 for ids, logits in cases)
        follows = None
        for _ in range(20 if steady else 0):
            prefix = [1, *torch.randint(3, model.config.vocab_size, (PREFIX,), generator=generator).tolist()]
            if (follows := greedy(model, prefix)) is not None:
                break
        if follows is not None:
            break
    else:
        raise SystemExit(f"{name}: no attempt was good")

    std = cases[0][1].std().item()
    assert 0.5 < std < 3.0, f"{name}: std of the logits {std}"
    apart = min(difference(logits[i], logits[j]) for _, logits in cases for i in range(len(logits)) for j in range(i))
    assert apart > 0.0

    def moved(other):
        return max(difference(logits_of(other, ids)[positions_of(len(ids))], logits[positions_of(len(ids))]) for ids, logits in cases)

    deltas = {label: moved(changed(row, folder, change)) for label, change in row.tells.items()}
    for label, change in row.same.items():
        delta = moved(changed(row, folder, change))
        assert delta < 1e-6, f"{name}: {label} moves the logits by {delta}"
    if row.packed:
        with unittest.mock.patch.object(bitnet.ActQuant, "apply", lambda activation: activation):
            deltas["rounded activations"] = moved(load(folder))
    weak = {label: delta for label, delta in deltas.items() if delta < VISIBLE}
    assert not weak, f"{name}: hardly seen: {weak}"

    config = json.loads((folder / "config.json").read_text())
    old = spell_as_transformers_4(config, row)
    (folder / "config_4.json").write_text(json.dumps(old, indent=2) + "\n")
    saved = (folder / "config.json").read_text()
    try:
        shutil.copy(folder / "config_4.json", folder / "config.json")
        delta = moved(load(folder))
    finally:
        (folder / "config.json").write_text(saved)
    assert delta == 0.0, f"{name}: config_4.json moves the logits by {delta}"

    expected = {
        "about": "made by tests/golden/make_families.py; f32, eager attention",
        "cases": [
            {
                "input_ids": ids,
                "positions": positions_of(len(ids)),
                "logits": [[round(x, 6) for x in logits[position].tolist()] for position in positions_of(len(ids))],
            }
            for ids, logits in cases
        ],
        "greedy": {"prefix": prefix, "tokens": follows},
    }
    (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    size = (folder / "model.safetensors").stat().st_size
    assert size < 70_000, f"{name}: {size} bytes"
    print(f"{name}: attempt {attempt}, std {std:.2f}, {size / 1000:.0f} kB, " + ", ".join(f"{label} {delta:.2f}" for label, delta in deltas.items()))


def make_refused():
    for name, (kind, config) in REFUSED.items():
        folder = OUT / "refused" / name
        shutil.rmtree(folder, ignore_errors=True)
        if config is None:
            text = {key: value for key, value in COMMON.items()} | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
            made = AutoConfig.for_model(kind, text_config=text, vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16})
        else:
            made = AutoConfig.for_model(kind, **COMMON | config)
        made.save_pretrained(folder)
        (folder / "config.json").chmod(0o644)


def check_what_llama_ignores():
    """Llama's rotation turns whole heads, whatever `partial_rotary_factor` says: a reader can only refuse it."""
    row, folder = MODELS["llama_mha"], OUT / "llama_mha"
    ids = list(range(3, 40))
    other = changed(row, folder, {"partial_rotary_factor": 0.5})
    assert difference(logits_of(other, ids), logits_of(load(folder), ids)) == 0.0


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    write_tokenizer()
    make_refused()
    for chosen in sys.argv[1:] or MODELS:
        make(chosen)
    check_what_llama_ignores()
