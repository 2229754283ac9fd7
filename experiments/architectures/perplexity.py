#!/usr/bin/env python3
"""Perplexity of a GGUF by llama.cpp's protocol, with its weights dequantized to f32 and computed by `transformers`.

    pip install -r tests/golden/requirements.txt
    python experiments/architectures/perplexity.py MODEL.gguf TEXT [--chunks N] [--ctx 512] [--bos]

It is the reference for what `bitllama eval` says of the same file: no code is shared. The text is tokenized whole and cut into chunks of
`ctx` tokens; with `--bos` the first token of each becomes the BOS, and the text starts with one. A chunk's second half is
predicted, each token from all before it in the chunk, as `llama-perplexity` does it (tools/perplexity/perplexity.cpp).

Architectures: gemma3, qwen2, llama. Qwen2.5-Coder 1.5B takes 7 GB of memory.
"""

import argparse
import math
import time

import gguf
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer

KINDS = {"gemma3": "gemma3_text", "qwen2": "qwen2", "llama": "llama"}
BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
# Gemma has four norms a block.
GEMMA = {"post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def config_of(reader, architecture):
    def value(key, default=None):
        entry = reader.get_field(f"{architecture}.{key}")
        return default if entry is None else entry.contents()

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads, hidden = value("attention.head_count"), value("embedding_length")
    head_dim = value("attention.key_length", hidden // heads)
    config = {
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": float(f"{value('attention.layer_norm_rms_epsilon'):.6g}"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    rope = {"rope_type": "default", "rope_theta": value("rope.freq_base", 10000.0)}
    if (factor := value("rope.scaling.factor")) and value("rope.scaling.type", "linear") == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    assert value("rope.scaling.type", "linear") in ("linear", "none") and "rope_freqs.weight" not in tensors
    if architecture == "gemma3":
        layers = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(config["num_hidden_layers"])]
        assert value("attention.sliding_window_pattern") is None
        local = {"rope_type": "default", "rope_theta": value("rope.freq_base_swa", 10000.0)}
        config |= {
            "head_dim": head_dim,
            # But for 27B.
            "query_pre_attn_scalar": head_dim,
            "sliding_window": value("attention.sliding_window"),
            "layer_types": layers,
            "final_logit_softcapping": value("final_logit_softcapping"),
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
        }
    else:
        config["rope_parameters"] = rope
    return AutoConfig.for_model(KINDS[architecture], **config)


def name_of(tensor, architecture):
    stem, kind = tensor.rsplit(".", 1)
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, layer, part = stem.split(".")
    names = BLOCK | GEMMA if architecture == "gemma3" else BLOCK
    return f"model.layers.{layer}.{names[part]}.{kind}"


def weights_of(reader, architecture, config):
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        if architecture == "gemma3" and tensor.name.endswith("norm.weight"):
            # The file has 1 + w.
            values -= 1.0
        if architecture == "llama" and ("attn_q" in tensor.name or "attn_k" in tensor.name):
            # Rows for pairs of neighbours; transformers pairs halves.
            heads = config.num_attention_heads if "attn_q" in tensor.name else config.num_key_value_heads
            values = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        state[name_of(tensor.name, architecture)] = values
    return state


def load(path):
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()
    config = config_of(reader, architecture)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    state = weights_of(reader, architecture, config)
    model, info = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


@torch.no_grad()
def perplexity(model, tokens, ctx, chunks, bos):
    count, total = 0, 0.0
    chunks = min(chunks, len(tokens) // ctx)
    for chunk in range(chunks):
        started = time.time()
        ids = tokens[chunk * ctx : (chunk + 1) * ctx].clone()
        if bos is not None:
            ids[0] = bos
        first = ctx // 2
        hidden = model.model(ids[None], use_cache=False).last_hidden_state[0, first : ctx - 1]
        logits = model.lm_head(hidden)
        if cap := getattr(model.config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        total += torch.nn.functional.cross_entropy(logits.double(), ids[first + 1 :], reduction="sum").item()
        count += ctx - 1 - first
        print(f"chunk {chunk + 1} of {chunks}: perplexity {math.exp(total / count):.4f}, {time.time() - started:.0f} s", flush=True)
    return math.exp(total / count)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--bos", action="store_true", help="a BOS in front of each chunk")
    args = parser.parse_args()

    folder, name = args.model.rsplit("/", 1) if "/" in args.model else (".", args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    text = open(args.text, encoding="utf-8", newline="").read()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id if args.bos else None
    tokens = torch.tensor(([bos] if args.bos else []) + ids)
    print(f"{len(tokens)} tokens, the first {tokens[:8].tolist()}")
    found = perplexity(load(args.model), tokens, args.ctx, args.chunks, bos)
    print(f"perplexity {found:.4f}")


if __name__ == "__main__":
    main()
