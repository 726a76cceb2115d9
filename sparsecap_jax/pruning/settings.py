"""From a config section to a frozen dataclass, with one clear error for each mistake."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from sparsecap_jax.errors import ConfigError


def nearest(name: Any, valid: Iterable[str]) -> str:
    """Say which of `valid` comes closest to `name` and what else there is.

    Args:
        name: the unknown name.
        valid: the names that exist.

    Returns:
        A clause for an error message, such as `did you mean 'sparsity'? (valid: exclude, ...)`.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}(valid: {', '.join(names)})"


def check_range(
    where: str, value: float, low: float, high: float, *, open_high: bool = False
) -> None:
    """Raise unless `low <= value <= high` (`< high` when `open_high`).

    Args:
        where: the field's name, as the message shows it.
        value: what was found.
        low: least value allowed.
        high: greatest value allowed, or the least one too great.
        open_high: whether `high` itself is out of range.

    Raises:
        ConfigError: the value is out of range.
    """
    inside = low <= value and (value < high if open_high else value <= high)
    if not inside:
        upper = f"below {high}" if open_high else f"at most {high}"
        raise ConfigError(f"{where} is {value}; expected at least {low} and {upper}")


def settable_fields(factory: Any, *given: str) -> dict[str, Any]:
    """Fields that a config section may set, with their defaults.

    Args:
        factory: a dataclass, or a `functools.partial` of it whose keywords are settled.
        *given: further fields that are not the section's to set.

    Returns:
        Defaults by field; `dataclasses.MISSING` where a field has none.
    """
    settled = {*getattr(factory, "keywords", {}), *given}
    fields = dataclasses.fields(getattr(factory, "func", factory))
    return {field.name: field.default for field in fields if field.name not in settled}


def from_mapping(factory: Any, section: Any, where: str, **given: Any) -> Any:
    """Build a dataclass from a config section.

    Args:
        factory: the dataclass, or a `functools.partial` of it whose keywords are settled.
        section: a mapping or ConfigDict from field names to values.
        where: name of the section, for messages.
        **given: fields that the caller sets and the section must not.

    Returns:
        The instance, each value converted to its field's type (ints to floats, lists to tuples,
        one string to a tuple of one).

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(getattr(factory, "func", factory))
    valid = settable_fields(factory, *given)
    values = {}
    for key, value in section.items():
        if key not in valid:
            raise ConfigError(f"{where}.{key}: unknown key; {nearest(key, valid)}")
        values[key] = coerce(value, hints[key], f"{where}.{key}")
    return factory(**values, **given)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Convert a config value to a field's type.

    Args:
        value: what the config holds.
        hint: the annotation: bool, int, float, str, `tuple[str, ...]`, a Literal of strings, or
            one of these `| None`.
        where: the field's name, for messages.

    Returns:
        The converted value.

    Raises:
        ConfigError: the value does not fit.
    """
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        raise ConfigError(f"{where} is {value!r}; {nearest(value, choices)}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number and math.isfinite(value):
        return float(value)
    if hint is int and number and isinstance(value, int):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    if typing.get_origin(hint) is tuple:
        items = (value,) if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(items)
    expected = getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)
    raise ConfigError(f"{where} is {value!r}; expected {expected}")
