"""Toy datasets on disk: made once, found again, replaced when damaged, never half-written."""

import fcntl
import json
import os

import numpy as np
import pytest

from sparsecap_jax.data import toy_scenes
from sparsecap_jax.data.karpathy import load_karpathy
from sparsecap_jax.data.toy_drawing import draw_scene
from sparsecap_jax.data.toy_scenes import make_toy_scenes
from sparsecap_jax.errors import ConfigError, DataError


def test_finished_dataset_is_left_alone(tmp_path, monkeypatch):
    dataset = make_toy_scenes(tmp_path / "d", (2, 0, 0))

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(toy_scenes, "_write", fail)
    stamp = (dataset / "dataset_toy.json").stat().st_mtime_ns
    assert make_toy_scenes(str(dataset), (2, 0, 0)) == dataset
    assert (dataset / "dataset_toy.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("damage", ["cut", "lost", "manifest"])
def test_damaged_dataset_is_made_again(tmp_path, damage):
    directory = make_toy_scenes(tmp_path / "d", (2, 0, 0))
    before = json.loads((directory / "manifest.json").read_text())
    victim = directory / "bu/cocobu_att/2.npy"
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "lost":
        victim.unlink()
    else:
        (directory / "manifest.json").write_text(json.dumps({**before, "version": 0}))
    make_toy_scenes(directory, (2, 0, 0))
    assert json.loads((directory / "manifest.json").read_text()) == before
    assert np.load(victim).shape[1] == 2048
    assert os.listdir(tmp_path) == ["d"]


def test_other_settings_replace_it(tmp_path):
    directory = make_toy_scenes(tmp_path, (2, 0, 0))  # an existing empty folder will do
    make_toy_scenes(directory, (1, 1, 0))
    splits = load_karpathy(directory / "dataset_toy.json")
    assert [len(part) for part in splits.values()] == [1, 1, 0]
    assert len(os.listdir(directory / "images")) == 2


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def draw(*args):
        drawn.append(args)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw_scene(*args)

    monkeypatch.setattr(toy_scenes, "draw_scene", draw)
    with pytest.raises(KeyboardInterrupt):
        make_toy_scenes(tmp_path / "d", (5, 0, 0))
    assert os.listdir(tmp_path) == []
    make_toy_scenes(tmp_path / "d", (5, 0, 0))
    assert len(os.listdir(tmp_path / "d/images")) == 5


def test_leftovers_of_killed_runs_are_swept(tmp_path):
    dead, alive = tmp_path / ".d.partial-dead", tmp_path / ".d.partial-alive"
    for folder in (dead, alive):
        (folder / "bu").mkdir(parents=True)
    handle = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        make_toy_scenes(tmp_path / "d", (1, 0, 0))
    finally:
        os.close(handle)
    assert sorted(os.listdir(tmp_path)) == [".d.partial-alive", "d"]


def test_foreign_folders_are_never_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"found other files in it: thesis\.tex"):
        make_toy_scenes(tmp_path, (1, 0, 0))
    directory = make_toy_scenes(tmp_path / "d", (1, 0, 0))
    (directory / "notes.txt").write_text("mine")
    assert make_toy_scenes(directory, (1, 0, 0)) == directory
    with pytest.raises(DataError, match=r"notes\.txt"):
        make_toy_scenes(directory, (2, 0, 0))
    assert (directory / "notes.txt").read_text() == "mine"
    with pytest.raises(DataError, match="expected a folder, found a file"):
        make_toy_scenes(tmp_path / "thesis.tex", (1, 0, 0))


@pytest.mark.parametrize("sizes", [(1, 2), (0, 0, 0), (-1, 1, 1)])
def test_bad_sizes(tmp_path, sizes):
    with pytest.raises(ConfigError, match="sizes: expected three counts"):
        make_toy_scenes(tmp_path / "d", sizes)


def test_bad_seed(tmp_path):
    with pytest.raises(ConfigError, match="seed: expected"):
        make_toy_scenes(tmp_path / "d", (1, 0, 0), seed=-1)
