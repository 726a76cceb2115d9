"""Configs: typos, types, ranges and the way through JSON."""

import json
import pathlib
import subprocess
import sys

import pytest

from sparsecap_jax.config import config_from_arg, default_config, from_dict, to_json, validate
from sparsecap_jax.errors import ConfigError

REPO = pathlib.Path(__file__).parent.parent


def changed(section, key, value):
    config = default_config(pruner="supermask")
    with config.unlocked(), config[section].ignore_type():
        config[section][key] = value
    return config


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "epoch", 3, r"config\.train\.epoch: unknown key \(did you mean 'epochs'\?\)"),
        ("model", "rnn_sise", 3, r"config\.model\.rnn_sise: unknown key .*'rnn_size'"),
        ("pruner", "sparsty", 0.5, r"config\.pruner\.sparsty: unknown key .*'sparsity'"),
        ("optimizer", "lr", 0.5, r"config\.optimizer\.lr: unknown key"),
        ("train", "epochs", "3", r"config\.train\.epochs is '3'; expected a value of type int"),
        ("train", "label_smoothing", 1.5, r"config\.train\.label_smoothing is 1\.5; expected 0"),
        ("pruner", "sparsity", 1.0, r"pruner\.sparsity is 1\.0"),
        ("optimizer", "schedule", "cosin", r"optimizer\.schedule is 'cosin'"),
        ("data", "region_buckets", (36, 16), r"region_buckets is \(36, 16\); expected growing"),
        ("model", "name", "up_dwon", r"unknown name 'up_dwon'.*'up_down'"),
    ],
)
def test_faults_name_the_field_and_what_was_expected(section, key, value, message):
    with pytest.raises(ConfigError, match=message):
        validate(changed(section, key, value))


def test_json_brings_a_config_back():
    config = default_config(pruner="supermask")
    config.train.epochs = 7
    again = from_dict(json.loads(to_json(config)), "config.json")
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("values", [{}, [], {"format_version": 99}, {"format_version": 1}])
def test_json_of_something_else_is_refused(values):
    with pytest.raises(ConfigError, match=r"config\.json"):
        from_dict(values, "config.json")


def test_arguments_are_a_name_and_values():
    assert config_from_arg("") == ("", {})
    assert config_from_arg("supermask,sparsity=0.975,name=x") == (
        "supermask",
        {"sparsity": 0.975, "name": "x"},
    )
    with pytest.raises(ConfigError, match="expected key=value, found 'sparsity'"):
        config_from_arg("supermask,sparsity")


@pytest.mark.parametrize("flag", ["--config.train.epoch=3", "--config=configs/toy.py:supermsk"])
def test_a_typo_on_the_command_line_is_one_line(flag, tmp_path):
    command = [sys.executable, "launch/train.py", "--config=configs/toy.py", flag]
    command.append(f"--workdir={tmp_path / 'run'}")
    found = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")
    assert "epoch" in found.stderr or "supermsk" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "run").exists()
