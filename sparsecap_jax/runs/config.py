"""The configuration of a run: its sections, its checks and its JSON form.

A config is a locked `ml_collections.ConfigDict` of sections. Each section is declared once, as the
dataclass of the room that uses it: types, defaults, ranges and rules come from there
(`sparsecap_jax.settings`). docs/config.md lists all fields.
"""

import ast
import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from sparsecap_jax.data.config import DataConfig
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.config import EvalConfig
from sparsecap_jax.models import MODELS, make_model, model_fields
from sparsecap_jax.pruning import PRUNERS, make_pruner
from sparsecap_jax.scst.config import ScstConfig
from sparsecap_jax.settings import Field, Range, build, checked, defaults_of, fields_of, nearest
from sparsecap_jax.tokenizers import TOKENIZERS
from sparsecap_jax.training.config import TrainConfig, scheduled_sampling
from sparsecap_jax.training.objectives import OBJECTIVES, Task
from sparsecap_jax.training.optimizers import OptimizerConfig
from sparsecap_jax.training.sharding import MeshConfig

FORMAT_VERSION: Literal[1] = 1
# Sections whose fields depend on their `name`.
CHOICES = {"model": MODELS, "pruner": PRUNERS, "tokenizer": TOKENIZERS, "objective": OBJECTIVES}
NAMED: tuple[str, ...] = tuple(CHOICES)
SECTIONS = (*NAMED, "data", "optimizer", "scst", "train", "mesh", "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Fields outside the sections of a config.

    Attributes:
        format_version: format of config.json.
        seed: of initial weights, masks, dropout, samples and the order of the data.
        max_seq_length: captions are cut to so many tokens, BOS and EOS counted; decoding emits up
            to as many.
    """

    format_version: Literal[1] = FORMAT_VERSION
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    max_seq_length: Annotated[int, Range(3, 1000)] = 18


_PLAIN = {
    "": RunConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "scst": ScstConfig,
    "train": TrainConfig,
    "mesh": MeshConfig,
    "eval": EvalConfig,
}
# Fields of a choice that do not stand in its section.
FROM_ELSEWHERE: tuple[str, ...] = ("feature_size", "max_seq_length", "pad_id")
_GIVEN = {
    "model": FROM_ELSEWHERE,
    "pruner": ("name", "total_steps", "steps_per_epoch"),
    "objective": ("task",),
}


def _owner(section: str, name: Any) -> Any:
    """Return the dataclass that declares a section; `name` is the choice where there is one."""
    if section in CHOICES:
        choice = CHOICES[section][name]
        return choice.config if section == "tokenizer" else choice
    if section not in _PLAIN:
        raise ConfigError(f"{section}: unknown section; {nearest(section, SECTIONS)}")
    return _PLAIN[section]


def section_fields(section: str, name: Any = None) -> dict[str, Field]:
    """Return the fields of a section ("" for those outside the sections), its `name` apart.

    `name` is the chosen model, pruner, tokenizer or objective.

    Raises:
        ConfigError: there is no such section, or no such choice.
    """
    fields = fields_of(_owner(section, name), *_GIVEN.get(section, ()))
    if section == "model":
        size = fields["vocab_size"]
        meaning = f"{size.meaning.rstrip('.')}; 0: the tokenizer's size."
        changes: dict[str, Any] = {"default": 0, "range": Range(0), "meaning": meaning}
        fields["vocab_size"] = dataclasses.replace(size, **changes)
    return fields


def default_config(
    model: str = "up_down",
    pruner: str = "none",
    tokenizer: str = "word",
    objective: str = "cross_entropy",
) -> ConfigDict:
    """Return a locked config of defaults, with the fields of the parts that are named.

    Raises:
        ConfigError: an unknown name.
    """
    names = dict(zip(NAMED, (model, pruner, tokenizer, objective), strict=True))
    sections = {section: make_section(section, names.get(section)) for section in SECTIONS}
    return ConfigDict({**defaults_of(RunConfig), **sections}).lock()


def make_section(section: str, choice: str | None = None, /, **fields: Any) -> ConfigDict:
    """Return a section of a config, `fields` set and the others at their defaults.

    `choice` is the name of the model, pruner, tokenizer or objective.

    Raises:
        ConfigError: an unknown name or field, or a value of the wrong type or out of range.
    """
    with _within("config."):
        known = section_fields(section, choice)
        values = {key: field.default for key, field in known.items()}
        values |= {key: checked(value, known, key, section) for key, value in fields.items()}
    return ConfigDict({"name": choice, **values} if section in NAMED else values)


model_section = functools.partial(make_section, "model")
pruner_section = functools.partial(make_section, "pruner")
tokenizer_section = functools.partial(make_section, "tokenizer")
optimizer_section = functools.partial(make_section, "optimizer")
objective_section = functools.partial(make_section, "objective")


def model_config(config: ConfigDict, vocab_size: int) -> dict[str, Any]:
    """Return the argument of `models.make_model`, with the fields that other sections give.

    `vocab_size` is the tokenizer's, used where `config.model.vocab_size` is 0.
    """
    shared = {"feature_size": config.data.feature_size, "max_seq_length": config.max_seq_length}
    known = model_fields(config.model.name)
    section = {**config.model, **{k: v for k, v in shared.items() if k in known}}
    return {**section, "vocab_size": section["vocab_size"] or vocab_size}


def validate(config: ConfigDict) -> dict[str, Any]:
    """Build every section of a config, and check the rules between them.

    Returns:
        The sections by name in the types of their owners, with the fields outside of them as
        `RunConfig` under "". `model` and `pruner` are missing: they also need the size of the
        vocabulary and the length of training.

    Raises:
        ConfigError: the first fault found: an unknown key, a missing value, one of the wrong type
            or out of range, or values that contradict each other.
    """
    plain, built = config.to_dict(), {}
    with _within("config."):
        sections = {"": _top(plain), **{key: plain.get(key) for key in SECTIONS}}
        for key, section in sections.items():
            if not isinstance(section, dict):
                raise ConfigError(f"{key} is {section!r}; expected a section")
        for key in (*_PLAIN, "tokenizer"):
            owner = _owner(key, sections[key].pop("name", None) if key in NAMED else None)
            built[key] = build(owner, sections[key], key or "config")
        known = section_fields("model", sections["model"].pop("name", None))
        for key, value in sections["model"].items():
            checked(value, known, key, "model")
        model = make_model(model_config(config, vocab_size=1))
        pruner = make_pruner(sections["pruner"], total_steps=1, steps_per_epoch=1)
        if built["train"].packed_optimizer and not pruner.fixed_masks:
            raise ConfigError(
                f"train.packed_optimizer is True, but pruner {pruner.name!r} has no masks that "
                "stay the same in training; expected mask_freeze, or one that prunes before it"
            )
        owner = _owner("objective", sections["objective"].pop("name", None))
        built["objective"] = build(owner, sections["objective"], "objective", task=Task(model))
    scheduled_sampling(built["train"], model)
    return built


def from_dict(values: Any, source: str) -> ConfigDict:
    """Rebuild and check a config that was saved as JSON; `source` names it in messages.

    Raises:
        ConfigError: not a config of this format, or `validate` finds fault.
    """
    version = values.get("format_version") if isinstance(values, Mapping) else None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{source}: format_version is {version!r}; this release reads {FORMAT_VERSION}"
        )
    try:
        # Configs of 0.1.0 and before have no section `objective`.
        sections = {"objective": {"name": "cross_entropy"}, **values}
        names = [sections[section]["name"] for section in NAMED]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{source}: a section of {', '.join(NAMED)} has no name") from error
    with _within(f"{source}: config."):
        for section, name in zip(NAMED, names, strict=True):
            section_fields(section, name)
    with _within(f"{source}: "):
        config = default_config(*names)
        update(config, "", _top(values))
        for section in {*SECTIONS} & {*values}:
            if not isinstance(values[section], Mapping):
                raise ConfigError(f"config.{section} is {values[section]!r}; expected a section")
            update(config, section, values[section])
        validate(config)
    return config


def update(config: ConfigDict, section: str, values: Mapping[str, Any]) -> None:
    """Set fields of a section in place, each value converted to its field's type.

    The section is "" for the fields outside the sections. The `name` of a choice stays as it is.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type or out of range.
    """
    with _within("config."), config.ignore_type():
        known = section_fields(section, config[section].name if section in NAMED else None)
        for key, value in values.items():
            if key != "name" or section not in NAMED:
                place = config[section] if section else config
                place[key] = checked(value, known, key, section or "config")


def parse_arg(arg: str) -> tuple[list[str], dict[str, Any]]:
    """Split the argument of a config file into its words and its `key=value` pairs.

    `supermask,sparsity=0.975` is `(["supermask"], {"sparsity": 0.975})`, see `literal`. A part
    without a name is a ConfigError.
    """
    words, values = [], {}
    for part in arg.split(",") if arg else []:
        key, equals, text = part.partition("=")
        if not key:
            raise ConfigError(
                f"config argument {arg!r}: expected words and key=value, found {part!r}"
            )
        if equals:
            values[key] = literal(text)
        else:
            words.append(key)
    return words, values


def literal(text: str) -> Any:
    """Return the value that a text spells in JSON or Python, else the text itself."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return read(text)
    return text


def to_json(config: ConfigDict) -> str:
    """Return the config as JSON, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def changed_fields(old: ConfigDict, new: ConfigDict) -> tuple[list[str], list[str]]:
    """Compare the config that a run was begun with to the one it shall continue with.

    Returns:
        Two lists of texts such as "data.dir was 'a', is 'b'": changes that a run may continue
        with (`settings.MAY_CHANGE`), and others.
    """
    allowed: list[str] = []
    refused: list[str] = []
    before, after = _flat(old), _flat(new)
    for section, key in sorted({*before, *after}):
        a, b = before.get((section, key)), after.get((section, key))
        if a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b)):
            continue
        fields = section_fields(section, new[section].name if section in NAMED else None)
        may_change = key in fields and fields[key].may_change
        name = f"{section}.{key}" if section else key
        (allowed if may_change else refused).append(f"{name} was {a!r}, is {b!r}")
    return allowed, refused


def _flat(config: ConfigDict) -> dict[tuple[str, str], Any]:
    """Values by section and key, with the width of the noam schedule worked out."""
    flat = {("", key): value for key, value in _top(config).items()}
    for section in SECTIONS:
        flat |= {(section, key): value for key, value in config[section].items()}
    width = config.optimizer.noam_size or config.model.get("d_model", 512)
    flat["optimizer", "noam_size"] = width if config.optimizer.schedule == "noam" else None
    return flat


def _top(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields outside of the sections; all of them are known."""
    top, known = {key: config[key] for key in config if key not in SECTIONS}, section_fields("")
    for key in top:
        if key not in known:
            raise ConfigError(f"config.{key}: unknown key; {nearest(key, [*SECTIONS, *known])}")
    return top


@contextlib.contextmanager
def _within(prefix: str) -> Iterator[None]:
    """Put `prefix` before the messages of errors that lack it."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(prefix) else prefix + text) from error
