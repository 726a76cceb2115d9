"""Contents of requests: search options in the query, a photo or features in the body."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecap_jax.captioner import Captioner
from sparsecap_jax.captioning.search import SearchOptions
from sparsecap_jax.data.features import RegionFeatures, validated
from sparsecap_jax.errors import ConfigError, DataError
from sparsecap_jax.files import foreign_errors, unique_keys
from sparsecap_jax.photos.extractors import open_for
from sparsecap_jax.photos.images import TooManyPixels
from sparsecap_jax.service.limits import Limits, Refused
from sparsecap_jax.settings import Field, checked, fields_of, nearest

OPTIONS = fields_of(SearchOptions)


@dataclasses.dataclass(frozen=True)
class Extras:
    """Parts of an answer besides the caption.

    Attributes:
        attention: whether it has the weights of the regions for each word, and the regions' boxes.
        candidates: whether it has all captions that the search found.
    """

    attention: bool = False
    candidates: bool = False


EXTRAS = fields_of(Extras)
_KNOWN = {**OPTIONS, **EXTRAS}


def read_options(
    query: Sequence[tuple[str, str]],
    defaults: Mapping[str, Any],
    captioner: Captioner,
    limits: Limits,
) -> tuple[SearchOptions, Extras]:
    """Return the search that a query asks for, and what the answer is to hold besides.

    Args:
        query: names and values; values of options that take several words may be repeated.
        defaults: options that hold unless the query names a `search`.
        captioner: the captioner that is to search.
        limits: the limit of rows.

    Raises:
        Refused: `bad_option`.
    """
    try:
        values = _values(query)
        extras = Extras(**{name: values.pop(name) for name in EXTRAS if name in values})
        options = SearchOptions(**(values if "search" in values else {**defaults, **values}))
        rows = captioner.check_search(**vars(options))
    except ConfigError as error:
        raise Refused("bad_option", str(error)) from None
    if rows > limits.max_rows:
        what = "beams or samples, times the states of required words"
        message = f"the search keeps {rows} rows, {what}; expected at most {limits.max_rows} here"
        raise Refused("bad_option", message)
    return options, extras


def _values(query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in query:
        if name not in _KNOWN:
            raise ConfigError(f"option {name[:80]!r}: unknown; {nearest(name[:80], _KNOWN)}")
        if isinstance(_KNOWN[name].default, tuple):
            values[name] = (*values.get(name, ()), text)
        elif name in values:
            raise ConfigError(f"option {name}: found twice, expected once")
        else:
            values[name] = _value(text, name, _KNOWN[name])
    return values


def _value(text: str, name: str, field: Field) -> Any:
    value: Any = text
    if field.hint in (bool, int, float):
        with foreign_errors(f"option {name}: found {text[:80]!r}", ConfigError):
            value = json.loads(text)
    return checked(value, _KNOWN, name, "option")


def read_photo(body: bytes, captioner: Captioner, limits: Limits) -> RegionFeatures:
    """Return the regions of a photo, the content of a file.

    Raises:
        Refused: `bad_photo` or `too_many_pixels`.
    """
    try:
        photo = open_for(captioner.extractor, body, max_pixels=limits.max_pixels)
    except TooManyPixels as error:
        raise Refused("too_many_pixels", str(error)) from None
    except DataError as error:
        raise Refused("bad_photo", str(error)) from None
    return captioner.extractor([photo])[0]


def read_features(body: bytes, captioner: Captioner, limits: Limits) -> RegionFeatures:
    """Return the regions that an object of JSON holds: `features`, and perhaps `boxes` and `fc`.

    Raises:
        Refused: `bad_features` or `too_many_regions`.
    """
    names = ("features", "boxes", "fc")
    try:
        with foreign_errors("body: broken JSON"):
            content = json.loads(body, object_pairs_hook=unique_keys)
        if not isinstance(content, dict) or content.get("features") is None:
            kind = "an object without" if isinstance(content, dict) else type(content).__name__
            raise DataError(f"body: expected an object with 'features', found {kind}")
        for name in content:
            if name not in names:
                raise DataError(f"body: {name[:80]!r}: unknown; {nearest(name[:80], names)}")
        features, boxes, fc = (_array(content.get(name), name) for name in names)
        places = features.shape[:-1]
        if np.prod(places, dtype=np.float64) > limits.max_regions:
            shown = " x ".join(map(str, places))
            message = f"features: {shown} regions; expected at most {limits.max_regions}"
            raise Refused("too_many_regions", message)
        regions = validated(features, boxes, fc, captioner.feature_size, names)
        if captioner.needs_boxes and regions.boxes is None:
            raise DataError("boxes: found none, but the model needs them")
    except DataError as error:
        raise Refused("bad_features", str(error)) from None
    return regions


def _array(value: Any, name: str) -> Any:
    if value is None:
        return None
    problem = f"{name}: expected lists of numbers"
    with foreign_errors(problem):
        # Of text, an array of its own type would give every value the room of the longest.
        array = np.asarray(value, object)
        others = {type(number).__name__ for number in array.flat} - {"int", "float"}
        if others:
            raise DataError(f"{problem}, found {min(others)}")
        return array.astype(np.float64)
