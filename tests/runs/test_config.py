"""Configs: typos, types, ranges and the way through JSON."""

import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys
import typing

import numpy as np
import pytest
from ml_collections import ConfigDict

from sparsecap_jax.errors import CheckpointError, ConfigError
from sparsecap_jax.models import count_params, make_model
from sparsecap_jax.pruning import PRUNERS
from sparsecap_jax.runs import config_docs
from sparsecap_jax.runs.config import (
    NAMED,
    SECTIONS,
    changed_fields,
    default_config,
    from_dict,
    model_config,
    parse_arg,
    section_fields,
    to_json,
    validate,
)
from sparsecap_jax.runs.config_docs import CHOICES
from sparsecap_jax.runs.directory import load_run, load_variables
from sparsecap_jax.training import optimizers

REPO = pathlib.Path(__file__).parents[2]


def changed(section, key, value):
    config = default_config(pruner="supermask")
    with config.unlocked(), config[section].ignore_type():
        config[section][key] = value
    return config


def choices(section):
    """The names that a section may have."""
    return sorted(CHOICES[section]) if section in NAMED else [None]


FIELDS = [
    (section, name, field)
    for section in ("", *SECTIONS)
    for name in (choices(section))
    for field in section_fields(section, name)
]


def wrong_values(field):
    """Values of another type, and on both sides of the range."""
    yield {"a": 1}
    yield 3 if field.hint is str else "wrong"
    if type(None) not in typing.get_args(field.hint):
        yield None
    for bound, step in ((field.range.low, -1), (field.range.high, 1)) if field.range else ():
        if math.isfinite(bound):
            yield [bound + step] if isinstance(field.default, tuple) else bound + step
    if field.range and field.range.open_low:
        yield field.range.low
    if field.range and field.range.open_high:
        yield field.range.high


@pytest.mark.parametrize(("section", "name", "key"), FIELDS)
def test_every_field_refuses_what_it_cannot_take(section, name, key):
    field = section_fields(section, name)[key]
    chosen = {section: name} if name else {}
    assert field.meaning
    for value in wrong_values(field):
        if value == "wrong" and typing.get_args(field.hint)[:1] == (str,):
            continue
        if value == {"a": 1}:
            value = ConfigDict(value)
        config = default_config(**chosen)
        with config.unlocked(), config.ignore_type():
            (config[section] if section else config)[key] = value
        where = f"config.{section}.{key}" if section else f"config.{key}"
        with pytest.raises(ConfigError, match=rf"^{re.escape(where)}\b") as caught:
            validate(config)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("section", "name"), [(s, n) for s in SECTIONS for n in choices(s)])
def test_every_section_refuses_unknown_keys(section, name):
    config = default_config(**({section: name} if name else {}))
    validate(config)
    with config.unlocked():
        config[section].nonesuch = 1
    with pytest.raises(ConfigError, match=rf"^config\.{section}\.nonesuch: unknown key"):
        validate(config)


def test_rules_between_fields():
    config = default_config("transformer")
    config.model.num_heads = 7
    with pytest.raises(ConfigError, match=r"^config\.model\.d_model is 512; .* \(7\)"):
        validate(config)
    config = default_config()
    config.train.epochs = 0
    with pytest.raises(ConfigError, match=r"^config\.train: both steps and epochs are 0"):
        validate(config)
    with config.unlocked():
        del config.train
    with pytest.raises(ConfigError, match=r"^config\.train is None; expected a section"):
        validate(config)
    with config.unlocked():
        config.trian = {}
    with pytest.raises(ConfigError, match=r"^config\.trian: unknown key; did you mean 'train'"):
        validate(config)


def test_sections_come_in_the_types_of_their_owners():
    config = default_config(tokenizer="radix")
    config.optimizer.schedule = "noam"
    sections = validate(config)
    assert (sections["tokenizer"].radix_base, sections[""].max_seq_length) == (768, 18)
    assert sections["optimizer"] == optimizers.OptimizerConfig(schedule="noam")
    assert sections["data"].region_buckets == (16, 36, 64, 100)


def test_noam_takes_the_width_of_the_model():
    noam = {"schedule": "noam", "noam_warmup": 1}
    for size, width, expected in ((None, 256, 1 / 16), (64, 256, 1 / 8), (None, None, 512**-0.5)):
        rate = optimizers.make_schedule({**noam, "noam_size": size}, 10, width=width)
        assert float(rate(0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "epoch", 3, r"config\.train\.epoch: unknown key; did you mean 'epochs'\?"),
        ("model", "rnn_sise", 3, r"config\.model\.rnn_sise: unknown key; .*'rnn_size'"),
        ("pruner", "sparsty", 0.5, r"config\.pruner\.sparsty: unknown key; .*'sparsity'"),
        ("optimizer", "lr", 0.5, r"config\.optimizer\.lr: unknown key"),
        ("train", "epochs", "3", r"config\.train\.epochs is '3'; expected int"),
        (
            "train",
            "label_smoothing",
            1.5,
            r"config\.train\.label_smoothing is 1\.5; expected at least 0",
        ),
        ("pruner", "sparsity", 1.0, r"config\.pruner\.sparsity is 1\.0"),
        ("optimizer", "schedule", "cosin", r"config\.optimizer\.schedule is 'cosin'"),
        ("data", "region_buckets", (36, 16), r"region_buckets is \(36, 16\); expected growing"),
        ("scst", "baseline", "gredy", r"scst\.baseline is 'gredy'; did you mean 'greedy'"),
        ("scst", "samples", 5, r"config\.scst\.samples: unknown key"),
        ("model", "name", "up_dwon", r"config\.model\.name is 'up_dwon'; did you mean 'up_down'\?"),
        ("model", "name", ["up_down"], r"config\.model\.name is \['up_down'\]"),
        ("model", "logit_layers", 0, r"config\.model\.logit_layers is 0; expected at least 1"),
        ("model", "rnn_size", -3, r"config\.model\.rnn_size is -3; expected at least 1"),
        ("model", "feature_size", 3, r"config\.model\.feature_size: unknown key"),
        ("tokenizer", "radix_base", 768, r"config\.tokenizer\.radix_base: unknown key"),
        ("data", "name", "karpaty", r"config\.data\.name is 'karpaty'; did you mean 'karpathy'\?"),
        ("data", "features_format", "hdf", r"config\.data\.features_format is 'hdf'"),
        ("eval", "length_penalty", "bogus", r'config\.eval\.length_penalty is .bogus.*"wu_ALPHA"'),
        ("eval", "length_penalty", "wu_x", r"config\.eval\.length_penalty is 'wu_x'"),
        ("train", "init_ignore", ("(",), r"config\.train\.init_ignore: '\(' is no regex"),
        ("optimizer", "learning_rate_min", 1.0, r"config\.optimizer\.learning_rate_min is 1"),
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


def test_configs_of_before_are_read():
    """The package's run was written by an earlier release."""
    folder = REPO / "sparsecap_jax/runs/published/flickr8k-mini"
    values = json.loads((folder / "config.json").read_text())
    config = from_dict(values, "config.json")
    assert config.optimizer.noam_size == values["optimizer"]["noam_size"] == 512
    assert config.data.region_buckets == (14,)
    del values["eval"], values["data"]["num_workers"]
    config = from_dict(values, "config.json")
    assert (config.data.num_workers, config.eval.to_dict()) == (0, default_config().eval.to_dict())


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "steps", None, "config.train.steps is None; expected int"),
        ("model", "name", ["up_down"], r"config.model.name is \['up_down'\]"),
        ("model", "name", "os:system", "config.model.name is 'os:system', which is not part of"),
        ("data", "dri", "", "config.data.dri: unknown key"),
    ],
)
def test_faulty_configs_of_runs_are_checkpoint_errors(section, key, value, message, tmp_path):
    values = default_config().to_dict()
    values[section][key] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    path = re.escape(str(tmp_path / "config.json"))
    for load in (load_run, load_variables):
        with pytest.raises(CheckpointError, match=f"^{path}: {message}"):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "format_version": 9}))
    with pytest.raises(CheckpointError, match=f"^{path}: format_version is 9"):
        load_run(tmp_path)


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
    ("acort", "xsmall"): 922_523,
    ("ort", "small"): 16_718_401,
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
    assert config_file(name)(f"{tiny}dense").pruner.name == "none"
    with pytest.raises(ConfigError, match="more than one pruner: none, supermask"):
        config_file(name)("dense,supermask")
    with pytest.raises(ConfigError, match=r"'sniip' is no word of it; did you mean 'snip'\?$"):
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


def test_changes_of_a_run_are_told_apart():
    old, new = default_config("transformer"), default_config("transformer")
    assert changed_fields(old, new) == ([], [])
    new.data.update(dir="b", num_workers=3, batch_size=4, cache_dtype="float16")
    new.train.update(steps=9, log_every=1, label_smoothing=0.1)
    new.eval.beam_size_test = 5
    new.seed = 1
    allowed, refused = changed_fields(old, new)
    assert allowed == [
        "data.dir was '', is 'b'",
        "data.num_workers was 0, is 3",
        "eval.beam_size_test was 2, is 5",
        "train.log_every was 25, is 1",
        "train.steps was 0, is 9",
    ]
    assert refused == [
        "seed was 0, is 1",
        "data.batch_size was 15, is 4",
        "data.cache_dtype was 'float32', is 'float16'",
        "train.label_smoothing was 0.0, is 0.1",
    ]


def test_the_width_of_noam_is_compared_as_it_is_used():
    old, new = default_config("transformer"), default_config("transformer")
    old.optimizer.noam_size = 300
    assert changed_fields(old, new) == ([], [])
    for config in (old, new):
        config.optimizer.schedule = "noam"
    assert changed_fields(old, new) == ([], ["optimizer.noam_size was 300, is 512"])
    old.optimizer.noam_size = 512
    assert changed_fields(old, new) == ([], [])


def test_only_the_fields_that_docs_name_may_change():
    free = {
        f"{section}.{key}"
        for section in SECTIONS
        for name in choices(section)
        for key, field in section_fields(section, name).items()
        if field.may_change
    }
    data = "dir split_json features features_format image_sizes eval_batch_size cache_gb"
    data += " cache_min_free_ram licence prefetch num_threads num_workers"
    train = "epochs steps log_every eval_every skip_nonfinite"
    evaluation = "beam_size_val beam_size_test length_penalty tokenizer images sparsity_tolerance"
    mesh = "model sharding rules"
    expected = {"data": data, "train": train, "mesh": mesh, "eval": evaluation}
    assert free == {f"{section}.{key}" for section in expected for key in expected[section].split()}


def test_docs_are_those_of_the_code():
    assert config_docs.PATH.read_text() == config_docs.render(), (
        "run sparsecap_jax.runs.config_docs"
    )
