import json
import logging

import pytest

from sparsecap_jax.data.karpathy import load_karpathy
from sparsecap_jax.data.records import Record, image_id_from_filename, normalize_id
from sparsecap_jax.errors import ConfigError, DataError


def image(**changes):
    entry = {
        "filename": "COCO_val2014_000000000042.jpg",
        "filepath": "val2014",
        "split": "train",
        "sentences": [{"tokens": ["a", "dog"], "raw": "A dog."}],
        "cocoid": 42,
    }
    entry.update(changes)
    return {key: value for key, value in entry.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    def to_file(*images):
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps({"images": list(images)}), encoding="utf-8")
        return path

    return to_file


COCO5 = {"train": [522418, 57870, 384029], "val": [184613], "test": [391895]}


def test_real_coco_file(shared):
    path = shared / "reference/coco5/dataset_coco_testing.json"
    splits = load_karpathy(path)
    assert {name: [r.image_id for r in records] for name, records in splits.items()} == COCO5
    record = splits["train"][0]
    assert record.filename == "COCO_val2014_000000522418.jpg"
    assert record.folder == "val2014"
    assert record.split == "train"
    assert record.captions[0] == "a woman wearing a net on her head cutting a cake"
    assert record.raw[0] == "A woman wearing a net on her head cutting a cake. "
    assert [len(r.captions) for records in splits.values() for r in records] == [5] * 5


def test_real_ids_from_file_names(shared, write):
    data = json.loads((shared / "reference/coco5/dataset_coco_testing.json").read_text())
    for entry in data["images"]:
        del entry["cocoid"]
    splits = load_karpathy(write(*data["images"]))
    assert {name: [r.image_id for r in records] for name, records in splits.items()} == COCO5


def test_raw_captions_on_request(write):
    (record,) = load_karpathy(write(image()), text="raw")["train"]
    assert record.captions == record.raw == ("A dog.",)


def test_raw_is_not_needed_for_tokens(write):
    path = write(image(sentences=[{"tokens": ["a", "dog"]}]))
    expected = Record(
        42, "train", "COCO_val2014_000000000042.jpg", ("a dog",), ("a dog",), "val2014"
    )
    assert load_karpathy(path)["train"] == [expected]


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("COCO_val2014_000000391895.jpg", 391895),
        ("COCO_train2014_000000000009.jpg", 9),
        ("000000391895.jpg", 391895),
        ("1000092795.jpg", 1000092795),
        ("1000268201_693b08cb0e.jpg", "1000268201_693b08cb0e"),
        ("1000268201_6930801234.jpg", "1000268201_6930801234"),
        ("../../etc/passwd.png", "passwd"),
        ("photo", "photo"),
        ("²³.jpg", "²³"),
        ("9" * 5000 + ".jpg", "9" * 5000),
        ("val2014\\COCO_val2014_000000391895.jpg", 391895),
        ("1234567890123456789.jpg", 1234567890123456789),
        ("12345678901234567890.jpg", "12345678901234567890"),
    ],
)
def test_image_id_from_filename(filename, expected):
    assert image_id_from_filename(filename) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("0042", 42),
        (7, 7),
        ("a1", "a1"),
        *[(found, "-1") for found in ("-1", -1)],
        *[(found, 2**63 - 1) for found in (2**63 - 1, "9223372036854775807", f"{2**63 - 1:040}")],
        *[(found, "9223372036854775808") for found in (2**63, "9223372036854775808")],
        *[(found, "9" * 30) for found in (10**30 - 1, "9" * 30)],
        ("0" * 30, 0),
    ],
)
def test_number_and_text_of_an_id_are_one(write, found, expected):
    assert normalize_id(found) == expected
    assert load_karpathy(write(image(cocoid=found)))["train"][0].image_id == expected


def test_byte_order_mark_and_crlf(tmp_path):
    path = tmp_path / "windows.json"
    text = json.dumps(
        {"images": [image(sentences=[{"tokens": ["café"], "raw": "Café"}])]}, indent=1
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_karpathy(path)["train"][0].captions == ("café",)


def test_paths_of_windows(write):
    """As in cases/windows_path."""
    name = "val2014\\COCO_val2014_000000000042.jpg"
    (record,) = load_karpathy(write(image(filename=name, filepath="a\\b", cocoid=None)))["train"]
    assert record.image_id == 42
    assert record.filename == "val2014/COCO_val2014_000000000042.jpg"
    assert record.folder == "a/b"


def test_blank_captions_are_left_out_and_counted(write, caplog):
    sentences = [{"tokens": [], "raw": "."}, {"tokens": ["a", "cat"], "raw": "A cat"}]
    with caplog.at_level(logging.WARNING):
        (record,) = load_karpathy(write(image(sentences=sentences)))["train"]
    assert record.captions == ("a cat",)
    assert record.raw == ("A cat",)
    assert "1 blank captions" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "validation"}, r"images\[1\]\.split: expected one of train, restval, val, test"),
        ({"split": None}, r"images\[1\]: key 'split' is missing"),
        ({"split": 3}, r"images\[1\]\.split: expected a string, found 3"),
        ({"sentences": None}, r"images\[1\]: key 'sentences' is missing"),
        ({"sentences": {}}, r"images\[1\]\.sentences: expected a list, found {}"),
        ({"sentences": []}, r"images\[1\]: no captions"),
        ({"sentences": [{"tokens": []}]}, r"images\[1\]: no captions"),
        ({"sentences": ["a dog"]}, r"images\[1\]\.sentences\[0\]: expected an object"),
        ({"sentences": [{"raw": "A dog"}]}, r"sentences\[0\]: key 'tokens' is missing"),
        ({"sentences": [{"tokens": "a dog"}]}, r"sentences\[0\]\.tokens: expected a list"),
        ({"sentences": [{"tokens": ["a", 1]}]}, r"tokens: expected a list of strings"),
        ({"sentences": [{"tokens": ["\ud800"]}]}, r"tokens: not valid Unicode"),
        ({"sentences": [{"tokens": ["a"], "raw": None}]}, r"raw: expected a string, found None"),
        ({"cocoid": 41}, r"images\[1\]: image id 41 is that of images\[0\] too"),
        ({"cocoid": "041"}, r"images\[1\]: image id 41 is that of images\[0\] too"),
        ({"cocoid": 1.5}, r"images\[1\]\.cocoid: expected an integer or a name, found 1\.5"),
        ({"cocoid": True}, r"cocoid: expected an integer or a name, found True"),
        ({"filename": None, "cocoid": None}, r"images\[1\]: key 'filename' is missing"),
        ({"filename": "", "cocoid": None}, r"images\[1\]\.filename: expected a file name"),
    ],
)
def test_wrong_entries_are_named(write, changes, message):
    path = write(image(cocoid=41), image(**changes))
    with pytest.raises(DataError, match=message) as caught:
        load_karpathy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1, column 1"),
        (b'{"images": [\n {"a": 1,}]}', "line 2, column"),
        (b'{"images": "\xff"}', "byte 12 is not UTF-8"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"images": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b"[]", r"top level: expected an object, found \[\]"),
        (b"{}", "top level: key 'images' is missing"),
        (b'{"images": {}}', "images: expected a list"),
        (b'{"images": [], "a": 1, "images": []}', "key 'images' occurs 2 times in one object"),
        (b'{"images": [1]}', r"images\[0\]: expected an object, found 1"),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_karpathy(path)
    assert str(path) in str(caught.value)


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json: no such file"):
        load_karpathy(tmp_path / "absent.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        load_karpathy(tmp_path)


def test_unknown_text_option(write):
    with pytest.raises(ConfigError, match="expected 'tokens' or 'raw', found 'words'"):
        load_karpathy(write(image()), text="words")
