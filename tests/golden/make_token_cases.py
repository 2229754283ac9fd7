"""Makes tests/golden/token_cases.json: which tokens begin and end texts, as `transformers` has it.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_token_cases.py

Every case is models/nano with another `post_processor`, other fields in its tokenizer_config.json and another
`bos_token_id` in its config.json; the test makes the same of it again. `front` is what `AutoTokenizer` puts in front of a
text, `perplexity` follows llama.cpp's protocol (chunks of 128 tokens, the first of each replaced by the BOS that the
tokenizer puts in front, the second half scored) in f32.

`generation` is what `generate` gives greedily, to the limit and with a generation_config.json that names the fifth of
these tokens as an end.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parent.parent.parent
NANO = ROOT / "models/nano"
TEXT = ROOT / "data/austen/sense-and-sensibility.txt"
CHARS, CTX, BOS = 6000, 128, "<|endoftext|>"


def template(*pieces):
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"SpecialToken": {"id": BOS, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [sequence if piece == "$A" else special for piece in pieces],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
CASES = {
    "no template": (None, {}, 0),
    "template, config without BOS": (template("bos", "$A"), {}, None),
    "template, config with another BOS": (template("bos", "$A"), {}, 5),
    "template, add_bos_token false": (template("bos", "$A"), {"add_bos_token": False}, 0),
    "template with EOS": (template("bos", "$A", "eos"), {}, 0),
    "template in a sequence": ({"type": "Sequence", "processors": [BYTES, template("bos", "$A")]}, {}, 0),
    "no template, add_bos_token true": (None, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, 0),
}


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def perplexity(model, ids, bos):
    total, scored = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids) - CTX + 1, CTX):
            chunk = ids[start : start + CTX]
            given = chunk if bos is None else [bos, *chunk[1:]]
            logs = torch.log_softmax(model(torch.tensor([given])).logits[0].double(), -1)
            for at in range(CTX // 2, CTX - 1):
                total -= logs[at, chunk[at + 1]].item()
                scored += 1
    return math.exp(total / scored)


def case(folder, post_processor, tokenizer_config, bos_token_id):
    edit(folder / "tokenizer.json", post_processor=post_processor)
    edit(folder / "tokenizer_config.json", **tokenizer_config)
    edit(folder / "config.json", bos_token_id=bos_token_id)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = tokenizer("It is", add_special_tokens=False).input_ids
    whole = tokenizer("It is").input_ids
    at = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    front = whole[:at]
    # As llama.cpp's `perplexity`: the BOS in front of the text, no EOS behind.
    ids = front + tokenizer(TEXT.read_text(encoding="utf8")[:CHARS], add_special_tokens=False).input_ids
    return {
        "post_processor": post_processor,
        "tokenizer_config": tokenizer_config,
        "bos_token_id": bos_token_id,
        "front": front,
        "perplexity": perplexity(model, ids, front[0] if front else None),
    }


def generation(folder):
    tokenizer, prompt = AutoTokenizer.from_pretrained(folder), "It is a truth"
    ids = torch.tensor([tokenizer(prompt).input_ids])

    def tokens():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()

    whole = tokens()
    end = next(token for token in whole[4:] if token not in whole[:4])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
    return {"prompt": prompt, "end": end, "whole": whole, "ended": tokens()}


def main():
    found = {"chars": CHARS, "ctx": CTX, "cases": {}}
    with tempfile.TemporaryDirectory() as root:
        for number, (name, changes) in enumerate(CASES.items()):
            folder = Path(shutil.copytree(NANO, Path(root) / str(number)))
            found["cases"][name] = case(folder, *changes)
        found["generation"] = generation(Path(shutil.copytree(NANO, Path(root) / "generation")))
    (Path(__file__).parent / "token_cases.json").write_text(json.dumps(found, indent=1) + "\n")


main()
