import json
import logging
import pickle
import threading

import numpy as np
import pytest
import store_files
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecap_jax.data.features import FeatureStore, NpyFolderStore
from sparsecap_jax.data.stores import STORES, find_format, open_store
from sparsecap_jax.data.stores.convert import convert
from sparsecap_jax.data.stores.image_sizes import load_image_sizes
from sparsecap_jax.data.toy_scenes import make_toy_scenes
from sparsecap_jax.errors import ConfigError, DataError

WIDTH = 6
COUNTS = {42: 3, 7: 2, 391895: 5}


@pytest.fixture(scope="module")
def photos():
    return store_files.random_photos(COUNTS, WIDTH)


@pytest.fixture(scope="module", params=store_files.LAYOUTS)
def layout(request, photos, tmp_path_factory):
    """(name, path) of files of one layout, built by hand."""
    name = request.param
    return name, store_files.LAYOUTS[name](tmp_path_factory.mktemp(name) / "files", photos)


def opened(layout, photos, **options):
    return open_store(layout[1], WIDTH, True, sizes=store_files.sizes_of(photos), **options)


def assert_holds(store, photos, fc_exact=True):
    for image_id, photo in photos.items():
        regions = store[image_id]
        np.testing.assert_array_equal(regions.features, photo.features)
        np.testing.assert_array_equal(regions.boxes, photo.boxes)
        np.testing.assert_array_equal(regions.fc, photo.fc)
        for array in (regions.features, regions.boxes, regions.fc):
            assert array.dtype == np.dtype("=f4")


def test_every_layout_is_read_as_it_was_written(layout, photos):
    assert find_format(layout[1]) == store_files.FORMATS[layout[0]]
    store = opened(layout, photos)
    assert isinstance(store, STORES[store_files.FORMATS[layout[0]]])
    assert isinstance(store, FeatureStore)
    assert store.image_ids() == [7, 42, 391895]
    assert len(store) == 3
    store.check([42, "7", 391895])
    assert {i: store.num_regions(i) for i in COUNTS} == COUNTS  # before anything is read
    assert_holds(store, photos)
    assert opened(layout, photos, format=find_format(layout[1])).image_ids() == [7, 42, 391895]


def test_boxes_are_left_out_where_nobody_needs_them(layout):
    store = open_store(layout[1], WIDTH)
    assert all(store[image_id].boxes is None for image_id in COUNTS)


def test_missing_images_are_told_at_once(layout, photos):
    store = opened(layout, photos)
    with pytest.raises(DataError, match=r"for 2 of 3 images: 1, x$"):
        store.check([1, 42, "x"])
    for image_id in (1, "x", "../7", ""):
        with pytest.raises(DataError, match="no features of image"):
            store[image_id]
        with pytest.raises(DataError, match="no features of image"):
            store.num_regions(image_id)


def test_wrong_width_is_an_error(layout, photos):
    store = open_store(layout[1], WIDTH + 1)
    with pytest.raises(DataError, match=r"expected shape \[R, 7\] or \[h, w, 7\], found"):
        store[42]


def test_stores_travel_to_other_processes_and_threads(layout, photos):
    store = opened(layout, photos)
    assert store[42].features.shape == (3, WIDTH)  # files are open now
    again = pickle.loads(pickle.dumps(store))
    assert_holds(again, photos)
    failures = []

    def read():
        try:
            for _ in range(5):
                assert_holds(again, photos)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_converted_stores_hold_the_same(layout, photos, tmp_path, dtype):
    convert(opened(layout, photos), tmp_path, dtype=dtype, shard_size=2, report=lambda _: None)
    store = open_store(tmp_path, WIDTH, True)
    assert find_format(tmp_path) == "array_record"
    assert {i: store.num_regions(i) for i in COUNTS} == COUNTS
    if dtype == "float32":
        assert_holds(store, photos)
        assert_holds(pickle.loads(pickle.dumps(store)), photos)
    for image_id, photo in photos.items():
        expected = photo.features.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(store[image_id].features, expected)
        np.testing.assert_array_equal(store[image_id].boxes, photo.boxes)
        np.testing.assert_array_equal(store[image_id].fc, photo.fc)


def test_vinvl_position_can_be_part_of_the_features(photos, tmp_path):
    path = store_files.write_vinvl_json(tmp_path / "v", photos)
    for image_id, photo in photos.items():
        regions = open_store(path, WIDTH + 6, True)[image_id]
        np.testing.assert_array_equal(regions.features, store_files.vinvl_features(photo))
        np.testing.assert_array_equal(regions.boxes, photo.boxes)


def test_boxes_in_pixels_need_the_sizes(photos, tmp_path):
    path = store_files.write_hdf5(tmp_path / "m2", photos)
    with pytest.raises(DataError, match="42: boxes are in pixels; expected the sizes"):
        open_store(path, WIDTH, True)[42]
    with pytest.raises(DataError, match="the size of image 42 is not known"):
        open_store(path, WIDTH, True, sizes={7: (1, 1)})[42]
    folder = store_files.write_npz_feat(tmp_path / "luo", photos)
    with pytest.raises(DataError, match=r"42\.npy: boxes are in pixels; expected the sizes"):
        open_store(folder, WIDTH, True)[42]


def test_image_sizes(tmp_path, shared):
    coco = {"images": [{"id": 7, "width": 640, "height": 427}]}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(coco))
    info = {"images": [{"id": "08", "width": 3, "height": 4}]}
    (tmp_path / "image_info_test2014.json").write_text(json.dumps(info))
    assert load_image_sizes(tmp_path) == {7: (640, 427), 8: (3, 4)}
    (tmp_path / "more.json").write_text(json.dumps({"8": [3, 4], "x": [5, 6]}))
    assert load_image_sizes(tmp_path / "more.json") == {8: (3, 4), "x": (5, 6)}
    found = load_image_sizes(shared / "data/coco_five")
    assert found[391895] == (640, 360)  # what COCO's annotations say
    assert len(found) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"8": [3]}, r"8: expected width and height, found \[3\]"),
        ({"8": [3, 0]}, "8: expected width and height"),
        ({"8": [True, 1.5]}, "8: expected width and height"),
        ({"images": [{"id": 1, "width": 2}]}, r"images\[0\]: expected width and height"),
        ({}, "no image sizes; expected"),
        ([], "no image sizes; expected"),
    ],
)
def test_bad_image_sizes(tmp_path, content, message):
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_image_sizes(tmp_path / "s.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither COCO's .json files nor pictures"):
        load_image_sizes(tmp_path / "empty")


def test_pictures_that_are_none(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"1\.jpg: not a picture"):
        load_image_sizes(tmp_path)


# --- finding the format


def test_unknown_formats(tmp_path):
    with pytest.raises(DataError, match="no such file or folder; expected features"):
        open_store(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no features of a known format; expected bu/cocobu_att/"):
        open_store(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no features of a known format"):
        open_store(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="is 'tvs'; expected one of auto, array_record, hdf5, l"):
        open_store(tmp_path, format="tvs")
    with pytest.raises(DataError, match=r"no such .tsv file, nor a folder that holds some"):
        open_store(tmp_path, format="tsv")
    with pytest.raises(DataError, match=r"holds no .npz"):
        open_store(tmp_path, format="npz").image_ids()


# --- rows


@pytest.fixture
def row(photos):
    return store_files.anderson_row(42, photos[42])


def tsv(tmp_path, *rows):
    path = tmp_path / "f.tsv"
    path.write_bytes(b"".join(r if isinstance(r, bytes) else r.encode() for r in rows))
    return open_store(path, WIDTH, True)


def test_cut_rows_are_skipped_when_the_image_comes_again(tmp_path, row, photos, caplog):
    cut = row[:-6] + "\n"
    other = store_files.anderson_row(7, photos[7])
    with caplog.at_level(logging.WARNING):
        store = tsv(tmp_path, cut, other, row)
        assert store.image_ids() == [7, 42]
    np.testing.assert_array_equal(store[42].features, photos[42].features)
    assert "skipped 1 broken rows, the images of 1 come again" in caplog.text
    assert "row 1: features: base64 that was cut short" in caplog.text
    lost = tsv(tmp_path, other, cut)
    assert lost.image_ids() == [7]
    with pytest.raises(DataError, match="no row for 1 of 2 images: 42"):
        lost.check([7, 42])


def test_rows_twice(tmp_path, row, photos):
    assert tsv(tmp_path, row, "\n", row).image_ids() == [42]  # the same again does no harm
    changed = store_files.anderson_row(42, photos[7])
    with pytest.raises(DataError, match=r"row 2: image id 42 is that of row 1 of .* too"):
        tsv(tmp_path, row, changed).image_ids()


def test_crlf_rows(tmp_path, row, photos):
    store = tsv(tmp_path, row.replace("\n", "\r\n"))
    np.testing.assert_array_equal(store[42].features, photos[42].features)


def changed(row, column, value):
    columns = row.rstrip("\n").split("\t")
    columns[column] = value
    return "\t".join(columns) + "\n"


NAN = store_files.b64(np.full((3, WIDTH), np.nan, np.float32))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, "0", "boxes: expected a positive image size, found 0 x"),
        (2, "-5", "height: expected a count, found b'-5'"),
        (3, "0", "features: 0 regions, expected 1 to"),
        (3, "5", r"features: 72 bytes are not 5 rows of float32"),
        (3, "999999", "features: 999999 regions, expected 1 to 10000"),
        (4, "AAAA", "boxes: 3 bytes are not 3 rows of float32"),
        (4, "", "boxes: 0 bytes are not 3 rows"),
        (5, "????", "features: not base64"),
        (5, "AAA", "features: base64 that was cut short"),
        (5, NAN, "features: 18 values are NaN or infinite"),
    ],
)
def test_bad_rows(tmp_path, row, column, value, message):
    store = tsv(tmp_path, changed(row, column, value))
    with pytest.raises(DataError, match=message) as caught:
        if store.image_ids():
            store[42]
    assert "row 1" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "holds no whole row: it is blank"),
        (b"42\tx\n", "holds no whole row: .* row 1: expected JSON"),
        (b"a\tb\tc\td\n", r"holds no whole row: .* row 1: 4 columns, expected 6 \(bottom-up"),
        (b"\xff\xfe\t1\t2\t3\t4\t5\n", "row 1: the image id is not UTF-8"),
        (b"\t1\t2\t3\t4\t5\n", "row 1: expected an image id"),
    ],
)
def test_bad_tsv_files(tmp_path, content, message):
    (tmp_path / "f.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_store(tmp_path / "f.tsv", WIDTH).image_ids()


def test_bad_vinvl_rows(tmp_path):
    for text, message in (
        ('{"num_boxes": 2, "features": "AAAA", }', "broken JSON"),
        ('{"num_boxes": 2}', r'expected JSON with "num_boxes" and "features"'),
        ('{"num_boxes": 2, "features": 5}', "features: not base64"),
        ('{"num_boxes": 2, "features": "AAAA"}', "3 bytes are not 2 rows"),
    ):
        store = tsv(tmp_path, f"7\t{text}\n")
        with pytest.raises(DataError, match=message):
            store[7]
    rows = store_files.b64(np.full((2, WIDTH + 6), 5, np.float32))
    store = tsv(tmp_path, f"7\t2\t{rows}\n")
    with pytest.raises(DataError, match="row 1: boxes: row 0 is"):
        store[7]
    rows = store_files.b64(np.full((2, WIDTH), 5, np.float32))
    with pytest.raises(DataError, match="boxes are needed, and the row has none"):
        tsv(tmp_path, f"7\t2\t{rows}\n")[7]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_rows_give_one_error_or_the_arrays(tmp_path_factory, photos, data):
    """Overwrite, cut or lengthen any part of a good row: a DataError or arrays, nothing else."""
    maker = data.draw(st.sampled_from(["anderson", "lxmert", "vinvl_json", "vinvl_plain"]))
    folder = tmp_path_factory.mktemp("fuzz")
    path = store_files.LAYOUTS[maker](folder / "files", {42: photos[42]})
    path = next(path.glob("*.tsv*")) if path.is_dir() else path
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, 40))
    junk = data.draw(st.one_of(st.binary(max_size=12), st.sampled_from([b"\t", b"\n", b"="])))
    content[start : start + length] = junk
    (folder / "f.tsv").write_bytes(content)
    try:
        store = open_store(folder / "f.tsv", WIDTH, True)
        for image_id in store.image_ids():
            regions = store[image_id]
            assert regions.features.shape == (store.num_regions(image_id), WIDTH)
            assert np.isfinite(regions.features).all()
    except DataError as error:
        assert "\n" not in str(error)


# --- archives and databases


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "42.npz", **arrays)
    return open_store(tmp_path, WIDTH, True, format="npz")


GOOD = {
    "x": np.ones((3, WIDTH), np.float32),
    "bbox": np.array([[0, 0, 5, 5]] * 3, np.float32),
    "num_bbox": 3,
    "image_h": 10,
    "image_w": 20,
}


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


def test_bad_hdf5(tmp_path, photos):
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
    with pytest.raises(DataError, match=r"boxes are needed, and no \*_box\*\.lmdb lies beside"):
        open_store(tmp_path, WIDTH, True)
    (tmp_path / "broken.lmdb").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="not an LMDB database"):
        open_store(tmp_path / "broken.lmdb", WIDTH).image_ids()
    store_files.put(tmp_path / "empty.lmdb", {"__len__": b"0"})
    with pytest.raises(DataError, match="the database is empty"):
        open_store(tmp_path / "empty.lmdb", WIDTH).image_ids()


@pytest.mark.parametrize(("kind", "module"), [("hdf5", "h5py"), ("lmdb", "lmdb")])
def test_missing_packages_are_named(tmp_path, photos, monkeypatch, kind, module):
    import importlib

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


def test_toy_scenes_have_a_manifest_of_their_own(tmp_path):
    directory = make_toy_scenes(tmp_path / "toy", sizes=(2, 1, 1))
    assert find_format(directory) == "npy"
