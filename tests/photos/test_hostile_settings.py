"""Settings files from strangers: a name in a file never imports or calls anything."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from captioner_runs import make_run
from PIL import Image

from sparsecap_jax import settings
from sparsecap_jax.captioner import Captioner
from sparsecap_jax.data.stores import open_store
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import read_json
from sparsecap_jax.photos.extractors import EXTRACTORS, remake_extractor

CASES = sorted((pathlib.Path(__file__).parent / "cases").glob("extractor_*.json"))


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Calls of what the hostile files name; the working directory is where they would write."""
    recorded = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda *args, **options: recorded.append((args, options)))
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: recorded.append((args, options))
    )
    return recorded


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_run_with_a_command_in_its_settings(case, calls, tmp_path):
    run = make_run(tmp_path / "run")
    shutil.copyfile(case, run / "extractor.json")
    name = json.loads(case.read_text())["extractor"]
    captioner = Captioner.load(run)
    with pytest.raises(ConfigError) as caught:
        list(captioner.caption_photos([Image.new("RGB", (8, 8))]))
    assert f"extractor.json: extractor is {name!r}" in str(caught.value)
    assert calls == []
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_data_folder_with_a_command_in_its_settings(case, calls, tmp_path):
    path = tmp_path / "extractor.json"
    shutil.copyfile(case, path)
    with pytest.raises(ConfigError) as caught:
        remake_extractor(read_json(path), path)
    assert f"{path}: extractor is " in str(caught.value)
    assert calls == []
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "extractor: no name"),
        ([], "extractor: no name"),
        ({"extractor": ["os:system"]}, "extractor: no name"),
        ({"extractor": "lite0", "name": "x"}, r"extractor\.name: unknown key"),
        ({"extractor": "lite0", "size": "320"}, r"extractor\.size is '320'; expected int"),
        ({"extractor": "lite0", "size": 32000}, r"extractor\.size is 32000; expected .* at most"),
        ({"extractor": "lite0", "batch_size": 10**9}, r"extractor\.batch_size is 1000000000"),
        ({"extractor": "lite0", "batch_size": 4}, r"extractor\.batch_size is 4; only the user may"),
        (
            {"extractor": "lite0", "size": 8192, "grid": 256},
            r"65550 windows in 3 levels over 6553",
        ),
        ({"extractor": "lite0", "pyramid": [1] * 33}, r"33 windows in 33 levels over 100 cells"),
        ({"extractor": "torchvision", "weights": "w.pth"}, r"extractor\.weights is 'w\.pth'; only"),
        ({"extractor": "torchvision", "max_regions": 10**9}, r"extractor\.max_regions is 1000000"),
        ({"extractor": "torchvision", "max_regions": "a"}, r"extractor\.max_regions is 'a'; expec"),
        ({"extractor": "torchvision", "min_score": -1}, r"extractor\.min_score is -1\.0; expected"),
        ({"extractor": "torchvision", "name": "x"}, r"extractor\.name: unknown key"),
    ],
)
def test_faulty_settings_are_one_clear_error(content, message):
    with pytest.raises(ConfigError, match=rf"run/extractor\.json: {message}"):
        remake_extractor(content, "run/extractor.json")


def test_a_file_may_name_what_the_user_trusts(tmp_path, monkeypatch):
    (tmp_path / "my_extractors.py").write_text(
        "class Two:\n"
        "    feature_size, settings = 3, {}\n"
        "    def __init__(self, scale):\n"
        "        self.scale = scale\n"
        "    def __call__(self, photos):\n"
        "        return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"--plugin=my_extractors"):
        remake_extractor({"extractor": "my_extractors:Two", "scale": 3})
    assert "my_extractors" not in sys.modules
    settings.use_plugin("my_extractors")
    trusted = remake_extractor({"extractor": "my_extractors:Two", "scale": 3})
    assert trusted.scale == 3
    monkeypatch.setattr(EXTRACTORS, "_entries", dict(EXTRACTORS))  # restores it afterwards
    EXTRACTORS.register("test_own", lambda: trusted)
    assert remake_extractor({"extractor": "test_own", "half": True}) is trusted


def test_a_tfds_folder_that_names_a_module(tmp_path, monkeypatch):
    """tensorflow-datasets imports the modules that features.json names."""
    (tmp_path / "hostile_module.py").write_text("open('PWNED', 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tfds"
    folder.mkdir()
    info = {"name": "x", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    image = {"filename": "1.jpg", "split": "train"}
    (folder / "metadata.json").write_text(json.dumps({"images": [image]}))
    for key in ("pythonClassName", "python_class_name", "type"):
        hostile = {"featuresDict": {"features": {"x": {key: "hostile_module.Feature"}}}}
        (folder / "features.json").write_text(json.dumps(hostile))
        store = open_store(folder, 4)
        with pytest.raises(DataError, match=rf"features\.json: .*{key}.*'hostile_module\.Feature'"):
            store.check([1])
    assert "hostile_module" not in sys.modules
    assert not (tmp_path / "PWNED").exists()
