import pickle
import re
import struct
import sys
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import store_files
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecap_jax.data.stores import NpyFolderStore, open_store
from sparsecap_jax.data.stores._lmdb import read_places
from sparsecap_jax.errors import ConfigError, DataError

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
        ({"x": np.ones((8, 5), np.float32)}, r"x: expected shape \[R, 6\] .*, found \[8, 5\]"),
        ({"bbox": np.float32(1)}, r"bbox: expected shape \[R, 4\], found \[\]"),
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


def test_npz_without_regions_has_no_count(tmp_path):
    store = npz(
        tmp_path, **{k: v for k, v in GOOD.items() if k != "num_bbox"} | {"x": np.float32(1)}
    )
    with pytest.raises(DataError, match="num_bbox is 0, but x has 0 rows"):
        store.num_regions(42)


def test_npz_of_openvqa_is_read_as_it_is_meant(tmp_path):
    """There, `x` is [D, R]."""
    features = np.arange(18, dtype=np.float32).reshape(3, WIDTH)
    store = npz(tmp_path, **GOOD | {"x": features.T})
    assert store.num_regions(42) == 3
    np.testing.assert_array_equal(store[42].features, features)
    store = npz(tmp_path, **GOOD | {"x": features.T, "num_bbox": 2})
    np.testing.assert_array_equal(store[42].features, features[:2])
    square = np.arange(36, dtype=np.float32).reshape(6, 6)
    store = npz(tmp_path, **GOOD | {"x": square, "num_bbox": 6, "bbox": np.zeros((6, 4), "f4")})
    np.testing.assert_array_equal(store[42].features, square)


def test_npz_that_ends_early(tmp_path):
    """Its directory claims more than is there."""
    store = npz(tmp_path, **GOOD)
    content = (tmp_path / "42.npz").read_bytes()
    content = bytearray(content.replace(b"(3, 6), }    ", b"(99999, 6), }"))
    size = 128 + 99999 * 24
    struct.pack_into("<II", content, content.index(b"PK\1\2") + 20, size, size)
    (tmp_path / "42.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"42\.npz: x: cannot be read: (EOFError|Overlapped)"):
        store[42]


def test_npz_is_not_inflated_without_limit(tmp_path):
    """300 MiB of zeros take 1.4 MB on disk."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (78643200,), }\n"
    with (
        zipfile.ZipFile(tmp_path / "42.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as file,
    ):
        file.write(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        for _ in range(300):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"arrays of 314572875 bytes; expected at most 268435456"):
        open_store(tmp_path, WIDTH)[42]
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_npz_of_another_compression(tmp_path):
    with zipfile.ZipFile(tmp_path / "42.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", store_files.npy_bytes(GOOD["x"]))
    with pytest.raises(DataError, match="x: compressed in another way than numpy does"):
        open_store(tmp_path, WIDTH)[42]


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
    with pytest.raises(DataError, match="no such file or folder; expected an HDF5 file"):
        open_store(tmp_path / "g.hdf5", WIDTH, format="hdf5").image_ids()
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


def test_hdf5_in_a_folder(tmp_path):
    photos = store_files.random_photos({42: 3, 7: 2}, WIDTH)
    store_files.write_hdf5(tmp_path / "m2", photos)
    store = open_store(tmp_path / "m2", WIDTH)
    np.testing.assert_array_equal(store[42].features, photos[42].features)
    h5py.File(tmp_path / "m2/other.h5", "w").close()
    with pytest.raises(DataError, match=r"holds coco_detections\.hdf5, other\.h5; expected the"):
        open_store(tmp_path / "m2", WIDTH)


def test_hdf5_that_refers_to_other_files_or_claims_too_much(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones((2, WIDTH), np.float32)
    path = tmp_path / "f.hdf5"
    with h5py.File(path, "w") as file:
        file["1_features"] = h5py.ExternalLink("secret.h5", "/x")
        layout = h5py.VirtualLayout((2, WIDTH), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "x", (2, WIDTH))
        file.create_virtual_dataset("2_features", layout)
        raw = [(str(tmp_path / "secret.h5"), 0, 48)]
        file.create_dataset("3_features", (2, WIDTH), "f4", external=raw)
        file.create_dataset("4_features", (2**40, WIDTH), "f4", compression="gzip")
        file.create_dataset("5_features", (3, 4), "f4", chunks=(2**28, 1), maxshape=(None, 4))
        file["6_features"] = h5py.Empty("f4")
    store = open_store(path, WIDTH)
    for image_id in (1, 2, 3):
        with pytest.raises(DataError, match=f"{image_id}_features: refers to another place"):
            store[image_id]
    for image_id in (4, 5):
        with pytest.raises(DataError, match=f"{image_id}_features: .* takes over 268435456"):
            store[image_id]
    with pytest.raises(DataError, match="6_features"):
        store[6]


def damaged(content, data):
    """Overwrite, cut or lengthen part of a file, most often in its first pages."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, data.draw(st.sampled_from([200, len(content)]))))
        junk = data.draw(st.binary(max_size=8))
        content[start : start + data.draw(st.sampled_from([0, len(junk), 9000]))] = junk
    return content


@pytest.mark.parametrize("kind", ["hdf5", "lmdb", "bua_npz"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_give_one_error_or_the_arrays(kind, tmp_path_factory, data):
    photos = store_files.random_photos({42: 3, 7: 2, 391895: 5}, WIDTH)
    path = store_files.LAYOUTS[kind](tmp_path_factory.mktemp("fuzz") / "files", photos)
    paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    file = data.draw(st.sampled_from([p for p in paths if p.name != "lock.mdb"]))
    file.write_bytes(damaged(file.read_bytes(), data))
    try:
        store = open_store(path, WIDTH, True, sizes=store_files.sizes_of(photos))
        ids = store.image_ids()
    except DataError as error:
        ids = []
        assert "\n" not in str(error)
    for image_id in ids:
        try:
            assert store[image_id].features.shape == (store.num_regions(image_id), WIDTH)
        except DataError as error:
            assert "\n" not in str(error)


def test_lmdb_of_many_pages(tmp_path):
    """Branches, values in their page and in pages of their own, keys in order."""
    rng = np.random.default_rng(0)
    sizes = {f"{n:06d}-{'k' * (n % 60)}": int(rng.integers(1, 6000)) for n in range(2000)}
    values = {key: rng.bytes(size) for key, size in sizes.items()}
    store_files.put(tmp_path / "x_att.lmdb", values)
    places = read_places(tmp_path / "x_att.lmdb/data.mdb")
    assert list(places) == sorted(key.encode() for key in values)
    content = (tmp_path / "x_att.lmdb/data.mdb").read_bytes()
    for key, (start, size) in places.items():
        assert content[start : start + size] == values[key.decode()]


def test_cut_lmdb(tmp_path):
    """The library would end the process with SIGBUS."""
    path = store_files.write_lmdb(tmp_path / "l", store_files.random_photos({42: 3, 7: 2}, 2048))
    file = path / "cocobu_att.lmdb/data.mdb"
    content = file.read_bytes()
    for pages in range(2, len(content) // 4096):
        file.write_bytes(content[: pages * 4096])
        with pytest.raises(DataError, match=rf"data\.mdb: .*: truncated: {pages * 4096} "):
            open_store(path, 2048).image_ids()
    file.write_bytes(content)
    store = open_store(path, 2048)
    assert store.image_ids() == [7, 42]
    file.write_bytes(content[:16000])  # cut after it was opened
    with pytest.raises(DataError, match=r"cocobu_att\.lmdb: 42: truncated"):
        store[42]


def test_lmdb_that_points_to_itself(tmp_path):
    path = store_files.write_lmdb(tmp_path / "l", store_files.random_photos({42: 3, 7: 2}, WIDTH))
    file = path / "cocobu_att.lmdb/data.mdb"
    content = bytearray(file.read_bytes())
    root = struct.unpack_from("<Q", content, 4096 + 128)[0]
    page = root * 4096
    struct.pack_into("<H", content, page + 10, 1)  # a branch now
    node = page + struct.unpack_from("<H", content, page + 16)[0]
    struct.pack_into("<HHH", content, node, root, 0, 0)
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"page {root} comes twice"):
        open_store(path, WIDTH).image_ids()


def test_lmdb_of_a_key_longer_than_any(tmp_path):
    """Keys that overlap would take far more memory than the file."""
    path = tmp_path / "x.mdb"
    store_files.put(tmp_path / "x", {"k" * 511: b"value"})
    content = (tmp_path / "x/data.mdb").read_bytes()
    path.write_bytes(content)
    assert [*read_places(path)] == [b"k" * 511]
    node = struct.pack("<HHHH", 5, 0, 0, 511)
    assert content.count(node) == 1
    path.write_bytes(content.replace(node, struct.pack("<HHHH", 5, 0, 0, 512)))
    with pytest.raises(DataError, match=r"x\.mdb: .*: key b'kkk.* has 512 bytes, over 511$"):
        read_places(path)


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


def test_missing_packages_are_named(tmp_path, monkeypatch):
    photos = store_files.random_photos({42: 3, 7: 2, 391895: 5}, WIDTH)
    path = store_files.write_hdf5(tmp_path / "files", photos)
    database = store_files.write_lmdb(tmp_path / "lmdb", photos)
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    message = "reading HDF5 needs h5py, which is not installed: pip install 'sparsecap_jax[h5]'"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        open_store(path, WIDTH).image_ids()
    assert open_store(database, WIDTH).image_ids() == [7, 42, 391895]  # needs no package


def test_npz_features_in_folders(tmp_path):
    (tmp_path / "cocobu_att").mkdir()
    np.savez(tmp_path / "cocobu_att/42.npz", other=GOOD["x"])
    with pytest.raises(DataError, match=r"42\.npz: feat: no such array, found other"):
        NpyFolderStore(tmp_path, WIDTH)[42]
