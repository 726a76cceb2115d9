import os
import pathlib
import subprocess
import sys

import pytest

from sparsecap_jax.commands.prepare import COMMANDS

REPO = pathlib.Path(__file__).parents[3]
LAUNCH = """
import atexit, runpy, sys
atexit.register(lambda: print("jax:", "jax" in sys.modules))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(*arguments):
    command = [sys.executable, "-c", LAUNCH, str(REPO / "launch/prepare_data.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_without_jax(name):
    done = launch(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    first_line = COMMANDS[name].read_text().splitlines()[0].strip('r"')
    assert first_line in done.stdout
    assert f"sparsecap prepare_data {name} " in done.stdout  # an example
    assert "--plugin: " in done.stdout  # and its flags
    assert done.stdout.endswith("jax: False\n")


def test_the_list_of_commands():
    done = launch("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one subcommand, found none; --help says more"),
        (["inspct"], "no subcommand 'inspct'; did you mean 'inspect'? (valid: coco_captions, "),
        (["inspect", "df"], "--features is missing; expected: File or folder of features."),
        (["inspect", "df", "--features=x"], "expected one subcommand, found inspect df"),
        (["inspect"], "--features is missing; expected: File or folder of features."),
        (
            ["inspect", "--feature=x"],
            "Unknown command line flag 'feature'. Did you mean: feature_size",
        ),
        (
            ["inspect", "--features=x", "--feature_siz=3"],
            "Unknown command line flag 'feature_siz'. Did you mean: feature_size",
        ),
        (["inspect", "--features=x", "--feature_size=y"], "flag --feature_size=y: invalid literal"),
        (["inspect", "--features", "x", "--format", "tvs"], "data.features_format is 'tvs'; did"),
        (["df", "--output", "x"], "flags split_json=None, coco=None, pickle=None: Exactly one of"),
    ],
)
def test_faulty_command_lines_give_one_line(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
