"""Reference logits and perplexity of SmolLM2-135M-Instruct from its GGUF, computed by `transformers` in f32.

    pip install -r tests/golden/requirements.txt
    python tests/golden/smollm2_logits.py MODEL.gguf HF_DIR [--perplexity TEXT.txt] [--chunks 4] [--ctx 512]

Dequantizes the GGUF of scripts/fetch-smollm2.sh and writes

- HF_DIR: the same weights as a Hugging Face directory in f32 with tokenizer.json (540 MB, not committed), to hold both
  loaders against each other;
- smollm2_logits.json beside this script: for one text of 64 tokens its ids, 512 logits of the last position, its ten
  best tokens, and at every position sum and maximum of all logits.

With --perplexity it then prints the perplexity of a text by llama.cpp's protocol (chunks of `ctx` tokens that do not
overlap, logits of positions ctx/2 .. ctx - 2 scored) for each convention of the BOS token. llama.cpp itself puts a BOS
only if the file says `tokenizer.ggml.add_bos_token = true`; this one says false. Jane Austen's "Persuasion" at ctx 512:

| convention | 4 chunks | 20 chunks |
|---|---|---|
| no BOS, as the file says | 32.9313 | 29.0568 |
| first token of each chunk replaced by BOS 1 | 33.0271 | 29.1324 |
| text prefixed by BOS 1 | 32.7881 | 29.1904 |
| text prefixed and each chunk replaced by BOS 1 | 32.7805 | 29.2926 |
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.utils import logging

TEXT = (
    "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, never took up any book "
    "but the Baronetage; there he found occupation for an idle hour, and consolation in a distressed one; in 1818 his "
    "faculties were roused into admiration and respect, by contemplating the limited remnant of the earliest patents."
)
LENGTH = 64
OUT = Path(__file__).with_name("smollm2_logits.json")


def tokenizer_of(reader):
    """The BPE in the metadata, with the pre-tokenizer that llama.cpp calls `smollm`: single digits, then GPT-2's."""
    field = lambda name: reader.fields[f"tokenizer.ggml.{name}"].contents()
    assert (field("model"), field("pre")) == ("gpt2", "smollm")
    tokens = field("tokens")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = gguf.TokenType.CONTROL
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, field("token_type")) if kind == control])
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def check_permutation(reader, model):
    """Compares q_proj and k_proj with rows reordered by hand.

    A GGUF of the `llama` architecture interleaves the two halves of each head: row `2 i + h` of a head there is row
    `h * head_dim / 2 + i` here. A loader that forgets it gives fluent nonsense and no error.
    """
    tensors = {t.name: t for t in reader.tensors}
    for layer in 0, model.config.num_hidden_layers - 1:
        attention = model.model.layers[layer].self_attn
        for name, heads, loaded in [
            ("attn_q", model.config.num_attention_heads, attention.q_proj),
            ("attn_k", model.config.num_key_value_heads, attention.k_proj),
        ]:
            tensor = tensors[f"blk.{layer}.{name}.weight"]
            rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            by_hand = rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
            assert np.array_equal(by_hand, loaded.weight.detach().numpy()), tensor.name
            assert not np.array_equal(rows, by_hand)


def check_config(reader, config):
    def same(name, value):
        assert math.isclose(reader.fields[f"llama.{name}"].contents(), value, rel_tol=1e-6), (name, value)

    same("attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    same("rope.freq_base", config.rope_parameters["rope_theta"])
    same("rope.dimension_count", config.head_dim)
    assert config.tie_word_embeddings


def save_plain(model, folder):
    """`save_pretrained` refuses a model that came from a GGUF, so its weights go into one that did not."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)


def golden(model, tokenizer):
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids[:LENGTH]
    assert len(ids) == LENGTH
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    last = logits[-1]
    chosen = list(range(0, model.config.vocab_size, model.config.vocab_size // 512))
    top = last.topk(10)
    digits = lambda values: [float(f"{value:.9g}") for value in values.tolist()]
    return {
        "about": "SmolLM2-135M-Instruct.Q4_1.gguf dequantized to f32; made by tests/golden/smollm2_logits.py",
        "text": tokenizer.decode(ids),
        "input_ids": ids,
        "last_ids": chosen,
        "last_logits": digits(last[chosen]),
        "last_top10_ids": top.indices.tolist(),
        "last_top10_logits": digits(top.values),
        "sums": [round(s, 3) for s in logits.double().sum(-1).tolist()],
        "maxima": digits(logits.max(-1).values),
    }


def perplexities(model, tokenizer, path, ctx, chunks):
    """Perplexity ± and its running value for each BOS convention."""
    config = model.config
    ids = tokenizer.encode(path.read_text(), add_special_tokens=False).ids
    print(f"{path.name}: {len(ids)} tokens")
    conventions = {
        "as it is (add_bos_token = false)": (ids, None),
        f"first token of each chunk replaced by {config.bos_token_id} (add_bos_token = true, text not prefixed)": (ids, config.bos_token_id),
        f"text prefixed by {config.bos_token_id}, chunks as they are": ([config.bos_token_id, *ids], None),
        f"text prefixed and first token of each chunk replaced by {config.bos_token_id}": ([config.bos_token_id, *ids], config.bos_token_id),
        "first token of each chunk replaced by 0 (<|endoftext|>)": (ids, 0),
    }
    for name, (tokens, replacement) in conventions.items():
        start, losses, running = time.perf_counter(), [], []
        for chunk in range(chunks):
            window = torch.tensor(tokens[chunk * ctx : (chunk + 1) * ctx])
            given = window.clone()
            if replacement is not None:
                given[0] = replacement
            with torch.no_grad():
                hidden = model.model(given[None], use_cache=False).last_hidden_state[0, ctx // 2 : -1]
                logits = model.lm_head(hidden).double()
            losses.append(torch.nn.functional.cross_entropy(logits, window[ctx // 2 + 1 :], reduction="none"))
            running.append(torch.cat(losses).mean().exp().item())
        loss = torch.cat(losses)
        perplexity = loss.mean().exp().item()
        # llama.cpp's: standard deviation of the mean, times the perplexity.
        error = perplexity * math.sqrt(loss.var(unbiased=False).item() / (len(loss) - 1))
        shown = {n: round(running[n - 1], 4) for n in (1, 2, 4, 8, 20) if n <= chunks}
        print(f"{name}: {perplexity:.4f} +/- {error:.4f} over {chunks} chunks, running {shown} ({time.perf_counter() - start:.0f} s)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("hf_dir", type=Path)
    parser.add_argument("--perplexity", type=Path, metavar="TEXT")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--ctx", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()

    reader = gguf.GGUFReader(args.gguf)
    tokenizer = tokenizer_of(reader)
    model = AutoModelForCausalLM.from_pretrained(
        args.gguf.parent, gguf_file=args.gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    check_config(reader, model.config)
    check_permutation(reader, model)

    save_plain(model, args.hf_dir)
    tokenizer.save(str(args.hf_dir / "tokenizer.json"))
    OUT.write_text(json.dumps(golden(model, tokenizer), separators=(",", ":")) + "\n")
    print(f"wrote {args.hf_dir} and {OUT.name}")
    if args.perplexity:
        perplexities(model, tokenizer, args.perplexity, args.ctx, args.chunks)


if __name__ == "__main__":
    main()
