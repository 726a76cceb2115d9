"""Flags of the service's limits, generated from `Limits`."""

from typing import Any

from absl import flags

from sparsecap_jax.service.limits import Limits
from sparsecap_jax.settings import fields_of

_LIMITS = fields_of(Limits)


def define() -> None:
    """Define a flag for every field of `Limits`."""
    for name, field in _LIMITS.items():
        kind = flags.DEFINE_float if field.hint is float else flags.DEFINE_integer
        text = f"{field.meaning[0].upper()}{field.meaning[1:]}"
        kind(name, field.default, text)


def values() -> dict[str, Any]:
    """Return the fields of `Limits` as the command line sets them."""
    return {name: flags.FLAGS[name].value for name in _LIMITS}
