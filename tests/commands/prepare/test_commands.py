import importlib

import pytest

from sparsecap_jax.commands.prepare import COMMANDS, parse_args


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name, capsys):
    module = importlib.import_module(f"sparsecap_jax.commands.prepare.{name}")
    with pytest.raises(SystemExit) as caught:
        parse_args(["prepare_data.py", name, "--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in help_text
    assert f"launch/prepare_data.py {name} " in help_text  # an example


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: the following arguments are required: SUBCOMMAND (see --help)\n"),
        (["inspct"], "invalid choice: 'inspct'"),
        (["inspect"], "required: --features"),
        (["inspect", "--feature=x"], "required: --features"),
        (["inspect", "--features=x", "--feature_siz=3"], "unrecognized arguments: --feature_siz=3"),
        (["inspect", "--features=x", "--feature_size=y"], "invalid int value: 'y'"),
    ],
)
def test_faulty_command_lines_give_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["prepare_data.py", *arguments])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
