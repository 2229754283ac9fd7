#!/usr/bin/env python3
"""Hold exported GGUF files in I2_S against the programs that read the type: ik_llama.cpp and bitnet.cpp.

    i2_s_exports.py MODEL --work DIR [--ik llama-quantize] [--bitnet llama-perplexity --text FILE] [--rule GLOB=SCHEME ...]

MODEL is anything that `bitllama-train quantize --model` takes. It is rounded to ternary matrices with one scale (`--scheme
bitnet:i2_s`), exported with `--exact --to gguf:i2_s`, and then

- with --ik, ik_llama.cpp's `llama-quantize` turns the file into F32, whose numbers are compared with the rounded weights bit by bit;
- with --bitnet, bitnet.cpp's `llama-perplexity` (activations in 8 bits) is set beside `bitllama eval` with f32 and int8
  activations, on the first --chunks of the text. Ternary matrices without training leave nothing of a model, and small differences
  of activations decide then: `--rule` keeps most matrices out.

Ends with 1 if a weight differs.
"""

import argparse
import pathlib
import re
import subprocess
import sys

import gguf_exports as exports


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--ik", help="ik_llama.cpp's llama-quantize")
    parser.add_argument("--bitnet", help="bitnet.cpp's llama-perplexity")
    parser.add_argument("--rule", action="append", default=[], help="as `quantize --rule`")
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--embedding", default="int8", help="scheme of the embedding (default: %(default)s)")
    parser.add_argument("--bitllama", default=exports.ROOT / "target/release/bitllama")
    parser.add_argument("--train", default=exports.ROOT / "target/release/bitllama-train")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    artifact, file, folder, full = (work / f"i2_s{suffix}" for suffix in ("", ".gguf", "-hf", "-f32.gguf"))
    exports.run(args.train, "quantize", "--model", args.model, "--scheme", "bitnet:i2_s", "--embedding", args.embedding, "--output", artifact, *(part for rule in args.rule for part in ("--rule", rule)))
    exports.run(args.train, "export", "--from", artifact, "--to", "gguf:i2_s", "--exact", "--output", file)
    wrong = []
    if args.ik:
        exports.run(args.train, "export", "--from", artifact, "--to", "hf", "--output", folder)
        exports.run(args.ik, "--allow-requantize", file, full, "F32")
        wrong, _, _ = exports.differing(full, folder)
        print(f"tensors that differ: {', '.join(wrong) or 0}", flush=True)
    if args.bitnet:
        args.text = args.text.resolve()
        command = [args.bitnet, "-m", file, "-f", args.text, "-c", args.ctx, "-b", args.ctx, "--chunks", args.chunks, "-t", 2]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
        if done.returncode or not found:
            sys.exit(f"bitnet.cpp: {(done.stderr.strip() or 'no perplexity').splitlines()[-1]}")
        ours = [exports.ours(artifact, args, activations) for activations in ("f32", "int8")]
        theirs = float(found[1])
        print(f"perplexity: bitnet.cpp {theirs:.4f}, bitllama f32 {ours[0]:.4f} ({theirs / ours[0] - 1:+.2%}), int8 {ours[1]:.4f} ({theirs / ours[1] - 1:+.2%})")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
