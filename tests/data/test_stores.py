import json
import pickle
import threading

import numpy as np
import pytest
import store_files

from sparsecap_jax.data.features import FeatureStore
from sparsecap_jax.data.stores import STORES, find_format, load_image_sizes, open_store
from sparsecap_jax.data.stores.convert import convert
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
        ({"42": [1, 2], "042": [3, 4]}, r"s\.json: '42' and '042' are one image id"),
        ({"images": [{"id": i, "width": 2, "height": 3} for i in (7, "07")]}, "7 and '07' are one"),
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
    with pytest.raises(ConfigError, match="is 'tvs'; did you mean 'tsv'"):
        open_store(tmp_path, format="tvs")
    with pytest.raises(DataError, match=r"no such .tsv file, nor a folder that holds some"):
        open_store(tmp_path, format="tsv")
    with pytest.raises(DataError, match=r"holds no .npz"):
        open_store(tmp_path, format="npz").image_ids()


def test_toy_scenes_have_a_manifest_of_their_own(tmp_path):
    directory = make_toy_scenes(tmp_path / "toy", sizes=(2, 1, 1))
    assert find_format(directory) == "npy"
