"""Makes weight_cases.json: what `transformers` computes with models whose files say the same thing in several ways.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_weight_cases.py

Every model is derived from models/nano, by steps that tests/weights.rs takes as well, so that nothing but the figures is
stored. For each: the mean negative log-likelihood of TOKENS, each token but the first from those before it, in f32 with eager
attention. `nano` is the model as it is; the others:

- `other_head`: config.json says tied, yet there is an lm_head.weight, the embedding times 0.5, rolled by one row;
- `head_only`: the tied tensor stands under lm_head.weight alone;
- `theta`: `rope_parameters` with rope_theta 5e5;
- `linear`: `rope_scaling` with type linear and factor 2, rope_theta 1e4 beside it.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
NANO = HERE.parent.parent / "models/nano"
# Any tokens do: a linear congruence, so that the test needs no file of them.
TOKENS = [(i * i * 37 + i * 11 + 5) % 1024 for i in range(96)]


def changed(folder, config=None, weights=None):
    folder = Path(folder)
    shutil.copytree(NANO, folder, dirs_exist_ok=True)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if weights:
        path = folder / "model.safetensors"
        save_file(weights(load_file(path)), path, metadata={"format": "pt"})
    return folder


def other_head(tensors):
    embedding = tensors["model.embed_tokens.weight"]
    return tensors | {"lm_head.weight": (embedding.float() * 0.5).roll(1, 0).to(embedding.dtype).contiguous()}


def head_only(tensors):
    return {"lm_head.weight" if name == "model.embed_tokens.weight" else name: t for name, t in tensors.items()}


CASES = {
    "nano": {},
    "other_head": {"weights": other_head},
    "head_only": {"weights": head_only},
    "theta": {"config": {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}},
    "linear": {"config": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
}


def mean_loss(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0].double()
    return -torch.log_softmax(logits, -1)[range(len(TOKENS) - 1), TOKENS[1:]].mean().item()


figures = {}
for name, changes in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
        figures[name] = mean_loss(changed(folder, **changes))
(HERE / "weight_cases.json").write_text(json.dumps({"mean_losses": figures}, indent=1) + "\n")
