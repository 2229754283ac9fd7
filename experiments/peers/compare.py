#!/usr/bin/env python3
"""Time bitllama, ik_llama.cpp and llama.cpp in turns on one machine, format by format, and write a table.

    cargo build --release
    .venv/bin/python experiments/peers/compare.py --shape tinyllama-1.1b --ik BIN_DIR --cache DIR --out DIR

Formats are those that the recipes and `quantize` write, groups of columns with f16 scales, and below them one scale a row.
Each measurement, one test of one program, is a process of its own. A round times the programs one after the other, test by
test, on the same shape with the same number of threads; a ratio is of two medians of a round, and a table row gives the median
of the ratios. The share of the processors that other processes took meanwhile is measured too: with `--quiet`, measurements
wait for a quiet machine, and one that was disturbed is repeated.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
import typing

import gguf_models

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

OURS, IK, LLAMA = "bitllama", "ik_llama.cpp", "llama.cpp"
# Formats of this project (`-g64`: groups of 64 columns with an f16 scale, `z`: with zero points; else a scale a row), and the types
# of the peers with the nearest number of bits, more in most cases. Of ik_llama.cpp's two ternary types the larger is the faster.
FORMATS = {
    "int4-g64": [(IK, "Q4_0"), (LLAMA, "Q4_0")],
    "int4-g128": [(IK, "IQ4_KS"), (LLAMA, "IQ4_XS")],
    "int4-g64z": [(IK, "Q4_1"), (LLAMA, "Q4_1")],
    "int8-g64": [(IK, "Q8_0"), (LLAMA, "Q8_0")],
    "nf4-g64": [(IK, "IQ4_NL"), (LLAMA, "IQ4_NL")],
    "int3-g64": [(IK, "IQ3_K"), (LLAMA, "Q3_K_S")],
    "int2-g64": [(IK, "IQ2_K"), (LLAMA, "Q2_K")],
    "ternary-g64": [(IK, "IQ2_BN"), (LLAMA, "TQ2_0")],
    "ternary-g128": [(IK, "IQ2_BN"), (LLAMA, "TQ2_0")],
    "binary-g128": [(IK, "IQ1_BN"), (IK, "IQ2_BN"), (LLAMA, "Q1_0")],
    "int4": [(IK, "Q4_0"), (LLAMA, "Q4_0")],
    "int8": [(IK, "Q8_0"), (LLAMA, "Q8_0")],
    "int2": [(IK, "IQ2_K"), (LLAMA, "Q2_K")],
    "ternary": [(IK, "IQ2_BN"), (LLAMA, "TQ2_0")],
    "binary": [(IK, "IQ1_BN"), (IK, "IQ2_BN"), (LLAMA, "Q1_0")],
    "f32": [(IK, "F32"), (LLAMA, "F32")],
}
# Schemes of embedding and head by themselves, and the peers' types.
PEER_EMBEDDINGS = {"int8": "Q8_0", "int4": "Q4_0", "f32": "F32"}
TESTS = "pp128,pp1024,tg64,tg64@d2048,tg64x4,tg64x16"


class Test(typing.NamedTuple):
    """A test by the name that `bitllama bench` gives it: `pp128`, `tg64x4@d2048`."""

    name: str
    prompt: int
    generate: int
    sequences: int
    depth: int

    @classmethod
    def parse(cls, name):
        found = re.fullmatch(r"(pp|tg)([1-9]\d*)(?:x(\d+))?(?:@d(\d+))?", name)
        if not found or (found[1] == "pp" and found[3]):
            sys.exit(f"--tests {name}: expected a test like pp128, tg64, tg64x4 or tg64@d2048")
        tokens = int(found[2])
        prompt, generate = (tokens, 0) if found[1] == "pp" else (0, tokens)
        return cls(name, prompt, generate, int(found[3] or 1), int(found[4] or 0))


def cpu_seconds():
    """Seconds that all processors have worked, and seconds that they have had, since the machine started."""
    try:
        fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = fields[:8]
    busy = user + nice + system + irq + softirq + steal
    return [ticks / os.sysconf("SC_CLK_TCK") for ticks in (busy, busy + idle + iowait)]


def run_once(command, timeout, cwd=None):
    """What `command` printed, and the share of all processors that other processes had meanwhile."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd)
    after = cpu_seconds()
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = used.ru_utime + used.ru_stime - own.ru_utime - own.ru_stime
    others = None
    if before and after and after[1] > before[1]:
        others = max(0.0, (after[0] - before[0] - own) / (after[1] - before[1]))
    return done, others


def wait_for_quiet(share, patience):
    """Returns when other processes take less than `share` of the processors, or after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = cpu_seconds()
        time.sleep(1)
        after = cpu_seconds()
        if not before or after[0] - before[0] <= share * (after[1] - before[1]):
            return


def run(command, args, cwd=None):
    """[`run_once`], with `--quiet` when the machine is quiet, and again if it did not stay so."""
    if args.quiet is None:
        return run_once(command, args.timeout, cwd)
    best = None
    for _ in range(args.retries + 1):
        wait_for_quiet(args.quiet, args.patience)
        this = run_once(command, args.timeout, cwd)
        if this[1] is None or this[1] <= args.quiet:
            return this
        print(f"    other processes had {this[1]:.0%} of the processors", file=sys.stderr)
        best = min(best or this, this, key=lambda one: one[1])
    return best


def flags_of(weights):
    """The flags of `bitllama bench` for a format of this project."""
    scheme, group, zero_point = re.fullmatch(r"(\w+?)(?:-g(\d+)(z?))?", weights).groups()
    if not group:
        return ["--scheme", scheme, *(["--group-size", "0"] if scheme != "f32" else [])]
    return ["--scheme", scheme, "--group-size", group, "--scale-dtype", "f16", *(["--zero-point"] if zero_point else [])]


def run_ours(weights, test, threads, args):
    """What `bitllama bench` measures: samples in tokens a second, bits per weight, and its report."""
    artifacts = dict(item.split("=", 1) for item in args.artifact)
    embedding = ["--embedding", args.embedding] if args.embedding else []
    model = ["--artifact", artifacts[weights]] if weights in artifacts else ["--shape", args.config, *flags_of(weights), *embedding]
    command = [args.bitllama, "bench", *model, *flags_of_test(test, threads, args), "--json", *shlex.split(args.bitllama_args)]
    out, others = run(command, args)
    report = json.loads(out.stdout)
    return report["runs"][0]["tests"][0]["tokens_per_second"]["samples"], report["bits_per_weight"], report, others


def flags_of_test(test, threads, args):
    """Flags that `bitllama bench` and llama_cpp_bench.py have in common."""
    numbers = {"-t": threads, "-p": test.prompt, "-n": test.generate, "-d": test.depth, "-s": test.sequences, "-r": args.repetitions}
    return [str(item) for pair in numbers.items() for item in pair]


def run_llama(model, test, threads, args):
    out, others = run([sys.executable, str(HERE / "llama_cpp_bench.py"), model["path"], *flags_of_test(test, threads, args)], args)
    report = json.loads(out.stdout)
    return report["tests"][0]["tokens_per_second"]["samples"], model["bits_per_weight"], report, others


def run_ik(model, test, threads, args):
    """By its `llama-bench`; several sequences by its `llama-batched-bench`, whose first pass warms up. Weights are repacked
    on loading."""
    common = ["-m", model["path"], "-t", str(threads), "-fa", "1", "-ub", str(max(512, test.prompt))]
    if test.sequences == 1 and not (test.prompt and test.depth):
        what = ["-p", str(test.prompt), "-n", "0", "-gp", f"{test.depth},{test.generate}"] if test.depth else \
            ["-p", str(test.prompt), "-n", str(test.generate)]
        out, others = run([f"{args.ik}/llama-bench", *common, *what, "-r", str(args.repetitions), "-rtr", "1", "-o", "json"], args)
        report = json.loads(out.stdout)
        return report[0]["samples_ts"], model["bits_per_weight"], report, others
    if test.prompt:
        sys.exit(f"--tests {test.name}: ik_llama.cpp's llama-bench has no prompts behind others")
    # Its sequences begin with a prompt, of one token at least.
    depth, passes = max(test.depth, 1), args.repetitions + 1
    positions = test.sequences * (depth + test.generate)
    what = ["-npp", str(depth), "-ntg", str(test.generate), "-npl", ",".join([str(test.sequences)] * passes)]
    # It writes a llama.log where it runs.
    out, others = run([f"{args.ik}/llama-batched-bench", *common, "-c", str(positions), *what, "-rtr"], args, args.cache)
    rows = [line.split("|")[1:-1] for line in (out.stdout + out.stderr).splitlines() if re.match(r"\|\s*\d+ \|", line)]
    if len(rows) != passes:
        sys.exit(f"llama-batched-bench printed {len(rows)} rows, not {passes}:\n{out.stderr[-2000:]}")
    return [float(row[7]) for row in rows[1:]], model["bits_per_weight"], {"rows": rows}, others


def peer_model(kind, args):
    """Path, bytes, weights by type and bits of the GGUF that a peer runs."""
    source = ["--gguf", args.gguf] if args.gguf else ["--config", args.config]
    command = [sys.executable, str(HERE / "gguf_models.py"), *source, "--type", kind, "--cache", args.cache]
    # What llama.cpp has too, ik_llama.cpp reads.
    command += ["--ik", args.ik] if kind not in gguf_models.FTYPES else []
    command += ["--embedding", PEER_EMBEDDINGS[args.embedding]] if args.embedding else []
    return json.loads(run_once(command, None)[0].stdout)


def measure(weights, threads, test, models, args):
    """All rounds of one test of one format, beside `models` by their names: a row of the table, and every report."""
    runs = {OURS: lambda: run_ours(weights, test, threads, args)} if OURS in args.only else {}
    for name, (program, model) in models.items():
        run_peer = run_ik if program == IK else run_llama
        runs[name] = lambda run_peer=run_peer, model=model: run_peer(model, test, threads, args)
    rounds, bits = [], {}
    for number in range(args.rounds):
        this = {}
        for name, one in runs.items():
            samples, bits[name], report, others = one()
            this[name] = {"median": statistics.median(samples), "samples": samples, "report": report, "other_processes": others}
            busy = "" if others is None else f"  (others {others:.0%})"
            print(f"  {weights}, {threads} threads, {test.name}, round {number + 1}: {name:19} {this[name]['median']:8.1f}{busy}",
                  file=sys.stderr)
        rounds.append(this)
    speeds = {name: statistics.median(this[name]["median"] for this in rounds) for name in runs}
    row = {"format": weights, "threads": threads, "test": test.name, "bits": bits, "tokens_per_second": speeds, "ratios": {}}
    for name in models if OURS in runs else []:
        row["ratios"][name] = [this[OURS]["median"] / this[name]["median"] for this in rounds]
    return row, rounds


def fallback_note(name, model):
    weights = model["weights"]
    if not weights or len(weights) == 1:
        return None
    total = sum(weights.values())
    shares = ", ".join(f"{count / total:.0%} {name}" for name, count in weights.items())
    return f"the file of {name} holds {shares} of the weights"


def version_of(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine():
    info = {"system": platform.platform(), "logical_processors": os.cpu_count(), "usable_processors": len(os.sched_getaffinity(0))}
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
        info["processor"] = fields.get("model name") or fields.get("CPU part")
        info["flags"] = fields.get("flags") or fields.get("Features")
        info["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        caches = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")
        read = lambda path: path.read_text().strip()
        info["caches"] = [f"L{read(c / 'level')} {read(c / 'type')} {read(c / 'size')}" for c in sorted(caches)]
    except OSError:
        pass
    return info


def table(result, rows):
    yield "| format | threads | test | bitllama: bits | tok/s | peer | bits | tok/s | ratio |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        speeds, bits = row["tokens_per_second"], row["bits"]
        cell = lambda name, figures, digits: f"{figures[name]:.{digits}f}" if name in figures else ""
        start = f"| {row['format']} | {row['threads']} | {row['test']} | {cell(OURS, bits, 3)} | {cell(OURS, speeds, 1)} "
        for name in [name for name in speeds if name != OURS] or [""]:
            ratios = row["ratios"].get(name)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
            yield f"{start}| {name} | {cell(name, bits, 3)} | {cell(name, speeds, 1)} | {ratio} |"


def markdown(result):
    args, host = result["arguments"], result["machine"]
    lines = [
        f"# {result['model']}: bitllama, ik_llama.cpp and llama.cpp",
        "",
        f"{result['date']}, {host.get('processor')}, {host['usable_processors']} processors, {host['system']}. "
        f"llama-cpp-python {result['versions']['llama-cpp-python']}, ik_llama.cpp {result['versions']['ik_llama.cpp']}, "
        f"bitllama {result['versions']['commit']}. {args['rounds']} rounds, {args['repetitions']} repetitions in each; tokens/s are "
        "medians over the rounds, the ratio is the median of the ratios within a round, with the lowest and the highest. Bits "
        f"are those of the whole file, per weight; embedding and head are in {args['embedding'] or 'the format too'}.",
        "",
        *table(result, [row for row in result["rows"] if "-g" in row["format"]]),
    ]
    if rows := [row for row in result["rows"] if "-g" not in row["format"]]:
        lines += ["", "## One scale a row", "", *table(result, rows)]
    lines.append("")
    sides = [side for one in result["rounds"] for this in one["rounds"] for side in this.values()]
    if busy := [side["other_processes"] for side in sides if side["other_processes"] is not None]:
        lines.append(f"Other processes had {statistics.median(busy):.0%} of the processors (median over the "
                     f"measurements; at most {max(busy):.0%}).")
    reads = {}
    for one in result["rounds"]:
        found = [this[OURS]["report"]["runs"][0]["read_bandwidth"] / 1e9 for this in one["rounds"] if OURS in this]
        reads.setdefault(one["threads"], []).extend(found)
    lines += [f"Memory gave {statistics.median(found):.1f} GB/s to {threads} threads beside the runs ({min(found):.1f} to "
              f"{max(found):.1f})." for threads, found in reads.items() if found]
    lines += [f"Note: {note}." for note in result["notes"]]
    return "\n".join(lines) + "\n"


def long_enough(shape, tests, cache):
    """The path of a copy of a config out of `configs/` whose context has room for the tests, which changes no speed."""
    path = ROOT / "configs" / f"{shape}.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        sys.exit(f"--shape {shape}: {error}")
    # At least 4096, so that other tests do not have other files.
    positions = max(4096, *(test.depth + test.prompt + test.generate for test in tests))
    config["max_position_embeddings"] = max(config["max_position_embeddings"], positions)
    copy = cache / path.name
    if not copy.exists() or json.loads(copy.read_text()) != config:
        copy.write_text(json.dumps(config, indent=2) + "\n")
    return str(copy)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="a name out of configs/: random weights on all sides, unless the next two are given")
    parser.add_argument("--gguf", help="the weights that the peers quantize")
    parser.add_argument("--artifact", action="append", default=[], metavar="FORMAT=DIR", help="an artifact to run in place of the shape")
    parser.add_argument("--formats", default=",".join(name for name in FORMATS if name != "f32"), help="which (default: %(default)s)")
    parser.add_argument("--embedding", choices=PEER_EMBEDDINGS, help="scheme of embedding and head (default: the format's)")
    parser.add_argument("--tests", default=TESTS, help="which, named as `bitllama bench` names them (default: %(default)s)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="of each test in one process, after one to warm up")
    parser.add_argument("--ik", metavar="BIN_DIR", help="folder with llama-bench, llama-batched-bench and llama-quantize of ik_llama.cpp; without it, it is left out")
    parser.add_argument("--ik-version", default="of an unknown version", help="its commit, for the table; the program does not tell it")
    parser.add_argument("--only", default=f"{OURS},{IK},{LLAMA}", help="some of the programs (default: %(default)s)")
    parser.add_argument("--bitllama", default=str(ROOT / "target/release/bitllama"), metavar="PATH")
    parser.add_argument("--bitllama-args", default="", help="more arguments of `bitllama bench`")
    parser.add_argument("--quiet", type=float, metavar="SHARE", help="wait until other processes have at most this share of the processors, and repeat a measurement if they had more meanwhile (0.05)")
    parser.add_argument("--retries", type=int, default=3, help="how often a measurement is repeated at most; then the quietest counts")
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet at most")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one measurement")
    parser.add_argument("--cache", required=True, help="folder that keeps the GGUF files")
    parser.add_argument("--out", required=True, help="folder for the table and the JSON")
    args = parser.parse_args()
    args.only = [name for name in args.only.split(",") if name != IK or args.ik]
    formats = args.formats.split(",")
    if unknown := [name for name in formats if name not in FORMATS] + [name for name in args.only if name not in (OURS, IK, LLAMA)]:
        parser.error(f"unknown: {', '.join(unknown)}")
    if not args.shape and not (args.gguf and all(f"{name}=" in " ".join(args.artifact) for name in formats)):
        parser.error("give --shape, or --gguf with an --artifact for each format")
    tests = [Test.parse(name) for name in args.tests.split(",")]
    args.ik, args.cache = args.ik and os.path.abspath(args.ik), os.path.abspath(args.cache)
    cache, out = pathlib.Path(args.cache), pathlib.Path(args.out)
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    args.config = long_enough(args.shape, tests, cache) if args.shape else None

    name = args.shape or pathlib.Path(args.gguf).stem
    started = datetime.datetime.now(datetime.timezone.utc)
    ours = ("cache", "out", "bitllama", "ik", "config")
    result = {
        "model": name,
        "date": started.strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": {
            "llama-cpp-python": version_of([sys.executable, "-c", "import llama_cpp; print(llama_cpp.__version__)"]),
            "ik_llama.cpp": args.ik_version if args.ik else None,
            "python": platform.python_version(),
            "commit": version_of(["git", "describe", "--always", "--dirty"]),
        },
        "seeds": {"peers' weights": 0, "bitllama weights": "as in `bitllama bench`"},
        "arguments": {key: value for key, value in vars(args).items() if key not in ours},
        "gguf": {},
        "notes": [],
        "rows": [],
        "rounds": [],
    }
    stem = out / f"{started:%Y-%m-%d-%H%M}-{name}"
    for weights in formats:
        models = {f"{program} {kind}": (program, peer_model(kind, args)) for program, kind in FORMATS[weights] if program in args.only}
        for name, (_, model) in models.items():
            result["gguf"][name] = {key: model[key] for key in ("bytes", "weights", "bits_per_weight")}
            if (note := fallback_note(name, model)) and note not in result["notes"]:
                result["notes"].append(note)
        for threads in map(int, args.threads.split(",")):
            for test in tests:
                row, rounds = measure(weights, threads, test, models, args)
                result["rows"].append(row)
                result["rounds"].append({"format": weights, "threads": threads, "test": test.name, "rounds": rounds})
                # Written after each test, so that a run which is cut off leaves what it has.
                stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
                stem.with_name(stem.name + ".md").write_text(markdown(result))
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
