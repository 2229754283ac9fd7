#!/usr/bin/env python3
"""Time a distillation step of bitllama-train beside PyTorch's, in turns.

    cargo build --release && bash scripts/fetch-smollm2.sh
    python3 -m venv .venv && .venv/bin/pip install torch transformers
    .venv/bin/python experiments/peers/training_step.py [--rounds 3] [--steps 5] [--out FILE.md]

The step is the same on both sides: SmolLM2-135M, 4 rows of 256 tokens, ternary layers with one scale a row, teacher
forward, full-vocabulary KL and cross-entropy, AdamW. Ours is `experiments/smollm2-ternary-30.toml`, with real weights,
the embedding left in full precision as on PyTorch's side. Each of `--ours` is a list of overrides with commas between,
`--set` one for all of them. Each measurement is a process of its own; ratios are taken within a round, and their medians
printed: machines change their speed from minute to minute.
"""
import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ["eager", "compile", "bf16"]
OURS = [
    "train.precision=f32",
    "train.precision=bfp12",
    "train.precision=bfp12,train.recompute=block",
    "train.precision=bfp12,train.recompute=block,train.recompute_layers=16",
]


def cpu():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def measured(command):
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if out.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {out.stderr.strip()[-400:]}")
    return json.loads(out.stdout.strip().splitlines()[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--config", default="experiments/smollm2-ternary-30.toml")
    p.add_argument("--set", action="append", default=["bits.embed_tokens=f32"], help="an override for all of our runs")
    p.add_argument("--ours", nargs="*", default=OURS)
    p.add_argument("--modes", nargs="*", default=PEERS, choices=PEERS)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    binary = ROOT / "target/release/bitllama-train"
    overrides = [part for override in a.set for part in ("--set", override)]
    names = [f"PyTorch, {mode}" for mode in a.modes] + [f"bitllama-train, {x}" for x in a.ours]
    rounds = []
    for index in range(a.rounds):
        row = {}
        for mode in a.modes:
            script = ROOT / "experiments/peers/torch_kd_step.py"
            row[f"PyTorch, {mode}"] = measured(
                [sys.executable, script, "--mode", mode, "--steps", str(a.steps), "--json"])
        for ours in a.ours:
            own = [part for override in ours.split(",") for part in ("--set", override)]
            row[f"bitllama-train, {ours}"] = measured(
                [binary, "bench-step", "--config", a.config, "--steps", str(a.steps), "--json", *overrides, *own])
        rounds.append(row)
        line = ", ".join(f"{name} {row[name]['tokens_per_second']:.0f}" for name in names)
        print(f"round {index + 1}: {line}", file=sys.stderr)

    def median(name, key, of=lambda row, value: value):
        return statistics.median(of(row, row[name][key]) for row in rounds)

    def best(row):
        return max(row[f"PyTorch, {mode}"]["tokens_per_second"] for mode in a.modes)

    lines = [f"{time.strftime('%Y-%m-%d')}, {cpu()}, {rounds[0]['PyTorch, ' + a.modes[0]]['threads']} threads, "
             f"torch {rounds[0]['PyTorch, ' + a.modes[0]]['torch']}; medians of {a.rounds} rounds of {a.steps} steps", "",
             "| | tokens/s | of PyTorch's best | peak memory |", "|---|---|---|---|"]
    for name in names:
        ratio = median(name, "tokens_per_second", lambda row, value: value / best(row))
        lines.append(f"| {name} | {median(name, 'tokens_per_second'):.1f} | {ratio:.2f} "
                     f"| {median(name, 'peak_memory_bytes') / 1e9:.2f} GB |")
    text = "\n".join(lines)
    print(text)
    if a.out:
        a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
