#!/usr/bin/env python3
"""Each scheme by round-to-nearest, QAT with cross-entropy and QAT with distillation, on the quick-start model.

    cargo build --release -p bitllama-train
    python3 experiments/methods/run.py [--seed 0] [--only GLOB]

All cells train on the same tokens: the quick start's recipe, 400 steps of 8 rows of 128 tokens. A cell whose
`result.json` is there is not run again, one that was stopped goes on. Prints the table, and writes it to
`experiments/methods/results-seed-N.md`.
"""

import argparse
import fnmatch
import json
import pathlib
import subprocess

BINARY = "target/release/bitllama-train"
RECIPE = "recipes/quickstart.toml"

# Nominal bits, name, the plain quantizer that rounds to nearest, and the one that is trained.
SCHEMES = [
    ("8", "int8", '"int8"', '"int8"'),
    ("4", "int4", '"int4"', '{ scheme = "int4", method = "lsq" }'),
    ("3", "int3", '"int3"', '{ scheme = "int3", method = "lsq" }'),
    ("2", "int2", '"int2"', '{ scheme = "int2", method = "lsq" }'),
    ("2", "seq2", '"seq2"', '{ scheme = "seq2", method = "seq" }'),
    ("1.58", "ternary", '"ternary"', '"ternary"'),
    ("1.58", "ternary seq", '{ scheme = "ternary", method = "seq" }', '{ scheme = "ternary", method = "seq" }'),
    ("1", "binary", '"binary"', '{ scheme = "binary", method = "elastic" }'),
    ("32", "f32", '"f32"', '"f32"'),
]
# Share of the cross-entropy.
METHODS = {"ce": 1.0, "distill": 0.0}


def run(cell, seed, sets):
    output = pathlib.Path(f"runs/methods/seed-{seed}/{cell}")
    result = output / "result.json"
    if not result.is_file():
        command = [BINARY, "distill", "--config", RECIPE, "--resume", "--log", "plain"]
        for key, value in {**sets, "output": str(output), "seed": seed}.items():
            command += ["--set", f"{key}={value}"]
        print("running", cell, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads(result.read_text())


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", default="*", help="names of the schemes to run, as a glob")
    options = arguments.parse_args()
    shown = lambda row: f"{row['perplexity']:.2f} ± {row['perplexity_error']:.2f}"
    lines = ["| bits | scheme | bits per weight | round to nearest | QAT, cross-entropy | QAT, distillation |", "|---|---|---|---|---|---|"]
    teacher = None
    for bits, name, plain, trained in SCHEMES:
        if not fnmatch.fnmatch(name, options.only):
            continue
        cell = name.replace(" ", "-")
        embedding = '"f32"' if name == "f32" else '"int8"'
        common = {"bits.embed_tokens": embedding, "train.histograms": "false"}
        nearest = run(f"{cell}-rtn", options.seed, {**common, "bits.layers.*": plain, "train.steps": 1, "train.warmup_steps": 0})
        cells = [
            run(f"{cell}-{method}", options.seed, {**common, "bits.layers.*": trained, "distill.alpha": alpha})
            for method, alpha in METHODS.items()
        ]
        teacher = nearest["teacher"]
        row = [shown(nearest["round_to_nearest"])] + [shown(cell["student"]) for cell in cells]
        size = f"{cells[0]['student']['bits_per_weight']:.2f}"
        lines.append("| " + " | ".join([bits, name, size] + row) + " |")
    table = "\n".join(lines) + f"\n\nTeacher: {shown(teacher)}. Seed {options.seed}.\n"
    print(table)
    if options.only == "*":
        pathlib.Path(f"experiments/methods/results-seed-{options.seed}.md").write_text(table)


if __name__ == "__main__":
    main()
