"""Captioning a folder into a file: what it holds, and that interruptions change nothing of it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from captioner_runs import make_run, write_features

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.commands.caption import caption_folder
from sparsecap_jax.errors import DataError, SparsecapError
from sparsecap_jax.evaluation.caption_files import load_captions
from sparsecap_jax.locks import locked
from sparsecap_jax.stopping import Stopped, on_signals

REPO = pathlib.Path(__file__).parents[2]
COUNT = 9
SEARCH = {"search": "sample", "num_samples": 2, "seed": 5}
LINES = []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "features", COUNT)


@pytest.fixture(scope="module")
def whole(run, features, tmp_path_factory):
    """What an uninterrupted command writes."""
    output = tmp_path_factory.mktemp("whole") / "captions.json"
    lines = []
    result = caption_folder(
        run, features, output, batch_size=4, candidates=True, report=lines.append, **SEARCH
    )
    return json.loads(output.read_text()), result, lines


def test_the_file_holds_what_the_captioner_finds(run, features, whole):
    written, result, lines = whole
    assert written == result
    found = Captioner.load(run).caption_folder(features, **SEARCH)
    for entry, (image_id, captions) in zip(written, found, strict=True):
        best = max(captions, key=lambda one: one.score)
        assert (entry["image_id"], entry["caption"]) == (image_id, best.text)
        assert entry["log_prob"] == pytest.approx(best.log_prob, abs=1e-4)
        assert [one["caption"] for one in entry["candidates"]] == [one.text for one in captions]
    # A line of progress for each batch: done, rate, time left.
    assert [line.split(" images ")[0] for line in lines[:3]] == ["4/9", "8/9", "9/9"]
    assert all(re.search(r"\d images/s \| 0:\d\d:\d\d left$", line) for line in lines[:3])


def test_a_finished_file_is_replaced_on_request_alone(run, features, tmp_path):
    output, options = tmp_path / "captions.json", {"report": LINES.append, "beam_size": 1}
    caption_folder(run, features, output, **options)
    before = output.read_bytes()
    with pytest.raises(DataError, match=r"captions\.json: finished already; .* or --overwrite$"):
        caption_folder(run, features, output, report=LINES.append, **SEARCH)
    assert output.read_bytes() == before
    again = caption_folder(run, features, output, overwrite=True, attention=True, **options)
    assert [entry["image_id"] for entry in again if "attention" in entry] == [*range(100, 109)]
    assert json.loads(output.read_text()) == again


def test_an_interrupted_command_goes_on_where_it_was(run, features, whole, tmp_path):
    output = tmp_path / "captions.jsonl"
    partial = tmp_path / "captions.jsonl.partial"

    class Interruption(Exception):
        pass

    def interrupt(line):
        if line.startswith("8/"):
            raise Interruption

    options = {"batch_size": 4, "candidates": True, **SEARCH}
    with pytest.raises(Interruption):
        caption_folder(run, features, output, report=interrupt, **options)
    content = partial.read_bytes()
    assert content.count(b"\n") == 1 + 8
    partial.write_bytes(content[:-20])  # The last line was cut short.
    with pytest.raises(DataError, match="was begun with seed 5; expected seed 6; remove it"):
        caption_folder(run, features, output, report=LINES.append, **options | {"seed": 6})
    lines = []
    caption_folder(run, features, output, report=lines.append, **options)
    assert lines[0] == "continuing: 7 of 9 images captioned"
    assert lines[1].startswith("2/2 images")
    # The samples of an image do not depend on its batch, so that the files are alike.
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert [e["image_id"] for e in entries] == [100 + image for image in range(COUNT)]
    assert [e["caption"] for e in entries] == [e["caption"] for e in whole[0]]
    assert not partial.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_keeps_what_it_has(run, features, whole, tmp_path, number, code):
    output, lines = tmp_path / "captions.json", []

    def report(line):
        if line.startswith("4/"):
            os.kill(os.getpid(), number)

    options = {"batch_size": 4, "candidates": True, **SEARCH}
    with pytest.raises(Stopped) as stopped, on_signals():
        caption_folder(run, features, output, report=report, **options)
    text = f"stopped by {number.name}; run the same command to continue"
    assert (str(stopped.value), stopped.value.code) == (text, code)
    assert [path.name for path in tmp_path.iterdir()] == ["captions.json.partial"]
    assert caption_folder(run, features, output, report=lines.append, **options) == whole[1]
    assert lines[0] == "continuing: 4 of 9 images captioned"


def test_an_output_that_another_process_writes_is_refused(run, features, whole, tmp_path):
    output = tmp_path / "captions.json"
    options = {"batch_size": 4, "candidates": True, "report": LINES.append, **SEARCH}
    with locked(output, folder=False):
        message = f"{output}: process {os.getpid()} on .* is writing to it"
        with pytest.raises(SparsecapError, match=message):
            caption_folder(run, features, output, **options)
        assert [path.name for path in tmp_path.iterdir()] == [".captions.json.lock"]


def test_a_killed_command_loses_and_doubles_nothing(run, features, whole, tmp_path):
    output = tmp_path / "captions.json"
    flags = ["--batch_size=1", *(f"--{name}={value}" for name, value in SEARCH.items())]
    command = [sys.executable, str(REPO / "launch/caption.py"), f"--checkpoint={run}"]
    command += [f"--features={features}", f"--output={output}", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO) as process:
        for line in process.stdout:
            if line.startswith("3/"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPO)
    kept = int(done.stdout.removeprefix("continuing: ").split(" of ")[0])
    assert 3 <= kept < COUNT
    assert load_captions(output) == {e["image_id"]: e["caption"] for e in whole[0]}


def test_attention_and_words_by_image_come_from_the_command(run, features, tmp_path):
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"100": ["dog"], "101": ["cat|ball"]}))
    output = tmp_path / "captions.json"
    command = [sys.executable, str(REPO / "launch/caption.py"), f"--checkpoint={run},{run}"]
    command += [f"--features={features}", f"--output={output}", "--attention"]
    command += [f"--required={words}", "--beam_size=2", "--min_length=3"]
    subprocess.run(command, check=True, capture_output=True, cwd=REPO)
    entries = json.loads(output.read_text())
    assert "dog" in entries[0]["caption"].split()
    assert {"cat", "ball"} & set(entries[1]["caption"].split())
    for entry, image in zip(entries, range(COUNT), strict=True):
        regions = len(np.load(features / "cocobu_att" / f"{100 + image}.npy"))
        shape = np.shape(entry["attention"])
        assert shape == (len(entry["caption"].split()), regions)
        np.testing.assert_allclose(np.sum(entry["attention"], axis=1), 1, atol=1e-3)
