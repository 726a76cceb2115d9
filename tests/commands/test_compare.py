"""Comparison of runs, model files, names, and files of captions."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from captioner_runs import make_run
from evaluate_cases import COUNT, FAST, TEXTS

from sparsecap_jax.commands.compare import compare_captions
from sparsecap_jax.commands.evaluate import evaluate_run
from sparsecap_jax.errors import CheckpointError, ConfigError, DataError, SparsecapError
from sparsecap_jax.files import read_csv, read_json, write_json
from sparsecap_jax.runs.collection import read_run

REPO = pathlib.Path(__file__).parents[2]


def test_runs_are_compared(coco, tmp_path):
    """Runs without results are captioned first; references are those of their dataset."""
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    options = {"changes": [f"data.dir={coco}"], "metrics": ["ROUGE_L"], "tokenizer": "python"}
    captions = evaluate_run(runs[1], no_repeat_ngram=1, **{**options, **FAST})
    lines = []
    result = compare_captions(
        runs,
        output=tmp_path / "out",
        report=lines.append,
        no_repeat_ngram=1,
        **options,
    )
    assert result["models"]["b"]["ROUGE_L"]["score"] == pytest.approx(captions["ROUGE_L"])
    assert (runs[0] / "test_beam_2/scores.json").exists()
    rows = read_csv(tmp_path / "out/comparison_per_image.csv")
    assert list(rows[0]) == ["image_id", "a caption", "a ROUGE_L", "b caption", "b ROUGE_L"]
    assert len(rows) == COUNT
    assert read_json(tmp_path / "out/comparison.json")["images"] == COUNT
    assert "a minus b:" in lines
    assert read_run(runs[0], "a").results.keys() == {"test_beam_2"}
    shutil.copy(runs[1] / "model.scap", runs[0] / "model.scap")  # trained on, say
    assert read_run(runs[0], "a").results.keys() == {"test_beam_2, of other weights"}
    with pytest.raises(DataError, match=r"a/test_beam_2: made by other weights than the run has"):
        compare_captions(runs, **options)


def test_model_files_and_names_are_compared(coco, package, tmp_path):
    """Their results lie next to a file, and in the working folder; those that are there count."""
    model = tmp_path / "m.scap"
    shutil.copy(make_run(tmp_path / "run") / "model.scap", model)
    options = {"changes": [f"data.dir={coco}"], "metrics": ["ROUGE_L"], "report": [].append}
    result = compare_captions([model, "tiny"], beam_size=1, **options)
    assert [*result["models"]] == ["m.scap", "work/tiny"]
    written = [tmp_path / "m.scap_test_beam_1", pathlib.Path("tiny_test_beam_1")]
    assert all((folder / "captions.json").is_file() for folder in written)
    write_json(written[1] / "captions.json", {str(100 + n): [t] for n, t in enumerate(TEXTS)})
    again = compare_captions([str(model), "tiny"], **options)
    assert again["models"]["work/tiny"]["ROUGE_L"]["score"] == 1
    with pytest.raises(CheckpointError, match="absent: no such file or folder; expected a run, or"):
        compare_captions([model, "absent"], **options)


def test_files_of_captions_are_compared(tmp_path):
    texts = ["a big dog runs home", "the small cat sleeps", "two red birds"]
    write_json(tmp_path / "r.json", {str(n): [text] for n, text in enumerate(texts)})
    write_json(tmp_path / "one/captions.json", {str(n): [text] for n, text in enumerate(texts)})
    other = {"0": ["a big cat runs home"], "1": [texts[1]], "2": [texts[2]], "9": ["x"]}
    write_json(tmp_path / "other.json", other)
    lines = []
    sources = [tmp_path / "one", tmp_path / "other.json"]
    compare_captions(
        sources, references=tmp_path / "r.json", metrics=["ROUGE_L"], report=lines.append
    )
    assert lines[:2] == [
        "other: left out because others lack them: 1 image",
        "3 images; 95% intervals from images drawn with replacement",
    ]
    assert lines[3].split()[:3] == ["one", "1", "1.000"]
    assert "  ROUGE_L  +0.0667 [" in lines[6] and "better on 1 image, worse on 0" in lines[6]
    assert lines[7:] == ["  words gained: dog 1 (1 right)", "  words lost: cat 1 (0 right)"]
    command = [sys.executable, str(REPO / "launch/evaluate.py"), "--compare", *map(str, sources)]
    command += [f"--references={tmp_path / 'r.json'}", f"--output={tmp_path / 'out'}"]
    message = "--ensemble, --groups: expected without --compare only"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        subprocess.run([*command, "--ensemble", "--groups=g"], check=True, capture_output=True)
    assert message.encode() in caught.value.stderr
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PATH": ""}  # no Java: no METEOR
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert "one minus other:\n  CIDEr " in done.stdout
    assert (tmp_path / "out/comparison.json").exists()
    for bad, message in (
        ([sources[0]], "nothing to compare one with"),
        ([sources[0], sources[0] / "captions.json"], "a source comes twice"),
        ([sources[0], tmp_path / "absent"], "absent"),
    ):
        with pytest.raises(SparsecapError, match=message):
            compare_captions(bad, references=tmp_path / "r.json", metrics=["ROUGE_L"])
    with pytest.raises(ConfigError, match=r"no run among the sources; expected --references=FILE"):
        compare_captions(sources, metrics=["ROUGE_L"])
    write_json(tmp_path / "r.json", {"7": ["a"]})
    with pytest.raises(DataError, match=r"one, other: 3 images in common, 3 of them without ref"):
        compare_captions(sources, references=tmp_path / "r.json", metrics=["ROUGE_L"])
