#!/usr/bin/env python3
"""Time generation with a draft model and without: tokens per second, accepted guesses, and whether the texts are the same.

    speculate.py --bitllama BIN --model DIR --draft DIR [--new 128] [--rounds 3] [-t THREADS] [--temperature T] [--prompts N] [--prose]

Runs `bitllama run` greedily on 20 beginnings of programs (with --prose on 8 of English text), once without and once with the draft, in
turns. Speeds are medians over rounds of each prompt's decoding speed, then the mean over prompts weighted by tokens. Needs Python alone.
"""

import argparse
import json
import statistics
import subprocess

CODE = [
    "def quicksort(items):\n    \"\"\"Sort a list.\"\"\"\n",
    "import csv\n\ndef read_rows(path):\n    \"\"\"Read the rows of a CSV file as dictionaries.\"\"\"\n",
    "class Stack:\n    \"\"\"A stack with push, pop and peek.\"\"\"\n\n    def __init__(self):\n",
    "fn main() {\n    // Read lines from standard input and count words.\n",
    "impl Iterator for Fibonacci {\n    type Item = u64;\n\n    fn next(&mut self) -> Option<u64> {\n",
    "struct Point {\n    x: f64,\n    y: f64,\n}\n\nimpl Point {\n",
    "#include <stdio.h>\n#include <stdlib.h>\n\nint compare(const void *a, const void *b) {\n",
    "int binary_search(const int *values, int count, int wanted) {\n",
    "function debounce(callback, delay) {\n",
    "const express = require('express');\nconst app = express();\n\napp.get('/users',",
    "async function fetchJson(url) {\n  try {\n",
    "package main\n\nimport (\n\t\"fmt\"\n\t\"net/http\"\n)\n\nfunc handler(",
    "func reverse(s []int) []int {\n",
    "public class LinkedList<T> {\n    private Node<T> head;\n\n    public void add(T value) {\n",
    "SELECT customers.name, COUNT(orders.id)\nFROM customers\n",
    "CREATE TABLE employees (\n    id INTEGER PRIMARY KEY,\n",
    "#!/usr/bin/env bash\nset -euo pipefail\n\n# Back up a folder with a date in the name.\n",
    "import unittest\n\nclass TestAdd(unittest.TestCase):\n    def test_",
    "def is_prime(n):\n",
    "<!DOCTYPE html>\n<html>\n<head>\n  <title>",
]

PROSE = [
    "The history of the lighthouse begins", "In a small village by the sea there lived", "Water boils at a lower temperature",
    "Dear Sir or Madam,\nI am writing to", "The three most important rules of good writing are", "Once upon a time",
    "The economy of the nineteenth century", "To bake a simple loaf of bread,",
]


def run(args, prompt, draft):
    command = [args.bitllama, "run", "--artifact", args.model, "--prompt", prompt, "-n", str(args.new), "--json"]
    command += ["--temperature", str(args.temperature)] if args.temperature else []
    command += ["-t", str(args.threads)] if args.threads else []
    command += ["--draft", draft] if draft else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bitllama", default="target/release/bitllama")
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompts", type=int, default=20, help="the first so many prompts only")
    parser.add_argument("--prose", action="store_true")
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()

    total, seconds = 0, {"plain": 0.0, "draft": 0.0}
    guessed = accepted = passes = same = 0
    prompts = (PROSE if args.prose else CODE)[: args.prompts]
    for prompt in prompts:
        speeds = {"plain": [], "draft": []}
        for _ in range(args.rounds):
            plain, draft = run(args, prompt, None), run(args, prompt, args.draft)
            speeds["plain"].append(plain["decode_tokens_per_second"])
            speeds["draft"].append(draft["decode_tokens_per_second"])
        same += plain["text"] == draft["text"]
        tokens = len(plain["tokens"])
        if tokens < 2:
            continue
        total += tokens
        for name, found in speeds.items():
            seconds[name] += tokens / statistics.median(found)
        counts = draft["draft"]
        guessed, accepted, passes = guessed + counts["guessed"], accepted + counts["accepted"], passes + counts["passes"]
        print(f"{prompt.splitlines()[0][:40]:40} {tokens:4} tokens  {statistics.median(speeds['plain']):7.2f} -> {statistics.median(speeds['draft']):7.2f} tokens/s  {counts['accepted']:4} of {counts['guessed']:4} accepted", flush=True)
    plain, draft = total / seconds["plain"], total / seconds["draft"]
    print(f"all: {total} tokens, {plain:.2f} -> {draft:.2f} tokens/s, {draft / plain:.2f} times; {accepted} of {guessed} guesses accepted ({100 * accepted / max(guessed, 1):.0f} %), {(accepted + passes) / max(passes, 1):.2f} tokens per pass; same text for {same} of {len(prompts)}")


if __name__ == "__main__":
    main()
