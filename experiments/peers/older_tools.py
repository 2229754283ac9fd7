"""Runs the older tools' own scripts, unmodified, on exports of ours, and holds every weight against what it must be.

    cargo build --release
    python3 -m venv .venv && .venv/bin/pip install numpy pytest torch accelerate 'transformers<5'
    git clone https://github.com/luckyduckcode/apl-cpp-binary-for-ai-models THEIRS
    .venv/bin/python experiments/peers/older_tools.py --theirs THEIRS --models nano=models/nano --out results.json [--apl APL]

Their tree is copied; `libbitllama` stands in the copy as `backend_1bit.so`, so that every caller of theirs calls ours. For
each model and width, one scheme for all matrices and one scale a row, the same rounded model is written as `v2`, as `apl` and
as a Hugging Face directory in f32, which is what weights are held against. Then the other way round: their exporters make
archives of `models/nano`, and `bitllama-train import` reads them. `--apl` names GNU APL 1.8 and runs the exported decoder
beside `libbitllama` with activations in f32.

Exit code 1 if a check fails. A script of theirs that fails on its own tools' output too counts as theirs: the row says so.
"""

import argparse
import ctypes
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SCHEMES = {"1": "binary", "1.58": "ternary", "2": "int2", "4": "int4", "8": "int8"}
PARTS = ["archives", "exports", "tests"]
TOKENS = [5, 17, 200, 3, 77, 41, 9, 256]
rows = []


def row(model, width, script, ok, said):
    """One check; what was `said` without the folders of this machine."""
    said = re.sub(r"/\S*?/(?=[^/\s]*(?:[\s:;'\"]|$))", "", said)
    rows.append({"model": model, "width": width, "script": script, "ok": bool(ok), "said": said})
    print(f"{'ok    ' if ok else 'FAILED'} {model:8} {width:5} {script:34} {said}", flush=True)


def run(command, cwd, check=True, env=None):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=env)
    if check and done.returncode != 0:
        sys.exit(f"{command}: {done.stderr or done.stdout}")
    return done


def last_line(done):
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return f"exit {done.returncode}: {lines[-1] if lines else 'nothing said'}"[:160]


def safetensors(folder):
    """Weights of a Hugging Face directory of f32 under the names of manifests."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    weights = {}
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            name = name.removeprefix("model.").replace("embed_tokens.", "embedding.", 1)
            name = "transformer." + name if name.startswith("layers.") else name
            weights[name] = np.frombuffer(data[start:end], "<f4").reshape(tensor["shape"])
    return weights


def error(found, expected, x):
    """Largest error of a product, relative to the sum of the magnitudes that it is made of: 1e-6 is f32's rounding."""
    exact = expected.astype(np.float64) @ x
    size = np.abs(expected).astype(np.float64) @ np.abs(x)
    return float(np.max(np.abs(found - exact) / np.maximum(size, 1e-30)))


class Export:
    """One model at one width: folders of `v2`, `apl`, and the weights they stand for."""

    def __init__(self, args, model, path, width):
        self.model, self.width = model, width
        self.folder = args.work / f"{model}-{width}"
        shutil.rmtree(self.folder, ignore_errors=True)
        scheme = SCHEMES[width]
        run([args.train, "quantize", "--model", path, "--scheme", scheme, "--embedding", scheme, "--group-size", "row",
             "--output", self.folder / "artifact"], ROOT)
        for to in ["v2", "apl", "hf"]:
            run([args.train, "export", "--from", self.folder / "artifact", "--to", to, "--output", self.folder / to], ROOT)
        self.v2 = self.folder / "v2"
        self.manifest = json.loads((self.v2 / "manifest.json").read_text())
        self.expected = safetensors(self.folder / "hf")
        self.matrices = [name for name, entry in self.manifest["weights"].items() if entry.get("bit_width")]

    def row(self, script, ok, said):
        row(self.model, self.width, script, ok, said)


def variables(args, export):
    out = export.folder / "variables.apl"
    done = run([sys.executable, "scripts/manifest_to_apl.py", "--manifest", export.v2 / "manifest.json", "--out_apl", out],
               args.theirs, check=False)
    theirs = out.read_text().splitlines() if out.exists() else []
    ours = set((export.folder / "apl/variables.apl").read_text().splitlines())
    missing = [line for line in theirs if line not in ours and not line.startswith("MANIFEST_FILE")]
    named = all(f"'{name}'" in out.read_text() for name in export.expected)
    said = f"{last_line(done)}; {len(theirs)} lines, {len(missing)} that variables.apl of ours lacks"
    export.row("scripts/manifest_to_apl.py", done.returncode == 0 and named and not missing, said)


def dequantizer(args, export, env):
    out = export.folder / "dequantized"
    out.mkdir()
    done = run([sys.executable, "scripts/dequantize_manifest_weights.py", "--manifest", export.v2 / "manifest.json",
                "--out_dir", out], args.theirs, check=False, env=env)
    files = sorted(out.glob("*_fp32.npy"))
    exact = sum(np.array_equal(np.load(out / f"{name.replace('.', '_')}_fp32.npy").astype(np.float32), export.expected[name])
                for name in export.matrices) if len(files) == len(export.matrices) else 0
    # It passes over whatever has no signs, integers of its own tools too.
    want = len(export.matrices) if export.width == "1" else 0
    export.row("scripts/dequantize_manifest_weights.py", done.returncode == 0 and len(files) == want and exact == want,
               f"exit {done.returncode}; {exact} of {len(export.matrices)} weights, all exact"
               + ("" if want else " (theirs: it passes over integers)"))
    ours = export.folder / "ours"
    run([args.train, "dequantize", "--manifest", export.v2 / "manifest.json", "--output-dir", ours], ROOT)
    same = sum(np.array_equal(np.load(ours / f"{name.replace('.', '_')}_fp32.npy"), export.expected[name])
               for name in export.matrices)
    export.row("bitllama-train dequantize", same == len(export.matrices), f"{same} of {len(export.matrices)} weights, exact")


def callers(args, export, backend):
    rng = np.random.default_rng(1)
    worst, signs = 0.0, 0.0
    for name in export.matrices:
        x = rng.standard_normal(export.expected[name].shape[1]).astype(np.float32)
        found = backend.call_matmul_from_manifest(str(export.v2 / "manifest.json"), name, x)
        worst = max(worst, error(found, export.expected[name], x))
        if export.width == "1":
            packed = np.packbits(x > 0)
            found = backend.call_matmul_from_manifest(str(export.v2 / "manifest.json"), name, packed, mode=1)
            signs = max(signs, error(found, export.expected[name], np.where(x > 0, 1.0, -1.0)))
    said = f"{len(export.matrices)} weights, largest error {worst:.1e}" + (f", by XNOR {signs:.1e}" if export.width == "1" else "")
    export.row("cpp/call_backend.py", worst < 1e-6 and signs < 1e-6, said)
    x = export.folder / "x.txt"
    values = rng.standard_normal(export.expected["embedding.weight"].shape[1]).astype(np.float32)
    np.savetxt(x, values)
    done = run([sys.executable, "cpp/call_backend.py", "--manifest", export.v2 / "manifest.json", "--weight", "embedding.weight",
                "--input", x, "--out-json"], args.theirs, check=False)
    worst = error(np.array(json.loads(done.stdout)), export.expected["embedding.weight"], values) if not done.returncode else 1
    export.row("cpp/call_backend.py --out-json", worst < 1e-6, f"exit {done.returncode}; largest error {worst:.1e}")


def ffi(args, export, library):
    """`cpp/apl_ffi.cpp`, which loads the backend by itself."""
    pointer = lambda array: array.ctypes.data_as(ctypes.c_void_p)
    rng, worst, count = np.random.default_rng(2), 0.0, 0
    for name in export.matrices:
        entry, expected = export.manifest["weights"][name], export.expected[name]
        out, inner = entry["shape"]
        x, y = rng.standard_normal(inner).astype(np.float32), np.zeros(out, np.float32)
        if "packed" in entry:
            files = [str(export.v2 / entry[key]).encode() for key in ["packed", "scales_txt"]]
            code = library.apl_matmul_1bit(*files, pointer(x), pointer(y), out, inner, 0, 0)
        else:
            q, scales, points = (np.load(export.v2 / entry[key]) for key in ["q", "q_scales", "q_zero_point"])
            code = library.apl_matmul_q(pointer(q), 1, pointer(scales), pointer(points), pointer(x), pointer(y), out, inner,
                                        entry["bit_width"], 0)
        count += code == 0
        worst = max(worst, error(y, expected, x))
    export.row("cpp/apl_ffi.cpp", count == len(export.matrices) and worst < 1e-6, f"{count} weights, largest error {worst:.1e}")


def command_line(args, export):
    """`cpp/bitmatmul.cpp` and its siblings, which read the loose files of signs by themselves and print the first rows.

    The siblings are run with an input of signs: with one of floats all but one read the bits of a byte in reverse. The tail of
    `bitmatmul_xnor_opt` takes a byte's complement in 32 bits, so that it is right for columns in multiples of 64 only.
    """
    for program in sorted(args.programs):
        rng, worst, count, passed_over = np.random.default_rng(3), 0.0, 0, 0
        signs = "xnor" in program.name
        for name in export.matrices:
            entry, expected = export.manifest["weights"][name], export.expected[name]
            out, inner = entry["shape"]
            if program.name.endswith("_opt") and inner % 64:
                passed_over += 1
                continue
            x, file = rng.choice([-1.0, 1.0], inner), export.folder / ("x.bin" if signs else "x.txt")
            np.packbits(x > 0).tofile(file) if signs else np.savetxt(file, x)
            done = run([program, entry["packed"], entry["scales_txt"], out, inner, file, *["binact"][:signs]], export.v2, check=False)
            found = np.array([float(number) for number in done.stdout.split()])
            if done.returncode == 0 and len(found) == min(out, 32 if signs else 16):
                count, worst = count + 1, max(worst, error(found, expected[: len(found)], x))
        # They print six digits.
        said = f"{count} weights, first rows, largest error {worst:.1e}"
        said += f" (theirs: {passed_over} have columns that are no multiple of 64, which it counts wrongly)" if passed_over else ""
        export.row(f"cpp/{program.name}.cpp", count + passed_over == len(export.matrices) and worst < 1e-5, said)


def validator(args, export):
    done = run([sys.executable, "scripts/apl_validate.py", "--npz", export.v2 / "weights.npz", "--manifest",
                export.v2 / "manifest.json", "--name", "all", "--skip", "none"], args.theirs, check=False)
    found = [float(value) for value in re.findall(r": max diff = ([-+\d.e]+)", done.stdout)]
    passed_over = done.stdout.count("Not a packed weight")
    want = len(export.matrices) if export.width == "1" else 0
    said = f"exit {done.returncode}; {len(found)} weights, largest difference {max(found, default=0):.1e}"
    said += "" if want else f" (theirs: knows signs only, passes over {passed_over})"
    export.row("scripts/apl_validate.py", done.returncode == 0 and len(found) == want and max(found, default=0) < 1e-3, said)
    done = run([sys.executable, "-c",
                "import sys; sys.path.insert(0, 'scripts'); from convert_models_automated import *; from pathlib import Path;"
                f"c = next(v for k, v in globals().items() if hasattr(v, 'validate_manifest'));"
                f"print(c.validate_manifest(c.__new__(c), Path({str(export.v2 / 'manifest.json')!r})))"], args.theirs, check=False)
    export.row("convert_models_automated.py (check)", done.stdout.strip().endswith("True"), last_line(done))


def exporter(args, export):
    """Their exporter takes our NPZ to a manifest of theirs, with files as ours, which `import` reads back."""
    out = export.folder / "theirs"
    out.mkdir()
    config = export.manifest["model_config"]
    done = run([sys.executable, args.theirs / "export_quantized_for_apl.py", "--npz", export.v2 / "weights.npz", "--out_manifest",
                "manifest.json", "--num-heads", config["num_attention_heads"], "--hidden-size", config["hidden_size"],
                "--activation", "swiglu", "--norm-type", "rmsnorm"], out, check=False)
    loose = [path.name for path in out.iterdir() if path.suffix in (".bin", ".npy")]
    same = sum((export.v2 / name).exists() and (
        (export.v2 / name).read_bytes() == (out / name).read_bytes() if name.endswith(".bin")
        else np.array_equal(np.load(export.v2 / name), np.load(out / name))) for name in loose)
    export.row("export_quantized_for_apl.py", done.returncode == 0 and same == len(loose) > 0,
               f"exit {done.returncode}; {same} of {len(loose)} files as ours")
    run([args.train, "import", "--from", out / "manifest.json", "--output", export.folder / "again", "--config",
         export.folder / "hf/config.json", "--tokenizer", export.folder / "hf/tokenizer.json"], ROOT)
    run([args.train, "export", "--from", export.folder / "again", "--to", "hf", "--output", export.folder / "again-hf"], ROOT)
    again = safetensors(export.folder / "again-hf")
    same = sum(np.array_equal(again[name], weight) for name, weight in export.expected.items())
    export.row("bitllama-train import of that", same == len(export.expected), f"{same} of {len(export.expected)} weights, exact")


def inference(args, export):
    done = run([sys.executable, "scripts/test_inference.py", "--manifest", export.v2 / "manifest.json", "--npz",
                export.v2 / "weights.npz"], args.theirs, check=False)
    attention = export.manifest["architecture"]["attention"]
    theirs = None
    if export.width != "1":
        theirs = "KeyError: 'packed'"
    elif attention["kv_groups"] != attention["num_heads"]:
        theirs = "matmul"
    ok = done.returncode == 0 if theirs is None else theirs in done.stderr
    why = "" if theirs is None else " (theirs: knows signs only)" if export.width != "1" else " (theirs: no grouped queries)"
    export.row("scripts/test_inference.py", ok, last_line(done) + why)


def apl_logits(args, export, library):
    """The logits of the exported decoder in GNU APL beside the library's, with activations in f32."""
    script = f"OPEN '{export.folder / 'apl'}'\n⎕PP←12\n⎕PW←10000\n⍪,LOGITS {' '.join(map(str, TOKENS))}\n)OFF\n"
    done = subprocess.run([str(args.apl), "--script", "-f", str(export.folder / "apl/decoder.apl")], input=script,
                          capture_output=True, text=True)
    model = library.bitllama_open(str(export.folder / "apl").encode(), 0, 1)
    context = library.bitllama_context_new(model)
    size = len(TOKENS) * library.bitllama_vocab_size(model)
    expected = np.zeros(size, np.float32)
    tokens = np.array(TOKENS, np.uint32)
    code = library.bitllama_feed(context, tokens.ctypes.data_as(ctypes.c_void_p), len(TOKENS), 1,
                                 expected.ctypes.data_as(ctypes.c_void_p), size)
    numbers = done.stdout.replace("¯", "-").split()
    try:
        found = np.array([float(number) for number in numbers])
    except ValueError:
        found = np.zeros(0)
    worst = float(np.max(np.abs(found - expected))) if code == 0 and len(found) == size else np.inf
    said = f"{len(found)} logits of {len(TOKENS)} tokens, largest difference {worst:.1e} in numbers up to {np.abs(expected).max():.1f}"
    export.row("decoder.apl in GNU APL 1.8", worst < 1e-4, said if worst < np.inf else f"{said}: {done.stdout[:200]}")


def student_scripts(args, export, archive):
    """Scripts that only know `distillation.py`'s student: they take no archive of a Llama, whoever wrote it."""
    for path, whose in [(export.v2 / "weights.npz", "ours"), (archive, "theirs")][: 1 + archive.exists()]:
        done = run([sys.executable, "-c", f"from benchmark_quant import *; load_dequantized_model({str(path)!r})"], args.theirs,
                   check=False)
        export.row("benchmark_quant.py", done.returncode != 0, f"{last_line(done)} (theirs: same for {whose} of a Llama)")


def loader(args, export, archive_manifest):
    """`cpp/loader_example.cpp` looks for `fc.weight`, of 64 columns, in the folder that it is started in."""
    for path, whose in [(export.v2 / "manifest.json", "ours"), (archive_manifest, "theirs")][: 1 + archive_manifest.exists()]:
        done = run([args.work / "loader_example", path, args.theirs / "backend_1bit.so"], path.parent, check=False)
        export.row("cpp/loader_example.cpp", "matmul_1bit failed" in done.stderr,
                   f"exit {done.returncode}: {done.stderr.strip()[:60]} (theirs: wants fc.weight; {whose} of a Llama has none)")
    student = args.work / "student"
    student.mkdir(exist_ok=True)
    rng = np.random.default_rng(4)
    w = rng.standard_normal((10, 64)).astype(np.float32)
    scales = np.abs(w).mean(axis=1)
    np.packbits(w >= 0, axis=1).tofile(student / "fc.weight_1bit.bin")
    np.savetxt(student / "fc.weight_scales.txt", scales)
    entry = {"packed": "fc.weight_1bit.bin", "scales_txt": "fc.weight_scales.txt", "shape": [10, 64]}
    (student / "manifest.json").write_text(json.dumps({"weights": {"fc.weight": entry}}))
    done = run([args.work / "loader_example", "manifest.json", args.theirs / "backend_1bit.so"], student, check=False)
    found = np.array([float(n) for n in done.stdout.split("Output[0..7]:")[-1].split()])
    exact = (np.where(w >= 0, 1.0, -1.0) * scales[:, None]) @ np.where(np.arange(64) % 2 == 0, 1.0, -1.0)
    row("student", "1", "cpp/loader_example.cpp", np.allclose(found, exact[:8], atol=1e-4), f"exit {done.returncode}; 8 outputs")


def archives(args, env):
    """What their exporters make of models/nano, imported."""
    model, made = ROOT / "models/nano", args.work / "archives"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    given = ["--config", model / "config.json", "--tokenizer", model / "tokenizer.json"]
    base = ["--base", model]
    from_numpy = {"1": lambda z, n: np.where(np.unpackbits(z[f"{n}_1bit"], axis=1)[:, : z[f"{n}_shape"][1]] == 1, 1, -1)
                  * z[f"{n}_scales"][:, None]}
    for bits in ["2", "4", "8"]:
        from_numpy[bits] = lambda z, n, b=bits: ((z[f"{n}_q{b}"].astype(np.int32) - z[f"{n}_q{b}_zero_point"][:, None])
                                                 .astype(np.float32) * z[f"{n}_q{b}_scales"][:, None])

    def imported(bits, script, archive, npz, flags):
        out = made / f"imported-{len(rows)}"
        done = run([args.train, "import", "--from", archive, "--output", out, *flags], ROOT, check=False)
        if done.returncode:
            return row("nano", bits, script, False, last_line(done))
        run([args.train, "export", "--from", out, "--to", "hf", "--output", f"{out}-hf"], ROOT)
        weights, arrays = safetensors(Path(f"{out}-hf")), np.load(npz)
        low = [name for name in weights if f"{name}_shape" in arrays]
        exact = sum(np.array_equal(weights[name], from_numpy[bits](arrays, name).astype(np.float32)) for name in low)
        row("nano", bits, script, exact == len(low) > 0, f"import: {exact} of {len(low)} low-bit weights, exact")

    def refused(bits, script, archive, flags, expected):
        done = run([args.train, "import", "--from", archive, "--output", made / "refused", *flags], ROOT, check=False)
        row("nano", bits, script, done.returncode and expected in done.stderr, last_line(done))

    for bits in ["1", "2", "4", "8"]:
        folder = made / f"export-{bits}"
        folder.mkdir()
        # The exporter of manifests writes loose files where it is started.
        for name in ["export_quantized_for_apl.py", "quantization.py"]:
            shutil.copy(args.theirs / name, folder / name)
        run([sys.executable, args.theirs / "scripts/export_model_1bit.py", "--hf-model", model, "--bits", bits, "--out",
             folder / "model.npz", "--out-manifest", "nano_manifest.json", "--num-heads", 5, "--hidden-size", 160], folder, env=env)
        script = "scripts/export_model_1bit.py"
        refused(bits, script, folder / "model.npz", [], "give --config FILE or --base MODEL")
        refused(bits, script, folder / "model.npz", given, "the final norm is not there; give --final-norm FILE")
        imported(bits, f"{script} (NPZ)", folder / "model.npz", folder / "model.npz", [*given, "--assume"])
        imported(bits, f"{script} (manifest)", folder / "nano_manifest.json", folder / "model.npz", base)
        code = ("from easy_run import download_and_quantize_model as f\n"
                f"f({str(model)!r}, {str(folder / 'easy.npz')!r}, layers=4, bits={bits})")
        run([sys.executable, "-c", code], args.theirs, env=env)
        refused(bits, "easy_run.py (attention left out)", folder / "easy.npz", [*given, "--assume"], "give --base MODEL")
        imported(bits, "easy_run.py", folder / "easy.npz", folder / "easy.npz", base)
    run([sys.executable, args.theirs / "scripts/quantize_real_model.py", "--model", model, "--layers", 4, "--output",
         made / "real.npz", "--include-embedding", "--include-lm-head"], args.theirs, env=env)
    imported("1", "scripts/quantize_real_model.py", made / "real.npz", made / "real.npz", [*given, "--assume"])
    code = ("import sys; sys.path[:0] = ['scripts', '.']\nimport convert_models_automated as m\nfrom pathlib import Path\n"
            "from transformers import AutoModelForCausalLM\nc = next(v for v in vars(m).values() if hasattr(v, 'export_to_npz'))\n"
            f"o = c.__new__(c); o.bits, o.output_dir = 4, Path({str(made)!r})\n"
            f"o.export_to_npz('auto', dict(model=AutoModelForCausalLM.from_pretrained({str(model)!r}), config=None))")
    run([sys.executable, "-c", code], args.theirs, env=env)
    refused("4", "convert_models_automated.py", made / "auto_quantized_q4.npz", base, "has no place in a llama of this config")
    return made / "export-1"


def their_tests(copy, env):
    """Their own test files, each by itself, with our library as their backend. Their failures are told, not judged."""
    for test in sorted((copy / "tests").glob("test_*.py")):
        done = run([sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", test], copy, check=False, env=env)
        lines = done.stdout.strip().splitlines()
        failures = [line.split(" - ")[-1] for line in lines if line.startswith(("FAILED", "ERROR"))]
        row("-", "-", f"tests/{test.name}", True, "; ".join([lines[-1].strip("= "), *failures])[:300] if lines else last_line(done))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--theirs", type=Path, required=True, help="a checkout of the older tools; it is copied")
    parser.add_argument("--models", nargs="*", default=["nano=models/nano"], metavar="NAME=MODEL")
    parser.add_argument("--widths", nargs="*", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--train", type=Path, default=ROOT / "target/release/bitllama-train")
    parser.add_argument("--library", type=Path, default=ROOT / "target/release/libbitllama.so")
    parser.add_argument("--apl", type=Path, help="GNU APL 1.8; its logits of models of up to 64 MB are compared")
    parser.add_argument("--work", type=Path, default=ROOT / "target/older-tools")
    parser.add_argument("--commit", help="their commit, where THEIRS is no git checkout")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    commit = args.commit or run(["git", "rev-parse", "HEAD"], args.theirs).stdout.strip()
    copy = args.work / "theirs"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(args.theirs, copy, ignore=shutil.ignore_patterns(".git", "apl-1.8", "*.gz", "transformer.layers.*"))
    args.theirs = copy
    shutil.copy(args.library, copy / "backend_1bit.so")
    env = os.environ | {"PYTHONPATH": str(copy), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    compile_ = lambda *more: run(["g++", "-O2", "-march=native", "-std=c++17", "-w", *more], copy)
    compile_("cpp/loader_example.cpp", "-o", args.work / "loader_example", "-ldl")
    compile_("-shared", "-fPIC", "cpp/apl_ffi.cpp", "-o", args.work / "apl_ffi.so", "-ldl")
    args.programs = []
    for name in ["bitmatmul", "bitmatmul_xnor", "bitmatmul_xnor_simd", "bitmatmul_xnor_avx2", "bitmatmul_xnor_opt"]:
        compile_(f"cpp/{name}.cpp", "-fopenmp", "-o", args.work / name)
        args.programs.append(args.work / name)
    sys.path.insert(0, str(copy))
    os.chdir(copy)
    sys.argv.append("--out-json")  # Keeps their module quiet.
    from cpp import call_backend

    bridge = ctypes.CDLL(str(args.work / "apl_ffi.so"))
    row("-", "-", "cpp/apl_ffi.cpp (apl_ffi_init)", bridge.apl_ffi_init(str(copy / "backend_1bit.so").encode()) == 0, "loads ours")
    library = ctypes.CDLL(str(args.library.resolve()))
    library.bitllama_open.restype = library.bitllama_context_new.restype = ctypes.c_void_p
    library.bitllama_context_new.argtypes = library.bitllama_vocab_size.argtypes = [ctypes.c_void_p]
    library.bitllama_feed.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p,
                                      ctypes.c_size_t]
    if "archives" in args.parts:
        archives(args, env)
    made = args.work / "archives/export-1"
    for model, path in (pair.split("=", 1) for pair in args.models if "exports" in args.parts):
        for width in args.widths:
            export = Export(args, model, path, width)
            variables(args, export)
            dequantizer(args, export, env)
            callers(args, export, call_backend)
            ffi(args, export, bridge)
            validator(args, export)
            exporter(args, export)
            inference(args, export)
            if width == "1":
                command_line(args, export)
                student_scripts(args, export, made / "model.npz")
                loader(args, export, made / "nano_manifest.json")
            if args.apl and (export.v2 / "weights.npz").stat().st_size < 64 << 20:
                apl_logits(args, export, library)
            shutil.rmtree(export.folder)
    if "tests" in args.parts:
        their_tests(copy, env)
    failed = sum(not row["ok"] for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} checks passed")
    if args.out:
        machine = {"system": platform.platform(), "python": platform.python_version(), "numpy": np.__version__}
        (ROOT / args.out).write_text(json.dumps({"commit": commit, "machine": machine, "rows": rows}, indent=1) + "\n")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
