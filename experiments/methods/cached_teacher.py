#!/usr/bin/env python3
"""What a training step costs by itself, with a cached teacher, and with the teacher in memory.

    cargo build --release -p bitllama-train
    python3 experiments/methods/cached_teacher.py experiments/smollm2-ternary-30.toml [--steps 6] [--rounds 2]

Runs the recipe's first steps by turns with `distill.alpha = 1` (cross-entropy alone: the student's own step), with
`teacher.cache`, and with the teacher; prints medians of the seconds of a step, the first of each run left out.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess

BINARY = "target/release/bitllama-train"
FOLDER = pathlib.Path("runs/cached-teacher")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("recipe")
    arguments.add_argument("--steps", type=int, default=6)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--top-k", type=int, default=64)
    options = arguments.parse_args()

    def command(name, *sets):
        sets = [f"train.steps={options.steps}", "train.log_every=1", f"train.checkpoint_every={options.steps}",
                "train.warmup_steps=0", "train.histograms=false", "eval.chunks=1", *sets]
        return [BINARY, name, "--config", options.recipe] + [part for set in sets for part in ("--set", set)]

    cache = f"teacher.cache={FOLDER}/cache"
    top_k = f"distill.top_k={options.top_k}"
    report = subprocess.run(command("cache-teacher", cache, top_k) + ["--json"], check=True, capture_output=True).stdout
    print("cache:", report.decode().strip())
    ways = {
        "cross-entropy alone": ["distill.alpha=1.0"],
        "cached teacher": ["distill.alpha=0.1", top_k, cache],
        "teacher in memory, same tokens": ["distill.alpha=0.1", top_k],
        "teacher in memory, all tokens": ["distill.alpha=0.1"],
    }
    speeds = {name: [] for name in ways}
    for round in range(options.rounds):
        for name, sets in ways.items():
            output = FOLDER / "run"
            shutil.rmtree(output, ignore_errors=True)
            subprocess.run(command("distill", f"output={output}", *sets), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
            found = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
            speeds[name] += found[1:]
    own = statistics.median(speeds["cross-entropy alone"])
    for name, found in speeds.items():
        median = statistics.median(found)
        print(f"{name}: {median:.1f} tok/s, {own / median:.3f} of the student's own step ({len(found)} steps)")


if __name__ == "__main__":
    main()
