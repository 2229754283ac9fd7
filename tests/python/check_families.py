"""Opens the directories that `tests/families.rs` wrote of the golden models, and holds the logits of `transformers` against the golden
ones.

    BITLLAMA_CHECK_DIR=DIR cargo test --release -p bitllama-train --test families writes_for_the_python_checker -- --ignored
    python tests/python/check_families.py DIR
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

GOLDEN = Path(__file__).parent.parent / "golden" / "families"
SAME = {"llama_factor_without_type": "llama_linear", "llama_scale_linear": "llama_linear"}


def expected(name):
    stem = name.removesuffix(".gguf")
    own = GOLDEN / f"{name}.json"
    if name != stem and own.is_file():
        return json.loads(own.read_text())
    return json.loads((GOLDEN / SAME.get(stem, stem) / "expected.json").read_text())


def largest_difference(folder, cases):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    largest = 0.0
    for case in cases:
        with torch.no_grad():
            logits = model(torch.tensor([case["input_ids"]]), use_cache=False).logits[0]
        wanted = torch.tensor(case["logits"])
        scale = max(1.0, wanted.abs().max().item())
        largest = max(largest, (logits[case["positions"]] - wanted).abs().max().item() / scale)
    return largest


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if (path / "config.json").is_file())
    assert folders, f"no model in {sys.argv[1]}"
    failed = []
    for folder in folders:
        # A directory has no place for rounded activations.
        if folder.name == "bitnet_packed":
            continue
        try:
            largest = largest_difference(folder, expected(folder.name)["cases"])
            if largest >= 1e-3:
                failed.append(f"{folder.name}: off by {largest:.1e}")
        except Exception as error:
            failed.append(f"{folder.name}: {error}")
    if failed:
        raise SystemExit("\n".join(failed))
    print(f"{len(folders)} families: transformers computes what it computed of the originals")


if __name__ == "__main__":
    main()
