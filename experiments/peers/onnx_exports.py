#!/usr/bin/env python3
"""Hold exported ONNX folders against ONNX Runtime and ONNX Runtime GenAI: the same logits as ours, and the same greedy text.

    onnx_exports.py MODEL --quantizations f32 int4-g64 int4-g64z ternary-row --work DIR
    onnx_exports.py --families ../../tests/golden/families --work DIR

MODEL is anything that `bitllama-train quantize --model` takes. A quantization is f32 (none) or SCHEME-gN, SCHEME-row or SCHEME-tensor,
with a z behind it for zero points; embedding and head have 8 bits, or --embedding. Each is exported twice, with ONNX Runtime's operators
and with `--opset-only`, and then

- logits of the first --tokens tokens of the text are compared with those of libbitllama with activations, keys and values in f32: of a
  pass over all of them, and of the last of them one by one behind a cache (largest absolute difference);
- --new tokens of greedy text of ONNX Runtime GenAI, by its own tokenizer, are compared with those of `bitllama run`.

--families does the first for every tiny model of a folder of golden models, in f32, and sets the logits that `transformers` computed
beside both. Ends with 1 if logits are farther apart than --within or a text differs.
"""

import argparse
import ctypes
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ["The captain of the ship was", "def fibonacci(n):\n", "Three things are needed to bake bread:"]
FORMS = {"contrib": [], "opset-only": ["--opset-only"]}
EXACT = 1


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


class Ours:
    """A model in libbitllama, exact."""

    def __init__(self, library, path):
        self.c = ctypes.CDLL(str(library))
        for name in ("bitllama_open", "bitllama_context_new", "bitllama_last_error"):
            getattr(self.c, name).restype = ctypes.c_void_p
        self.model = ctypes.c_void_p(self.c.bitllama_open(str(path).encode(), 2, EXACT))
        if not self.model:
            sys.exit(ctypes.string_at(self.c.bitllama_last_error()).decode())
        self.vocabulary = self.c.bitllama_vocab_size(self.model)

    def encode(self, text):
        count = self.c.bitllama_encode(self.model, text.encode(), 0, None, 0)
        tokens = (ctypes.c_uint32 * count)()
        self.c.bitllama_encode(self.model, text.encode(), 0, tokens, ctypes.c_size_t(count))
        return list(tokens)

    def logits(self, tokens):
        context = ctypes.c_void_p(self.c.bitllama_context_new(self.model))
        out = np.empty((len(tokens), self.vocabulary), np.float32)
        ids = (ctypes.c_uint32 * len(tokens))(*tokens)
        pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        code = self.c.bitllama_feed(context, ids, ctypes.c_size_t(len(tokens)), 1, pointer, ctypes.c_size_t(out.size))
        self.c.bitllama_context_free(context)
        if code:
            sys.exit(ctypes.string_at(self.c.bitllama_last_error()).decode())
        return out

    def close(self):
        self.c.bitllama_free(self.model)


class Theirs:
    """A model in ONNX Runtime."""

    def __init__(self, folder, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Waiting threads leave the processor to others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        config = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        for key, value in config["session_options"].items():
            if key.startswith("session."):
                options.add_session_config_entry(key, value)
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        shape = (1, config["num_key_value_heads"], 0, config["head_size"])
        names = [name.name for name in self.session.get_inputs() if name.name.startswith("past_")]
        self.empty = {name: np.zeros(shape, np.float32) for name in names}

    def step(self, tokens, past, seen):
        feed = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, seen + len(tokens)), np.int64), **past}
        names = [name.name for name in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, feed)))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        return found["logits"][0], past

    def logits(self, tokens, cached):
        """Of one pass, and with the last `cached` tokens one by one."""
        whole, _ = self.step(tokens, self.empty, 0)
        first = len(tokens) - cached
        parts, past = self.step(tokens[:first], self.empty, 0)
        parts = [parts]
        for index in range(first, len(tokens)):
            row, past = self.step([tokens[index]], past, index)
            parts.append(row)
        return whole, np.concatenate(parts)


def greedy(folder, prompts, new, threads):
    """Tokens of each prompt and of its continuation, by GenAI."""
    import onnxruntime_genai as genai

    config = genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)
    tokenizer = genai.Tokenizer(model)
    # Without, it leaves out the token that begins a text.
    tokenizer.update_options(add_special_tokens="true")
    for prompt in prompts:
        ids = [int(token) for token in tokenizer.encode(prompt)]
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + new, do_sample=False)
        generator = genai.Generator(model, params)
        generator.append_tokens(np.array(ids, np.int32))
        made = []
        while not generator.is_done():
            generator.generate_next_token()
            made.append(int(generator.get_next_tokens()[0]))
        yield ids, made


def our_greedy(args, model, prompt):
    found = run(
        args.bitllama, "run", "--artifact", model, "--prompt", prompt, "-n", args.new, "--temperature", 0, "--activations", "f32",
        "--kv", "f32", "--json",
    )
    return json.loads(found)["text"]


def quantized(args, name):
    """The folder of a model that was rounded."""
    if name == "f32":
        return args.model
    scheme, granularity = name.split("-")
    points = ["--zero-point"] if granularity.endswith("z") else []
    group = granularity.rstrip("z").removeprefix("g")
    folder = args.work / f"{name}-artifact"
    run(
        args.train, "quantize", "--model", args.model, "--scheme", scheme, "--group-size", group, *points, "--embedding", args.embedding,
        "--output", folder,
    )
    return folder


def apart(a, b):
    return float(np.abs(a - b).max())


def of_model(args):
    print(f"| quantization | operators | MB | bits | all at once | one by one | largest logit | same top | {len(PROMPTS)} texts by GenAI |")
    print("|---|---|---|---|---|---|---|---|---|")
    failed = False
    text = args.text.read_text(encoding="utf-8")[: 8 * args.tokens]
    for name in args.quantizations:
        model = quantized(args, name)
        ours = Ours(args.library, model)
        tokens = ours.encode(text)[: args.tokens]
        expected = ours.logits(tokens)
        wanted_of = {prompt: our_greedy(args, model, prompt) for prompt in PROMPTS if args.new}
        for form in args.forms:
            folder, flags = args.work / f"{name}-{form}", FORMS[form]
            report = json.loads(run(args.train, "export", "--from", model, "--to", "onnx", *flags, "--output", folder, "--json"))
            size = sum(path.stat().st_size for path in folder.glob("model.onnx*")) / 1e6
            theirs = Theirs(folder, args.threads)
            whole, stepped = theirs.logits(tokens, args.cached)
            del theirs
            same = (whole.argmax(1) == expected.argmax(1)).mean()
            differences = apart(whole, expected), apart(stepped, expected)
            texts = []
            made_of = greedy(folder, PROMPTS, args.new, args.threads) if args.new else []
            for prompt, (ids, made) in zip(PROMPTS, made_of):
                wanted = wanted_of[prompt]
                text_of = decoded(ours, made)
                verdict = "same" if text_of == wanted and ids == ours.encode(prompt) else "**differs**"
                if ids != ours.encode(prompt):
                    verdict += " (tokens of the prompt)"
                elif verdict != "same":
                    common = next((i for i, (a, b) in enumerate(zip(text_of, wanted)) if a != b), min(len(text_of), len(wanted)))
                    verdict += f" after {common} characters"
                texts.append(verdict)
            failed |= max(differences) > args.within or any(verdict != "same" for verdict in texts)
            print(
                f"| {name} | {form} | {size:.1f} | {report['bits_per_weight']:.3f} | {differences[0]:.1e} | {differences[1]:.1e} | "
                f"{np.abs(expected).max():.1f} | {same:.1%} | {', '.join(texts)} |", flush=True,
            )
            if not args.keep:
                shutil.rmtree(folder)
        ours.close()
        if not args.keep and name != "f32":
            shutil.rmtree(model)
    return failed


def decoded(ours, tokens):
    """Text of tokens, by our tokenizer; the one that ended the text has none."""
    ids = (ctypes.c_uint32 * len(tokens))(*tokens)
    room = 64 * len(tokens) + 1
    out = ctypes.create_string_buffer(room)
    ours.c.bitllama_decode(ours.model, ids, ctypes.c_size_t(len(tokens)), out, ctypes.c_size_t(room))
    return out.value.decode()


def of_families(args):
    print("| model | operators | all at once | one by one | to `transformers` |")
    print("|---|---|---|---|---|")
    failed = False
    for golden in sorted(args.families.iterdir()):
        if not (golden / "expected.json").is_file() or not (golden / "model.safetensors").is_file():
            continue
        model = args.work / golden.name
        shutil.copytree(golden, model, dirs_exist_ok=True)
        shutil.copy(args.families / "tokenizer.json", model)
        for form in args.forms:
            folder, flags = args.work / f"{golden.name}-{form}", FORMS[form]
            done = subprocess.run(
                [str(args.train), "export", "--from", str(model), "--to", "onnx", *flags, "--output", str(folder)],
                capture_output=True, text=True,
            )
            if done.returncode:
                print(f"| {golden.name} | {form} | refused: {done.stderr.strip()} | | |", flush=True)
                continue
            limit = json.loads((folder / "genai_config.json").read_text())["model"]["context_length"]
            ours, theirs = Ours(args.library, model), Theirs(folder, args.threads)
            worst = [0.0, 0.0, 0.0]
            for case in json.loads((golden / "expected.json").read_text())["cases"]:
                tokens = case["input_ids"]
                if len(tokens) > limit:
                    continue
                expected = ours.logits(tokens)
                whole, stepped = theirs.logits(tokens, min(args.cached, len(tokens) - 1))
                found = np.array(case["logits"], np.float32)
                scale = max(1.0, float(np.abs(found).max()))
                for index, value in enumerate((
                    apart(whole, expected), apart(stepped, expected), apart(whole[case["positions"]], found) / scale,
                )):
                    worst[index] = max(worst[index], value)
            failed |= max(worst[:2]) > args.within
            print(f"| {golden.name} | {form} | {worst[0]:.1e} | {worst[1]:.1e} | {worst[2]:.1e} |", flush=True)
            ours.close()
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--quantizations", nargs="+", default=["f32", "int4-g64"], metavar="NAME")
    parser.add_argument("--embedding", default="int8")
    parser.add_argument("--families", type=pathlib.Path, help="compare the tiny models of this folder, and nothing else")
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "data/austen/sense-and-sensibility.txt")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--cached", type=int, default=16, help="tokens that are fed one by one (default: %(default)s)")
    parser.add_argument("--new", type=int, default=48, help="tokens of greedy text; 0 for none (default: %(default)s)")
    parser.add_argument("--within", type=float, default=1e-2, help="largest absolute difference of logits (default: %(default)s)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="which operators (default: both)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the folders")
    parser.add_argument("--bitllama", default=ROOT / "target/release/bitllama")
    parser.add_argument("--train", default=ROOT / "target/release/bitllama-train")
    parser.add_argument("--library", default=ROOT / "target/release/libbitllama.so")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.families is None and args.model is None:
        parser.error("a model or --families is needed")
    sys.exit(of_families(args) if args.families else of_model(args))


if __name__ == "__main__":
    main()
