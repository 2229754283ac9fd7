#!/usr/bin/env python3
"""Kill a grid at random moments, let it finish, and compare its figures with those of a grid that was left alone.

    cargo build --release
    python experiments/kill_grid.py experiments/grid-quickstart.toml --expected experiments/grid-quickstart/results.json

The grid runs in a folder of its own (`--output`, emptied first), is killed by SIGKILL `--kills` times, each time after a random
number of seconds, and then goes on to its end. All that the expected figures have, but speeds and times, must be the same to the
last digit.
"""

import argparse
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def figures(path):
    """What must not depend on kills, by run."""
    results = json.loads(path.read_text())
    if results["failed"] or results["missing"]:
        sys.exit(f"{path}: not all runs are finished")
    of = lambda cell: (cell["bits_per_weight"], cell["texts"], cell["training"]["tokens"])
    return {(cell["scheme"], cell["method"], cell["seed"]): of(cell) for cell in results["cells"]}


def same(expected, found):
    """Whether `found` has all of `expected`, to the last digit; an older file may have fewer fields."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(key in found and same(value, found[key]) for key, value in expected.items())
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return len(expected) == len(found) and all(map(same, expected, found))
    return expected == found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=pathlib.Path)
    parser.add_argument("--expected", type=pathlib.Path, required=True, help="results.json of a grid that was left alone")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/killed-grid"))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--within", type=float, default=300, help="seconds from a start to a kill, at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the moments (default: another one each time)")
    args = parser.parse_args()
    expected = figures(args.expected)
    seed = args.seed if args.seed is not None else random.randrange(1 << 32)
    moments = random.Random(seed)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    text, changed = re.subn(r'(?m)^output = .*$', f'output = "{args.output}"', args.grid.read_text())
    if changed != 1:
        sys.exit(f"{args.grid}: no line `output = ..`")
    grid = args.output.with_suffix(".toml")
    grid.write_text(text)
    command = [ROOT / "target/release/bitllama-train", "grid", "--config", grid]
    print(f"moments of seed {seed}", flush=True)
    begun = time.monotonic()
    for _ in range(args.kills):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait = moments.uniform(5, args.within)
        time.sleep(wait)
        ended = child.poll()
        child.kill()
        child.wait()
        finished = len(list(args.output.glob("*/*/*/result.json")))
        print(f"killed after {wait:.1f} s, {finished} runs trained" if ended is None else f"it had ended ({ended})", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = figures(args.output / "results.json")
    different = [run for run in expected.keys() | found.keys() if not same(expected.get(run), found.get(run))]
    if different:
        sys.exit(f"different: {', '.join('/'.join(map(str, run)) for run in sorted(different))}")
    print(f"all figures of {len(found)} runs are the same, after {(time.monotonic() - begun) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
