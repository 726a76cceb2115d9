"""Flickr8k, InstaPIC and folders of photos as they are on disk, and their faults."""

import json
import logging

import pytest
from dataset_files import dump, ids_of, photo, sizes

from sparsecap_jax.data.datasets import load_splits
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.errors import DataError

# --- Flickr8k


def test_flickr8k_token_file(shared):
    splits = load_splits("flickr8k", shared / "data/flickr8k_text")
    assert sizes(splits) == {"train": 6000, "val": 1000, "test": 1000}
    record = splits["train"][0]
    assert record.image_id == "2513260012_03d33305cf"
    assert record.filename == "2513260012_03d33305cf.jpg"
    assert record.raw[0] == "A black dog is running after a white dog in the snow ."
    assert record.captions[0] == "a black dog is running after a white dog in the snow"
    assert {len(r.raw) for records in splits.values() for r in records} == {5}


@pytest.fixture
def flickr(tmp_path):
    lines = [f"{name}.jpg#{n}\tA {name} {n} ." for name in "abcd" for n in range(2)]
    (tmp_path / "Flickr8k.token.txt").write_bytes("\r\n".join(lines).encode())
    (tmp_path / "Flickr8k.lemma.token.txt").write_text("not looked at")
    for split, name in (("train", "c"), ("dev", "a"), ("test", "b")):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_bytes(f"{name}.jpg\r\n".encode())
    return tmp_path


def test_flickr_with_crlf_and_unlisted_pictures(flickr):
    splits = load_splits("flickr8k", flickr, text="raw")
    assert ids_of(splits) == {"train": ["c"], "val": ["a"], "test": ["b"]}
    assert splits["val"][0].captions == ("A a 0 .", "A a 1 .")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Flickr8k.token.txt", "a.jpg#0 no tab", r"line 1: expected NAME\.jpg#NUMBER<tab>caption"),
        ("Flickr8k.token.txt", "a.jpg\tcaption", r"line 1: expected NAME\.jpg#NUMBER<tab>caption"),
        ("Flickr8k.token.txt", "../a.jpg#0\tx", "line 1: expected a path below the image folder"),
        ("Flickr8k.token.txt", "a.jpg#0\t x\nb.jpg#0\t\nc.jpg#0\ty", "b: no captions"),
        ("Flickr_8k.testImages.txt", "z.jpg", "z: no captions"),
        ("Flickr_8k.testImages.txt", "a.jpg", "image 'a' is listed for val and for test"),
    ],
)
def test_bad_flickr_files(flickr, name, content, message):
    (flickr / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_splits("flickr8k", flickr)
    assert str(flickr) in str(caught.value)


def test_kaggles_file_of_flickr8k(flickr):
    (flickr / "Flickr8k.token.txt").unlink()
    kaggle = flickr / "captions.txt"
    lines = [
        "image,caption",
        "c.jpg,Two dogs .",
        'a.jpg,"A cat, a ""dog"" ."',
        "a.jpg,.",
        "b.jpg,x",
    ]
    kaggle.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    splits = load_splits("flickr8k", flickr)
    assert ids_of(splits) == {"train": ["c"], "val": ["a"], "test": ["b"]}
    assert splits["val"] == [
        Record("a", "val", "a.jpg", ("a cat a dog",), ('A cat, a "dog" .',)),
    ]
    for line in ("a.jpg,one,two", 'a.jpg,"one', "a.jpg", "", ",one"):
        kaggle.write_text("\n".join([lines[0], line, *lines[1:]]))
        with pytest.raises(DataError, match=r"captions\.txt: line 2: expected image,caption"):
            load_splits("flickr8k", flickr)
    kaggle.write_text("A caption a line.\n")
    with pytest.raises(DataError, match="line 1: expected image,caption, found 'A caption a line"):
        load_splits("flickr8k", flickr)


def test_missing_flickr_files(flickr):
    (flickr / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(DataError, match=r"no list of val pictures; expected \*devImages\*"):
        load_splits("flickr8k", flickr)
    (flickr / "Flickr8k.token.txt").unlink()
    with pytest.raises(DataError, match=r"0 files \*\.token\.txt; expected one"):
        load_splits("flickr8k", flickr)


# --- InstaPIC


@pytest.fixture
def instapic(tmp_path):
    users = {f"u{u}": {f"p{p}": {"caption": f"Sun #{u} x{p}!", "tags": []} for p in range(5)}
             for u in range(4)}  # fmt: skip
    dump(tmp_path / "json/insta-caption-train.json", users)
    dump(tmp_path / "json/insta-caption-test1.json", {"new": {"p": {"caption": "Moon"}}})
    dump(tmp_path / "json/insta-caption-test2.json", {"u1": {"q": {"caption": "Stars"}}})
    return tmp_path


def test_instapic(instapic):
    splits = load_splits("instapic", instapic)
    assert sizes(splits) == {"train": 18, "val": 2, "test": 1}
    assert splits["test"] == [Record("new_@_p", "test", "new_@_p", ("moon",), ("Moon",))]
    record = next(r for name in ("train", "val") for r in splits[name] if r.image_id == "u3_@_p4")
    assert (record.captions, record.raw) == (("sun 3 x4",), ("Sun #3 x4!",))
    # SHA-256 of the ids decides, not the order of the file
    path = instapic / "json/insta-caption-train.json"
    dump(path, dict(reversed(json.loads(path.read_text()).items())))
    again = load_splits("instapic", instapic)
    assert {r.image_id for r in again["val"]} == {r.image_id for r in splits["val"]}
    assert {r.split for r in again["val"]} == {"val"}
    other = load_splits("instapic", instapic, split_json="insta-caption-test2.json")
    assert ids_of(other)["test"] == ["u1_@_q"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"expected \{user: \{post: \.\.\.\}\}, found \[\]"),
        ({"u": []}, r"u: expected \{post: \.\.\.\}, found \[\]"),
        ({"u": {"p": "x"}}, r"u\.p: expected an object"),
        ({"u": {"p": {"caption": None}}}, r"u\.p\.caption: expected a string"),
        ({"u": {"p": {"caption": "!!"}}}, r"u\.p: no captions"),
        ({"../u": {"p": {"caption": "x"}}}, r"below the image folder"),
    ],
)
def test_bad_instapic(instapic, content, message):
    dump(instapic / "json/insta-caption-test1.json", content)
    with pytest.raises(DataError, match=message):
        load_splits("instapic", instapic)


def test_missing_instapic(tmp_path):
    with pytest.raises(DataError, match=r"neither insta-caption-train\.json nor json/insta"):
        load_splits("instapic", tmp_path)


# --- photos


@pytest.mark.parametrize(
    ("name", "expected", "unused"),
    [
        ("flickr8k_1k", {"train": 753, "val": 113, "test": 125}, 9),
        ("flickr8k", {"train": 5999, "val": 1000, "test": 1000}, 91),
    ],
)
def test_photo_folders(shared, caplog, name, expected, unused):
    with caplog.at_level(logging.INFO):
        splits = load_splits("photos", shared / "data" / name)
    assert sizes(splits) == expected
    assert f"json: {unused} images are in no split" in caplog.text
    assert splits["train"][0].captions[1] == "a girl going into a wooden building"
    assert sizes(load_splits("photos", shared / "data/coco_photos"))["train"] == 473


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([photo(split="holdout")], r"images\[0\]\.split: expected one of train, val, dev, test"),
        ([photo(filename="../../etc/passwd")], "expected a path below the image folder"),
        ([photo(filename="/etc/passwd")], "expected a path below the image folder"),
        ([photo(filename="..\\x.jpg")], "expected a path below the image folder"),
        ([photo(filename="C:x.jpg")], "expected a path below the image folder"),
        ([photo(filename="a\0.jpg")], "expected a path below the image folder"),
        ([photo(filename="")], "expected a file name"),
        ([photo(captions="A dog.")], r"captions: expected a list"),
        ([photo(captions=["x", 1])], r"captions\[1\]: expected a string, found 1"),
        ([photo(captions=[" "])], r"images\[0\]: no captions"),
        ([photo(), photo(filename="a.png")], r"images\[1\]: image id 'a' is that of images\[0\]"),
        ([5], r"images\[0\]: expected an object"),
    ],
)
def test_bad_photo_folders(tmp_path, images, message):
    dump(tmp_path / "captions.json", {"images": images})
    with pytest.raises(DataError, match=message):
        load_splits("photos", tmp_path)


def test_test_photos_may_go_without_captions(tmp_path):
    dump(tmp_path / "captions.json", {"images": [photo(split="test", captions=[])]})
    assert load_splits("photos", tmp_path)["test"] == [Record("a", "test", "a.jpg")]
