"""The console command, without running what it starts."""

import runpy
import sys

import pytest

from sparsecap_jax.commands import console
from sparsecap_jax.version import __version__


@pytest.fixture
def started(monkeypatch):
    """What `sparsecap` with the given words would run: (script, argv)."""

    def run(*words):
        calls = []
        record = lambda path, run_name: calls.append((path, run_name, list(sys.argv)))  # noqa: E731
        monkeypatch.setattr(runpy, "run_path", record)
        monkeypatch.setattr(sys, "argv", ["sparsecap", *words])
        console.main()
        return calls

    return run


def test_runs_the_script_of_that_name(started):
    ((path, name, argv),) = started("train", "--workdir=a")
    assert path.endswith("launch/train.py") and name == "__main__"
    assert argv == ["sparsecap train", "--workdir=a"]


def test_knows_the_package_recipes_anywhere(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((_, _, argv),) = started("train", "--config=configs/toy.py:supermask", "--config=mine.py")
    assert argv[1].endswith("configs/toy.py:supermask") and argv[1].startswith("--config=/")
    assert argv[2] == "--config=mine.py"


def test_lists_all_scripts(started, capsys):
    assert started() == []
    shown = capsys.readouterr().out
    for name in ("train", "evaluate", "caption", "prepare_data", "convert"):
        assert f"  {name} " in shown


def test_unknown_command(started):
    with pytest.raises(SystemExit, match=r"^error: no command 'trian'; did you mean 'train'"):
        started("trian")


def test_the_version(started, capsys):
    assert started("--version") == []
    assert capsys.readouterr().out == f"sparsecap {__version__}\n"
