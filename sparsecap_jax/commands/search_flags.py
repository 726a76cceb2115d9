"""Flags and documentation of a search, generated from `SearchOptions`; free of JAX.

    python -m sparsecap_jax.commands.search_flags

prints the table of docs/search_options.md.
"""

import typing
from collections.abc import Callable
from typing import Any, Literal

from absl import flags

from sparsecap_jax.captioning.search import BY_IMAGE, USED_BY, SearchOptions
from sparsecap_jax.data.records import by_id
from sparsecap_jax.errors import DataError
from sparsecap_jax.files import LIST_BYTES, read_json
from sparsecap_jax.settings import Field, fields_of

OPTIONS = fields_of(SearchOptions)


def define() -> None:
    """Define a flag for every field of `SearchOptions`; those not given keep its default."""
    by_type: dict[Any, Callable[..., Any]] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
    }
    for name, field in OPTIONS.items():
        text = f"{field.meaning[0].upper()}{field.meaning[1:]}"
        if typing.get_origin(field.hint) is Literal:
            flags.DEFINE_enum(name, None, typing.get_args(field.hint), text)
        elif name in BY_IMAGE:
            value = "[words]" if name == "required" else "text"
            flags.DEFINE_string(name, None, f"{text} Or FILE.json with {{image id: {value}}}.")
        elif isinstance(field.default, tuple):
            flags.DEFINE_list(name, None, text)
        else:
            by_type.get(field.hint, flags.DEFINE_string)(name, None, text)


def given_options() -> dict[str, Any]:
    """Return the fields of `SearchOptions` that the command line sets.

    Raises:
        DataError: a file of `--prefix` or `--required` is missing or has another content.
    """
    values = {name: flags.FLAGS[name].value for name in OPTIONS}
    options = {name: value for name, value in values.items() if value is not None}
    for name, value in options.items():
        if name in BY_IMAGE and value.endswith(".json"):
            content, expected = read_json(value, max_bytes=LIST_BYTES), "text"
            texts = [*content.values()] if isinstance(content, dict) else [None]
            if name == "required":
                expected = "a list of words"
                texts = [text for one in texts for text in (one if type(one) is list else [None])]
            if not all(isinstance(one, str) for one in texts):
                raise DataError(f"{value}: expected an object with {expected} for each image id")
            options[name] = by_id(content.items(), value)
        elif name == "required":
            options[name] = tuple(phrase.strip() for phrase in value.split(","))
        elif isinstance(value, list):
            options[name] = tuple(value)
    return options


def options_table() -> str:
    """Return a Markdown table of all options: values, defaults, searches and meanings."""
    lines = ["| option and flag | values | default | searches | meaning |", "|---|---|---|---|---|"]
    for name, field in OPTIONS.items():
        searches = ", ".join(f"`{search}`" for search in USED_BY.get(name, ())) or "all"
        default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = f"`{default}`" if default != "" else "none"
        meaning = field.meaning.replace("|", r"\|")
        lines.append(f"| `{name}` | {_values(field)} | {shown} | {searches} | {meaning} |")
    return "\n".join(lines) + "\n"


def _values(field: Field) -> str:
    if typing.get_origin(field.hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(field.hint))
    names = {bool: "true or false", int: "integer", float: "number", str: "text"}
    kind = "words" if isinstance(field.default, tuple) else names.get(field.hint, "text")
    return f"{kind}, {field.range}" if field.range else kind


if __name__ == "__main__":
    print(options_table(), end="")
