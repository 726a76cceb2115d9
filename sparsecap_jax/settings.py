"""Typed settings: from sections of a config to frozen dataclasses, with one error for each mistake.

A section's owner declares its fields once, as a dataclass whose annotations carry their ranges:

    rate: Annotated[float, Range(0, 1, open_high=True)] = 0.5
    workers: Annotated[int, Range(0), MAY_CHANGE] = 0
    schedule: Literal["constant", "cosine"] = "cosine"

Checks, config sections, flags and docs/config.md are all derived from that declaration.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib.machinery
import importlib.util
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from sparsecap_jax.errors import ConfigError

Entry = TypeVar("Entry")
# Marks a field that may differ when a run continues.
MAY_CHANGE = "may change when a run continues"


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[float, Range(...)]`; of each item where there are several.

    Attributes:
        low: least value, or with `open_low` the greatest value too small.
        high: greatest value, or with `open_high` the least value too great.
        open_low: whether `low` itself is out of range.
        open_high: whether `high` itself is out of range.
    """

    low: float | int = -math.inf
    high: float | int = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float | int) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        lower = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        upper = f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
        bounds = [(self.low, lower), (self.high, upper)]
        return " and ".join(text for bound, text in bounds if math.isfinite(bound))


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a section, as its owner declares it.

    Attributes:
        hint: type of its values: bool, int, float, str, a Literal, a tuple of one of these, or one
            of these `| None`.
        default: `dataclasses.MISSING` where a value is required.
        range: bounds, where numbers have some.
        may_change: whether a run may continue with another value.
        meaning: its entry under `Attributes:` in the owner's docstring.
    """

    hint: Any
    default: Any
    range: Range | None
    may_change: bool
    meaning: str


def fields_of(owner: Any, *reserved: str) -> dict[str, Field]:
    """Return the fields that a config section may set, by name and in order.

    Args:
        owner: a dataclass, or a `functools.partial` of one whose keywords are settled.
        *reserved: further fields that do not belong to the section.
    """
    cls, settled = getattr(owner, "func", owner), {*getattr(owner, "keywords", {}), *reserved}
    return {name: field for name, field in _declared(cls) if name not in settled}


@functools.cache
def _declared(owner: type) -> tuple[tuple[str, Field], ...]:
    meanings, result = _meanings(owner), []
    hints = typing.get_type_hints(owner, include_extras=True)
    linen = ("parent", "name") if "parent" in hints else ()  # Flax adds them to every module
    for field in dataclasses.fields(owner):
        if field.name in linen or not field.init:
            continue
        hint: Any = hints[field.name]
        notes: Sequence[Any] = ()
        if typing.get_origin(hint) is Annotated:
            hint, *notes = typing.get_args(hint)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        bounds = next((note for note in notes if isinstance(note, Range)), None)
        meaning = meanings.get(field.name, "")
        result.append((field.name, Field(hint, default, bounds, MAY_CHANGE in notes, meaning)))
    return tuple(result)


def _meanings(owner: type) -> dict[str, str]:
    """Texts of `Attributes:` in the docstrings of a class and its ancestors, by field."""
    texts: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        section = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")[2]
        section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
        entries = re.findall(
            r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE
        )
        for names, text in entries:
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts


def defaults_of(owner: Any, *reserved: str) -> dict[str, Any]:
    """Return the defaults of `fields_of` by name; `dataclasses.MISSING` where there is none."""
    return {name: field.default for name, field in fields_of(owner, *reserved).items()}


def build(owner: Any, section: Any, where: str, **fixed: Any) -> Any:
    """Build a dataclass from a config section.

    Each value is converted to its field's type: ints to floats, lists to tuples, one string to a
    tuple of one.

    Args:
        owner: the dataclass, or a `functools.partial` of one whose keywords are settled.
        section: a mapping or ConfigDict from field names to values.
        where: name of the section, for messages.
        **fixed: fields that the caller sets and the section must not.

    Raises:
        ConfigError: an unknown key, a missing value, or one of the wrong type or out of range.
    """
    known = fields_of(owner, *fixed)
    values = {key: checked(value, known, key, where) for key, value in section.items()}
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise ConfigError(f"{where}.{name}: missing; expected {expected(field)}")
    return owner(**values, **fixed)


def checked(value: Any, known: Mapping[str, Field], key: Any, where: str) -> Any:
    """Return `value` in the type of the field `key`.

    Raises:
        ConfigError: there is no such field, or the value does not fit it.
    """
    if not isinstance(key, str) or key not in known:
        raise ConfigError(f"{where}.{key}: unknown key; {nearest(key, known)}")
    field, name = known[key], f"{where}.{key}"
    value = coerce(value, field.hint, name)
    numbers, bounds = value if isinstance(value, tuple) else (value,), field.range
    for number in numbers:
        if bounds is not None and number is not None and number not in bounds:
            raise ConfigError(f"{name} is {value}; expected {bounds}")
    return value


def expected(field: Field) -> str:
    """Describe the values of a field: type and range."""
    text = _type_name(field.hint)
    return f"{text}, {field.range}" if field.range else text


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Return a config value in a field's type `hint`, see `Field`; `where` names the field.

    Raises:
        ConfigError: the value does not fit.
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if isinstance(value, str | int) and value in choices:
            return value
        raise ConfigError(f"{where} is {value!r}; {nearest(value, choices)}")
    if typing.get_origin(hint) in (tuple, Sequence):
        items = (value,) if isinstance(value, str) else value
        if isinstance(items, list | tuple):
            with contextlib.suppress(ConfigError):
                return tuple(coerce(item, typing.get_args(hint)[0], where) for item in items)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number and abs(value) <= sys.float_info.max:
        return float(value)
    if hint is int and number and isinstance(value, int):
        return value
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where} is {value!r}; expected {_type_name(hint)}")


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (tuple, Sequence):
        return f"a list of {_type_name(typing.get_args(hint)[0])}"
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        names = [_type_name(h) for h in typing.get_args(hint) if h is not type(None)]
        return " or ".join([*names, "None"])
    return getattr(hint, "__name__", str(hint))


def nearest(name: Any, valid: Iterable[Any]) -> str:
    """Name the entry of `valid` that comes closest to `name`, and the others if they are few.

    The result is a clause for an error: `did you mean 'sparsity'? (valid: exclude, ...)`.
    """
    names = sorted(map(str, valid))
    close = difflib.get_close_matches(name, names, 1, 0.5) if isinstance(name, str) else []
    if close and len(names) > 10:  # too many to list
        return f"did you mean {close[0]!r}?"
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}(valid: {', '.join(names)})"


def check_range(where: str, value: float | int, bounds: Range) -> None:
    """Raise a ConfigError unless `value` lies within `bounds`; `where` names the field."""
    if value not in bounds:
        raise ConfigError(f"{where} is {value}; expected {bounds}")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries that a config selects by name: models, pruners, objectives and so on.

    Users add their own with `register`, or name one as `MODULE:NAME` once `use_plugin(MODULE)` has
    vouched for the module. A name that only stands in a file never imports anything.

    Args:
        field: the config field that holds the name, such as `pruner.name`.
        entries: the package's own.
        base: class that entries derive from; None: any callable.
    """

    def __init__(self, field: str, entries: Mapping[str, Entry], base: type | None = None):
        self.field = field
        self._entries = dict(entries)
        self._base = base

    def register(self, name: str, entry: Entry) -> Entry:
        """Add an entry; a ConfigError where the name is taken by another one."""
        if self._entries.get(name, entry) is not entry:
            raise ConfigError(f"{self.field}: {name!r} is registered already")
        self._entries[name] = self._checked(name, entry)
        return entry

    def __getitem__(self, name: Any) -> Entry:
        """Return an entry; a ConfigError where there is none of that name."""
        if isinstance(name, str) and name in self._entries:
            return self._entries[name]
        module, colon, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
        if colon and module in _plugins:
            entry = getattr(sys.modules[module], attribute, None)
            # What a plugin merely imported (`from subprocess import run`) is no part of it.
            origin = getattr(getattr(entry, "func", entry), "__module__", None) or ""
            if origin != module and not origin.startswith(f"{module}."):
                raise ConfigError(f"{self.field} is {name!r}; {module} defines no {attribute!r}")
            return self._checked(name, entry)
        if colon:
            raise ConfigError(
                f"{self.field} is {name!r}, which is not part of this package; where you trust "
                f"that module, add --plugin={module}, or sparsecap_jax.use_plugin({module!r})"
            )
        raise ConfigError(f"{self.field} is {name!r}; {nearest(name, self._entries)}")

    def _checked(self, name: Any, entry: Any) -> Entry:
        """Return `entry`, unless it is of the wrong kind."""
        owner, base = getattr(entry, "func", entry), self._base
        if base is None and callable(entry):
            return entry
        if base and isinstance(owner, type) and issubclass(owner, base):
            return entry
        kind = f"a subclass of {base.__name__}" if base else "a function"
        raise ConfigError(f"{self.field} is {name!r}, which is {owner!r}; expected {kind}")

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def optional_package(module: str, extra: str, purpose: str) -> importlib.machinery.ModuleSpec:
    """Return the place of an optional package, which is not imported yet.

    Raises:
        ConfigError: it is not installed; the message names `purpose` and the extra that brings it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None:
        install = f"pip install 'sparsecap_jax[{extra}]'"
        raise ConfigError(f"{purpose} needs {module}, which is not installed: {install}")
    return spec


_plugins: set[str] = set()


def use_plugin(module: str) -> None:
    """Import a module of the user's, whose entries configs may then name as `MODULE:NAME`.

    Raises:
        ConfigError: the module cannot be imported.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # the user's code may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"plugin {module!r}: cannot be imported: {reason}") from error
    _plugins.add(module)
