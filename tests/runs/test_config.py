"""Configs: typos, types, ranges and the way through JSON."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.models import count_params, make_model
from sparsecap_jax.pruning import PRUNERS
from sparsecap_jax.runs.config import (
    default_config,
    from_dict,
    model_config,
    parse_arg,
    to_json,
    validate,
)
from sparsecap_jax.training import optimizers

REPO = pathlib.Path(__file__).parents[2]


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
        ("scst", "baseline", "gredy", r"scst\.baseline is 'gredy'; did you mean 'greedy'"),
        ("scst", "samples", 5, r"config\.scst\.samples: unknown key"),
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


def test_arguments_are_words_and_values():
    assert parse_arg("") == ([], {})
    assert parse_arg("tiny,supermask,sparsity=0.975,name=x") == (
        ["tiny", "supermask"],
        {"sparsity": 0.975, "name": "x"},
    )
    with pytest.raises(ConfigError, match="found ''"):
        parse_arg("supermask,")


def config_file(name):
    path = REPO / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


# Model parameters with the papers' vocabularies: 10,000 words and UNK, or radix base 768.
SIZES = {
    ("up_down", ""): 53_151_538,
    ("ort", ""): 55_443_777,
    ("acort", ""): 14_979_347,
    ("acort", "base_al"): 8_410_379,
    ("acort", "small"): 4_213_779,
    ("acort", "small_al"): 2_567_435,
    ("ort", "xsmall"): 4_143_897,
    ("transformer", ""): 55_440_657,
    ("soft_attention", ""): 13_722_641,
}


@pytest.mark.parametrize(("name", "arg"), SIZES)
def test_configs_have_the_papers_sizes(name, arg):
    config = config_file(name)(arg)
    validate(config)
    radix = config.tokenizer.name == "radix"
    vocab_size = config.tokenizer.radix_base + 3 if radix else 10_001
    assert count_params(make_model(model_config(config, vocab_size))) == SIZES[name, arg]


@pytest.mark.parametrize(
    "name", ["up_down", "ort", "acort", "transformer", "soft_attention", "toy"]
)
def test_every_config_takes_every_pruner(name):
    tiny = "" if name == "toy" else "tiny,"
    for pruner in PRUNERS:
        validate(config_file(name)(f"{tiny}{pruner}"))
    with pytest.raises(ConfigError, match="'sniip' is none of"):
        config_file(name)("sniip")
    with pytest.raises(ConfigError, match="sparsity without a pruner"):
        config_file(name)("sparsity=0.5")


@pytest.mark.parametrize("name", ["up_down", "ort", "acort", "transformer", "soft_attention"])
def test_self_critical_recipes_are_the_papers(name):
    config = config_file(name)("scst,mask_freeze,num_samples=60,baseline=greedy")
    validate(config)
    assert (config.pruner.name, config.train.epochs, config.data.batch_size) == (
        "mask_freeze",
        10,
        5,
    )
    optimizer = optimizers.parse(config.optimizer)
    assert (optimizer.name, optimizer.betas) == ("adam", (0.9, 0.999))
    assert optimizers.make_schedule(optimizer, 1000)(999) == np.float32(5e-5)
    scst = config.scst
    assert (scst.start_epoch, scst.num_samples, scst.sample, scst.baseline) == (
        *(0, 60, "random", "greedy"),
    )
    weights = [scst[key] for key in ("cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4")]
    assert weights == [1, 0, 0, 0, 1]
    assert config_file(name)("scst").scst.num_samples == 15
    with pytest.raises(ConfigError, match="num_samples without a pruner"):
        config_file(name)("num_samples=60")


# Stages of docs/photos.md: steps, images in a batch, rate, samples, parts of the mixture.
PHOTO_STAGES = {
    "": (5000, 32, 2e-3, 15, 4),
    "ort": (5000, 32, 1e-3, 15, 4),
    "finetune,supermask": (2500, 32, 1.5e-3, 15, 3),
    "finetune,mask_freeze": (1500, 32, 2e-3, 15, 3),
    "ort,finetune,mask_freeze": (1500, 32, 1e-3, 15, 3),
    "finetune,scst,mask_freeze": (400, 16, 5e-5, 10, 3),
    "ort,finetune,scst,mask_freeze,num_samples=5": (400, 16, 5e-5, 5, 3),
}


@pytest.mark.parametrize("arg", PHOTO_STAGES)
def test_stages_of_training_on_photos(arg):
    config = config_file("photos")(arg)
    validate(config)
    assert config.model.name == ("relation_transformer" if "ort" in arg else "up_down")
    assert (config.scst.start_epoch == 0) == ("scst" in arg)
    found = config.train.steps, config.data.batch_size, config.optimizer.learning_rate
    found += config.scst.num_samples, len(config.data.mixture.split(","))
    assert found == PHOTO_STAGES[arg]


@pytest.mark.parametrize("arg", ["plain,finetune", "plain,scst,mask_freeze"])
def test_plain_photos_have_one_stage(arg):
    with pytest.raises(ConfigError, match="plain stands alone"):
        config_file("photos")(arg)


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
