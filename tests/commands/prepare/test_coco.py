import json

import pytest
from prepare_runs import run_prepare as run

from sparsecap_jax.commands.prepare import coco_captions, coco_server
from sparsecap_jax.data.caption_files import read_id_list
from sparsecap_jax.data.karpathy import karpathy_ids, load_karpathy
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.evaluation.caption_files import load_references


def annotations(name, ids):
    return {
        "images": [{"id": i, "file_name": f"COCO_{name}_{i:012d}.jpg"} for i in ids],
        "annotations": [
            {"image_id": i, "caption": f"A cat's\nhat {i}{n}."} for i in ids for n in range(2)
        ],
    }


@pytest.fixture
def official(monkeypatch):
    """Two tiny files in place of COCO's."""
    files = {
        "captions_train2014.json": annotations("train2014", [1, 2, 3]),
        "captions_val2014.json": annotations("val2014", [4, 5, 6]),
    }
    for module in (coco_captions, coco_server):
        monkeypatch.setattr(module, "official_captions", lambda n: json.dumps(files[n]).encode())


def test_coco_captions_with_id_lists(official, tmp_path, capsys):
    (tmp_path / "val.txt").write_text("val2014/COCO_val2014_000000000005.jpg 5\n")
    (tmp_path / "test.txt").write_text("6\n2\n")
    out = tmp_path / "coco"
    options = [f"--val_ids={tmp_path}/val.txt", f"--test_ids={tmp_path}/test.txt"]
    run("coco_captions", f"--output={out}", *options)
    assert "train: 3 images, 6 captions\nval: 1 image, " in capsys.readouterr().out
    splits = load_karpathy(out / "dataset_coco.json")
    ids = {name: [r.image_id for r in records] for name, records in splits.items()}
    assert ids == {"train": [1, 3, 4], "val": [5], "test": [2, 6]}
    assert splits["val"][0].captions == ("a cats hat 50", "a cats hat 51")
    lines = (out / "captions_train.txt").read_text().splitlines()
    assert lines == [f"a cats hat {i}{n}" for i in (1, 3, 4) for n in range(2)]
    references = load_references(out / "references_test.json")
    assert references == {i: [f"A cat's\nhat {i}{n}." for n in range(2)] for i in (2, 6)}
    assert json.loads((out / "annotations/captions_val2014.json").read_text()) == annotations(
        "val2014", [4, 5, 6]
    )
    # the JSON it wrote is a split list too; the captions as written, on request
    again = tmp_path / "again"
    split = f"--split_json={out}/dataset_coco.json"
    run("coco_captions", f"--output={again}", split, "--raw_captions")
    assert (again / "captions_train.txt").read_text().splitlines()[0] == "A cat's hat 10."
    assert (again / "references_val.json").read_text() == (out / "references_val.json").read_text()
    with pytest.raises(ConfigError, match="expected one of --split_json, id lists and --off"):
        run("coco_captions", f"--output={again}", split, *options)


def test_coco_captions_of_the_official_split(official, tmp_path):
    run("coco_captions", f"--output={tmp_path}", "--official_split")
    splits = load_karpathy(tmp_path / "dataset_coco.json")
    assert {name: len(records) for name, records in splits.items()} == {
        "train": 3,
        "val": 3,
        "test": 0,
    }


def test_karpathys_split_needs_no_list(official, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_captions, "karpathy_ids", lambda: {"val": [5], "test": [6, 2]})
    run("coco_captions", f"--output={tmp_path}")
    splits = load_karpathy(tmp_path / "dataset_coco.json")
    ids = {name: [r.image_id for r in records] for name, records in splits.items()}
    assert ids == {"train": [1, 3, 4], "val": [5], "test": [2, 6]}


def test_karpathys_lists(shared):
    lists = karpathy_ids()
    for split, ids in lists.items():
        path = shared / f"data/coco_karpathy_test/karpathy_{split}_images.txt"
        assert len(ids) == 5000
        assert set(ids) == set(read_id_list(path))


def results(path, ids):
    path.write_text(json.dumps([{"image_id": i, "caption": f"cat {i}"} for i in ids]))
    return path


def test_server_files(official, tmp_path):
    captions = results(tmp_path / "a.json", [4, 5]), results(tmp_path / "b.json", [6, 8, 9])
    (tmp_path / "test_ids.txt").write_text("9\n8\n")
    options = [f"--captions={path}" for path in captions]
    options += ["--name=ORT", f"--output={tmp_path}/out", f"--test_ids={tmp_path}/test_ids.txt"]
    run("coco_server", *options)
    for split, ids in (("val2014", [4, 5, 6]), ("test2014", [9, 8])):
        path = tmp_path / f"out/captions_{split}_ORT_results.json"
        expected = [{"image_id": i, "caption": f"cat {i}"} for i in ids]
        assert json.loads(path.read_text()) == expected
    (tmp_path / "test_ids.txt").write_text("9\n8\n10\n11\n")
    with pytest.raises(DataError, match="test2014: no caption of 2 of 4 images: 10, 11"):
        run("coco_server", *options)
    with pytest.raises(ConfigError, match=r"--name: expected letters, .* found '\.\./x'"):
        run("coco_server", *options, "--name=../x")
