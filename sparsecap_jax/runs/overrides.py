"""Config files, and what the command line changes in their configs."""

import importlib.util
import itertools
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from sparsecap_jax.errors import ConfigError, SparsecapError
from sparsecap_jax.files import absent
from sparsecap_jax.pruning import PRUNERS
from sparsecap_jax.runs import config as configs
from sparsecap_jax.runs.config import NAMED, SECTIONS, literal, make_section, section_fields
from sparsecap_jax.settings import Field, expected, use_plugin

# Fields whose value may be MODULE:NAME.
_REGISTERED = (*(f"{section}.name" for section in NAMED), "data.name", "data.features_format")
# Errors of a config file that are reported in one line.
_FAULTS = (AttributeError, ImportError, LookupError, NameError, SyntaxError, TypeError, ValueError)
_ALONE = "(no value)"  # a flag without one, which sets a bool
_BOOLS = dict.fromkeys((_ALONE, "true", "t", "1", "yes"), True)
_BOOLS |= dict.fromkeys(("false", "f", "0", "no"), False)


def load_config(path: str | pathlib.Path, arg: str | None = None) -> ConfigDict:
    """Return the config, locked, of a file whose `get_config` takes `arg`, or nothing for None.

    A ConfigError says that there is no such file, or how it fails.
    """
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"{path}: no such config file; expected FILE.py[:ARGUMENTS]")
    arguments = [] if arg is None else [arg]
    return call_file(path, lambda module: module.get_config(*arguments).lock())


def call_file(path: str | pathlib.Path, use: Callable[[Any], Any]) -> Any:
    """Return what `use` makes of the module in a Python file, which runs.

    A ConfigError says how the file or its use fails.
    """
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: no Python file; expected FILE.py[:ARGUMENTS]")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return use(module)
    except SparsecapError:
        raise
    except _FAULTS as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error


def read_config(source: str, changes: Sequence[str] = ()) -> ConfigDict:
    """Return the config of a command line, locked.

    Args:
        source: `FILE.py` or `FILE.py:ARGUMENTS`.
        changes: `SECTION.FIELD=VALUE`, or `FIELD=VALUE` outside the sections. Names of models,
            pruners, tokenizers and objectives come first: another name gives the section that
            one's defaults.

    Raises:
        ConfigError: the file fails, or a change names an unknown field, a value that does not fit
            it, or `train.epochs` where `train.steps` counts.
    """
    config = load_config(*source.split(":", 1))
    values = _by_path(changes)
    for section in NAMED:
        name = values.pop(f"{section}.name", [config[section].name])[-1]
        if name != config[section].name:
            with config.unlocked():
                config[section] = _chosen(section, name, source)
    _update(config, values)
    if "train.epochs" in values and config.train.steps:
        raise ConfigError(
            f"config.train.epochs has no effect where config.train.steps is {config.train.steps}; "
            "expected --config.train.steps=0 with it"
        )
    return config


def change_data(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """Return the config of a trained run with other data.

    Args:
        config: the run's.
        changes: `data.FIELD=VALUE`.

    Raises:
        ConfigError: a change names another section, an unknown field or the model's feature size,
            or a value that does not fit its field; the folder `data.dir` does not exist.
    """
    values, config = _by_path(changes), config.copy_and_resolve_references()
    for path in values:
        if not path.startswith("data.") or path == "data.feature_size":
            raise ConfigError(
                f"config.{path}: a trained model keeps it; expected config.data.FIELD=VALUE"
            )
    _update(config, values)
    if "data.dir" in values and not pathlib.Path(config.data.dir).is_dir():
        raise ConfigError(absent(config.data.dir, "the folder of config.data.dir (--data_dir)"))
    return config


def _by_path(changes: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts of each field; modules that they name are trusted."""
    values: dict[str, list[str]] = {}
    for change in changes:
        path, equals, text = change.partition("=")
        values.setdefault(path, []).append(text if equals else _ALONE)
    names = (values.get(path, [""])[-1].partition(":") for path in _REGISTERED)
    trust(module for module, colon, _ in names if colon)
    return values


def _update(config: ConfigDict, values: Mapping[str, Sequence[str]]) -> None:
    """Set fields to the values that flags spell, and check the config."""
    for path, texts in values.items():
        section, _, key = path.rpartition(".")
        chosen = config[section].name if section in NAMED else None
        field = section_fields(section, chosen).get(key) if section in ("", *SECTIONS) else None
        if texts[-1] == _ALONE and field and field.hint is not bool:
            raise ConfigError(f"config.{path}: no value; expected {expected(field)}")
        configs.update(config, section, {key: _value(texts, field) if field else texts[-1]})
    configs.validate(config)


def describe(config: ConfigDict, changes: Sequence[str] = ()) -> list[str]:
    """List name, value and source of each field of a config that `read_config` made."""
    flags = {change.partition("=")[0] for change in changes}
    defaults = configs.default_config(*(config[section].name for section in NAMED))
    for section in NAMED:
        defaults[section].name = configs.default_config()[section].name
    lines = []
    for section in ("", *SECTIONS):
        place, plain = (config[section], defaults[section]) if section else (config, defaults)
        for key, value in place.items():
            path = f"{section}.{key}" if section else key
            source = "default" if value == plain[key] else "config file"
            if path not in SECTIONS:
                lines.append(f"config.{path} = {value!r}  # {'flag' if path in flags else source}")
    return lines


def trust(modules: Iterable[str]) -> None:
    """Import modules that the command line names; they may lie in the working directory."""
    for module in modules:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        use_plugin(module)


def _chosen(section: str, name: str, source: str) -> ConfigDict:
    """Defaults of a choice; of a pruner, the recipe's values where it has some."""
    path, _, arg = source.partition(":")
    if section == "pruner" and name in PRUNERS:
        try:
            words = [word for word in configs.parse_arg(arg)[0] if word not in PRUNERS]
            section_of_recipe = load_config(path, ",".join([*words, name])).pruner
        except ConfigError:
            section_of_recipe = {}
        if section_of_recipe.get("name") == name:
            return section_of_recipe
    return make_section(section, name)


def _value(texts: Sequence[str], field: Field) -> Any:
    """Return the value that one or several flags spell, still to be checked."""
    text, hint = texts[-1], field.hint
    if type(None) in typing.get_args(hint):
        if text.lower() in ("none", "null"):
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        of_text = typing.get_args(hint)[0] is str
        items = [t if of_text and t[:1] not in ("(", "[") else literal(t) for t in texts]
        parts = (item if isinstance(item, list | tuple) else (item,) for item in items)
        return tuple(itertools.chain.from_iterable(parts))
    if hint is bool:
        return _BOOLS.get(text.lower(), text)
    if hint is str or (typing.get_origin(hint) is Literal and isinstance(field.default, str)):
        return text
    return literal(text)
