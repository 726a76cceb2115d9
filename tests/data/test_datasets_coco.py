import json

import numpy as np
import pytest
from dataset_files import dump, ids_of, sizes

from sparsecap_jax.data.caption_files import (
    check_disjoint,
    load_coco_json,
    official_captions,
    read_id_list,
)
from sparsecap_jax.data.datasets import load_splits
from sparsecap_jax.data.karpathy import Record, load_karpathy, split_ids, to_karpathy
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.data.stores.convert import convert
from sparsecap_jax.errors import DataError


def coco(ids, captions=None):
    """COCO annotations; image i has the captions "A cat i." and "Dogs i."."""
    captions = captions or {i: [f"A cat {i}.", f"Dogs {i}."] for i in ids}
    rows = [(i, text) for i, texts in captions.items() for text in texts]
    return {
        "images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in ids],
        "annotations": [{"image_id": i, "id": n, "caption": t} for n, (i, t) in enumerate(rows)],
    }


def test_coco_files_by_the_split_in_their_names(tmp_path):
    dump(tmp_path / "annotations/captions_train2014.json", coco([1, 2]))
    dump(tmp_path / "annotations/captions_val2014.json", coco([3]))
    splits = load_splits("coco_json", tmp_path)
    assert ids_of(splits) == {"train": [1, 2], "val": [3], "test": []}
    assert splits["val"] == [
        Record(
            3,
            "val",
            "COCO_val2014_000000000003.jpg",
            ("a cat 3", "dogs 3"),
            ("A cat 3.", "Dogs 3."),
            "val2014",
        )
    ]
    (record,) = load_splits("coco_json", tmp_path, text="raw")["val"]
    assert record.captions == record.raw


@pytest.mark.parametrize("number", [1, 1234567890123456789, 12345678901234567890])
def test_ids_as_text_and_as_numbers(tmp_path, number):
    """As in cases/ids_string_vs_int and cases/ids_19_digits."""
    content = coco([number])
    content["images"][0]["id"] = str(number)
    dump(tmp_path / "captions_val2014.json", content)
    (record,) = load_splits("coco_json", tmp_path)["val"]
    assert record.raw == (f"A cat {number}.", f"Dogs {number}.")
    (tmp_path / "test_ids.txt").write_text(f"{number}\n")
    (record,) = load_splits("coco_json", tmp_path)["test"]
    assert record.raw == (f"A cat {number}.", f"Dogs {number}.")
    att = tmp_path / "bu/cocobu_att"
    att.mkdir(parents=True)
    np.save(att / f"{number}.npy", np.ones((2, 4), np.float32))
    store = open_store(tmp_path, 4)
    assert store.image_ids() == [record.image_id]
    assert store[number].features.shape == store[str(number)].features.shape == (2, 4)
    convert(store, tmp_path / "converted")
    assert open_store(tmp_path / "converted", 4)[number].features.shape == (2, 4)


def test_id_lists_cut_coco_anew(tmp_path):
    dump(tmp_path / "captions_train2014.json", coco([1, 2]))
    dump(tmp_path / "captions_val2014.json", coco([3, 4, 5]))
    (tmp_path / "val_ids.txt").write_text("val2014/COCO_val2014_000000000005.jpg 5\n")
    (tmp_path / "test_ids.txt").write_text("\n3\r\n1\n")
    expected = {"train": [2, 4], "val": [5], "test": [1, 3]}
    splits = load_splits("coco_json", tmp_path)
    assert ids_of(splits) == expected
    assert {r.split for r in splits["test"]} == {"test"}
    (tmp_path / "train_ids.txt").write_text("4")
    assert ids_of(load_splits("coco_json", tmp_path)) == expected | {"train": [4]}
    (tmp_path / "val_ids.txt").write_text("5\n77\n")
    with pytest.raises(DataError, match="1 ids of the split lists are not there: 77"):
        load_splits("coco_json", tmp_path)
    (tmp_path / "val_ids.txt").write_text("5\n3\n")
    with pytest.raises(DataError, match="image 3 is listed for val and for test"):
        load_splits("coco_json", tmp_path)


def first_images(content, count):
    """COCO annotations of the first `count` images."""
    images = content["images"][:count]
    ids = {image["id"] for image in images}
    rows = [row for row in content["annotations"] if row["image_id"] in ids]
    return {"images": images, "annotations": rows}


def test_one_coco_file_is_a_test_split(shared, tmp_path):
    content = json.loads((shared / "data/coco_val2017/captions_val2017.json").read_text())
    dump(tmp_path / "captions_val2017.json", first_images(content, 100))
    splits = load_splits("coco_json", tmp_path, split_json="captions_val2017.json")
    assert sizes(splits) == {"train": 0, "val": 0, "test": 100}
    assert sum(len(r.raw) for r in splits["test"]) == 500


def test_the_official_captions_are_those_of_the_karpathy_split(shared, tmp_path):
    content = json.loads(official_captions("captions_val2014.json"))
    assert (len(content["images"]), len(content["annotations"])) == (40504, 202654)
    path = dump(tmp_path / "captions_val2014.json", first_images(content, 300))
    here = {image["id"] for image in content["images"][:300]}
    folder = shared / "data/coco_karpathy_test"
    lists = {name: read_id_list(folder / f"karpathy_{name}_images.txt") for name in ("val", "test")}
    check_disjoint(lists, folder)
    assert [len(ids) for ids in lists.values()] == [5000, 5000]
    assert {i for ids in lists.values() for i in ids} <= {i["id"] for i in content["images"]}
    splits = load_coco_json({"val": [path]}, ids={k: here & {*ids} for k, ids in lists.items()})
    assert sum(sizes(splits).values()) == 300
    references = json.loads((folder / "references.json").read_text())
    assert len(splits["test"]) > 20
    for record in splits["test"]:
        expected = sorted(text.strip() for text in references[str(record.image_id)])
        assert sorted(text.strip() for text in record.raw) == expected
    with pytest.raises(DataError, match=r"spice-1\.0\.jar: does not hold captions_test2014\.json"):
        official_captions("captions_test2014.json")


def test_karpathy_json_of_coco_files_reads_back(tmp_path):
    path = dump(tmp_path / "captions_val2014.json", coco([3, 4, 5]))
    splits = load_coco_json({"val": [path]}, ids={"test": [4], "val": [5]})
    written = dump(tmp_path / "dataset_coco.json", to_karpathy(splits, "coco"))
    assert load_karpathy(written) == splits
    assert split_ids(written) == {"train": [3], "val": [5], "test": [4]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "top level: key 'images' is missing"),
        ({"annotations": {}}, "annotations: expected a list"),
        ({"annotations": []}, r"images\[0\]: no captions"),
        ({"annotations": [{"image_id": 1}]}, r"annotations\[0\]: key 'caption' is missing"),
        ({"annotations": [{"image_id": 1, "caption": 5}]}, r"caption: expected a string, found 5"),
        ({"images": [{"id": 1.5}]}, r"images\[0\]\.id: expected an integer or a name"),
        ({"images": [{"id": True}]}, r"images\[0\]\.id: expected an integer or a name"),
        ({"images": [{"id": 1, "file_name": "../1.jpg"}]}, "below the image folder"),
        ({"images": [{"id": 1, "file_name": 3}]}, "file_name: expected a string, found 3"),
        ({"images": [{"id": 1}, {"id": 1}]}, r"images\[1\]: image id 1 is that of images\[0\]"),
    ],
)
def test_bad_coco_files(tmp_path, change, message):
    content = {k: v for k, v in (coco([1]) | change).items() if v is not None}
    path = dump(tmp_path / "captions_val2014.json", content)
    with pytest.raises(DataError, match=message) as caught:
        load_splits("coco_json", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"1\n\xff\n", "line 2 is not UTF-8"),
        (b"1\n2\n1", "1 is listed"),
    ],
)
def test_bad_id_lists(tmp_path, content, message):
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_id_list(path)
    with pytest.raises(DataError, match="no such file or folder; expected one image id"):
        read_id_list(tmp_path / "absent.txt")


def test_online_server_variant(coco_folder):
    with pytest.raises(DataError, match=r"no images of test2014; expected image_info_test2014"):
        load_splits("coco_online", coco_folder)
    (coco_folder / "test2014").mkdir()
    for number in (9, 8):
        (coco_folder / f"test2014/COCO_test2014_{number:012d}.jpg").touch()
    splits = load_splits("coco_online", coco_folder)
    assert ids_of(splits) == {"train": [1, 2, 3], "val": [4, 5], "test": [8, 9]}
    assert [r.split for name in splits for r in splits[name]] == [
        *["train"] * 3,
        *["val"] * 2,
        *["test"] * 2,
    ]
    assert splits["test"][0] == Record(
        8, "test", "COCO_test2014_000000000008.jpg", folder="test2014"
    )
    (coco_folder / "test2014_ids.txt").write_text("7\n")
    assert ids_of(load_splits("coco_online", coco_folder))["test"] == [7]
    (coco_folder / "test2014_ids.txt").write_text("7\n1\n")
    with pytest.raises(
        DataError, match=f"^{coco_folder}: image 1 is listed for train and for test"
    ):
        load_splits("coco_online", coco_folder)
    info = {"images": [{"id": 6, "file_name": "COCO_test2014_000000000006.jpg"}]}
    dump(coco_folder / "annotations/image_info_test2014.json", info)
    (record,) = load_splits("coco_online", coco_folder)["test"]
    assert record == Record(6, "test", "COCO_test2014_000000000006.jpg", folder="test2014")
