"""Model files: exact, near the entropy bound, and clear about damage."""

import json
import struct
import zlib

import numpy as np
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.model_files import ModelFile, range_coder, values, write_model
from sparsecap_jax.model_files.positions import Order, choose_classes, gaps, places
from sparsecap_jax.model_files.tensors import Plane, share_tables
from sparsecap_jax.pruning.masks import finalize


def entropy(density):
    """Bits for each cell of a random mask."""
    rest = 1 - density
    return -(density * np.log2(density) + rest * np.log2(rest))


def random_leaves(seed=0, sparsity=0.95, shape=(300, 200)):
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape, np.float32)
    mask = (rng.random(shape) > sparsity).astype(np.float32)
    params = {"a/kernel": np.where(mask != 0, kernel, np.float32(0))}
    params["a/bias"] = rng.standard_normal(shape[-1], np.float32)
    return params, {"a/kernel": mask}


def read(path):
    with ModelFile(path) as file:
        return file.read()


SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -3.4e38, 65504.0, 1e-8, 1.0], np.float32
)
LEAVES = {
    "scalar": np.array(-3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "one": np.ones(1, np.float32),
    "zeros": np.zeros((5, 7), np.float32),
    "special": SPECIAL,
    "special_matrix": np.tile(SPECIAL, (4, 3)),
    "attention/kernel": np.random.default_rng(0).standard_normal((6, 2, 5), np.float32),
}
EVERY_BIT = np.random.default_rng(1).integers(0, 2**32, 4096, np.uint32).view(np.float32)


def test_float32_is_lossless_to_the_bit(tmp_path):
    params, masks = random_leaves()
    params |= LEAVES | {"bits": EVERY_BIT.reshape(64, 64)}
    masks["attention/kernel"] = np.ones((6, 2, 5))
    write_model(tmp_path / "m.scap", params, masks)
    found, found_masks = read(tmp_path / "m.scap")
    assert list(found) == list(params) and found_masks.keys() == masks.keys()
    for name, value in params.items():
        assert found[name].dtype == np.float32 and found[name].shape == np.shape(value)
        assert found[name].tobytes() == np.asarray(value).tobytes()
    for name, mask in masks.items():
        np.testing.assert_array_equal(found_masks[name], mask)


def test_kept_zeros_stay_kept_and_pruned_weights_are_zero(tmp_path):
    mask = np.array([[1, 1, 0, 0]], np.float32)
    value = np.array([[0.0, -0.0, -0.0, 7.0]], np.float32)
    write_model(tmp_path / "m.scap", {"w": value}, {"w": mask})
    params, masks = read(tmp_path / "m.scap")
    assert params["w"].tobytes() == np.array([[0.0, -0.0, 0.0, 0.0]], np.float32).tobytes()
    np.testing.assert_array_equal(masks["w"], mask)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.991, 0.99999, 1.0])
@pytest.mark.parametrize("form", values.FORMS)
def test_masks_of_all_densities_come_back(tmp_path, sparsity, form):
    params, masks = random_leaves(sparsity=sparsity)
    write_model(tmp_path / "m.scap", params, masks, form=form)
    np.testing.assert_array_equal(read(tmp_path / "m.scap")[1]["a/kernel"], masks["a/kernel"])


def test_float16_rounds_to_nearest_and_keeps_what_does_not_fit(tmp_path):
    params = LEAVES | random_leaves()[0] | {"large": np.full((3, 3), 1e5, np.float32)}
    params["tiny"] = np.float32([1e-5, 3e-8, 2e-8, -1e-6])
    write_model(tmp_path / "m.scap", params, {}, form="float16")
    found, _ = read(tmp_path / "m.scap")
    for name, value in params.items():
        expected = np.asarray(value)
        if name not in ("large", "special", "special_matrix"):
            expected = expected.astype(np.float16).astype(np.float32)
            bound = np.maximum(2.0**-11 * np.abs(value), 2.0**-25)
            assert np.all(np.abs(found[name] - value) <= bound)
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("name", ["kernel", "embedding"])
def test_int8_errs_by_half_a_step_of_its_output(tmp_path, name):
    rng = np.random.default_rng(3)
    value = rng.standard_normal((40, 60), np.float32) * np.exp(rng.normal(size=(40, 60)) * 2)
    value = value.astype(np.float32)
    value[3], value[:, 5], value[7, 7] = 0, 0, 1e4
    axis = 1 if name == "embedding" else 0
    write_model(tmp_path / "m.scap", {name: value}, {}, form="int8")
    found, _ = read(tmp_path / "m.scap")
    largest = np.abs(value).max(axis, keepdims=True) / 127
    counts = np.maximum((value != 0).sum(axis, keepdims=True), 1)
    rms = np.sqrt(np.square(value, dtype=np.float64).sum(axis, keepdims=True) / counts) / 20
    # The step is at most 2**(1/8) above the larger of the two.
    bound = np.maximum(largest, rms) * 2**0.125 / 2 * (1 + 1e-5)
    assert np.all(np.abs(found[name] - value) <= bound)
    steps = np.unique(np.abs(found[name][found[name] != 0])).size
    assert steps > 100


def test_int8_leaves_vectors_and_values_that_are_not_finite_alone(tmp_path):
    leaves = LEAVES | {"large": np.full((3, 3), 9e37, np.float32)}
    write_model(tmp_path / "m.scap", leaves, {}, form="int8")
    with ModelFile(tmp_path / "m.scap") as file:
        forms = {entry.name: entry.form for entry in file.entries}
        found, _ = file.read()
    assert forms["large"] == "int8" and np.abs(found["large"] / 9e37 - 1).max() < 0.03
    assert forms["special"] == forms["special_matrix"] == "float32"
    assert forms["one"] == forms["scalar"] == "float16" and forms["attention/kernel"] == "int8"
    np.testing.assert_array_equal(found["special_matrix"], LEAVES["special_matrix"])


def bound(form, value, mask):
    """Bytes of positions and values at their entropy, as docs/formats.md defines it."""
    kept = value[mask != 0]
    cells, density = mask.size, np.mean(mask != 0)
    words = kept.astype("<f2").view("<u2") if form == "float16" else kept.view("<u4")
    planes = [words >> 8, words & 255] if form == "float16" else [words >> 23 & 255]
    bits = 0 if form == "float16" else 24 * kept.size
    for plane in planes:
        counts = np.bincount(plane)
        counts = counts[counts > 0]
        bits += (counts * np.log2(kept.size / counts)).sum()
    return (cells * entropy(density) + bits) / 8


@pytest.mark.parametrize("form", ["float32", "float16"])
@pytest.mark.parametrize("sparsity", [0.8, 0.95, 0.991])
def test_size_is_within_3_percent_of_the_entropy(tmp_path, form, sparsity):
    params, masks = random_leaves(sparsity=sparsity, shape=(1000, 1000))
    del params["a/bias"]
    size = write_model(tmp_path / "m.scap", params, masks, form=form)["weights"]
    assert size < 1.03 * bound(form, params["a/kernel"], masks["a/kernel"])


def test_uneven_rows_and_columns_take_less_than_the_entropy_of_the_whole():
    rng = np.random.default_rng(0)
    density = np.exp(rng.normal(size=(400, 1)) + rng.normal(size=(1, 300)) - 4)
    flat = np.flatnonzero(rng.random((400, 300)) < np.minimum(density, 1))
    classes = choose_classes(flat, 400, 300)
    order = Order(classes)
    in_order = np.sort(order.places_of(flat))
    symbols, runs = gaps(in_order, order)
    np.testing.assert_array_equal(places(symbols, runs, order), in_order)
    np.testing.assert_array_equal(np.sort(order.cells_at(in_order)), flat)
    chosen = np.repeat(*np.array(runs).T)
    tables = np.stack([range_coder.gap_table(level) for level in range(range_coder.LEVELS)])
    size = len(range_coder.encode(symbols, tables, chosen))
    assert size < 0.8 * 400 * 300 * entropy(len(flat) / 120_000) / 8


@pytest.mark.parametrize("count", [0, 1, 5, 1024, 5000, 70_000])
def test_the_range_coder_returns_its_symbols(count):
    rng = np.random.default_rng(count)
    chosen = rng.integers(0, 3, count)
    symbols = np.where(chosen == 0, 7, rng.binomial(255, 0.1 * chosen)).astype(np.uint8)
    counts = [np.bincount(symbols[chosen == n], minlength=256) for n in range(3)]
    tables = np.stack([range_coder.quantized(one) for one in counts])
    assert tables.sum(axis=1).tolist() == [range_coder.TOTAL] * 3
    content = range_coder.encode(symbols, tables, chosen)
    decoder = range_coder.Decoder(tables)
    np.testing.assert_array_equal(decoder.decode(content, chosen), symbols)
    for damaged in (content[:-2], content + b"\0\0", content[:3], content[:-1]):
        with pytest.raises(CheckpointError):
            decoder.decode(damaged, chosen)


def test_gap_tables_are_whole_and_the_same_on_every_machine():
    tables = np.stack([range_coder.gap_table(level) for level in range(range_coder.LEVELS)])
    assert (tables.sum(axis=1) == range_coder.TOTAL).all() and (tables >= 0).all()
    assert zlib.crc32(tables.astype("<u2").tobytes()) == 3401755588


def test_many_symbols_are_coded_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecap_jax.model_files.container._CHUNK", 1000)
    params, masks = random_leaves()
    write_model(tmp_path / "m.scap", params, masks)
    with ModelFile(tmp_path / "m.scap") as file:
        assert len(file._chunks) > 5
        found, _ = file.read()
    np.testing.assert_array_equal(found["a/kernel"], params["a/kernel"])


def test_alike_planes_share_a_table():
    def plane(probability, size):
        symbols = np.random.default_rng(size).binomial(255, probability, size)
        return Plane("values", symbols.astype(np.uint8))

    planes = [plane(0.1, 20_000), plane(0.1, 500), plane(0.9, 20_000)]
    tables, numbers = share_tables(planes)
    found = [numbers[id(plane)] for plane in planes]
    assert len(tables) == 2 and found[0] == found[1] != found[2]


def test_notes_and_files_come_back(tmp_path):
    notes, files = {"config": {"a": [1, 2.5, "é"]}}, {"tokenizer/word.model": bytes(9000)}
    write_model(tmp_path / "m.scap", {}, {}, notes=notes, files=files)
    with ModelFile(tmp_path / "m.scap") as file:
        assert (file.notes, file.files(), file.read()) == (notes, files, ({}, {}))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    params, masks = random_leaves()
    write_model(tmp_path / "m.scap", params, masks)
    before = (tmp_path / "m.scap").read_bytes()
    with pytest.raises(TypeError):
        write_model(tmp_path / "m.scap", {"a": object()}, {})
    assert (tmp_path / "m.scap").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.scap"]


def rewritten(path, change):
    """Write a file anew with a header that was changed, and a right checksum."""
    content = path.read_bytes()
    head = struct.Struct("<8sIIII")
    magic, version, packed, _, _ = head.unpack(content[: head.size])
    header = json.loads(zlib.decompress(content[head.size : head.size + packed]))
    change(header)
    text = json.dumps(header).encode()
    stored = zlib.compress(text)
    start = head.pack(magic, version, len(stored), len(text), zlib.crc32(stored))
    path.write_bytes(start + stored + content[head.size + packed :])


def kernel(**fields):
    return lambda header: header["tensors"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (kernel(shape=[2**40, 2**40]), "1099511627776 where a number from 0 to"),
        (kernel(shape=[300, -200]), "-200 where a number from 0"),
        (kernel(shape=[300, 200.0]), "200.0 where a number"),
        (kernel(shape=[True, 200]), "True where a number"),
        (kernel(shape=[2**20, 2**10]), r"shape \[1048576, 1024\]"),
        (kernel(shape=[1] * 33), r"damaged header: shape \[1, 1, 1"),
        (kernel(kept=60_001), "60001 where a number from 0 to 60000"),
        (kernel(kept=None), "a/kernel: fields that contradict each other"),
        (kernel(raw_bytes=3), "a/kernel: fields that contradict each other"),
        (kernel(form="int4"), "a/kernel: fields that contradict each other"),
        (kernel(form="int8"), "a/kernel: fields that contradict each other"),
        (kernel(gaps=[]), "a/kernel: fields that contradict each other"),
        (kernel(gaps=[[17, 2**20]]), "a/kernel: fields that contradict each other"),
        (kernel(gaps=[[44, 10]]), "44 where a number from 0 to 43"),
        (kernel(values=99), "99 where a number from 0"),
        (kernel(rows=99), "99 where a number from 0"),
        (kernel(rows=0), "header states|damaged|classes"),
        (kernel(name="a"), "a/bias: expected a path that lies within no other"),
        (kernel(name="a/bias"), "'a/bias': expected plain names, each once"),
        (kernel(name="a\n"), r"'a\\n': expected a plain name"),
        (kernel(name=5), "5: expected a plain name"),
        (kernel(name="/".join("a" * 10**5)), "'a/a/.*: expected plain names, each once"),
        (kernel(lowest=993), "lowest exponent 993"),
        (kernel(surplus=5), "damaged header"),
        (kernel(checksum=7), "a/kernel: damaged: its checksum is wrong"),
        (lambda header: header["tensors"].pop(), "bytes; the header states|is cut short: it has"),
        (lambda header: header.pop("tensors"), "damaged header: 'tensors'"),
        (lambda header: header["chunks"].append([0, 0]), "the file has .* the header states"),
        (lambda header: header["chunks"][0].__setitem__(1, 9), "damaged: its checksum is wrong"),
        (lambda header: header["chunks"][0].__setitem__(0, -9), "-9 where a number"),
        (lambda header: header["tables"][0].append(5), "frequencies that add up to 4101"),
        (lambda header: header["tables"].clear(), "damaged header: "),
        (lambda header: header["files"].append(["../x", 0, 0, 0]), "expected a relative path"),
        (lambda header: header["files"].append(["/x", 0, 0, 0]), "expected a relative path"),
        (lambda header: header["files"].append(["C:x", 0, 0, 0]), "expected a relative path"),
        (lambda header: header["files"].append(["x", 2**30, 0, 0]), "1073741824 where a number"),
    ],
)
def test_damaged_headers_are_one_clear_error(tmp_path, change, message):
    path = tmp_path / "m.scap"
    write_model(path, *random_leaves())
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_and_truncated_ones_are_one_clear_error(tmp_path):
    path = tmp_path / "m.scap"
    with pytest.raises(CheckpointError, match=r"m\.scap: no such file or folder; expected a mod"):
        read(path)
    path.write_bytes(b"PK\3\4" + b"junk" * 20)
    with pytest.raises(CheckpointError, match=r"m\.scap: no model file: it begins with b'PK"):
        read(path)
    write_model(path, *random_leaves(), files={"x": b"abc"})
    whole = path.read_bytes()
    size = len(whole)
    header = 24 + int.from_bytes(whole[12:16], "little")
    cut = "damaged header: the file is cut short: it has {} bytes, expected at least {}$"
    for content, message in (
        (b"", "no model file: it is empty$"),
        (whole[:5], cut.format(5, 24)),
        (whole[:20], cut.format(20, 24)),
        (whole[:60], cut.format(60, header)),
        (whole[:-1], cut.format(size - 1, size)),
        (
            whole + b"\0",
            f"damaged header: the file has {size + 1} bytes; the header states {size}$",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"m\.scap: {message}"):
            read(path)
    path.write_bytes(whole[:8] + b"\2\0\0\0" + whole[12:])
    with pytest.raises(CheckpointError, match="format_version is 2; this release reads 1"):
        read(path)
    for place in range(30, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged"), ModelFile(path) as file:
            file.files()
            file.read()


def test_a_header_takes_no_more_than_it_says(tmp_path):
    path = tmp_path / "m.scap"
    bomb = zlib.compress(b" " * 2**26)
    head = struct.pack("<8sIIII", b"\x89SCAP\r\n\x1a", 1, len(bomb), 100, zlib.crc32(bomb))
    path.write_bytes(head + bomb)
    with pytest.raises(CheckpointError, match="does not inflate to 100 bytes"):
        read(path)


def test_small_files_take_no_more_than_16_mib_together(tmp_path):
    path, content = tmp_path / "m.scap", bytes(2**23)
    write_model(path, {}, {}, files={"a": content, "b": content})
    with ModelFile(path) as file:
        assert file.files() == {"a": content, "b": content}
    rewritten(path, lambda header: header["files"][1].__setitem__(1, 2**23 + 1))
    with pytest.raises(CheckpointError, match="8388609 where a number from 0 to 8388608"):
        read(path)


@pytest.mark.filterwarnings("error")
def test_int8_steps_beyond_float32_are_infinite(tmp_path):
    write_model(tmp_path / "m.scap", {"w": np.float32([[1, -1, 0.5]])}, {}, form="int8")
    rewritten(tmp_path / "m.scap", kernel(lowest=992))
    assert np.isinf(read(tmp_path / "m.scap")[0]["w"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"a\n": np.zeros(2)}}, r"'a\\n': expected plain names, each once"),
        ({"params": {"a": np.zeros(2), "a/b": np.zeros(2)}}, "a/b: expected a path that lies"),
        ({"masks": {"a": np.ones((2, 1))}}, r"a: a mask of shape \[2, 1\]; expected the path and"),
        (
            {"masks": {"b": np.ones(2)}},
            r"b: a mask of shape \[2\]; expected the path and",
        ),
        ({"form": "int4"}, "form is 'int4'; expected one of float32, float16, int8"),
        ({"files": {"../x": b""}}, "'../x': expected a relative path"),
        ({"files": {"x": bytes(2**24 + 1)}}, "files of 16777217 bytes; expected at most 16777216"),
        ({"notes": {"x": "y" * 2**22}}, "a header of 4194... bytes; expected at most 4194304"),
    ],
)
def test_what_no_reader_accepts_is_not_written(change, message, tmp_path):
    arguments = {"params": {"a": np.zeros(2)}, "masks": {}, **change}
    with pytest.raises(CheckpointError, match=rf"m\.scap: .*{message}"):
        write_model(tmp_path / "m.scap", **arguments)
    assert not [*tmp_path.iterdir()]


def test_pruned_weights_are_those_of_the_run(tmp_path):
    params, masks = random_leaves()
    pruned = {name: np.asarray(leaf) for name, leaf in finalize(params, masks).items()}
    write_model(tmp_path / "m.scap", pruned, masks)
    np.testing.assert_array_equal(read(tmp_path / "m.scap")[0]["a/kernel"], pruned["a/kernel"])
