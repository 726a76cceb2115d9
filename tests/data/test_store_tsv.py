import json
import logging
import os

import numpy as np
import pytest
import store_files
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import DataError

WIDTH = 6


@pytest.fixture(scope="module")
def photos():
    return store_files.random_photos({42: 3, 7: 2, 391895: 5}, WIDTH)


@pytest.fixture
def row(photos):
    return store_files.anderson_row(42, photos[42])


def tsv(tmp_path, *rows):
    path = tmp_path / "f.tsv"
    path.write_bytes(b"".join(r if isinstance(r, bytes) else r.encode() for r in rows))
    return open_store(path, WIDTH, True)


def test_vinvl_position_can_be_part_of_the_features(photos, tmp_path):
    path = store_files.write_vinvl_json(tmp_path / "v", photos)
    for image_id, photo in photos.items():
        regions = open_store(path, WIDTH + 6, True)[image_id]
        np.testing.assert_array_equal(regions.features, store_files.vinvl_features(photo))
        np.testing.assert_array_equal(regions.boxes, photo.boxes)


def test_labels_and_sizes_of_vinvl_are_not_features(photos, tmp_path, caplog):
    """As in cases/tsv/vinvl_all."""
    path = store_files.write_vinvl_json(tmp_path / "v", photos)
    (path / "features.tsv").rename(path / "test.feature.tsv")
    (path / "test.label.tsv").write_text('42\t[{"class": "dog", "rect": [0, 0, 10, 10]}]\n')
    (path / "test.hw.tsv").write_text('42\t[{"height": 80, "width": 100}]\n')
    assert open_store(path, WIDTH, True).image_ids() == sorted(photos)
    assert caplog.text == ""


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
    assert tsv(tmp_path, b"\xef\xbb\xbf", row).image_ids() == [42]  # a byte-order mark
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


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("form", ["{}", "b'{}'", '"{}"'])
def test_types_and_forms_of_cells(tmp_path, photos, dtype, padded, form):
    """Width 7, so that no two types fit the same bytes."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 7)).astype(dtype)
    cells = [store_files.b64(array) for array in (photos[42].pixels[:1], features)]
    cells = [form.format(cell if padded else cell.rstrip("=")) for cell in cells]
    (tmp_path / "f.tsv").write_text("\t".join(["8", "640.0", "480", "1", *cells]) + "\n")
    regions = open_store(tmp_path / "f.tsv", 7, True)[8]
    np.testing.assert_array_equal(regions.features, features.astype(np.float32))
    expected = np.clip(photos[42].pixels[:1] / [640, 480, 640, 480], 0, 1)
    np.testing.assert_allclose(regions.boxes, expected, rtol=1e-6)


@pytest.mark.parametrize("width", [7, 13])
def test_vinvl_rows_in_float16(tmp_path, photos, width):
    rng = np.random.default_rng(0)
    x1, y1, x2, y2 = photos[42].boxes.T
    position = np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], 1)
    rows = np.concatenate([rng.normal(size=(3, 7)), position], 1).astype(np.float16)
    content = json.dumps({"num_boxes": 3, "features": store_files.b64(rows)})
    (tmp_path / "f.tsv").write_text(f"8\t{content}\n")
    regions = open_store(tmp_path / "f.tsv", width, True)[8]
    np.testing.assert_array_equal(regions.features, rows[:, :width].astype(np.float32))
    np.testing.assert_allclose(regions.boxes, photos[42].boxes, atol=5e-4)


def test_rows_of_one_feature_per_object(tmp_path, photos):
    """What scene_graph_benchmark writes."""
    photo = photos[42]
    pairs = zip(photo.features, photo.pixels.tolist(), strict=True)
    objects = [{"class": "dog", "rect": box, "feature": store_files.b64(f)} for f, box in pairs]
    sized = {"image_w": photo.size[0], "image_h": photo.size[1], "objects": objects}
    for content, sizes in ((sized, None), ({"objects": objects}, {42: photo.size})):
        (tmp_path / "f.tsv").write_text(f"42\t{json.dumps(content)}\n")
        store = open_store(tmp_path / "f.tsv", WIDTH, True, sizes=sizes)
        assert store.num_regions(42) == 3
        np.testing.assert_array_equal(store[42].features, photo.features)
        np.testing.assert_array_equal(store[42].boxes, photo.boxes)
    with pytest.raises(DataError, match="row 1: boxes are in pixels; expected the sizes"):
        open_store(tmp_path / "f.tsv", WIDTH, True)[42]
    for change, message in (
        ({"feature": "AAAA"}, "row 1: features: 51 bytes are not 3 rows"),
        ({"feature": 5}, "row 1: objects.feature: expected a string, found 5"),
        ({"rect": [1, 2]}, "row 1: rect: setting an array element"),
        ({"rect": [10**400, 2, 3, 4]}, "row 1: rect: "),
    ):
        faulty = sized | {"objects": [objects[0] | change, *objects[1:]]}
        store = tsv(tmp_path, f"42\t{json.dumps(faulty)}\n")
        with pytest.raises(DataError, match=message):
            store[42]


def test_a_row_without_end_is_not_read(tmp_path, row):
    path = tmp_path / "f.tsv"
    path.write_text(row)
    os.truncate(path, 2**28)
    with pytest.raises(DataError, match="row 2: over 134217728 bytes, more than a row has"):
        open_store(path, WIDTH).image_ids()


def test_bad_vinvl_rows(tmp_path):
    for text, message in (
        ('{"num_boxes": 2, "features": "AAAA", }', "broken JSON"),
        ('{"num_boxes": 1, "num_boxes": 2, "features": "AAAA"}', "'num_boxes' occurs 2 times"),
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
