#!/usr/bin/env python3
"""Time llama.cpp on one GGUF by the tests of its `llama-bench`: prompt processing (pp) and text generation (tg).

    llama_cpp_bench.py MODEL.gguf -t 2 -p 128 -n 64 -r 5
    llama_cpp_bench.py MODEL.gguf -t 2 -p 0 -n 64 -d 2048 -s 4     # four sequences, each behind 2048 tokens

Only `llama_decode` is timed, through llama.cpp's C interface: no tokenizer, no sampling, logits of the last token of each sequence only.
The prompt is one batch (`n_batch` and `n_ubatch` are at least its length); flash attention, repacking of weights, type
of the cache and way of loading are llama.cpp's defaults. One run of each test warms up. Prints one JSON object.
"""

import argparse
import ctypes
import json
import os
import statistics
import time

import llama_cpp as lc


@lc.llama_log_callback
def no_log(level, text, data):
    pass


class Session:
    """A model, and a context of `tokens` positions for each of so many `sequences`, in batches of at most `batch` tokens."""

    def __init__(self, path, threads, tokens, batch, sequences=1):
        lc.llama_log_set(no_log, ctypes.c_void_p(0))
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {path}")
        params = lc.llama_context_default_params()
        # A sequence has a whole number of blocks of 256 positions.
        params.n_ctx = sequences * -(-tokens // 256) * 256
        params.n_batch = params.n_ubatch = batch
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp could not start")
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.limit = batch
        self.batch = lc.llama_batch_init(batch, 0, 1)

    def token(self, index):
        """Tokens without meaning, in the vocabulary."""
        return (7919 * index + 11) % self.vocab

    def decode(self, tokens):
        """The tokens behind those that the first sequence has, with the logits of the last."""
        # The batch only points to the array, which must outlive it.
        array = (lc.llama_token * len(tokens))(*tokens)
        if lc.llama_decode(self.context, lc.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")
        lc.llama_synchronize(self.context)

    def step(self, position, sequences):
        """One token of each sequence, with its logits."""
        batch = self.batch
        batch.n_tokens = sequences
        for i in range(sequences):
            batch.token[i] = self.token(position * sequences + i)
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = position, 1, i, 1
        if lc.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        lc.llama_synchronize(self.context)

    def close(self):
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def fill(self, depth, sequences):
        """The same `depth` tokens in every sequence, and nothing else."""
        self.clear()
        for start in range(0, depth, self.limit):
            self.decode([self.token(i) for i in range(start, min(depth, start + self.limit))])
        for sequence in range(1, sequences):
            lc.llama_memory_seq_cp(lc.llama_get_memory(self.context), 0, sequence, -1, -1)

    def prompt(self, count, depth=0):
        """Tokens a second of one prompt of `count` tokens behind `depth` others."""
        self.fill(depth, 1)
        tokens = [self.token(depth + i) for i in range(count)]
        start = time.perf_counter()
        self.decode(tokens)
        return count / (time.perf_counter() - start)

    def generate(self, count, depth=0, sequences=1):
        """Tokens a second, over all sequences, of `count` tokens in each, one by one behind `depth` others."""
        self.fill(depth, sequences)
        start = time.perf_counter()
        for i in range(count):
            self.step(depth + i, sequences)
        return count * sequences / (time.perf_counter() - start)


def repeat(name, repetitions, run):
    run()
    samples = [run() for _ in range(repetitions)]
    return {
        "test": name,
        "tokens_per_second": {
            "mean": statistics.mean(samples),
            "sd": statistics.stdev(samples) if repetitions > 1 else 0.0,
            "median": statistics.median(samples),
            "samples": samples,
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-t", "--threads", type=int, required=True)
    parser.add_argument("-p", "--prompt", type=int, default=128)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-d", "--depth", type=int, default=0, help="tokens before each test")
    parser.add_argument("-s", "--sequences", type=int, default=1, help="sequences that generate together")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    args = parser.parse_args()

    depth, sequences = args.depth, args.sequences
    batch = max(args.prompt, sequences, 512 if depth else 32)
    session = Session(args.model, args.threads, depth + max(args.prompt, args.generate) + 8, batch, sequences)
    at = f"@d{depth}" if depth else ""
    tests = []
    if args.prompt:
        tests.append(repeat(f"pp{args.prompt}{at}", args.repetitions, lambda: session.prompt(args.prompt, depth)))
    if args.generate:
        name = f"tg{args.generate}x{sequences}{at}" if sequences > 1 else f"tg{args.generate}{at}"
        tests.append(repeat(name, args.repetitions, lambda: session.generate(args.generate, depth, sequences)))
    print(json.dumps({
        "llama_cpp_python": lc.__version__,
        "system": lc.llama_print_system_info().decode().strip(" |\n"),
        "model_bytes": os.path.getsize(args.model),
        "threads": args.threads,
        "tests": tests,
    }))


if __name__ == "__main__":
    main()
