#!/usr/bin/env python3
"""Try `bitllama-train quick` on short names, with a server in this process that plays the hub.

    quick_hub.py smollm2-135m=DIR gemma-3-270m=DIR --work DIR

Each DIR is a Hugging Face directory (`bitllama-train export --to hf`) that is served as the model of the name. Every name is tried
online, then offline from the cache, with the same perplexities; a model that asks for a token is tried without one and must be told
what to set. Ends with 1 if one of these fails. Needs Python alone.
"""

import argparse
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
IDS = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct", "gemma-3-270m": "google/gemma-3-270m",
    "qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
}
GATED = "llama-3.2-1b"


def handler(models):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([^/]+)", self.path)
            if found and found[1] not in models:
                return self.send_empty(401)
            path = found and models[found[1]] / found[2]
            if not path or not path.is_file():
                return self.send_empty(404)
            size, (first, last) = path.stat().st_size, (0, None)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked:
                first, last = int(asked[1]), int(asked[2]) if asked[2] else None
            last = min(size - 1 if last is None else last, size - 1)
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{hashlib.sha1(str(path).encode()).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            with path.open("rb") as file:
                file.seek(first)
                left = last - first + 1
                while left:
                    part = file.read(min(left, 1 << 20))
                    self.wfile.write(part)
                    left -= len(part)

        def send_empty(self, status):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    return Hub


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--bits", default="4")
    parser.add_argument("--train", default=ROOT / "target/release/bitllama-train")
    args = parser.parse_args()
    folders = dict(model.split("=", 1) for model in args.models)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler({IDS[name]: pathlib.Path(path) for name, path in folders.items()}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    args.work.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(args.work.resolve() / "cache")}

    def quick(name, **more):
        output = args.work.resolve() / f"{name}-{'offline' if more else 'online'}"
        command = [args.train, "quick", name, "--bits", args.bits, "--output", output, "--json"]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=args.work, env=environment | more)

    failed = False
    for name in folders:
        results = []
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            done = quick(name, **more)
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}")
                failed = True
                continue
            found = json.loads(done.stdout)
            results.append([found[at]["perplexity"]["perplexity"] for at in ("before", "after")])
            if not more:
                bits = [found[at]["bits_per_weight"] for at in ("before", "after")]
                print(f"{name}: {bits[0]:.2f} to {bits[1]:.2f} bits, perplexity {results[0][0]:.3f} to {results[0][1]:.3f}: {found['generation']['text']!r}")
        failed |= len(results) != 2 or results[0] != results[1]
        print(f"{name}: offline {'the same' if len(results) == 2 and results[0] == results[1] else 'DIFFERS'}", flush=True)
    gated = quick(GATED)
    told = gated.returncode != 0 and "set HF_TOKEN" in gated.stderr
    print(f"{GATED}, which asks for a token: {gated.stderr.strip().splitlines()[-1]}")
    sys.exit(failed or not told)


if __name__ == "__main__":
    main()
