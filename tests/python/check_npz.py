"""Reads an artifact with NumPy and its manifest alone, and holds its weights against those of a safetensors file.

    pip install numpy
    python tests/python/check_npz.py ARTIFACT DEQUANTIZED.safetensors

The second file holds the weights in f32 that the artifact is to stand for, under Hugging Face's names, with or without
`model.` in front. Equality is exact; only the sign of a zero may differ, which no code has. That other programs can read
our files by what the manifest says of them is a promise to users, so it is checked with nothing of ours. Checked as well:
every array starts at a multiple of 64 bytes of the NPZ and can be mapped where it lies; rows and columns that panels have
beyond a matrix's shape are zero; the copies at the manifest's root; loose files, where there are any. Exit code 1 if any
check fails.
"""

import json
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np

passed, failed = 0, 0


def check(name, ok, reason=""):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAILED {name}: {reason}")


def read_safetensors(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    weights = {}
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        if tensor["dtype"] != "F32":
            sys.exit(f"{path}: {name} is {tensor['dtype']}, F32 is needed for an exact comparison")
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        weights[name.removeprefix("model.")] = np.frombuffer(data[start:end], "<f4").reshape(tensor["shape"])
    return weights


def read_arrays(path):
    arrays = {}
    with np.load(path, allow_pickle=False) as npz:
        for key in npz.files:
            try:
                arrays[key] = npz[key]
            except (ValueError, zipfile.BadZipFile) as error:
                check(key, False, error)
    return arrays


def array_offsets(path):
    """Where the elements of each stored array start in the file."""
    offsets = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                continue
            file.seek(member.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            file.seek(name_length + extra_length, 1)
            np.lib.format.read_magic(file)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            offsets[member.filename.removesuffix(".npy")] = (file.tell(), shape, dtype)
    return offsets


def panel_fields(codes, layout, scheme):
    """The fields of all rows and columns of panels, those beyond a matrix's shape included."""
    block, rows, lane = layout["schemes"][scheme], layout["panel_rows"], layout["lane_columns"]
    panels, blocks, _ = codes.shape
    # [panel, block, vector, row, byte of the row's lane]
    vectors = codes.reshape(panels, blocks, -1, rows, lane)
    fields, first = 0, 0
    for part in block["parts"]:
        bits, of_part = part["bits"], vectors[:, :, first : first + part["vectors"]]
        first += part["vectors"]
        planes = [of_part >> bit & (1 << bits) - 1 for bit in range(0, 8, bits)]
        # [panel, row, block, vector, plane, byte]: the last four are the columns
        ordered = np.stack(planes, axis=-2).transpose(0, 3, 1, 2, 4, 5)
        fields = fields + (ordered.reshape(panels * rows, -1).astype(np.int32) << part["shift"])
    assert first == vectors.shape[2] and fields.shape[1] == blocks * block["block_columns"]
    return fields


def fields(codes, manifest, entry):
    """The unsigned fields of packed codes, [out, in]."""
    rows, columns = entry["shape"]
    packed_format = entry["packed_format"]
    layout = packed_format.partition("(")[0]
    if layout == "panels16":
        every = panel_fields(codes, manifest["quantization"]["packing"][layout], entry["scheme"])
        check(entry["npz_key"], not every[rows:].any() and not every[:, columns:].any(), "its padding is not zero")
        return every[:rows, :columns]
    if packed_format == "numpy.packbits(msb_first,row-major)":
        return np.unpackbits(codes, axis=1)[:, :columns].astype(np.int32)
    if packed_format == "uint8(row-major)":
        return codes.astype(np.int32)
    raise ValueError(f"packed_format {packed_format}")


def dequantize(npz, manifest, entry):
    codes = npz[entry["npz_key"]]
    if entry["scheme"] == "f32":
        return codes

    def for_each_column(constants):
        """[out] or [out, groups] to what multiplies [out, in]."""
        if "group_size" in entry:
            return np.repeat(constants, entry["group_size"], axis=1)
        return constants[:, None]

    if entry["packed_format"] == "int8(row-major)":
        values = codes.astype(np.int32)
    else:
        values = fields(codes, manifest, entry)
        if "npz_zero_point_key" in entry:
            values = values - for_each_column(npz[entry["npz_zero_point_key"]])
        else:
            table = np.array(entry["code_table"], np.float32) if "code_table" in entry else None
            values = entry["code_min"] + entry["code_step"] * values if table is None else table[values]
    scales = npz[entry["npz_scales_key"]]
    if "npz_scale_steps_key" in entry:
        steps = np.repeat(npz[entry["npz_scale_steps_key"]], entry["scale_block"])[: scales.size].reshape(scales.shape)
        scales = scales.astype(np.float32) * steps + npz[entry["npz_scale_mean_key"]]
    return values.astype(np.float32) * for_each_column(scales.astype(np.float32))


def check_loose_files(folder, entry, npz, wanted):
    """Each is the array of the NPZ that it is named after; integers beside ternary codes stand for the same weights."""
    for field in ("ternary", "q", "fp32", "scales", "q_scales", "q_zero_point"):
        if field in entry:
            found, same = np.load(folder / entry[field]), npz[entry[field].removesuffix(".npy")]
            check(entry[field], found.dtype == same.dtype and np.array_equal(found, same), "differs from the NPZ")
    if "packed" in entry:
        found = (folder / entry["packed"]).read_bytes()
        check(entry["packed"], found == npz[entry["npz_key"]].tobytes(), "differs from the NPZ")
    for field in ("scales_txt", "q_scales_txt"):
        if field in entry:
            lines = (folder / entry[field]).read_text().splitlines()
            found = np.array([np.float32(line) for line in lines])
            check(entry[field], np.array_equal(found, npz[entry[field].removesuffix(".txt")]), "differs from the NPZ")
    if "q" in entry:
        q, scales, points = (np.load(folder / entry[field]) for field in ("q", "q_scales", "q_zero_point"))
        found = (q.astype(np.int32) - points[:, None]).astype(np.float32) * scales[:, None]
        check(entry["q"], np.array_equal(found, wanted), "stands for other weights")


def core_name(name):
    name = name.removeprefix("transformer.")
    return "embed_tokens.weight" if name == "embedding.weight" else name


def main(folder, reference):
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / manifest["model"]["source_npz"]
    npz = read_arrays(path)
    expected = read_safetensors(reference)
    if manifest["architecture"]["tie_word_embeddings"]:
        expected.pop("lm_head.weight", None)

    offsets = array_offsets(path)
    for key in npz:
        offset, shape, dtype = offsets.get(key, (1, None, None))
        ok = offset % 64 == 0
        if ok and npz[key].size:
            ok = np.array_equal(np.memmap(path, dtype, "r", offset, shape or (1,)).reshape(shape), npz[key])
        check(key, ok, f"starts at byte {offset}, not mappable at a multiple of 64")

    for name, entry in manifest["weights"].items():
        check(name, manifest.get(name) == entry, "its entry at the manifest's root differs")
        wanted = expected.pop(core_name(name), None)
        if wanted is None:
            check(name, False, "not in the reference")
            continue
        try:
            found = dequantize(npz, manifest, entry)
        except KeyError as error:
            check(name, False, f"no {error}")
            continue
        # The older layout states the shapes of matrices only.
        shape = entry["shape"] if manifest["layout"] != "v2" or wanted.ndim > 1 else list(wanted.shape)
        check(name, manifest["layout"] != "v2" or ("shape" in entry) == (wanted.ndim > 1), "a shape that is not of a matrix")
        same = found.dtype == np.float32 and found.shape == wanted.shape and list(wanted.shape) == shape
        same = same and np.array_equal(found, wanted)
        check(name, same, f"{entry['scheme']} {found.shape} differs from the reference {wanted.shape}")
        check_loose_files(folder, entry, npz, wanted)
    for name in expected:
        check(name, False, "not in the artifact")
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
