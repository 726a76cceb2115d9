import pickle

import numpy as np
import pytest
import store_files

from sparsecap_jax.data.stores import NpyFolderStore, open_store
from sparsecap_jax.errors import DataError

WIDTH = 6
GOOD = {
    "x": np.ones((3, WIDTH), np.float32),
    "bbox": np.array([[0, 0, 5, 5]] * 3, np.float32),
    "num_bbox": 3,
    "image_h": 10,
    "image_w": 20,
}


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "42.npz", **arrays)
    return open_store(tmp_path, WIDTH, True, format="npz")


def test_npz_with_spare_rows(tmp_path):
    regions = npz(tmp_path, **GOOD | {"num_bbox": 2})[42]
    np.testing.assert_array_equal(regions.boxes, np.float32([[0, 0, 0.25, 0.5]] * 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "x: no such array, found bbox, num_bbox"),
        ({"x": np.ones((3, 6), object)}, "x: expected an array of float16, .* found object"),
        ({"x": np.ones((3, 6), np.int32)}, "x: expected an array of float16, .* found int32"),
        ({"x": np.ones((0, 6), np.float32)}, "num_bbox is 3, but x has 0 rows"),
        ({"x": np.float32(1)}, "num_bbox is 3, but x has 0 rows"),
        ({"num_bbox": 4}, "num_bbox is 4, but x has 3 rows"),
        ({"num_bbox": 0}, "num_bbox is 0"),
        ({"num_bbox": 2.5}, "num_bbox: expected an array of integers, found float64"),
        ({"image_w": [1, 2]}, r"image_w: expected one number, found \(2,\)"),
        ({"image_w": 0}, "expected a positive image size"),
        ({"bbox": np.ones(3, np.float32)}, r"expected shape \[R, 4\], found \[3\]"),
    ],
)
def test_bad_npz(tmp_path, change, message):
    arrays = {key: value for key, value in (GOOD | change).items() if value is not None}
    store = npz(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        store[42]
    assert "42.npz" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_cut_npz(tmp_path, cut):
    store = npz(tmp_path, **GOOD)
    content = (tmp_path / "42.npz").read_bytes()
    (tmp_path / "42.npz").write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"42\.npz: not an \.npz archive: "):
        store[42]


def test_damaged_npz_data(tmp_path):
    store = npz(tmp_path, **GOOD)
    content = bytearray((tmp_path / "42.npz").read_bytes())
    start = content.index(np.ones(2, np.float32).tobytes())
    content[start] ^= 255
    (tmp_path / "42.npz").write_bytes(content)
    with pytest.raises(DataError, match="x: cannot be read: Bad CRC-32"):
        store[42]


def test_two_names_of_one_image(tmp_path):
    for name in ("42.npz", "000000000042.jpg.npz"):
        np.savez(tmp_path / name, **GOOD)
    with pytest.raises(DataError, match="are one image id"):
        open_store(tmp_path, WIDTH).image_ids()


def test_bad_hdf5(tmp_path):
    path = tmp_path / "f.hdf5"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"f\.hdf5: not an HDF5 file"):
        open_store(path, WIDTH).image_ids()
    with pytest.raises(DataError, match="not an HDF5 file: no such file"):
        open_store(tmp_path / "g.hdf5", WIDTH, format="hdf5").image_ids()
    import h5py

    path = tmp_path / "boxes.hdf5"
    with h5py.File(path, "w") as file:
        file["42_boxes"] = np.ones((1, 4), np.float32)
    with pytest.raises(DataError, match="no ID_features; found 42_boxes"):
        open_store(path, WIDTH).image_ids()
    path = tmp_path / "mixed.hdf5"
    with h5py.File(path, "w") as file:
        file["1_features"] = np.ones((2, WIDTH), np.int32)
        file["2_features"] = np.ones((2, WIDTH), np.float32)
        file.create_group("3_features")
    store = open_store(path, WIDTH, True)
    for image_id, message in (
        (1, "1_features: expected floats, found int32"),
        (2, "2_boxes: no such array"),
        (3, "3_features: no such array"),
    ):
        with pytest.raises(DataError, match=message):
            store[image_id]


def test_bad_lmdb(tmp_path):
    bad = {"1": pickle.dumps({"features": 1}), "2": b"junk", "3.npz": b"PKjunk", "4": b""}
    store_files.put(tmp_path / "cocobu_att.lmdb", bad)
    store = open_store(tmp_path, WIDTH)
    assert store.image_ids() == [1, 2, 3, 4]
    for image_id, message in (
        (1, "1: a pickle, which is never read"),
        (2, r"2: not a \.npy array"),
        (3, r"3: not an \.npz archive"),
        (4, "4: the file is empty"),
    ):
        with pytest.raises(DataError, match=message):
            store[image_id]
    with pytest.raises(DataError, match=r"boxes are needed, and there is no \*_box\*\.lmdb"):
        open_store(tmp_path, WIDTH, True)
    (tmp_path / "broken.lmdb").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="not an LMDB database"):
        open_store(tmp_path / "broken.lmdb", WIDTH).image_ids()
    store_files.put(tmp_path / "empty.lmdb", {"__len__": b"0"})
    with pytest.raises(DataError, match="the database is empty"):
        open_store(tmp_path / "empty.lmdb", WIDTH).image_ids()


@pytest.mark.parametrize(("kind", "module"), [("hdf5", "h5py"), ("lmdb", "lmdb")])
def test_missing_packages_are_named(tmp_path, monkeypatch, kind, module):
    import importlib

    photos = store_files.random_photos({42: 3, 7: 2, 391895: 5}, WIDTH)
    path = store_files.LAYOUTS[kind](tmp_path / "files", photos)
    real = importlib.import_module

    def without(name, *args):
        if name == module:
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    extra = "h5" if kind == "hdf5" else "lmdb"
    with pytest.raises(DataError, match=rf"takes {module}; pip install 'sparsecap_jax\[{extra}\]'"):
        open_store(path, WIDTH).image_ids()


def test_npz_features_in_folders(tmp_path):
    (tmp_path / "cocobu_att").mkdir()
    np.savez(tmp_path / "cocobu_att/42.npz", other=GOOD["x"])
    with pytest.raises(DataError, match=r"42\.npz: feat: no such array, found other"):
        NpyFolderStore(tmp_path, WIDTH)[42]
