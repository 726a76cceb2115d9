"""The OpenAPI description of the service, generated from the options of a search and the limits."""

import typing
from typing import Any, Literal

from sparsecap_jax.captioning.search import USED_BY
from sparsecap_jax.data.records import PICTURE_FORMATS
from sparsecap_jax.service.inputs import EXTRAS, OPTIONS
from sparsecap_jax.service.limits import REASONS, Limits
from sparsecap_jax.settings import Field
from sparsecap_jax.version import __version__

CAPTION, HEALTH, METRICS, DESCRIPTION = "/v1/caption", "/healthz", "/metrics", "/openapi.json"
_MEANINGS = {
    "attention": "whether the answer has the weights of the regions for each word, and boxes",
    "candidates": "whether the answer has all captions that the search found",
}


def document(limits: Limits, feature_size: int, needs_boxes: bool, takes_photos: bool) -> dict:
    """Return the description of a service, OpenAPI 3.1.

    Args:
        limits: its limits.
        feature_size: width D of the features.
        needs_boxes: whether features need boxes.
        takes_photos: whether the captioner knows how features are made of photos.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sparsecap",
            "version": __version__,
            "description": "Captions of photos, or of region features.",
        },
        "paths": {
            CAPTION: {"post": _caption(limits, takes_photos)},
            HEALTH: {
                "get": {
                    "summary": "Whether the service can caption.",
                    "responses": {"200": _json("It can.", "Health"), **_refusals("fault")},
                }
            },
            METRICS: {
                "get": {
                    "summary": "Metrics of Prometheus.",
                    "responses": {"200": _text("Metrics.")},
                }
            },
            DESCRIPTION: {
                "get": {
                    "summary": "This description.",
                    "responses": {
                        "200": {
                            "description": "OpenAPI 3.1.",
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        }
                    },
                }
            },
        },
        "components": {"schemas": _schemas(limits, feature_size, needs_boxes)},
    }


def _caption(limits: Limits, takes_photos: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ref("Features")}}
    formats = ", ".join(PICTURE_FORMATS)
    if takes_photos:
        photo = {"schema": {"type": "string", "format": "binary"}}
        content |= dict.fromkeys(("image/*", "application/octet-stream"), photo)
    reasons = set(REASONS) - {"not_found", "wrong_method", "fault"}
    return {
        "summary": "Caption a photo, or features.",
        "description": (
            f"The body is the content of a file ({formats}), of at most {limits.max_bytes:,} bytes "
            f"and {limits.max_pixels:,} pixels, or an object with features. By default photos are "
            "captioned by the search that comes with the model, features by five beams."
        ),
        "parameters": [_parameter(name, field) for name, field in {**OPTIONS, **EXTRAS}.items()],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _json("The caption.", "Caption"), **_refusals(*reasons)},
    }


def _parameter(name: str, field: Field) -> dict[str, Any]:
    text = _MEANINGS.get(name, field.meaning.partition("; may differ from image")[0])
    if name in USED_BY:
        text = f"{text} (with {', '.join(USED_BY[name])})"
    return {"name": name, "in": "query", "description": text, "schema": _schema(field)}


def _schema(field: Field) -> dict[str, Any]:
    if typing.get_origin(field.hint) is Literal:
        return {"type": "string", "enum": [*typing.get_args(field.hint)]}
    if isinstance(field.default, tuple):
        return {"type": "array", "items": {"type": "string"}}
    kinds = {bool: "boolean", int: "integer", float: "number"}
    schema: dict[str, Any] = {"type": kinds.get(field.hint, "string")}
    if field.range:
        low = "exclusiveMinimum" if field.range.open_low else "minimum"
        schema |= {low: field.range.low} if field.range.low > -float("inf") else {}
        schema |= {"maximum": field.range.high} if field.range.high < float("inf") else {}
    return schema


def _schemas(limits: Limits, feature_size: int, needs_boxes: bool) -> dict[str, Any]:
    number, text = {"type": "number"}, {"type": "string"}
    or_none = {"type": ["number", "null"]}

    def rows(width: int) -> dict[str, Any]:
        row = _array(number, minItems=width, maxItems=width)
        return _array(row, minItems=1, maxItems=limits.max_regions)

    features = rows(feature_size) | {"description": "a vector for each region"}
    boxes = rows(4) | {"description": "x1, y1, x2, y2 divided by image width and height"}
    fc = _array(number, minItems=feature_size, maxItems=feature_size)
    scored = {"caption": text, "log_prob": or_none, "score": or_none}
    answer = {
        **scored,
        "words": _array(text) | {"description": "of the caption"},
        "batch": {"type": "integer", "description": "images that were captioned together"},
        "seconds": number | {"description": "from the whole body to the caption"},
        "candidates": _array(_object(scored, [*scored])),
        "attention": _array(_array(number)) | {"description": "a weight of each region, by word"},
        "boxes": {"anyOf": [_array(_array(number)), {"type": "null"}]},
    }
    always = [*scored, "words", "batch", "seconds"]
    return {
        "Features": _object(
            {
                "features": features,
                "boxes": boxes,
                "fc": fc | {"description": "of the whole image"},
            },
            ["features", "boxes"] if needs_boxes else ["features"],
        ),
        "Caption": _object(answer, always),
        "Refusal": _object(
            {"reason": text | {"enum": [*REASONS]}, "message": text}, ["reason", "message"]
        ),
        "Health": _object({"status": text | {"enum": ["ok"]}}, ["status"]),
    }


def _array(items: dict[str, Any], **bounds: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **bounds}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _refusals(*reasons: str) -> dict[str, Any]:
    """Return the answers of reasons, by status."""
    by_status: dict[str, list[str]] = {}
    for reason in sorted(reasons):
        status, meaning = REASONS[reason]
        by_status.setdefault(str(status), []).append(f"`{reason}`: {meaning}")
    return {
        status: _json("; ".join(meanings) + ".", "Refusal")
        for status, meanings in sorted(by_status.items())
    }


def _json(description: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": _ref(schema)}},
    }


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
