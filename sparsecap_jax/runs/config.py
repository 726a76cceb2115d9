"""The configuration of a run: its defaults, its checks, and its JSON form.

A config is a locked `ml_collections.ConfigDict` of sections. `model` and `pruner` hold a `name` and
the fields of that model or pruner, so a typo in an override fails wherever it is made.
"""

import dataclasses
import difflib
import json
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.settings import defaults_of

FORMAT_VERSION = 1
_NAMED = ("model", "pruner", "tokenizer")
FROM_ELSEWHERE = ("feature_size", "max_seq_length", "pad_id")  # model fields not in its section


def default_config(
    model: str = "up_down",
    pruner: str = "none",
    tokenizer: str = "word",
    objective: str = "cross_entropy",
) -> ConfigDict:
    """Defaults of the reference for everything, with the fields of the parts that are named.

    Returns:
        A locked config; `configs/*.py` set what their recipe changes.
    """
    config = ConfigDict(
        {
            "format_version": FORMAT_VERSION,
            "seed": 0,
            # Captions are cut to it, BOS and EOS counted; decoding emits up to as many tokens.
            "max_seq_length": 18,
            "model": model_section(model),
            "pruner": pruner_section(pruner),
            "tokenizer": tokenizer_section(tokenizer),
            "data": {
                "name": "karpathy",  # a key of sparsecap_jax.data.datasets.DATASETS
                "dir": "",  # holds the split JSON and bu/
                "split_json": "",  # its name in dir, or its path; "": the only dataset_*.json
                "features": "",  # file or folder of features; "": dir
                "features_format": "auto",  # a key of sparsecap_jax.data.stores.STORES
                "image_sizes": "",  # JSON or folder, for formats with boxes in pixels
                "feature_size": 2048,
                "batch_size": 15,  # images per step
                "seq_per_img": 5,  # captions per image and step
                "eval_batch_size": 50,
                "region_buckets": (16, 36, 64, 100),  # padded numbers of regions
                "cache_gb": 8.0,  # memory for features read before
                "mixture": "",  # imagined: times an epoch sees each source, "source=times,..."
                "cache_min_free_ram": 0.4,  # fraction of the machine's memory to leave free
                "cache_dtype": "float32",  # float16 holds twice as many, rounded
                "prefetch": 2,  # batches prepared ahead
                "num_threads": 1,  # that read them; more help slow disks
                "num_workers": 0,  # processes that read them instead, where Python is too slow
                "raw_captions": False,  # tokenise raw captions instead of the split's tokens
                "skip_bad": False,  # leave out bad entries, counted in the log, instead of stopping
            },
            "objective": objective_section(objective),
            "optimizer": optimizer_section(),
            "scst": scst_section(),
            "train": {
                "epochs": 15,
                "steps": 0,  # overrides epochs where positive
                "label_smoothing": 0.0,
                # Recurrent models' own words as inputs, see training/scheduled_sampling.py.
                "scheduled_sampling_start": -1,  # epoch after which it begins; -1: never
                "scheduled_sampling_increase_every": 5,  # epochs
                "scheduled_sampling_increase_prob": 0.05,
                "scheduled_sampling_max_prob": 0.25,
                "log_every": 25,
                "eval_every": 0,  # steps between validations; 0: once an epoch
                "steps_per_call": 1,  # steps compiled into one call; helps small models
                "devices": 0,  # accelerators to spread the batch over; 0: all of them
                "init_from": "",  # warm start: a run directory
                "init_ignore": (),  # regexes of leaves that may be missing or extra there
            },
            "eval": {
                "beam_size_val": 1,
                "beam_size_test": 2,
                "length_penalty": "",  # "", "wu_<alpha>" or "avg_0"
                "images": 0,  # validate on the first so many images; 0: all
                "sparsity_tolerance": 0.05,  # best only counts within it of the target nonzeros
            },
        }
    )
    return config.lock()


def model_section(name: str, **fields: Any) -> ConfigDict:
    """`config.model` for model `name`: all its fields, `fields` set.

    `vocab_size` 0 stands for the tokenizer's size; `feature_size` and `max_seq_length` are not in
    the section, a model takes them from where the data are described.

    Raises:
        ConfigError: unknown model or field.
    """
    from sparsecap_jax.models import model_fields

    defaults = {k: v for k, v in model_fields(name).items() if k not in FROM_ELSEWHERE}
    return _section("model", name, {**defaults, "vocab_size": 0}, fields)


def model_config(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
    """What `models.make_model` takes, with the fields that other sections give.

    Args:
        config: the config of a run.
        vocab_size: the tokenizer's, used where `config.model.vocab_size` is 0.
    """
    from sparsecap_jax.models import model_fields

    given = {"feature_size": config.data.feature_size, "max_seq_length": config.max_seq_length}
    known = model_fields(config.model.name)
    section = {**config.model, **{k: v for k, v in given.items() if k in known}}
    return {**section, "vocab_size": section["vocab_size"] or vocab_size}


def pruner_section(name: str, **fields: Any) -> ConfigDict:
    """`config.pruner` for pruner `name`: all its fields, `fields` set.

    Raises:
        ConfigError: unknown pruner or field.
    """
    from sparsecap_jax.pruning import pruner_fields

    return _section("pruner", name, pruner_fields(name), fields)


def tokenizer_section(name: str, **fields: Any) -> ConfigDict:
    """`config.tokenizer` for tokenizer `name`: all its fields, `fields` set.

    Raises:
        ConfigError: unknown tokenizer or field.
    """
    from sparsecap_jax.tokenizers import tokenizer_class

    options = {"radix_base": 768}
    defaults = {key: options[key] for key in tokenizer_class(name).options}
    return _section("tokenizer", name, {"vocab_size": 10000, **defaults}, fields)


def objective_section(name: str, **fields: Any) -> ConfigDict:
    """`config.objective` for objective `name`: all its settings, `fields` set.

    Raises:
        ConfigError: unknown objective or setting.
    """
    from sparsecap_jax.training.objectives import OBJECTIVES

    return _section("objective", name, defaults_of(OBJECTIVES[name], "task"), fields)


def optimizer_section(**fields: Any) -> ConfigDict:
    """`config.optimizer`: the fields of `OptimizerConfig`, `fields` set.

    Raises:
        ConfigError: unknown field.
    """
    from sparsecap_jax.training.optimizers import OptimizerConfig

    defaults = {field.name: field.default for field in dataclasses.fields(OptimizerConfig)}
    section = ConfigDict(defaults)
    _merge(section, fields, "config.optimizer")
    return section


def scst_section(**fields: Any) -> ConfigDict:
    """`config.scst`: the fields of `ScstConfig`, `fields` set.

    Raises:
        ConfigError: unknown field.
    """
    from sparsecap_jax.scst.config import ScstConfig

    section = ConfigDict({field.name: field.default for field in dataclasses.fields(ScstConfig)})
    _merge(section, fields, "config.scst")
    return section


def parse_arg(arg: str) -> tuple[list[str], dict[str, Any]]:
    """Split the argument of a config file into its words and its `key=value` pairs.

    Values are read as JSON where they are JSON, else as text: `supermask,sparsity=0.975` is
    `(["supermask"], {"sparsity": 0.975})`.

    Raises:
        ConfigError: an empty part.
    """
    words, values = [], {}
    for part in arg.split(",") if arg else []:
        key, equals, text = part.partition("=")
        if not key:
            raise ConfigError(
                f"config argument {arg!r}: expected words and key=value, found {part!r}"
            )
        if equals:
            values[key] = _literal(text)
        else:
            words.append(key)
    return words, values


def to_json(config: Mapping[str, Any] | ConfigDict) -> str:
    """The config as JSON, keys sorted."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def from_dict(values: Any, source: str) -> ConfigDict:
    """Rebuild and check a config that was saved as JSON.

    Args:
        values: the decoded JSON object.
        source: what error messages call it, such as its file name.

    Raises:
        ConfigError: not a config of this format, or `validate` finds fault.
    """
    version = values.get("format_version") if isinstance(values, Mapping) else None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{source}: format_version is {version!r}; this release reads {FORMAT_VERSION}"
        )
    try:
        names = [values[section]["name"] for section in _NAMED]
        objective = values.get("objective", {"name": "cross_entropy"})["name"]
        config = default_config(*names, objective)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{source}: a section of {', '.join(_NAMED)} has no name") from error
    _merge(config, values, source)
    validate(config)
    return config


def validate(config: ConfigDict) -> None:
    """Check keys, types, ranges and rules across fields.

    Raises:
        ConfigError: the first fault found, with the field, its value and what was expected; for an
            unknown key the nearest valid one.
    """
    names = (config[section].name for section in (*_NAMED, "objective"))
    _merge(default_config(*names), config.to_dict(), "config")
    flat = _flatten(config)
    for key, (low, high) in _RANGES.items():
        if key in flat and not low <= flat[key] <= high:
            raise ConfigError(f"config.{key} is {flat[key]}; expected {low} to {high}")
    _validate_rules(config)


def _validate_rules(config: ConfigDict) -> None:
    from sparsecap_jax.models import MODELS
    from sparsecap_jax.pruning import make_pruner
    from sparsecap_jax.scst.config import parse as parse_scst
    from sparsecap_jax.training import scheduled_sampling
    from sparsecap_jax.training.optimizers import parse

    make_pruner(config.pruner, total_steps=1, steps_per_epoch=1)
    parse(config.optimizer)
    scheduled_sampling.parse(config.train, MODELS[config.model.name])
    parse_scst(config.scst)
    buckets = tuple(config.data.region_buckets)
    if not buckets or buckets != tuple(sorted(set(buckets))) or buckets[0] < 1:
        raise ConfigError(f"config.data.region_buckets is {buckets}; expected growing numbers > 0")
    if config.train.steps <= 0 and config.train.epochs <= 0:
        raise ConfigError("config.train: both steps and epochs are 0; expected one of them > 0")


_LARGE = 10**9
_RANGES = {
    "max_seq_length": (3, 1000),
    "tokenizer.vocab_size": (5, 10**6),
    "data.feature_size": (1, _LARGE),
    "data.batch_size": (1, _LARGE),
    "data.seq_per_img": (1, 1000),
    "data.eval_batch_size": (1, _LARGE),
    "data.cache_gb": (0, _LARGE),
    "data.cache_min_free_ram": (0, 1),
    "data.prefetch": (0, 1000),
    "data.num_threads": (1, 1000),
    "data.num_workers": (0, 1000),
    "model.dropout": (0, 0.999),
    "model.source_dropout": (0, 0.999),
    "train.epochs": (0, _LARGE),
    "train.steps": (0, _LARGE),
    "train.label_smoothing": (0, 0.999),
    "train.log_every": (1, _LARGE),
    "train.eval_every": (0, _LARGE),
    "train.steps_per_call": (1, 10000),
    "train.devices": (0, 100000),
    "eval.beam_size_val": (1, 1000),
    "eval.beam_size_test": (1, 1000),
    "eval.images": (0, _LARGE),
    "eval.sparsity_tolerance": (0, 1),
}


def _section(section: str, name: str, defaults: dict[str, Any], fields: dict[str, Any]):
    values = {k: (0 if v is dataclasses.MISSING else v) for k, v in defaults.items()}
    result = ConfigDict({"name": name, **values})
    _merge(result, fields, f"config.{section}")
    return result


def _merge(config: ConfigDict, values: Mapping[str, Any], source: str) -> None:
    """Overwrite leaves of `config` by those of `values`, checking names and types."""
    for key, value in values.items():
        where = f"{source}.{key}"
        if key not in config:
            raise ConfigError(f"{where}: unknown key{_nearest(key, config.keys())}")
        old = config[key]
        if isinstance(old, ConfigDict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where} is {value!r}; expected a section")
            _merge(old, value, where)
        else:
            config[key] = _typed(value, old, where)


def _typed(value: Any, old: Any, where: str) -> Any:
    """Return `value` in the type of the default `old`, or complain."""
    if old is None or value is None:
        return value
    if isinstance(old, tuple) and isinstance(value, str | list | tuple):
        return (value,) if isinstance(value, str) else tuple(value)
    if isinstance(old, bool) or isinstance(value, bool):
        fits = isinstance(old, bool) and isinstance(value, bool)
    elif isinstance(old, float):
        fits = isinstance(value, numbers.Real)
        value = float(value) if fits else value
    else:
        fits = isinstance(value, type(old))
    if not fits:
        raise ConfigError(f"{where} is {value!r}; expected a value of type {type(old).__name__}")
    return value


def _flatten(config: ConfigDict) -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update({f"{key}.{name}": leaf for name, leaf in value.items()})
        else:
            flat[key] = value
    return flat


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _nearest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
