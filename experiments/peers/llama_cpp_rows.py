#!/usr/bin/env python3
"""Fill a CSV with what llama.cpp makes of a model: perplexity, divergence, bits and speed of its own quantizations.

    llama_cpp_rows.py MODEL --texts persuasion=austen-persuasion.txt --cache DIR --out rows.csv

MODEL is a GGUF in F32, F16 or BF16, or a Hugging Face directory of a Llama. A line of the CSV is one quantization on one
text; its columns are the fields of `Other` in crates/bitllama-train/src/grid/results.rs. Quantizations are those of
`llama-quantize` without an importance matrix: embeddings and some matrices get more bits than the name says, matrices
whose columns are no multiple of a block get another type, and `bits_per_weight` counts all of it.

The protocol is that of llama.cpp's `perplexity` tool, as crates/bitllama-runtime/src/evaluate has it. The divergence is
from `--teacher` as llama.cpp computes it, both models' logits in f32 and nothing left out; the teacher's are kept in
`--cache` (chunks * ctx / 2 * vocabulary * 4 bytes a text: 1 GB for 20 chunks of a vocabulary of 49,152).

A run that was stopped goes on: lines that are there are not computed again, only speeds that `--no-speed` left empty are
filled in. The lines do not say with which model, teacher, context or number of chunks they were taken, so others belong
in another file. What llama.cpp refuses is named on standard error and left out.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

import gguf_models
import hf_to_gguf

HERE = pathlib.Path(__file__).resolve().parent
TOOL = "llama.cpp"
# Those that need no importance matrix.
DEFAULT = "Q8_0 Q6_K Q4_K_M Q4_0 IQ4_NL IQ4_XS Q3_K_M IQ3_M IQ3_XXS Q2_K TQ2_0 TQ1_0".split()
QUALITY = ["perplexity", "perplexity_error", "mean_kld", "mean_kld_error", "same_top", "rms_delta_p"]
SPEEDS = ["prompt_tokens_per_second", "decode_tokens_per_second"]
COLUMNS = ["tool", "model", "bits_per_weight", "bytes", "text", *QUALITY, *SPEEDS]
PROMPT, DECODE, REPETITIONS = 128, 64, 5


class Refused(Exception):
    """llama.cpp does not make or run a quantization."""


@dataclasses.dataclass
class Text:
    name: str
    # Token by token, of `ctx` each.
    chunks: list
    # Takes the place of each chunk's first token, if any.
    bos: int | None

    def key(self):
        return hashlib.sha256(json.dumps([self.chunks, self.bos]).encode()).hexdigest()[:8]


def threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def source_of(model, cache):
    """A GGUF of `model`, which is one or a Hugging Face directory."""
    if model.is_dir():
        return hf_to_gguf.convert(model, cache)
    if not model.is_file():
        sys.exit(f"{model}: no such file or directory")
    with model.open("rb") as file:
        if file.read(4) != b"GGUF":
            sys.exit(f"{model}: neither a GGUF file nor a Hugging Face directory")
    try:
        types = gguf_models.weights_by_type(model)
    except (ValueError, IndexError, KeyError) as cause:
        sys.exit(f"{model}: the gguf package cannot read it: {cause}")
    if low := [name for name in types if name not in ("F32", "F16", "BF16")]:
        sys.exit(f"{model}: it has weights in {', '.join(low)}; give the model in F32, F16 or BF16")
    return model


def gguf_tokens(path, text):
    """As `hf_to_gguf.tokens`, by the vocabulary of a GGUF."""
    import llama_cpp as lc
    from llama_cpp_bench import no_log

    lc.llama_log_set(no_log, None)
    params = lc.llama_model_default_params()
    params.vocab_only = True
    model = lc.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        sys.exit(f"{path}: llama.cpp cannot load it")
    vocab = lc.llama_model_get_vocab(model)
    if lc.llama_vocab_type(vocab) == lc.LLAMA_VOCAB_TYPE_NONE:
        sys.exit(f"{path}: it has no vocabulary; give the Hugging Face directory in its place")
    raw = text.encode()
    room = len(raw) + 2
    found = (lc.llama_token * room)()
    count = lc.llama_tokenize(vocab, raw, len(raw), found, room, True, False)
    bos = lc.llama_vocab_bos(vocab) if lc.llama_vocab_get_add_bos(vocab) else None
    lc.llama_model_free(model)
    return list(found[:count]), bos


def read_text(pair, args):
    name, _, file = pair.partition("=")
    if not name or not file:
        sys.exit(f"--texts {pair}: expected NAME=FILE")
    try:
        text = pathlib.Path(file).read_text(encoding="utf-8")
    except OSError as cause:
        sys.exit(f"{file}: {cause.strerror}")
    except UnicodeDecodeError as cause:
        sys.exit(f"{file}: not UTF-8 text: {cause}")
    tokens, bos = (hf_to_gguf.tokens if args.model.is_dir() else gguf_tokens)(args.model, text)
    whole = len(tokens) // args.ctx
    if not whole:
        sys.exit(f"{file}: {len(tokens)} tokens do not fill one chunk of {args.ctx}; give a longer text or a smaller --ctx")
    return Text(name, [tokens[i * args.ctx:(i + 1) * args.ctx] for i in range(min(whole, args.chunks))], bos)


def each_chunk(path, text):
    """The logits of the scored positions, `[ctx - 1 - ctx / 2, vocabulary]`, chunk by chunk."""
    import llama_cpp as lc
    from llama_cpp_bench import Session

    ctx = len(text.chunks[0])
    first = ctx // 2
    try:
        session = Session(str(path), threads(), ctx, ctx)
    except SystemExit as cause:
        raise Refused(str(cause)) from None
    batch = lc.llama_batch_init(ctx, 0, 1)
    try:
        if max(map(max, text.chunks)) >= session.vocab:
            sys.exit(f"{path}: {text.name} has tokens outside its vocabulary of {session.vocab}")
        for chunk in text.chunks:
            session.clear()
            batch.n_tokens = ctx
            for i, token in enumerate(chunk):
                batch.token[i] = text.bos if i == 0 and text.bos is not None else token
                batch.pos[i] = i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = first <= i < ctx - 1
            if lc.llama_decode(session.context, batch):
                raise Refused(f"llama.cpp failed on {text.name}")
            yield np.ctypeslib.as_array(lc.llama_get_logits(session.context), (ctx - 1 - first, session.vocab))
    finally:
        lc.llama_batch_free(batch)
        session.close()


def teacher_logits(path, text, cache):
    """Those of all scored positions, `[chunks, ctx - 1 - ctx / 2, vocabulary]`, mapped from a file in `cache`."""
    def write(partial):
        file = None
        for i, logits in enumerate(each_chunk(path, text)):
            if file is None:
                file = np.lib.format.open_memmap(partial, "w+", np.float32, (len(text.chunks), *logits.shape))
            file[i] = logits
        file.flush()

    kept = cache / f"{gguf_models.name_of(path)}-{text.key()}-logits.npy"
    try:
        return np.load(gguf_models.keep(kept, write), mmap_mode="r")
    except Refused as cause:
        sys.exit(f"{path}: {cause}")


def log_softmax(logits):
    logits = logits.astype(np.float64)
    top = logits.max()
    total = top + np.log(np.exp(logits - top).sum())
    if not np.isfinite(total):
        raise Refused("its logits are not finite")
    return logits - total


def mean_and_error(values):
    """llama.cpp's `mean_and_uncertainty`."""
    values = np.asarray(values, dtype=np.float64)
    mean = values.mean()
    variance = (values * values).mean() - mean * mean
    return mean, math.sqrt(max(variance, 0.0) / (len(values) - 1)) if len(values) > 1 else 0.0


def compare(student, teacher, text):
    """The columns of QUALITY; `student` and `teacher` give the logits of chunks."""
    nll, kld, same_top, squares = [], [], [], []
    for chunk, of_student, of_teacher in zip(text.chunks, student, teacher):
        if of_student.shape != of_teacher.shape:
            sys.exit(f"the teacher has a vocabulary of {of_teacher.shape[1]}, the model one of {of_student.shape[1]}")
        for s, t, target in zip(of_student, of_teacher, chunk[len(chunk) // 2 + 1:]):
            log_q, log_p = log_softmax(s), log_softmax(t)
            p = np.exp(log_p)
            # A token that the teacher excludes counts nothing, whatever the student thinks of it.
            kld.append(np.sum(p * (log_p - log_q), where=p > 0.0))
            nll.append(-log_q[target])
            same_top.append(s.argmax() == t.argmax())
            squares.append((np.exp(log_q[target]) - p[target]) ** 2)
    mean, error = mean_and_error(nll)
    perplexity = math.exp(mean)
    return dict(zip(QUALITY, [perplexity, perplexity * error, *mean_and_error(kld), np.mean(same_top), math.sqrt(np.mean(squares))]))


def run_json(command):
    """What `command` prints; in a process of its own, because llama.cpp ends its process where it asserts."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        raise Refused(f"{pathlib.Path(command[1]).name} was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise Refused((done.stderr.strip() or "no reason was given").splitlines()[-1])
    return json.loads(done.stdout)


def quantized(kind, source, cache):
    """Path, bytes and bits of what llama.cpp makes of `source`."""
    command = [sys.executable, str(HERE / "gguf_models.py"), "--gguf", str(source), "--type", kind, "--mixture", "--cache", str(cache)]
    found = run_json(command)
    # Null where `gguf` does not know a type.
    weights = found["weights"] or {kind: 1}
    total = sum(weights.values())
    shares = ", ".join(f"{count / total:.0%} {name}" for name, count in weights.items())
    print(f"{kind}: {found['bits_per_weight']:.3f} bits per weight ({shares})", flush=True)
    return found


def speeds(path):
    """The columns of SPEEDS: medians, in a process that has run nothing else."""
    tests = ["-t", str(threads()), "-p", str(PROMPT), "-n", str(DECODE), "-r", str(REPETITIONS)]
    report = run_json([sys.executable, str(HERE / "llama_cpp_bench.py"), str(path), *tests])
    return dict(zip(SPEEDS, (test["tokens_per_second"]["median"] for test in report["tests"])))


def key_of(row):
    return row["tool"], row["model"], row["text"]


def read_rows(path):
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader) if reader.fieldnames == COLUMNS else None
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        sys.exit(f"{path}: {cause}; give another --out")
    if rows is None:
        sys.exit(f"{path}: its first line is not {','.join(COLUMNS)}; give another --out")
    return {key_of(row): row for row in rows}


def write_rows(path, rows):
    """All of the file or nothing of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def shown(values):
    return {name: f"{value:.7g}" for name, value in values.items()}


def fill(kind, texts, source, teacher, args, rows):
    """The lines of one quantization that are not in `rows`, or have no speeds where speeds are wanted."""
    def missing(text):
        row = rows.get((TOOL, kind, text.name))
        return row is None or not args.no_speed and not all(row[name] for name in SPEEDS)

    texts = [text for text in texts if missing(text)]
    if not texts:
        return
    file = quantized(kind, source, args.cache)
    same = {"tool": TOOL, "model": kind, "bits_per_weight": f"{file['bits_per_weight']:.7g}", "bytes": file["bytes"]}
    for text in texts:
        if (TOOL, kind, text.name) in rows:
            continue
        quality = compare(each_chunk(file["path"], text), teacher_logits(teacher, text, args.cache), text)
        rows[TOOL, kind, text.name] = {**dict.fromkeys(SPEEDS, ""), **same, "text": text.name, **shown(quality)}
        write_rows(args.out, rows)
        print(f"{kind}, {text.name}: " + ", ".join(f"{name} {value:.6g}" for name, value in quality.items()), flush=True)
    if not args.no_speed:
        measured = speeds(file["path"])
        for text in texts:
            rows[TOOL, kind, text.name].update(shown(measured))
        write_rows(args.out, rows)
        print(f"{kind}: " + ", ".join(f"{name} {value:.1f}" for name, value in measured.items()), flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="a GGUF in F32, F16 or BF16, or a Hugging Face directory")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--quantizations", nargs="+", default=DEFAULT, metavar="TYPE", help=f"(default: {' '.join(DEFAULT)})")
    parser.add_argument("--teacher", type=pathlib.Path, help="the unquantized model, of the same tokens (default: MODEL)")
    parser.add_argument("--ctx", type=int, default=512, help="tokens a chunk (default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=20, help="first chunks of each text (default: %(default)s)")
    parser.add_argument("--no-speed", action="store_true", help="leave the columns of tokens a second empty")
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder that keeps GGUF files and the teacher's logits")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE.csv")
    args = parser.parse_args()
    if unknown := [kind for kind in args.quantizations if kind not in gguf_models.FTYPES]:
        sys.exit(f"--quantizations {' '.join(unknown)}: unknown; known are {' '.join(gguf_models.FTYPES)}")
    if args.ctx < 4 or args.chunks < 1:
        sys.exit(f"--ctx {args.ctx} --chunks {args.chunks}: at least 4 and at least 1 are needed")
    names = [pair.partition("=")[0] for pair in args.texts]
    if len(set(names)) < len(names):
        sys.exit("--texts: two texts have the same name")
    return args


def main():
    args = arguments()
    rows = read_rows(args.out)
    source = source_of(args.model, args.cache)
    teacher = source_of(args.teacher, args.cache) if args.teacher else source
    texts = [read_text(pair, args) for pair in args.texts]
    for kind in args.quantizations:
        try:
            fill(kind, texts, source, teacher, args, rows)
        except Refused as cause:
            print(f"{kind}: skipped: {cause}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
