"""Features of other settings than those that a model was trained on."""

import re

import pytest
from captioner_runs import make_run, write_features

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.caption import caption_folder
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.data.extractor_notes import check_features, noted_settings
from sparsecap_jax.data.imagined_dataset import prepare
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import write_json

# As `flickr8k-mini` has them, which was made before there was a scale.
NOTES = {"extractor": "lite0", "size": 320, "grid": 0, "pyramid": [1, 2, 3]}
OTHER = "extractor.json: features of scale 3.0; the model was trained on scale 1.0; expected"


@pytest.mark.parametrize(
    ("trained", "found"),
    [
        (NOTES, {**NOTES, "half": True}),
        (NOTES, {**NOTES, "scale": 1.0}),
        ({**NOTES, "scale": 3.0}, {**NOTES, "scale": 3}),
        (NOTES, {}),
        ({}, NOTES),
    ],
)
def test_settings_that_agree(tmp_path, trained, found):
    if found:
        write_json(tmp_path / "extractor.json", found)
    assert noted_settings(tmp_path) == found
    check_features(trained, tmp_path)


def test_every_option_that_differs_is_named(tmp_path):
    write_json(tmp_path / "extractor.json", {**NOTES, "size": 224, "grid": 10})
    with pytest.raises(DataError, match=r"size 224 and grid 10; .* size 320 and grid 0; expected"):
        check_features(NOTES, tmp_path)
    assert noted_settings("") == {}


def test_commands_refuse_features_of_another_scale(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    write_json(run / "extractor.json", NOTES)
    features = write_features(tmp_path / "features", 2)
    assert len(caption_folder(run, features, tmp_path / "a.json", report=len)) == 2
    write_json(features / "extractor.json", {**NOTES, "scale": 3.0})
    with pytest.raises(DataError, match=re.escape(OTHER)):
        caption_folder(run, features, tmp_path / "b.json", report=len)
    with pytest.raises(DataError, match=re.escape(OTHER)):
        next(Captioner.load(run).caption_folder(features))
    changes = ["data.name=photos", f"data.dir={features}"]
    with pytest.raises(DataError, match=re.escape(OTHER)):
        evaluate_run(run, changes=changes, report=len)
    assert not (tmp_path / "b.json.partial").exists()


def test_sets_of_different_features_are_not_joined(tmp_path):
    folders = []
    for name, scale in (("one", 1.0), ("two", 3.0)):
        folder = write_features(tmp_path / name, 2)
        write_json(folder / "extractor.json", {**NOTES, "scale": scale})
        images = [
            {"filename": f"{100 + n}.jpg", "split": "train", "captions": ["a dog runs"]}
            for n in range(2)
        ]
        write_json(folder / "captions.json", {"images": images})
        folders.append((folder, folder))
    with pytest.raises(DataError, match=r"two/extractor.json: .* scale 3.0; .*one has scale 1.0"):
        prepare(folders, [], tmp_path / "joined", 6, report=len)
    assert not (tmp_path / "joined").exists()
