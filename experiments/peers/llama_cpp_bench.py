#!/usr/bin/env python3
"""Time llama.cpp on one GGUF by the tests of its `llama-bench`: prompt processing (pp) and text generation (tg).

    llama_cpp_bench.py MODEL.gguf -t 2 -p 128 -n 64 -r 5

Only `llama_decode` is timed, through llama.cpp's C interface: no tokenizer, no sampling, logits of the last token only.
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
    def __init__(self, path, threads, tokens, batch):
        lc.llama_log_set(no_log, ctypes.c_void_p(0))
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp could not load {path}")
        params = lc.llama_context_default_params()
        params.n_ctx = tokens
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp could not start")
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))

    def token(self, index):
        """Tokens without meaning, in the vocabulary."""
        return (7919 * index + 11) % self.vocab

    def decode(self, tokens):
        # The batch only points to the array, which must outlive it.
        array = (lc.llama_token * len(tokens))(*tokens)
        if lc.llama_decode(self.context, lc.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")
        lc.llama_synchronize(self.context)

    def close(self):
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)

    def clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def prompt(self, count):
        """Tokens a second of one prompt of `count` tokens."""
        self.clear()
        tokens = [self.token(i) for i in range(count)]
        start = time.perf_counter()
        self.decode(tokens)
        return count / (time.perf_counter() - start)

    def generate(self, count):
        """Tokens a second of `count` tokens, one by one from an empty cache."""
        self.clear()
        start = time.perf_counter()
        for i in range(count):
            self.decode([self.token(i)])
        return count / (time.perf_counter() - start)


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
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    args = parser.parse_args()

    # The cache is allocated in blocks of 256 positions anyway.
    session = Session(args.model, args.threads, max(args.prompt, args.generate) + 8, max(args.prompt, 32))
    tests = []
    if args.prompt:
        tests.append(repeat(f"pp{args.prompt}", args.repetitions, lambda: session.prompt(args.prompt)))
    if args.generate:
        tests.append(repeat(f"tg{args.generate}", args.repetitions, lambda: session.generate(args.generate)))
    print(json.dumps({
        "llama_cpp_python": lc.__version__,
        "system": lc.llama_print_system_info().decode().strip(" |\n"),
        "model_bytes": os.path.getsize(args.model),
        "threads": args.threads,
        "tests": tests,
    }))


if __name__ == "__main__":
    main()
