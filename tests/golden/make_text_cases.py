"""Right values for tests/text.rs and crates/bitllama-cli/tests/all/text.rs, into text_cases.json.

Perplexity of models/nano by llama.cpp's protocol (chunks that do not overlap, their second halves scored), computed by
transformers in f32. `literal` is a text whose every other line ends in the model's control token, read as llama.cpp's
perplexity reads it (parse_special = false): the tokenizer has no such token. `parsed` has it as a token. `documents` are
parts of a book, trimmed, with a blank line between them.

    python tests/golden/make_text_cases.py          # needs torch, transformers
"""

import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

ROOT = Path(__file__).parents[2]
CTX, CHUNKS = 64, 6

model = LlamaForCausalLM.from_pretrained(ROOT / "models/nano").float().eval()
tokenizer = json.loads((ROOT / "models/nano/tokenizer.json").read_text())
without = Tokenizer.from_str(json.dumps(tokenizer | {"added_tokens": []}))
tokenizer = Tokenizer.from_str(json.dumps(tokenizer))


def score(ids):
    nll = []
    with torch.no_grad():
        for start in range(0, CTX * CHUNKS, CTX):
            chunk = ids[start : start + CTX]
            log_probabilities = torch.log_softmax(model(torch.tensor([chunk])).logits[0].double(), -1)
            nll += [-log_probabilities[at, chunk[at + 1]].item() for at in range(CTX // 2, CTX - 1)]
    return {"tokens": len(ids), "perplexity": math.exp(sum(nll) / len(nll))}


book = (ROOT / "data/austen/sense-and-sensibility.txt").read_bytes().decode()
lines = [line for line in book.split("\n") if line.strip()][40:100]
special = "\n".join(line + ("<|endoftext|>" if number % 2 else "") for number, line in enumerate(lines))
parts = ["\n".join(lines[at : at + 10]) for at in range(0, 60, 10)]
documents = "\n\n".join(part.strip() for part in parts)
cases = {
    "literal": score(without.encode(special).ids),
    "parsed": score(tokenizer.encode(special).ids),
    "documents": score(tokenizer.encode(documents).ids),
}
(Path(__file__).parent / "text_cases.json").write_text(json.dumps(cases, indent=1) + "\n")
