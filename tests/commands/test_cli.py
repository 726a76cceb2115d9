"""Command lines: changes of a config, plugins, and what is said of mistyped flags."""

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
        ("caption.py", [], "expected photos, or --features; not both; --help says more"),
        ("train.py", ["--confg=a"], "Unknown command line flag 'confg'. Did you mean: config"),
        ("report.py", ["--plugin=nonesuch"], "plugin 'nonesuch': cannot be imported: "),
        ("report.py", ["run", "--plugin", "nonesuch"], "plugin 'nonesuch': cannot be imported: "),
        ("demo.py", ["a", "b"], "unexpected arguments: a b; --help says more"),
        ("sweep.py", ["--sweep=toy"], "flag --workdir=None: Flag --workdir must have a value"),
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
    done = launch("train.py", *arguments, "--print_config", f"--workdir={tmp_path / 'run'}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "config.train.steps = 7  # flag" in lines
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
