#!/usr/bin/env python3
"""Ill-treat a running `bitllama serve`, and see that it answers all others as before.

    stress_server.py --url http://127.0.0.1:8080 --pid PID [--minutes 10] [--clients 1000]

Connections that say nothing, half requests, bodies that are no JSON or too large, readers that hardly read, streams that are given up,
and among them well-behaved clients whose greedy answers must be the one that the server gave before it all began. Prints the
server's memory (Linux, by --pid) each minute; ends with 1 for a wrong answer, a server that is gone, or memory that grows by more
than --within from the end of the second minute to the end. Needs Python alone.
"""

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.parse

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
COUNTS = dict(good=0, wrong=0, busy=0, failed=0, idle=0, half=0, bad=0, large=0, slow=0, given_up=0)


def request(body, host, length=None, headers=""):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}Content-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


def completion(seed, stream=False):
    # A few prompts, so that some share their beginnings.
    return {"prompt": f"{PROMPT} number {seed % 7},", "max_tokens": 16, "temperature": 0, "stream": stream}


async def answer(args, body, read=None):
    reader, writer = await asyncio.open_connection(args.host, args.port)
    try:
        writer.write(request(body, args.host))
        await writer.drain()
        if read:
            return await read(reader)
        data = await asyncio.wait_for(reader.read(), 300)
        head, _, content = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), content
    finally:
        writer.close()


async def well_behaved(args, expected, seed):
    status, content = await answer(args, completion(seed))
    if status == 429:
        COUNTS["busy"] += 1
        return
    text = json.loads(content)["choices"][0]["text"] if status == 200 else None
    COUNTS["good" if text == expected[seed % 7] else "wrong"] += 1


async def idle(args, *_):
    _, writer = await asyncio.open_connection(args.host, args.port)
    await asyncio.sleep(random.uniform(0, 20))
    writer.close()
    COUNTS["idle"] += 1


async def half(args, *_):
    reader, writer = await asyncio.open_connection(args.host, args.port)
    whole = request(completion(0), args.host)
    writer.write(whole[: random.randrange(1, len(whole))])
    await writer.drain()
    await asyncio.sleep(random.uniform(0, 20))
    writer.close()
    COUNTS["half"] += 1


async def bad(args, *_):
    body = random.choice([b"{", b"\xff" * 40, b"[" * 100_000, b'{"prompt": ' + b"[" * 50_000, b'{"prompt": 1e999}', b"null"])
    status, _ = await answer(args, body)
    COUNTS["bad" if status == 400 else "wrong"] += 1


async def large(args, *_):
    reader, writer = await asyncio.open_connection(args.host, args.port)
    try:
        writer.write(request(b"", args.host, length=1 << 40))
        for _ in range(200):
            writer.write(b" " * (1 << 16))
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()
    COUNTS["large"] += 1


async def slow(args, _, seed):
    async def read(reader):
        for _ in range(20):
            if not await reader.read(16):
                break
            await asyncio.sleep(0.5)

    await answer(args, {**completion(seed, stream=True), "max_tokens": 60, "logprobs": 5}, read)
    COUNTS["slow"] += 1


async def given_up(args, _, seed):
    async def read(reader):
        await reader.read(100)

    await answer(args, {**completion(seed, stream=True), "max_tokens": 400}, read)
    COUNTS["given_up"] += 1


KINDS = [well_behaved] * 4 + [idle, half, bad, large, slow, given_up]


async def client(args, expected, until, number):
    rng = random.Random(number)
    while time.monotonic() < until:
        kind = rng.choice(KINDS)
        try:
            await kind(args, expected, rng.randrange(1000))
        except (OSError, asyncio.TimeoutError, IndexError, ValueError):
            # A connection that the server closed; a well-behaved client must not see that.
            COUNTS["failed"] += kind is well_behaved
        await asyncio.sleep(rng.uniform(0, 2))


def memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS:"))


async def watch(args, until, seen):
    start = time.monotonic()
    while time.monotonic() < until:
        await asyncio.sleep(min(60, max(0, until - time.monotonic())))
        seen.append(memory(args.pid))
        print(f"{(time.monotonic() - start) / 60:.1f} min: {seen[-1]:.1f} MB, {json.dumps(COUNTS)}", flush=True)


async def run(args):
    expected = []
    for seed in range(7):
        status, content = await answer(args, completion(seed))
        expected.append(json.loads(content)["choices"][0]["text"])
    until, seen = time.monotonic() + args.minutes * 60, []
    tasks = [client(args, expected, until, number) for number in range(args.clients)]
    await asyncio.gather(watch(args, until, seen), *tasks)
    again = [json.loads((await answer(args, completion(seed)))[1])["choices"][0]["text"] for seed in range(7)]
    grown = seen[-1] / seen[min(1, len(seen) - 1)] - 1
    print(f"memory grew by {grown:+.1%}; answers after it all {'the same' if again == expected else 'DIFFER'}")
    return COUNTS["wrong"] or COUNTS["failed"] or again != expected or not COUNTS["good"] or grown > args.within


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--within", type=float, default=0.05)
    args = parser.parse_args()
    url = urllib.parse.urlsplit(args.url)
    args.host, args.port = url.hostname, url.port
    sys.exit(bool(asyncio.run(run(args))))


if __name__ == "__main__":
    main()
