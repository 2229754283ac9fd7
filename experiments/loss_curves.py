#!/usr/bin/env python3
"""Loss curves of the quick start with other operators and precisions, beside those of the composed f32 operators.

    cargo build --release -p bitllama-train
    python3 experiments/loss_curves.py [--steps 200] [--seeds 0 1 2] [--out FILE.md]

Each variant runs the quick start from the same seeds, so that it sees the same batches in the same order. Printed are, for each,
the mean and the largest difference of the logged losses from those of the composed operators, as shares of the loss; and
the perplexity of the held-out chapters at the end. What the last bits of f32 alone do is a variant of its own: the same operators
with another instruction set add up in another order.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess

BINARY = "target/release/bitllama-train"
RECIPE = "recipes/quickstart.toml"
PLAIN = {"BITLLAMA_OPERATORS": "plain"}
# Name, environment, overrides. The first is what the others are compared with.
VARIANTS = [
    ("composed of Burn's, f32", PLAIN, []),
    ("fused, f32", {}, []),
    ("fused, f32, AVX2 for AVX-512", {"BITLLAMA_ISA": "avx2"}, []),
    ("fused, bf16", {}, ["train.precision=bf16"]),
    ("fused, bfp12", {}, ["train.precision=bfp12"]),
]
# The same with 8-bit activations, for what is computed in whole numbers.
INT8 = ["activations.layers.*=int8"]
OF_INT8 = [
    ("int8 activations, composed, f32", PLAIN, INT8),
    ("int8 activations, fused, f32", {}, INT8),
    ("int8 activations, whole numbers forward, bfp12", {}, [*INT8, "train.precision=bfp12", "train.int8_forward=true"]),
]


def run(environment, sets, seed, steps, folder):
    shutil.rmtree(folder, ignore_errors=True)
    fixed = [f"output={folder}", f"seed={seed}", f"train.steps={steps}", f"train.checkpoint_every={steps}"]
    command = [BINARY, "distill", "--config", RECIPE, "--json", "--log", "json"]
    for override in [*fixed, "train.log_every=1", "train.histograms=false", *sets]:
        command += ["--set", override]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
    result = json.loads(done.stdout)["student"]
    return [line["loss"] for line in lines if "loss" in line], result["perplexity"], result["perplexity_error"]


def table(variants, a):
    reference, rows = {}, []
    for index, (name, environment, sets) in enumerate(variants):
        means, largest, perplexities = [], [], []
        for seed in a.seeds:
            losses, perplexity, error = run(environment, sets, seed, a.steps, "runs/loss-curves")
            first = reference.setdefault(seed, losses)
            differences = [(x - y) / y for x, y in zip(losses, first)]
            means.append(statistics.mean(differences))
            largest.append(max(map(abs, differences)))
            perplexities.append((perplexity, error))
            print(f"{name}, seed {seed}: loss {losses[-1]:.4f}, perplexity {perplexity:.3f}", flush=True)
        shown = ", ".join(f"{p:.2f}" for p, _ in perplexities)
        off = "" if index == 0 else f"{100 * statistics.mean(means):+.2f} %"
        most = "" if index == 0 else f"{100 * max(largest):.1f} %"
        rows.append(f"| {name} | {off} | {most} | {shown} |")
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--out", type=pathlib.Path)
    a = p.parse_args()
    seeds = ", ".join(map(str, a.seeds))
    lines = [f"| | loss, mean difference | largest difference of a step | perplexity, seeds {seeds} |", "|---|---|---|---|"]
    lines += table(VARIANTS, a) + table(OF_INT8, a)
    text = "\n".join(lines)
    print(text)
    if a.out:
        a.out.write_text(text + "\n")
    shutil.rmtree("runs/loss-curves", ignore_errors=True)


if __name__ == "__main__":
    main()
