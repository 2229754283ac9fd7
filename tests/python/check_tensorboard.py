"""Opens a run's event files with TensorBoard's own reader and holds them against the run's metrics.jsonl.

    pip install -r tests/python/requirements.txt
    python tests/python/check_tensorboard.py RUN/tensorboard RUN/metrics.jsonl

The writer is a Rust crate that encodes the records itself; that TensorBoard reads them is a promise to users, so it is
checked with TensorBoard and not with the crate. Exit code 1 if any check fails.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCALARS = [
    "train/loss",
    "train/ce",
    "train/divergence",
    "train/lr",
    "train/grad_norm",
    "train/tokens_per_second",
    "valid/perplexity",
]
ALL = 0  # EventAccumulator: keep every event, no sampling


class Checks:
    """Counts checks and says which failed."""

    def __init__(self):
        self.passed = self.failed = 0

    def __call__(self, good, what):
        if good:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {what}")


def read_losses(path):
    """`loss` by step of the lines that have both; other lines (evaluations) are passed over."""
    losses = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            sys.exit(f"error: {path}:{number}: {error}")
        if "loss" in record and "step" in record:
            losses[record["step"]] = record["loss"]
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tensorboard", type=Path, help="folder of the event files")
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of the same run")
    args = parser.parse_args()
    for path in args.tensorboard, args.metrics:
        if not path.exists():
            sys.exit(f"error: {path}: no such file or folder")

    events = EventAccumulator(str(args.tensorboard), size_guidance={"scalars": ALL, "histograms": ALL})
    events.Reload()
    tags = events.Tags()
    print("scalars:", *sorted(tags["scalars"]), sep="\n  ")
    print("histograms:", *sorted(tags["histograms"]), sep="\n  ")

    check = Checks()
    for tag in SCALARS:
        check(tag in tags["scalars"], f"no scalar {tag}")
    for tag in tags["scalars"]:
        scalars = events.Scalars(tag)
        steps = [event.step for event in scalars]
        check(all(a < b for a, b in zip(steps, steps[1:])), f"steps of {tag} do not increase")
        check(all(math.isfinite(event.value) for event in scalars), f"{tag} has a value that is not finite")

    check(tags["histograms"], "no histograms")
    for tag in tags["histograms"]:
        for event in events.Histograms(tag):
            value = event.histogram_value
            where = f"histogram {tag} at step {event.step}"
            check(sum(value.bucket) == value.num > 0, f"{where}: its buckets do not add up to {value.num} values")
            check(list(value.bucket_limit) == sorted(value.bucket_limit), f"{where}: bucket limits are not sorted")

    losses = read_losses(args.metrics)
    check(losses, f"no line with step and loss in {args.metrics}")
    if "train/loss" in tags["scalars"]:
        drawn = {event.step: event.value for event in events.Scalars("train/loss")}
        check(drawn.keys() == losses.keys(), f"steps of train/loss and metrics.jsonl differ: {sorted(drawn.keys() ^ losses.keys())[:10]}")
        for step in sorted(drawn.keys() & losses.keys()):
            # An event holds an f32; the jsonl may hold more digits.
            check(np.float32(drawn[step]) == np.float32(losses[step]), f"step {step}: train/loss is {drawn[step]}, metrics.jsonl has {losses[step]}")

    print(f"{check.passed} passed, {check.failed} failed")
    sys.exit(check.failed > 0)


if __name__ == "__main__":
    main()
