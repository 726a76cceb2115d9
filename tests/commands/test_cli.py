"""What command lines say of mistyped flags."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from sparsecap_jax.commands.cli import config_value, reason
from sparsecap_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            KeyError('stps\'\nDid you mean "steps" instead of "stps"?'),
            'unknown config key stps\' Did you mean "steps" instead of "stps"?',
        ),
        (KeyError("stps"), "unknown config key stps"),
        (ValueError("base 10: 'abc'"), "base 10: 'abc'"),
        (
            OSError("x\nsparsecap_jax.errors.ConfigError: config.a is 1\ny"),
            "config.a is 1",
        ),
    ],
)
def test_errors_become_one_line(error, line):
    assert reason(error) == line


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections
@pytest.mark.parametrize("arguments", [[], ["--config=none.py"], ["--config=none.py:tiny"]])
def test_a_config_file_that_is_not_there(arguments):
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values(["program", *arguments])
    with pytest.raises(ConfigError, match=r"--config: no such config file; expected FILE\.py"):
        config_value(holder)


def test_wrong_usage_is_one_line():
    script = pathlib.Path(__file__).parents[2] / "launch/caption.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: expected photos, or --features; not both; --help tells more\n"
