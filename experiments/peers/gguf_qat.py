#!/usr/bin/env python3
"""Set students that were trained on the grid of a GGUF type beside llama.cpp's own quantization to that type.

    gguf_qat.py TEACHER.gguf --imatrix imatrix.dat --ours q4_0=STUDENT.gguf --texts persuasion=austen-persuasion.txt --cache DIR

TEACHER is a GGUF in F32; llama.cpp quantizes it with the importance matrix (the file of ik_llama.cpp's or an older llama.cpp's
`llama-imatrix`), every matrix in the type and the embedding in Q8_0 as the students have it, or as near as it gets where columns are no
whole blocks. Where llama.cpp does not make a type of these columns, TYPE is the one beside which the student stands. Files
are evaluated by llama.cpp as `llama_cpp_rows.py` does: perplexity and divergence from the teacher, whose logits are kept in --cache.
"""

import argparse
import ctypes
import pathlib
import struct
import sys

import numpy as np

import gguf_models
import llama_cpp
import llama_cpp_rows as rows

Q8_0 = 8


def importance(path):
    """Name and mean squared input of each matrix."""
    data = path.read_bytes()
    found, at = {}, 4
    for _ in range(struct.unpack_from("<i", data)[0]):
        (length,) = struct.unpack_from("<i", data, at)
        name = data[at + 4:at + 4 + length].decode()
        calls, count = struct.unpack_from("<ii", data, at + 4 + length)
        at += 12 + length
        found[name] = np.frombuffer(data, np.float32, count, at) / max(calls, 1)
        at += 4 * count
    return found


def quantize(source, path, kind, matrix):
    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix) + 1))()
    kept = []
    for entry, (name, values) in zip(entries, matrix.items()):
        values = np.ascontiguousarray(values, np.float32)
        kept.append(values)
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = gguf_models.FTYPES[kind.upper()]
    params.pure = True
    params.token_embedding_type = params.output_tensor_type = Q8_0
    params.imatrix = ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp could not make {kind} of {source}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=pathlib.Path)
    parser.add_argument("--imatrix", type=pathlib.Path, required=True)
    parser.add_argument("--ours", nargs="+", required=True, metavar="TYPE=FILE")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--cache", type=pathlib.Path, required=True)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=20)
    args = parser.parse_args()
    args.model = args.teacher
    args.cache.mkdir(parents=True, exist_ok=True)
    matrix = importance(args.imatrix)
    texts = [rows.read_text(pair, args) for pair in args.texts]
    print("| type | file | MB | text | perplexity | KLD | same top |")
    print("|---|---|---|---|---|---|---|")
    told = set()
    for pair in args.ours:
        kind, _, ours = pair.partition("=")
        theirs = args.cache / f"{args.teacher.stem}-{kind}-imatrix.gguf"
        if not theirs.exists():
            quantize(args.teacher, theirs, kind, matrix)
        for name, path in (("llama.cpp with imatrix", theirs), (f"trained: {ours}", pathlib.Path(ours))):
            if path in told:
                continue
            told.add(path)
            for text in texts:
                found = rows.compare(rows.each_chunk(path, text), rows.teacher_logits(args.teacher, text, args.cache), text)
                size = path.stat().st_size / 1e6
                print(
                    f"| {kind} | {name} | {size:.1f} | {text.name} | {found['perplexity']:.2f} | "
                    f"{found['mean_kld']:.4f} ± {found['mean_kld_error']:.4f} | {found['same_top']:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
