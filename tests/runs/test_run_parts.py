"""What a run takes from the run it starts from, and from its features."""

import json
import os
import pathlib

import pytest

from sparsecap_jax.data.datasets import Dataset
from sparsecap_jax.data.karpathy import Record
from sparsecap_jax.data.stores import NpyFolderStore
from sparsecap_jax.errors import DataError
from sparsecap_jax.runs.config import default_config
from sparsecap_jax.runs.published import find
from sparsecap_jax.runs.run import _note_extractor, prepare_tokenizer
from sparsecap_jax.tokenizers import TOKENIZERS, make_tokenizer

OLD = ["a red dog runs", "the dog sleeps on the red mat"] * 3
NEW = ("two boats on blue water", "many blue boats")


def dataset(tmp_path):
    record = Record(1, "train", "1.jpg", NEW, NEW)
    (tmp_path / "cocobu_att").mkdir(exist_ok=True)
    return Dataset({"train": [record]}, NpyFolderStore(tmp_path), pathlib.Path())


def test_a_warm_start_keeps_the_tokenizer_of_its_source(tmp_path):
    old = TOKENIZERS["word"].train(OLD, tmp_path / "old" / "tokenizer", vocab_size=20)
    config = default_config()
    config.tokenizer.vocab_size = 20
    fresh = prepare_tokenizer(config, tmp_path / "fresh", dataset(tmp_path))
    assert fresh.decode(fresh.encode("blue boats")) == "blue boats"
    config.train.init_from = str(tmp_path / "old")
    warm = prepare_tokenizer(config, tmp_path / "warm", dataset(tmp_path))
    text = "the red dog on blue boats"
    assert warm.encode(text) == old.encode(text) != fresh.encode(text)
    config.train.init_from = "flickr8k-mini"
    published = prepare_tokenizer(config, tmp_path / "published", dataset(tmp_path))
    assert published.same_ids(make_tokenizer(config.tokenizer, find("flickr8k-mini") / "tokenizer"))
    # The run directory is whole without its source.
    config.train.init_from = ""
    again = prepare_tokenizer(config, tmp_path / "warm", dataset(tmp_path))
    assert again.encode(text) == old.encode(text)


def test_settings_of_the_extractor_travel_with_the_run(tmp_path):
    config = default_config()
    _note_extractor(config, tmp_path / "run")
    config.data.dir = str(tmp_path)
    _note_extractor(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "extractor.json").write_text('{"extractor": "lite0", "size": 320}')
    _note_extractor(config, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "extractor.json").read_text())
    assert kept == {"extractor": "lite0", "size": 320}
    os.truncate(tmp_path / "extractor.json", 2**21)
    with pytest.raises(DataError, match=r"extractor\.json: 2097152 bytes; expected settings of at"):
        _note_extractor(config, tmp_path / "run")
