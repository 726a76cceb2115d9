"""docs/formats.md, followed word by word in plain Python, reads what the package writes."""

import json
import struct
import zlib

import numpy as np
import pytest

from sparsecap_jax.model_files import FORMS, ModelFile, write_model

DENSITIES = (65536, 55109, 46341, 38968)
ROOTS = (1, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081)


def gap_table(level):
    """Frequencies and the escape of a level."""
    density = 65535 if level == 0 else DENSITIES[level % 4] // 2 ** (level // 4)
    left, t, frequencies = 4096, 2**28, []
    while len(frequencies) < 255:
        t = t * (65536 - density) // 65536
        if t // 65536 in (0, left):
            break
        frequencies.append(left - t // 65536)
        left = t // 65536
    frequencies, left = (frequencies, left) if frequencies else ([4095], 1)
    return dict(enumerate([*frequencies, left])), len(frequencies)


def decode(content, tables):
    """Return the symbols of a chunk, one for each of `tables`."""
    lanes = max(min(len(tables) // 256, 1024), len(tables) // 1024, 1)
    states = list(struct.unpack_from(f"<{lanes}I", content))
    words = iter(struct.unpack(f"<{len(content) // 2 - 2 * lanes}H", content[4 * lanes :]))
    symbols = []
    for i, table in enumerate(tables):
        x, start = states[i % lanes], 0
        slot = x % 2**12
        for symbol in sorted(table):
            if slot < start + table[symbol]:
                break
            start += table[symbol]
        x = table[symbol] * (x >> 12) + slot - start
        states[i % lanes] = x << 16 | next(words) if x < 2**16 else x
        symbols.append(symbol)
    assert not list(words) and set(states) == {2**16}
    return symbols


def slow_read(content):
    """Return notes, files, params and masks; all values as bits or floats in plain lists."""
    magic, version, packed, inflated, checksum = struct.unpack("<8sIIII", content[:24])
    assert (magic, version) == (b"\x89SCAP\r\n\x1a", 1)
    assert zlib.crc32(content[24 : 24 + packed]) == checksum
    text = zlib.decompress(content[24 : 24 + packed])
    assert len(text) == inflated
    header, rest = json.loads(text), content[24 + packed :]

    def section(size, checksum):
        nonlocal rest
        found, rest = rest[:size], rest[size:]
        assert zlib.crc32(found) == checksum
        return found

    files = {}
    for name, size, stored, checksum in header["files"]:
        files[name] = zlib.decompress(section(stored, checksum))
        assert len(files[name]) == size
    raw = [section(entry["raw_bytes"], entry["checksum"]) for entry in header["tensors"]]
    tables = [dict(enumerate(fs, first)) for first, *fs in header["tables"]]
    runs = []
    for entry in header["tensors"]:
        columns = entry["shape"][-1] if entry["shape"] else 1
        size = int(np.prod(entry["shape"]))
        rows = size // columns
        for field, count in (("rows", rows), ("columns", columns)):
            if entry.get(field) is not None:
                runs.append((tables[entry[field]], count))
        runs += [(gap_table(level)[0], count) for level, count in entry.get("gaps", [])]
        kept = entry.get("kept")
        runs.append((tables[entry.get("values", 0)], size if kept is None else kept))
        if entry.get("steps") is not None:
            outputs = columns if entry.get("axis", 1) else entry["shape"][0]
            runs.append((tables[entry["steps"]], outputs))
    chosen, symbols = [table for table, count in runs for _ in range(count)], []
    for size, checksum in header["chunks"]:
        symbols += decode(section(size, checksum), chosen[len(symbols) : len(symbols) + 2**22])
    assert not rest
    stream, params, masks = iter(symbols), {}, {}
    for entry, plain in zip(header["tensors"], raw, strict=True):
        params[entry["name"]], mask = tensor(entry, plain, stream)
        if entry.get("masked"):
            masks[entry["name"]] = mask
    return header["notes"], files, params, masks


def tensor(entry, plain, stream):
    columns = entry["shape"][-1] if entry["shape"] else 1
    size = int(np.prod(entry["shape"]))
    rows = size // columns
    cells = list(range(size))
    if entry.get("kept") is not None:
        row_class, column_class = (
            [next(stream) if entry.get(field) is not None else 0 for _ in range(count)]
            for field, count in (("rows", rows), ("columns", columns))
        )
        cells = []
        for total, (level, count) in enumerate(entry["gaps"]):
            ordered = [
                row * columns + column
                for a in range(32)
                for row in range(rows)
                if row_class[row] == a
                for column in range(columns)
                if column_class[column] == total - a
            ]
            place, escape = 0, gap_table(level)[1]
            for _ in range(count):
                gap = next(stream)
                place += gap
                if gap != escape:
                    cells.append(ordered[place])
                    place += 1
        assert len(cells) == entry["kept"]
    coded = [next(stream) for _ in cells]
    found = np.zeros(size, np.float32)
    for number, (cell, byte) in enumerate(zip(cells, coded, strict=True)):
        if entry["form"] == "float32":
            bits = int.from_bytes(plain[3 * number : 3 * number + 3], "little")
            bits = (bits >> 23) << 31 | byte << 23 | bits & (2**23 - 1)
            found[cell] = np.uint32(bits).view(np.float32)
        elif entry["form"] == "float16":
            found[cell] = np.uint16(byte << 8 | plain[number]).view(np.float16)
    if entry["form"] == "int8":
        outputs = columns if entry.get("axis", 1) else entry["shape"][0]
        exponents = [next(stream) + entry.get("lowest", 0) for _ in range(outputs)]
        steps = [np.float32(ROOTS[e % 8]) * np.float32(2.0 ** (e // 8)) for e in exponents]
        for cell, byte in zip(cells, coded, strict=True):
            output = cell % columns if entry.get("axis", 1) else cell // (size // outputs)
            found[cell] = np.float32(byte - 128) * steps[output]
    mask = np.isin(np.arange(size), cells)
    return found.reshape(entry["shape"]), mask.reshape(entry["shape"])


@pytest.mark.parametrize("form", FORMS)
def test_the_page_says_what_the_package_writes(tmp_path, form):
    rng = np.random.default_rng(0)
    density = np.exp(rng.normal(size=(60, 1)) + rng.normal(size=(1, 40)) - 2)
    mask = rng.random((60, 40)) < density
    value = rng.standard_normal((60, 40), np.float32)
    params = {"a/kernel": np.where(mask, value, np.float32(0)), "a/bias": value[0]}
    params["b/embedding"] = rng.standard_normal((9, 3, 2), np.float32)
    params["c"] = np.array(2.5, np.float32)
    few = np.zeros((3, 4, 5, 60))
    few.reshape(-1)[[17, 3000, 3599]] = 1  # gaps that take escapes
    params["d/kernel"] = np.float32(rng.standard_normal(few.shape) * few)
    params["e/kernel"] = np.zeros((4, 5), np.float32)
    masks = {"a/kernel": mask, "b/embedding": np.ones((9, 3, 2)), "d/kernel": few}
    masks["e/kernel"] = np.zeros((4, 5))
    notes, files = {"config": {"seed": 1}}, {"tokenizer/x": b"x" * 99}
    write_model(tmp_path / "m.scap", params, masks, form=form, notes=notes, files=files)
    found = slow_read((tmp_path / "m.scap").read_bytes())
    assert found[:2] == (notes, files)
    with ModelFile(tmp_path / "m.scap") as file:
        ours, our_masks = file.read()
        first, *_, fourth, _ = file.entries
        assert first.rows is not None and first.columns is not None
        assert sum(count for _, count in fourth.gaps) > fourth.kept + 2
    for name, value in params.items():
        np.testing.assert_array_equal(found[2][name], ours[name])
        if form == "float32":
            np.testing.assert_array_equal(found[2][name], value)
    assert found[3].keys() == our_masks.keys() == masks.keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[3][name], mask)
