"""Makes the tiny Hugging Face models in tests/golden/hf, with the logits that `transformers` gives for them.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_hf_models.py [NAME ...]

Each folder is what `save_pretrained` writes (config.json, one safetensors file or shards with their index) plus a
tokenizer.json, and golden.json: `input_ids` [2, 24] and `logits` [2, 24, vocab], computed in f32 with eager attention
from the stored weights upcast to f32. Weights are random, but scaled so that every part matters to the logits: norm
weights are not 1, attention is not uniform, logits have a standard deviation between 1 and 2. Each model isolates what
loaders get wrong:

- tied_gqa: no lm_head in the file; two query heads share each key head.
- untied_mha: lm_head of its own; as many key heads as query heads; another rope_theta; two eos tokens in a list.
- untied_gqa_sharded: shards and model.safetensors.index.json; bf16; head_dim is not hidden_size / heads, so q_proj is
  not square; config.json in the spelling of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype` at the top)
  with linear scaling.
- llama3_rope: f16; the frequency scaling of Llama 3.1 with an original context of 32, so that all of its three
  branches act within 24 positions; spelled as transformers 5 does (`rope_parameters`).
- bitnet_silu: a BitNetForCausalLM whose activation is silu, which is a Llama with sub-norms.

Seeds are fixed: running it again gives the same bytes (on one CPU type; another may differ in the last digits of the
logits).
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

OUT = Path(__file__).parent / "hf"
BATCH, LENGTH = 2, 24
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rope(theta, kind="default", **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


# name: (config, dtype on disk, most bytes a shard, spelling of transformers 4)
MODELS = {
    "tied_gqa": (
        dict(vocab_size=64, intermediate_size=48, num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=rope(10000.0)),
        torch.float32, None, False,
    ),
    "untied_mha": (
        dict(vocab_size=80, intermediate_size=56, num_key_value_heads=4, tie_word_embeddings=False, rope_parameters=rope(500.0), eos_token_id=[2, 3]),
        torch.float32, None, False,
    ),
    "untied_gqa_sharded": (
        dict(vocab_size=96, intermediate_size=64, num_key_value_heads=1, head_dim=12, tie_word_embeddings=False, rope_parameters=rope(10000.0, "linear", factor=2.0)),
        torch.bfloat16, "16KB", True,
    ),
    "llama3_rope": (
        dict(vocab_size=72, intermediate_size=48, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3),
        torch.float16, None, False,
    ),
    "bitnet_silu": (
        dict(vocab_size=64, intermediate_size=48, num_key_value_heads=2, hidden_act="silu", tie_word_embeddings=True, rope_parameters=rope(10000.0)),
        torch.float32, None, False,
    ),
}


def randomize(model, generator):
    """Normal weights with a gain for each kind, norm weights uniform in [0.5, 1.5]."""
    # Above 1 for q and k: with gain 1 the scores are so flat that a wrong rotation would hardly show in the logits.
    gains = {"q_proj": 2.0, "k_proj": 2.0, "lm_head": 1.5}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif "embed_tokens" in name:
                # A tied head uses the same numbers: std 1.5 / sqrt(hidden) makes its logits as large as an untied head's.
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * parameter.shape[1] ** -0.5)
            else:
                gain = gains.get(name.split(".")[-2], 1.0)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain * parameter.shape[1] ** -0.5)


def write_tokenizer(folder, vocab_size):
    """A byte-level BPE without merges over letters and signs: one token a byte, as many as the vocabulary holds."""
    specials = ["<unk>", "<s>", "</s>"]
    # Byte-level BPE writes a space as U+0120 and a line feed as U+010A; printable ASCII stands for itself.
    letters = ["\u0120", "\u010a", *"etaoinshrdlcumwfgypbvkjxqz.,'-;!?ETAOINSHRDLCUMWFGYPBVKJXQZ0123456789:\"()&/_*"]
    vocab = {token: i for i, token in enumerate((specials + letters)[:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    assert tokenizer.get_vocab_size() <= vocab_size
    sample = "it is a truth\nof no note."
    assert tokenizer.decode(tokenizer.encode(sample).ids) == sample
    tokenizer.save(str(folder / "tokenizer.json"))


def spell_as_transformers_4(folder):
    """Moves `rope_parameters` and `dtype` to where transformers 4, and so most published models, have them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def logits_of(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def make(name):
    overrides, dtype, shard, old_spelling = MODELS[name]
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big"))
    if name.startswith("bitnet"):
        model = BitNetForCausalLM(BitNetConfig(**COMMON | overrides))
    else:
        model = LlamaForCausalLM(LlamaConfig(**COMMON | overrides))
    randomize(model, generator)

    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    (folder / "generation_config.json").unlink()
    if old_spelling:
        spell_as_transformers_4(folder)
    write_tokenizer(folder, model.config.vocab_size)
    for file in folder.iterdir():
        file.chmod(0o644)

    ids = torch.randint(3, model.config.vocab_size, (BATCH, LENGTH), generator=generator)
    ids[:, 0] = model.config.bos_token_id
    logits = logits_of(folder, ids)
    assert 1.0 < logits.std().item() < 2.0, f"{name}: std {logits.std().item()}"
    check_that_it_tells(folder, ids, logits)
    golden = {
        "about": "made by tests/golden/make_hf_models.py; f32, eager attention",
        "input_ids": ids.tolist(),
        # Nine digits give back the exact f32.
        "logits": [[[float(f"{x:.9g}") for x in row] for row in sequence] for sequence in logits.tolist()],
    }
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    stored = torch.tensor(golden["logits"], dtype=torch.float32)
    assert torch.equal(stored, logits)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: logits std {logits.std().item():.2f}, {size / 1024:.0f} KB")


def check_that_it_tells(folder, ids, logits):
    """The file must catch a loader that ignores rope_theta or the scaling: with either spoiled, logits are far away."""
    path = folder / "config.json"
    saved = path.read_text()
    deltas = {}
    try:
        for what in "theta", "scaling":
            config = json.loads(saved)
            if what == "theta":
                config.get("rope_parameters", config)["rope_theta"] *= 3
            elif "rope_scaling" in config:
                config["rope_scaling"] = None
            else:
                config["rope_parameters"] = rope(config["rope_parameters"]["rope_theta"])
            if json.loads(saved) != config:
                path.write_text(json.dumps(config))
                deltas[what] = round((logits_of(folder, ids) - logits).abs().max().item(), 2)
    finally:
        path.write_text(saved)
    assert all(delta > 0.5 for delta in deltas.values()), deltas
    print(f"{folder.name}: max |delta| with a wrong rotation: {deltas}")


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or MODELS:
        make(chosen)
