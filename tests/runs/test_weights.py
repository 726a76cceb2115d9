"""Small weight files: exact, of the size they promise, and clear about what is wrong."""

import io
import zipfile
import zlib

import numpy as np
import pytest

from sparsecap_jax.errors import CheckpointError
from sparsecap_jax.model_files import write_model
from sparsecap_jax.runs import weights
from sparsecap_jax.runs.finished import present_weights
from sparsecap_jax.runs.weights import Leaf, load_weights, save_safetensors, save_weights
from sparsecap_jax.trees import flatten


def variables(seed=0, sparsity=0.95):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(120, 50)).astype(np.float32)
    mask = (rng.random((120, 50)) > sparsity).astype(np.float32)
    params = {"layer": {"kernel": kernel * mask, "bias": rng.normal(size=50).astype(np.float32)}}
    return params, {"layer": {"kernel": mask}}


def test_weights_and_masks_come_back_exactly(tmp_path):
    params, masks = variables()
    size = save_weights(tmp_path / "w.npz", params, masks)
    found = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["params"]["layer"]["kernel"], params["layer"]["kernel"])
    np.testing.assert_array_equal(found["params"]["layer"]["bias"], params["layer"]["bias"])
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])
    assert size == (tmp_path / "w.npz").stat().st_size
    payload = 6000 // 8 + 4 * int(masks["layer"]["kernel"].sum()) + 4 * 50
    assert payload < size < payload + 2000  # names and headers of the archive


def test_zeros_are_stored_sparse_without_a_mask_too(tmp_path):
    params, masks = variables()
    save_weights(tmp_path / "w.npz", params)
    found = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["params"]["layer"]["kernel"], params["layer"]["kernel"])
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])


def test_a_dense_model_has_no_masks(tmp_path):
    params, _ = variables(sparsity=0.0)
    save_weights(tmp_path / "w.npz", params)
    assert load_weights(tmp_path / "w.npz")["masks"] == {}


def test_a_kept_weight_of_zero_stays_kept(tmp_path):
    params, masks = variables()
    kept = np.argwhere(masks["layer"]["kernel"])[0]
    params["layer"]["kernel"][tuple(kept)] = 0.0
    save_weights(tmp_path / "w.npz", params, masks)
    found = load_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    params, masks = variables()
    save_weights(tmp_path / "w.npz", params, masks)
    before = (tmp_path / "w.npz").read_bytes()
    with pytest.raises(TypeError):
        save_weights(tmp_path / "w.npz", {"layer": {"kernel": object()}})
    assert (tmp_path / "w.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


def test_faults_are_one_clear_error(tmp_path):
    path = tmp_path / "w.npz"
    with pytest.raises(CheckpointError, match=r"w\.npz: no such file"):
        load_weights(path)
    save_weights(path, *variables())
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"w\.npz: corrupt"):
            load_weights(path)
    np.savez(path, **{"dense:a": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="format_version is None"):
        load_weights(path)
    shape = np.array([4, 4])
    np.savez(path, **{"format_version": np.int32(1), "shape:a": shape})
    with pytest.raises(CheckpointError, match="bits:a: no such array, found"):
        load_weights(path)


def test_missing_weights_are_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file or folder; expected finished weights"):
        present_weights(tmp_path)


def test_a_compact_file_rounds_to_float16_and_keeps_the_masks(tmp_path):
    params, masks = variables()
    size = save_weights(tmp_path / "c.npz", params, masks, compact=True)
    found = load_weights(tmp_path / "c.npz")
    kernel = found["params"]["layer"]["kernel"]
    assert kernel.dtype == found["params"]["layer"]["bias"].dtype == np.float32
    rounded = params["layer"]["kernel"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(kernel, rounded)
    np.testing.assert_array_equal(found["masks"]["layer"]["kernel"], masks["layer"]["kernel"])
    assert size < 0.75 * save_weights(tmp_path / "w.npz", params, masks)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, changes, sizes=()):
    """Write the file anew with other members, some of them deflated and with sizes that lie."""
    contents = members(path) | changes
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
        for name, size in dict(sizes).items():
            info = archive.getinfo(name)
            info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, size


def header(shape, descr="<f4"):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def text_header(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


DENSE = "dense:layer/bias.npy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({DENSE: text_header("(2**70, 0)")}, "not a .npy array"),
        ({DENSE: text_header(f"({2**70}, 0)")}, "not a .npy array: a size that no array has"),
        ({DENSE: text_header("(")}, "not a .npy array"),
        ({DENSE: text_header("(-1,)")}, r"expected an array of .*, found float32 \[-1\]"),
        ({DENSE: header((2**40,))}, "truncated: .* takes 4398046511104 bytes, found 0"),
        ({DENSE: header((50,))}, r"truncated: an array \[50\] of float32 takes 200 bytes, found 0"),
        (
            {DENSE: header((0,), "|O")},
            r"dense:layer/bias: expected .*, found object \[0\]",
        ),
        (
            {DENSE: header((0,), "<i8")},
            r"bias: expected .* float16, .*, found int64 \[0\]",
        ),
        ({"dense:layer.npy": header((0,))}, "layer/kernel: expected a path that lies within no"),
        ({"dense:layer/kernel.npy": header((0,))}, "'layer/kernel': expected plain names, each"),
        ({"dense:a\nb.npy": header((0,))}, r"'a\\nb': expected plain names"),
        (
            {"shape:layer/kernel.npy": header((0,), "<i8")},
            r"\[750\] bytes of bits for 1 weights",
        ),
        ({"bits:layer/kernel.npy": header((0,), "|u1")}, r"\[0\] bytes of bits for 6000 weights"),
        ({"format_version.npy": header((0,), "<i4")}, "format_version is "),
        (
            {"format_version.npy": header((0,))},
            "format_version: expected .* integers, found float32",
        ),
    ],
)
def test_damaged_members_are_named(tmp_path, changes, message):
    path = tmp_path / "w.npz"
    save_weights(path, *variables())
    rewritten(path, changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_corrupt_compressed_data(tmp_path):
    path = tmp_path / "w.npz"
    save_weights(path, *variables())
    member = members(path)[DENSE]
    packed = zlib.compress(member, wbits=-15)
    rewritten(path, {DENSE: packed[:-9] + b"\xff" * 9}, {DENSE: len(member)})
    with pytest.raises(CheckpointError, match=r"w\.npz: dense:layer/bias"):
        load_weights(path)


def test_sizes_are_checked_before_anything_is_inflated(tmp_path, monkeypatch):
    path = tmp_path / "w.npz"
    params, masks = variables()
    save_weights(path, params, masks)
    big = header((2**29,))
    bomb = zlib.compress(big + bytes(100_000), wbits=-15)
    rewritten(path, {"dense:bomb.npy": bomb}, {"dense:bomb.npy": len(big) + 2**31})
    with pytest.raises(CheckpointError, match=r"arrays of 21474\d+ bytes; expected at most 21474"):
        load_weights(path)
    save_weights(path, params, masks)
    expected = {"layer": {"kernel": np.empty((120, 51)), "bias": np.empty(50)}}
    monkeypatch.setattr(np, "unpackbits", None)  # nothing is unpacked before the shapes fit
    message = r"weight layer/kernel has shape \(120, 50\), expected \(120, 51\)"
    with pytest.raises(CheckpointError, match=message):
        load_weights(path, expected)
    monkeypatch.setattr("sparsecap_jax.runs.weights.MAX_WEIGHTS", 6049)
    expected["layer"]["kernel"] = np.empty((120, 50))
    for params in (None, expected):
        with pytest.raises(CheckpointError, match="6050 weights; expected at most 6049"):
            load_weights(path, params)


def test_more_weights_than_any_model_has_are_refused(tmp_path, monkeypatch):
    """Also where they are what a config asks for: its sizes may be hostile too."""
    params, masks = variables()
    save_weights(tmp_path / "w.npz", params, masks)
    write_model(tmp_path / "m.scap", flatten(params), flatten(masks))
    save_safetensors(tmp_path / "w.safetensors", params, masks)
    expected = {"layer": {"kernel": Leaf((120, 50)), "bias": Leaf((50,))}}
    for limit in (6050, 6049):
        monkeypatch.setattr(weights, "MAX_WEIGHTS", limit)
        for name in ("w.npz", "m.scap", "w.safetensors"):
            for shapes in (None, expected):
                if limit == 6050:
                    load_weights(tmp_path / name, shapes)
                else:
                    with pytest.raises(CheckpointError, match="6050 weights; expected at most 60"):
                        load_weights(tmp_path / name, shapes)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x89SCAP"])
def test_a_file_that_is_cut_short_is_no_archive(tmp_path, content):
    (tmp_path / "model.scap").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.scap: empty, cut short or not a model file"):
        load_weights(tmp_path / "model.scap")
