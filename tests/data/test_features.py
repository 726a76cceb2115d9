import io
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecap_jax.data.cache import CachedStore
from sparsecap_jax.data.features import FeatureStore
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import ConfigError, DataError

WIDTH = 6
BOXES = np.array([[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1], [0, 0, 1, 1]], np.float32)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, features):
    """A folder of one good image, 42."""
    root = tmp_path / "data" / "bu"
    for name in ("cocobu_att", "cocobu_fc", "cocobu_box_relative"):
        (root / name).mkdir(parents=True)
    np.save(root / "cocobu_att/42.npy", features)
    np.save(root / "cocobu_box_relative/42.npy", BOXES)
    np.save(root / "cocobu_fc/42.npy", features[0])
    return root


def open_store(folder, need_boxes=True):
    return NpyFolderStore(folder, feature_size=WIDTH, need_boxes=need_boxes)


COCO5 = {391895: 37, 522418: 21, 184613: 47, 57870: 31, 384029: 18}


def test_real_coco_features(shared):
    store = NpyFolderStore(shared / "reference/coco5", need_boxes=True)
    store.check(COCO5)
    assert store.image_ids() == sorted(COCO5)
    assert {id_: store.num_regions(id_) for id_ in COCO5} == COCO5
    for id_, count in COCO5.items():
        regions = store[id_]
        root = shared / "reference/coco5/bu"
        assert regions.features.shape == (count, 2048)
        np.testing.assert_array_equal(regions.features, np.load(root / f"cocobu_att/{id_}.npy"))
        np.testing.assert_array_equal(regions.fc, np.load(root / f"cocobu_fc/{id_}.npy"))
        boxes = np.load(root / f"cocobu_box_relative/{id_}.npy")
        np.testing.assert_array_equal(regions.boxes, boxes.astype(np.float32))
        assert regions.features.dtype == regions.boxes.dtype == regions.fc.dtype == np.float32
        assert regions.nbytes == 4 * (count * 2048 + count * 4 + 2048)


def test_missing_fc_is_the_mean_over_regions(folder, features):
    (folder / "cocobu_fc/42.npy").unlink()
    expected = sum(features.astype(np.float64)) / 3
    fc = open_store(folder)[42].fc
    np.testing.assert_allclose(fc, expected, rtol=1e-6, atol=1e-7)
    (folder / "cocobu_fc").rmdir()
    np.testing.assert_array_equal(open_store(folder)[42].fc, fc)


def test_real_fc_files_are_the_mean(shared, tmp_path):
    os.symlink(shared / "reference/coco5/bu/cocobu_att", tmp_path / "cocobu_att")
    store = NpyFolderStore(tmp_path)
    for id_ in COCO5:
        stored = np.load(shared / f"reference/coco5/bu/cocobu_fc/{id_}.npy")
        np.testing.assert_allclose(store[id_].fc, stored, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [0, 1])
def test_folder_or_its_parent(folder, features, levels):
    top = (folder, folder.parent)[levels]
    np.testing.assert_array_equal(open_store(top)[42].features, features)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_types_on_disk(folder, features, dtype, order):
    np.save(folder / "cocobu_att/42.npy", features.astype(dtype, order=order))
    found = open_store(folder)[42].features
    assert found.dtype == np.dtype("=f4")
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, features.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_header_versions(folder, features, version):
    with (folder / "cocobu_att/42.npy").open("wb") as file:
        np.lib.format.write_array(file, features, version=version)
    np.testing.assert_array_equal(open_store(folder)[42].features, features)


def test_header_of_old_numpy(folder, features):
    """Before 1.14 the header was padded to 16 bytes."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 6), }".ljust(69) + b"\n"
    content = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    (folder / "cocobu_att/42.npy").write_bytes(content + features.tobytes())
    np.testing.assert_array_equal(open_store(folder)[42].features, features)


def test_grid_becomes_regions_row_by_row(folder):
    grid = np.arange(2 * 3 * WIDTH, dtype=np.float32).reshape(2, 3, WIDTH)
    np.save(folder / "cocobu_att/7.npy", grid)
    store = open_store(folder, need_boxes=False)
    assert store.num_regions(7) == 6
    found = store[7]
    assert found.boxes is None
    np.testing.assert_array_equal(found.features[4], grid[1, 1])


def test_names_with_leading_zeros_and_letters(folder, features):
    for name in ("000123", "photo-a"):
        np.save(folder / f"cocobu_att/{name}.npy", features)
    store = open_store(folder, need_boxes=False)
    assert store.image_ids() == [42, 123, "photo-a"]
    np.testing.assert_array_equal(store["000123"].features, features)
    np.testing.assert_array_equal(store[123].features, features)
    np.save(folder / "cocobu_att/123.npy", features)
    with pytest.raises(DataError, match="are one image id"):
        open_store(folder).image_ids()


def npy_bytes(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_with_shape(shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


GOOD = np.ones((3, WIDTH), np.float32)
NAN = GOOD.copy()
NAN[1, 2] = np.nan
INF = GOOD.copy()
INF[2, 0] = -np.inf
HUGE_HEADER = npy_bytes(GOOD).replace(b"(3, 6), }" + b" " * 12, b"(9999999999999, 6), }")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x93NUMPY", "not a .npy array"),
        (b"PK\x03\x04 an archive", "not a .npy array"),
        (npy_bytes(GOOD)[:40], "not a .npy array"),
        (npy_bytes(GOOD)[:-5], r"truncated: an array \[3, 6\] of float32 takes 72 bytes, found 67"),
        (npy_bytes(GOOD) + b"more", "too long: .* found 76"),
        (HUGE_HEADER, "truncated: .* takes 239999999999976 bytes, found 72"),
        (
            npy_bytes(GOOD).replace(b"(3, 6)", b"(-3,-6)")[:-1],
            r"expected .* found float32 \[-3, -6",
        ),
        (npy_with_shape("(2**70, 0)"), "not a .npy array"),  # not a literal
        (npy_with_shape(f"({2**70}, 0)"), "not a .npy array: a size that no array has"),
        (npy_with_shape(f"(0x{'f' * 5000},)"), "not a .npy array: a size that no array has"),
        (npy_with_shape(f"(-0x{'f' * 5000},)"), "not a .npy array: a size that no array has"),
        (npy_with_shape("(True, 0)"), "not a .npy array: a size that no array has"),
        (npy_with_shape(f"({'1,' * 33})"), "not a .npy array: a size that no array has"),
        (npy_with_shape("(2147483647, 0)"), r"\[2147483647, 0\] of float32 takes over 268435456"),
        (npy_bytes(GOOD.astype(object), allow_pickle=True), "float16, .* found object"),
        (npy_bytes(GOOD.astype(np.int64)), "float16, float32 or float64, found int64"),
        (npy_bytes(np.ones((3, 5), np.float32)), r"expected shape \[R, 6\] .* found \[3, 5\]"),
        (npy_bytes(np.ones((6, 4), "f4")), r"\[R, 6\] .* found \[6, 4\], which is transposed"),
        (npy_bytes(GOOD[0]), r"features: expected shape \[R, 6\] .* found \[6\]"),
        (npy_bytes(GOOD[None, None]), r"found \[1, 1, 3, 6\]"),
        (npy_bytes(np.float32(1)), r"found \[\]"),
        (npy_bytes(GOOD[:0]), "features: no regions"),
        (npy_bytes(NAN), r"features: 1 values are NaN or infinite .* first at \[1, 2\]"),
        (npy_bytes(INF), r"features: 1 values are NaN or infinite .* first at \[2, 0\]"),
        (
            npy_bytes(GOOD.astype(np.float64) * 1e300),
            "features: 18 values .* too large for float32",
        ),
    ],
)
def test_bad_feature_files(folder, content, message):
    path = folder / "cocobu_att/42.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_store(folder)[42]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, 1.02, 1], r"row 1 is \[0.0, 0.0, 1.0199\d*, 1.0\], .* within \[0, 1\]"),
        ([-0.02, 0, 1, 1], "row 1 is"),
        ([0, 0, 320, 200], "divided by image width and height"),
        ([0.5, 0, 0.4, 1], "expected x1<=x2 and y1<=y2"),
        ([0, 0.5, 1, 0.4], "expected x1<=x2 and y1<=y2"),
        ([0, 0, np.nan, 1], "boxes: 1 values are NaN"),
    ],
)
def test_bad_boxes(folder, row, message):
    boxes = BOXES.copy()
    boxes[1] = row
    path = folder / "cocobu_box_relative/42.npy"
    np.save(path, boxes)
    with pytest.raises(DataError, match=message) as caught:
        open_store(folder)[42]
    assert f"{path}: boxes: " in str(caught.value)


def test_boxes_may_leave_the_picture_by_rounding(folder):
    boxes = BOXES + np.float32(0.005) * np.array([-1, -1, 1, 1], np.float32)
    np.save(folder / "cocobu_box_relative/42.npy", boxes)
    np.testing.assert_array_equal(open_store(folder)[42].boxes, boxes)


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (12,)])
def test_boxes_of_another_shape(folder, shape):
    np.save(folder / "cocobu_box_relative/42.npy", np.zeros(shape, np.float32))
    with pytest.raises(DataError, match=r"boxes: expected shape \[3, 4\] to match the features"):
        open_store(folder)[42]


def test_bad_fc(folder):
    path = folder / "cocobu_fc/42.npy"
    np.save(path, np.ones((1, WIDTH), np.float32))
    with pytest.raises(DataError, match=r"42\.npy: fc: expected shape \[6\], found \[1, 6\]"):
        open_store(folder)[42]
    np.save(path, np.full(WIDTH, np.nan, np.float32))
    with pytest.raises(DataError, match=r"fc: 6 values are NaN"):
        open_store(folder)[42]


def test_a_file_that_claims_a_terabyte_is_not_read(folder):
    """Files may have holes, which take no room on disk."""
    path = folder / "cocobu_att/42.npy"
    path.write_bytes(npy_with_shape("(45812984490, 6)"))
    os.truncate(path, path.stat().st_size + 45812984490 * 24)
    with pytest.raises(DataError, match=r"42\.npy: an array \[45812984490, 6\] of float32 takes"):
        open_store(folder)[42]


class Payload:
    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_pickles_are_never_run(folder, tmp_path):
    payload = Payload()
    payload.path = str(tmp_path / "executed")
    np.save(folder / "cocobu_att/42.npy", np.array([payload], object), allow_pickle=True)
    with pytest.raises(DataError, match="found object"):
        open_store(folder)[42]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("id_", ["../cocobu_fc/42", "../../secret", "/etc/passwd", "", "a\0b", 43])
def test_only_files_of_the_folder_are_reached(folder, id_):
    np.save(folder.parent / "secret.npy", GOOD)
    with pytest.raises(DataError, match="no features of image"):
        open_store(folder)[id_]
    with pytest.raises(DataError, match="no features of image"):
        open_store(folder).num_regions(id_)


def test_check_reports_all_missing_ids(folder):
    store = open_store(folder)
    store.check([42, "42"])
    with pytest.raises(DataError, match=r"cocobu_att: no file for 2 of 3 images: 1, x$"):
        store.check([1, 42, "x"])
    with pytest.raises(DataError, match=r"for 15 of 16 images: 0, 1, .*, 9 and 5 more$"):
        store.check([*range(15), 42])


def test_check_covers_boxes_where_they_are_needed(folder):
    np.save(folder / "cocobu_att/43.npy", GOOD)
    open_store(folder, need_boxes=False).check([42, 43])
    with pytest.raises(DataError, match=r"cocobu_box_relative: no file for 1 of 2 images: 43$"):
        open_store(folder).check([42, 43])
    with pytest.raises(DataError, match=r"cocobu_box_relative/43\.npy: cannot be read: No such"):
        open_store(folder)[43]


def test_wrong_folders(folder, tmp_path):
    with pytest.raises(DataError, match="neither bu/cocobu_att/ nor cocobu_att/"):
        open_store(tmp_path)
    with pytest.raises(DataError, match="neither"):
        open_store(tmp_path / "absent")
    (folder / "cocobu_box_relative/42.npy").unlink()
    (folder / "cocobu_box_relative").rmdir()
    open_store(folder, need_boxes=False).check([42])
    with pytest.raises(DataError, match=r"cocobu_box_relative: no such file .* expected boxes"):
        open_store(folder)
    with pytest.raises(ConfigError, match="feature_size: expected at least 1, found 0"):
        NpyFolderStore(folder, feature_size=0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_headers_give_one_error_or_the_array(tmp_path_factory, data):
    """Overwrite or cut any part of a good file: a DataError or a finite array, nothing else."""
    content = bytearray(npy_bytes(GOOD))
    start = data.draw(st.integers(0, len(content) - 1))
    junk = data.draw(st.binary(min_size=0, max_size=12))
    content[start : start + len(junk)] = junk
    content = content[: data.draw(st.integers(0, len(content)))] if not junk else content
    folder = tmp_path_factory.mktemp("fuzz") / "cocobu_att"
    folder.mkdir()
    (folder / "1.npy").write_bytes(content)
    try:
        found = NpyFolderStore(folder.parent, feature_size=WIDTH)[1].features
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert found.shape[1] == WIDTH
        assert np.isfinite(found).all()


class CountingStore:
    """Ten images of 2 regions: 2 * 6 + 6 floats, 72 bytes each."""

    feature_size = WIDTH

    def __init__(self, folder):
        self.reads = []
        np.save(folder / "cocobu_att/42.npy", GOOD[:2])
        self.store = NpyFolderStore(folder, feature_size=WIDTH)

    def __getitem__(self, image_id):
        self.reads.append(image_id)
        return self.store[42]

    def num_regions(self, image_id):
        return 2

    def check(self, image_ids):
        self.store.check(image_ids)


def test_cache_reads_once_up_to_its_limit(folder):
    store = CountingStore(folder)
    cache = CachedStore(store, max_bytes=3 * 72 + 71, min_free_ram=0.0)
    assert isinstance(cache, FeatureStore)
    first = [cache[i] for i in range(5)]
    assert (len(cache), cache.nbytes) == (3, 216)
    second = [cache[i] for i in range(5)]
    assert store.reads == [0, 1, 2, 3, 4, 3, 4]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.features, b.features)
    assert [cache.num_regions(i) for i in (0, 4)] == [2, 2]
    with pytest.raises(DataError, match="no file for 1 of 1 images: 5"):
        cache.check([5])


def test_cache_keeps_nothing_without_free_memory(folder, monkeypatch):
    store = CountingStore(folder)
    off = CachedStore(store, min_free_ram=1.0)
    assert [off[1].nbytes, off[1].nbytes] == [72, 72]
    assert (store.reads, len(off)) == ([1, 1], 0)

    class Memory:
        total = 1000
        available = 401

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    cache = CachedStore(store, min_free_ram=0.4)
    cache[1]
    Memory.available = 400
    cache[2]
    assert len(cache) == 1


def test_cache_is_safe_between_threads(folder):
    cache = CachedStore(CountingStore(folder), max_bytes=50 * 72, min_free_ram=0.0)
    threads = [
        threading.Thread(target=lambda: [cache[i % 100] for i in range(400)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(cache), cache.nbytes) == (50, 50 * 72)


@pytest.mark.parametrize("options", [{"max_bytes": -1}, {"min_free_ram": 1.5}])
def test_cache_options(folder, options):
    with pytest.raises(ConfigError, match="expected"):
        CachedStore(CountingStore(folder), **options)
