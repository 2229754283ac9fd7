#!/usr/bin/env python3
"""Load an OpenAI-compatible server: tokens per second of all clients together, and time to the first token.

    server_load.py --url http://127.0.0.1:8080 --model NAME --text FILE [--clients 1 4 16] [--prompt 256] [--new 128] [--rounds 3]

Each client sends one request after another, streamed and greedy, for prompts that begin differently; end tokens are left out of
consideration (`ignore_eos`, which llama.cpp's server takes too). Prompts are pieces of FILE of so many characters that they have about
--prompt tokens; their true number is the server's. Works with `bitllama serve` and llama.cpp's `llama-server`. Needs Python alone.
"""

import argparse
import asyncio
import json
import statistics
import time
import urllib.parse


async def ask(args, prompt):
    """Seconds to the first token and to the end; tokens of the prompt and of the answer."""
    body = {
        "model": args.model, "prompt": prompt, "max_tokens": args.new, "temperature": 0, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(body).encode()
    start, first, usage = time.monotonic(), None, None
    reader, writer = await asyncio.open_connection(args.host, args.port)
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: {args.host}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            piece = json.loads(line[6:])
            usage = piece.get("usage") or usage
            if first is None and piece["choices"] and piece["choices"][0].get("text"):
                first = time.monotonic() - start
    writer.close()
    return first, time.monotonic() - start, usage["prompt_tokens"], usage["completion_tokens"]


async def load(args, clients, text, offset):
    each = max(1, args.requests // clients)
    length = args.prompt * args.characters // 10

    async def client(number):
        found = []
        for index in range(each):
            begin = (offset + (number * each + index) * 2 * length) % (len(text) - length)
            found.append(await ask(args, text[begin:begin + length]))
        return found

    start = time.monotonic()
    found = [one for of_client in await asyncio.gather(*map(client, range(clients))) for one in of_client]
    took = time.monotonic() - start
    return sum(new for *_, new in found) / took, statistics.median(first for first, *_ in found), statistics.mean(prompt for *_, prompt, _ in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--characters", type=int, default=42, help="characters of ten tokens (default: %(default)s)")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--requests", type=int, default=16, help="requests of all clients together (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    url = urllib.parse.urlsplit(args.url)
    args.host, args.port = url.hostname, url.port
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    print("| clients | prompt | new tokens/s | first token |\n|---|---|---|---|")
    offset = 0
    for clients in args.clients:
        found = []
        for _ in range(args.rounds):
            # Other prompts each time: none comes from a cache.
            offset += 7919
            found.append(asyncio.run(load(args, clients, text, offset)))
        rates = ", ".join(f"{rate:.1f}" for rate, *_ in found)
        first = statistics.median(first for _, first, _ in found)
        print(f"| {clients} | {found[0][2]:.0f} | {statistics.median(rate for rate, *_ in found):.1f} ({rates}) | {first * 1000:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
