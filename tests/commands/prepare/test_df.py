"""`sparsecap prepare_data df`: from a split, from COCO, from a pickle."""

import json

import pytest
from prepare_runs import run_prepare

from sparsecap_jax.commands.prepare import df
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.scst.document_frequency import DocumentFrequency


def take(tmp_path, *arguments):
    run_prepare("df", f"--output={tmp_path / 'df.npz'}", *arguments)
    return DocumentFrequency.load(tmp_path / "df.npz")


@pytest.fixture
def split_json(tmp_path):
    captions = {"train": ["a red dog", "a dog"], "restval": ["a cat"], "test": ["a zebra"]}
    images = [
        {
            "filename": f"{number}.jpg",
            "split": split,
            "sentences": [{"tokens": text.split(), "raw": text} for text in texts],
        }
        for number, (split, texts) in enumerate(captions.items())
    ]
    path = tmp_path / "dataset_small.json"
    path.write_text(json.dumps({"images": images}))
    return path


def test_from_a_split(tmp_path, split_json, capsys):
    found = take(tmp_path, f"--split_json={split_json}")
    assert found.num_images == 2
    counts = {("a",): 2, ("a", "dog"): 1, ("a", "red", "dog"): 1, ("cat",): 1, ("zebra",): 0}
    assert {ngram: found.document_count(ngram) for ngram in counts} == counts
    assert "in 2 images; no word ends the captions; rare words are kept" in capsys.readouterr().out


def test_conventions_of_the_reference(tmp_path, split_json, capsys):
    found = take(tmp_path, f"--split_json={split_json}", "--eos=<eos>", "--min_count=2")
    assert (found.eos, found.unk) == ("<eos>", "UNK")
    counts = {("UNK", "dog", "<eos>"): 1, ("a", "UNK", "<eos>"): 1, ("red",): 0, ("<eos>",): 2}
    assert {ngram: found.document_count(ngram) for ngram in counts} == counts
    assert "captions end in '<eos>'; rare words are 'UNK'" in capsys.readouterr().out


def test_from_coco(tmp_path, monkeypatch):
    annotations = [
        {"image_id": 7, "caption": "A dog, running."},
        {"image_id": 5, "caption": "The dog"},
        {"image_id": 7, "caption": "A dog"},
    ]
    files = {"captions_train2014.json": json.dumps({"annotations": annotations}).encode()}
    monkeypatch.setattr(df, "official_captions", files.__getitem__)
    found = take(tmp_path, "--coco=train")
    assert found.num_images == 2
    counts = {("dog",): 2, ("a", "dog"): 1, ("a", "dog", "running"): 1, (",",): 0}
    assert {ngram: found.document_count(ngram) for ngram in counts} == counts


def test_from_a_pickle(tmp_path, shared):
    found = take(tmp_path, f"--pickle={shared / 'data/ngram_df_pickles/coco-train-words.p'}")
    assert found.num_images == 1680
    assert found.document_count(("some", "mark")) == 80


def test_unknown_splits(tmp_path, split_json):
    with pytest.raises(ConfigError, match=r"--splits: found 'dev'; expected names out of train"):
        take(tmp_path, f"--split_json={split_json}", "--splits=dev")
    with pytest.raises(ConfigError, match="--coco: found 'test'"):
        take(tmp_path, "--coco=test")
