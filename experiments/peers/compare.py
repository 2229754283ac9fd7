#!/usr/bin/env python3
"""Time llama.cpp and bitllama in turns on one machine, scheme by scheme, and write a table.

    cargo build --release
    .venv/bin/python experiments/peers/compare.py --shape tinyllama-1.1b --cache DIR --out DIR

Each measurement is a process of its own. A round times llama.cpp, then bitllama, on the same shape with the same number
of threads; the ratio of a round is that of the two medians, and a table row gives the median of the ratios. The share
of the processors that other processes took meanwhile is measured too: with `--quiet`, measurements wait for a
quiet machine, and one that was disturbed is repeated.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Schemes of the project, and what llama.cpp has in as many bits.
PAIRS = {"ternary": "TQ2_0", "int4": "Q4_0", "int8": "Q8_0", "f32": "F32"}
PEER, OURS = "llama.cpp", "bitllama"


def cpu_seconds():
    """Seconds that all processors have worked, and seconds that they have had, since the machine started."""
    try:
        fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = fields[:8]
    busy = user + nice + system + irq + softirq + steal
    return [ticks / os.sysconf("SC_CLK_TCK") for ticks in (busy, busy + idle + iowait)]


def run_once(command, timeout):
    """The JSON that `command` prints, and the share of all processors that other processes had meanwhile."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    after = cpu_seconds()
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = used.ru_utime + used.ru_stime - own.ru_utime - own.ru_stime
    others = None
    if before and after and after[1] > before[1]:
        others = max(0.0, (after[0] - before[0] - own) / (after[1] - before[1]))
    return json.loads(done.stdout), others


def wait_for_quiet(share, patience):
    """Returns when other processes take less than `share` of the processors, or after `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = cpu_seconds()
        time.sleep(1)
        after = cpu_seconds()
        if not before or after[0] - before[0] <= share * (after[1] - before[1]):
            return


def run(command, args):
    """[`run_once`], with `--quiet` when the machine is quiet, and again if it did not stay so."""
    if args.quiet is None:
        return run_once(command, args.timeout)
    best = None
    for _ in range(args.retries + 1):
        wait_for_quiet(args.quiet, args.patience)
        this = run_once(command, args.timeout)
        if this[1] is None or this[1] <= args.quiet:
            return this
        print(f"    other processes had {this[1]:.0%} of the processors", file=sys.stderr)
        best = min(best or this, this, key=lambda one: one[1])
    return best


def find_tests(report):
    """Every object with a `test` in a report, wherever it stands, by its name."""
    if isinstance(report, list):
        return {name: test for item in report for name, test in find_tests(item).items()}
    if isinstance(report, dict):
        if "test" in report:
            return {report["test"]: report["tokens_per_second"]}
        return find_tests(list(report.values()))
    return {}


def peer_model(kind, args):
    """Path, bytes and weights by type of the GGUF that llama.cpp runs."""
    source = ["--gguf", args.gguf] if args.gguf else ["--config", str(ROOT / "configs" / f"{args.shape}.json")]
    command = [sys.executable, str(HERE / "gguf_models.py"), *source, "--type", kind, "--cache", args.cache]
    return run_once(command, None)[0]


def commands(scheme, model, threads, args):
    tests = ["-t", str(threads), "-p", str(args.prompt), "-n", str(args.generate), "-r", str(args.repetitions)]
    artifacts = dict(item.split("=", 1) for item in args.artifact)
    ours = ["--artifact", artifacts[scheme]] if scheme in artifacts else ["--shape", args.shape, "--scheme", scheme]
    return {
        PEER: [sys.executable, str(HERE / "llama_cpp_bench.py"), model["path"], *tests],
        OURS: [args.bitllama, "bench", *ours, *tests, "--json", *shlex.split(args.bitllama_args)],
    }


def measure(scheme, threads, model, args):
    """All rounds of one pair: a row for each test, and every report."""
    sides = {name: command for name, command in commands(scheme, model, threads, args).items() if name in args.only}
    rounds = []
    for number in range(args.rounds):
        this = {}
        for name, command in sides.items():
            report, others = run(command, args)
            this[name] = {"report": report, "other_processes": others}
            speeds = "  ".join(f"{test} {speed['median']:.1f}" for test, speed in find_tests(report).items())
            busy = "" if others is None else f"  (others {others:.0%})"
            print(f"  {scheme}, {threads} threads, round {number + 1}: {name:9} {speeds}{busy}", file=sys.stderr)
        rounds.append(this)

    rows = []
    for test in find_tests(rounds[0]):
        row = {"scheme": scheme, "type": PAIRS[scheme], "threads": threads, "test": test}
        medians = {name: [find_tests(this[name])[test]["median"] for this in rounds] for name in sides}
        row["tokens_per_second"] = {name: statistics.median(values) for name, values in medians.items()}
        if len(sides) == 2:
            ratios = [ours / peer for ours, peer in zip(medians[OURS], medians[PEER])]
            row["ratios"] = ratios
            row["ratio"] = statistics.median(ratios)
        rows.append(row)
    return rows, rounds


def fallback_note(kind, model):
    total = sum(model["weights"].values())
    if model["weights"].get(kind) == total:
        return None
    shares = ", ".join(f"{count / total:.0%} {name}" for name, count in model["weights"].items())
    return f"llama.cpp's {kind} file holds {shares} of the weights: it falls back where the columns are no multiple of a block"


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


def markdown(result):
    args, host = result["arguments"], result["machine"]
    lines = [
        f"# {result['model']}: bitllama and llama.cpp",
        "",
        f"{result['date']}, {host.get('processor')}, {host['usable_processors']} processors, {host['system']}. "
        f"llama-cpp-python {result['versions']['llama-cpp-python']}, bitllama {result['versions']['commit']}. "
        f"{args['rounds']} rounds, {args['repetitions']} repetitions in each; tokens/s are medians over the rounds, "
        "the ratio is the median of the ratios within a round, with the lowest and the highest.",
        "",
        "| scheme | llama.cpp type | threads | test | llama.cpp tok/s | bitllama tok/s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        speed = {name: f"{value:.1f}" for name, value in row["tokens_per_second"].items()}
        ratio = f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})" if "ratio" in row else ""
        lines.append(f"| {row['scheme']} | {row['type']} | {row['threads']} | {row['test']} "
                     f"| {speed.get(PEER, '')} | {speed.get(OURS, '')} | {ratio} |")
    lines.append("")
    busy = [side["other_processes"] for pair in result["rounds"] for this in pair["rounds"] for side in this.values()
            if side["other_processes"] is not None]
    if busy:
        lines.append(f"Other processes had {statistics.median(busy):.0%} of the processors (median over the "
                     f"measurements; at most {max(busy):.0%}).")
    lines += [f"Note: {note}." for note in result["notes"]]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="a name out of configs/: random weights on both sides, unless the next two are given")
    parser.add_argument("--gguf", help="the weights that llama.cpp quantizes")
    parser.add_argument("--artifact", action="append", default=[], metavar="SCHEME=DIR", help="an artifact to run in place of the shape")
    parser.add_argument("--schemes", default=",".join(PAIRS), help="which pairs (default: %(default)s)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-p", "--prompt", type=int, default=128)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="of each test in one process, after one to warm up")
    parser.add_argument("--only", default=f"{PEER},{OURS}", help="one of both sides (default: %(default)s)")
    parser.add_argument("--bitllama", default=str(ROOT / "target/release/bitllama"), metavar="PATH")
    parser.add_argument("--bitllama-args", default="", help="more arguments of `bitllama bench`")
    parser.add_argument("--quiet", type=float, metavar="SHARE", help="wait until other processes have at most this share of the processors, and repeat a measurement if they had more meanwhile (0.05)")
    parser.add_argument("--retries", type=int, default=3, help="how often a measurement is repeated at most; then the quietest counts")
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet at most")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one measurement")
    parser.add_argument("--cache", required=True, help="folder that keeps the GGUF files")
    parser.add_argument("--out", required=True, help="folder for the table and the JSON")
    args = parser.parse_args()
    args.only = args.only.split(",")
    schemes = args.schemes.split(",")
    if unknown := [s for s in schemes if s not in PAIRS] + [n for n in args.only if n not in (PEER, OURS)]:
        parser.error(f"unknown: {', '.join(unknown)}")
    if not args.shape and not (args.gguf and all(f"{s}=" in " ".join(args.artifact) for s in schemes)):
        parser.error("give --shape, or --gguf with an --artifact for each scheme")

    name = args.shape or pathlib.Path(args.gguf).stem
    started = datetime.datetime.now(datetime.timezone.utc)
    result = {
        "model": name,
        "date": started.strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": {
            "llama-cpp-python": version_of([sys.executable, "-c", "import llama_cpp; print(llama_cpp.__version__)"]),
            "python": platform.python_version(),
            "commit": version_of(["git", "describe", "--always", "--dirty"]),
        },
        "seeds": {"llama.cpp weights": 0, "bitllama weights": "as in `bitllama bench`"},
        "arguments": {key: value for key, value in vars(args).items() if key not in ("cache", "out", "bitllama")},
        "gguf": {},
        "notes": [],
        "rows": [],
        "rounds": [],
    }
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{started:%Y-%m-%d-%H%M}-{name}"
    for scheme in schemes:
        model = peer_model(PAIRS[scheme], args)
        result["gguf"][PAIRS[scheme]] = {key: model[key] for key in ("bytes", "weights")}
        if note := fallback_note(PAIRS[scheme], model):
            result["notes"].append(note)
        for threads in map(int, args.threads.split(",")):
            rows, rounds = measure(scheme, threads, model, args)
            result["rows"] += rows
            result["rounds"].append({"scheme": scheme, "threads": threads, "rounds": rounds})
            # Written after each pair, so that a run which is cut off leaves what it has.
            stem.with_name(stem.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
            stem.with_name(stem.name + ".md").write_text(markdown(result))
    print(markdown(result), end="")


if __name__ == "__main__":
    main()
