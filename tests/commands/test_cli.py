"""Command lines: changes of a config, plugins, and what is said of mistyped flags."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from sparsecap_jax.commands.cli import ConfigFlag, collect_changes
from sparsecap_jax.errors import ConfigError

REPO = pathlib.Path(__file__).parents[2]
TOY = str(REPO / "configs/toy.py")


def read(*arguments):
    values = flags.FlagValues()
    flag = ConfigFlag(values)
    values(list(collect_changes(["program", *arguments])))
    return flag.read()[0]


def launch(script, *arguments, cwd=REPO):
    command = [sys.executable, str(REPO / "launch" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_blank_is_as_good_as_an_equals_sign():
    expected = read(f"--config={TOY}:supermask", "--config.train.steps=7", "--config.seed=2")
    ours = read("--config.seed", "2", "--config", f"{TOY}:supermask", "--config.train.steps", "7")
    assert ours.to_dict() == expected.to_dict()
    assert (ours.seed, ours.train.steps, ours.pruner.name) == (2, 7, "supermask")


def test_values_after_a_blank_and_bare_bools():
    arguments = ["--config.scst.start_epoch", "-1", "--config.model.remat", f"--config={TOY}"]
    config = read(*arguments, "-config.train.devices=3")
    assert (config.scst.start_epoch, config.model.remat, config.train.devices) == (-1, True, 3)
    assert read(f"--config={TOY}", "--noconfig.model.remat").model.remat is False
    assert list(collect_changes(["x", "--", "--config.a=1"])) == ["x", "--", "--config.a=1"]


@pytest.mark.parametrize("arguments", [["--config=none.py"], ["--config=none.py:tiny"]])
def test_a_config_file_that_is_not_there(arguments):
    with pytest.raises(ConfigError, match=r"no such config file; expected FILE\.py"):
        read(*arguments)
    with pytest.raises(ConfigError, match=r"--config: no config file; expected FILE\.py"):
        read()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("caption.py", [], "expected photos, --example or --features; --help says more"),
        ("train.py", ["--confg=a"], "Unknown command line flag 'confg'. Did you mean: config"),
        ("report.py", ["--plugin=nonesuch"], "plugin 'nonesuch': cannot be imported: "),
        ("report.py", ["run", "--plugin", "nonesuch"], "plugin 'nonesuch': cannot be imported: "),
        ("demo.py", ["a", "b"], "unexpected arguments: a b; --help says more"),
        ("sweep.py", ["--sweep=toy"], "--workdir is missing; expected: Folder to write to; a new"),
        ("sweep.py", ["--workdir=x"], "expected --sweep, --grid, or --config with --set; --help"),
        (
            "sweep.py",
            ["--workdir=x", "--sweep=a", "--set=b=1"],
            "expected --sweep, --grid, or --config with --set; --help says more",
        ),
        ("card.py", ["run"], "--output is missing; expected: Page to write, Markdown."),
        ("convert.py", ["--output=x"], "--input is missing; expected: Run directory, model file"),
        ("prepare_data.py", ["extract", "--images=x"], "--output is missing; expected: Folder to"),
        ("report.py", ["x", "--html=h", "--published"], "--published: expected without --html "),
        ("report.py", ["x", "--images=h"], "--images: expected with --html only"),
        ("caption.py", ["x.jpg", "--image_sizes=h"], "--image_sizes: expected with --features"),
        ("caption.py", ["--features=x", "--strict"], "--strict: expected with photos"),
        ("caption.py", ["x.jpg", "--overwrite"], "--overwrite: expected with --output only"),
        (
            "convert.py",
            ["--input=a", "--output=b", "--form=sparse"],
            "--form: expected with --target=reference only",
        ),
        (
            "convert.py",
            ["--input=a", "--output=b", "--target=torch_prune", "--masks=raw"],
            "--masks: expected with --target=reference or safetensors only",
        ),
        (
            "convert.py",
            ["--input=a", "--output=b", "--target=safetensors", "--weights=int8"],
            "--weights: expected only with --target=run",
        ),
        (
            "convert.py",
            ["--input=/none", "--output=b", "--target=safetensors", "--masks=binary"],
            "/none: no such",
        ),
        (
            "evaluate.py",
            ["--caption_sets=a", "--references=b", "--groups=c", "--split=val"],
            "--split: expected with --checkpoint only",
        ),
        (
            "evaluate.py",
            ["--caption_sets=a", "--references=b", "--groups=c", "--training=d"],
            "--groups, --training: expected without --caption_sets only",
        ),
        (
            "evaluate.py",
            ["--checkpoint=a", "--caption_sets=b"],
            "--caption_sets: expected without --checkpoint only",
        ),
        (
            "prepare_data.py",
            ["--plugin=nonesuch", "inspect", "--features=."],
            "plugin 'nonesuch': cannot ",
        ),
        ("train.py", ["--config=configs/toy.py"], "--workdir is missing"),
    ],
)
def test_wrong_usage_is_one_line(script, arguments, message):
    done = launch(script, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_printing_the_config_touches_nothing(tmp_path):
    arguments = ["--config", TOY, "--config.train.steps=7", "--config.pruner.name=snip"]
    arguments = [*arguments, "--skip_nonfinite=3"]
    done = launch("train.py", *arguments, "--print_config", f"--workdir={tmp_path / 'run'}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "config.train.steps = 7  # flag" in lines
    assert "config.train.skip_nonfinite = 3  # flag" in lines
    assert "config.pruner.sparsity = 0.95  # config file" in lines
    assert not list(tmp_path.iterdir())
    done = launch("train.py", *arguments, "--print_config", "--config.eval.length_penalty=bogus")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: config.eval.length_penalty is 'bogus'")
    assert done.stderr.count("\n") == 1


def test_plugins_may_lie_in_the_working_directory(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sparsecap_jax.models import MODELS\nMODELS.register('mine', MODELS['up_down'])\n"
    )
    arguments = [f"--config={TOY}", "--config.model.name=mine", "--print_config"]
    done = launch("train.py", *arguments, cwd=tmp_path)
    assert done.stderr.startswith("error: config.model.name is 'mine'")
    done = launch("train.py", "--plugin=mine", *arguments, cwd=tmp_path)
    assert "config.model.name = 'mine'  # flag" in done.stdout.splitlines()


def test_an_interruption_is_one_line(tmp_path):
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt\n")
    done = launch("report.py", "--plugin=slow", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by SIGINT\n")
    (tmp_path / "late.py").write_text(
        "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    )
    done = launch("report.py", "--plugin=late", cwd=tmp_path)
    message = "error: expected runs, model files, or folders that hold some; --help says more\n"
    assert (done.returncode, done.stdout, done.stderr) == (-2, "", message)


@pytest.fixture
def counting(tmp_path):
    """The words of a command that writes a small file."""
    (tmp_path / "file").write_text("")
    sentence = {"raw": "a dog", "tokens": ["a", "dog"]}
    image = {"cocoid": 1, "filename": "1.jpg", "split": "train", "sentences": [sentence]}
    (tmp_path / "split.json").write_text(json.dumps({"images": [image]}))
    return "prepare_data.py", "df", f"--split_json={tmp_path / 'split.json'}"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file/df.npz", "{folder}/file: Not a directory"),
        ("/proc/df.npz", "/proc/df.npz: No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_one_line(counting, tmp_path, output, message):
    done = launch(*counting, f"--output={tmp_path / output}")
    expected = f"error: {message.format(folder=tmp_path)}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "split.json"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full_or_closed_is_no_traceback(counting, tmp_path):
    command = [sys.executable, str(REPO / "launch" / counting[0]), *counting[1:]]
    command.append(f"--output={tmp_path / 'df.npz'}")
    options = {"env": {**os.environ, "PYTHONPATH": str(REPO)}, "stderr": subprocess.PIPE}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, text=True, **options)
    message = "error: standard output, or a file without a name: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, text=True, **options)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", [["-h"], ["--plugin=nonesuch", "-h"]])
def test_a_short_flag_shows_the_help(arguments):
    done = launch("card.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Write the model card of a run") and "--samples" in done.stdout
    done = launch("prepare_data.py", "extract", "-h")
    assert done.stdout.startswith("Region features of the photos of a folder")


def test_percent_signs_stay_in_help():
    done = launch("demo.py", "--help")
    assert done.stdout.startswith("Train a dense and a 95%-sparse captioner")
