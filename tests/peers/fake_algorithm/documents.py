"""Documents of a small algorithm with one output of every kind: its describe, an answer, stateful results.

Plain values, made anew at each call, so that a test may change what it got.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

from tests.peers.fake_algorithm.script import Answer, AnswerImage, AnswerText, Behaviour, JsonObject, Pattern

OUTPUTS: Final = ("detections", "mask", "chips", "count", "summary", "p99")
GEOJSON: Final = "application/geo+json"
MASK_SIZE: Final = 3_000  # bytes
CHIPS: Final = 12  # enough for their names to sort differently as text and as numbers


def minimal_describe(
    *, asynchronous: bool = False, pesto: bool = False, outputs: Sequence[str] = OUTPUTS, whole: str | None = None
) -> JsonObject:
    """A describe document without `_links`, which the server adds.

    `outputs` are chosen from `OUTPUTS`. `whole` is the media type of an answer without names (a bare image, say), as
    only the Geo Process API's own dialect has it.
    """
    return {
        "name": "targets",
        "title": "Bright targets",
        "family": "detection",
        "version": "1.0.0",
        "description": "Finds bright targets.",
        "organization": "Example Organisation",
        "email": "nobody@example.org",
        "keywords": ["maritime"],
        "resources": {"cpu": 1, "gpu": 0, "ram": 1_073_741_824},
        "asynchronous": asynchronous,
        "input": _input_schema(pesto=pesto),
        "output": _output(outputs, whole, pesto=pesto),
    }


def _input_schema(*, pesto: bool) -> JsonObject:
    image = {"$ref": "#/definitions/Image"} if pesto else {"type": "string", "format": "base64"}
    properties = {"image": image, "threshold": {"type": "number", "minimum": 0, "maximum": 255}}
    return _schema("Input", properties) | {"required": ["image"]}


def _output(outputs: Sequence[str], whole: str | None, *, pesto: bool) -> JsonObject:
    if whole is not None:
        return {"description": "One answer without names", "content": {whole: {}}}
    kinds: JsonObject = {
        "detections": {"type": "object", "properties": {"features": {"type": "array"}}, "required": ["features"]},
        "mask": {"$ref": "#/definitions/Image"},
        "chips": {"$ref": "#/definitions/Images"},
        "count": {"type": "integer"},
        "summary": {"type": "string"},
        "p99": {"type": "number"},
    }
    schema = _schema("Output", {name: kinds[name] for name in outputs})
    return schema if pesto else {"description": "Outputs by name", "content": {"application/json": schema}}


def _schema(title: str, properties: JsonObject) -> JsonObject:
    return {
        "$schema": "http://json-schema.org/draft-06/schema#",
        "title": title,
        "description": title,
        "type": "object",
        "definitions": {
            "Image": {"type": "string", "description": "A URI, or the bytes in base64"},
            "Images": {"type": "array", "items": {"$ref": "#/definitions/Image"}},
        },
        "properties": properties,
    }


def sample_detections() -> JsonObject:
    """A FeatureCollection in pixels: one square of 10 by 10, upper left at (10, 20)."""
    ring = [[10.0, 20.0], [10.0, 30.0], [20.0, 30.0], [20.0, 20.0], [10.0, 20.0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"category": "vessel", "confidence": 0.9},
    }
    return {"type": "FeatureCollection", "features": [feature]}


def sample_answer() -> JsonObject:
    """The outputs of a stateless call, images in base64."""
    return {
        "detections": sample_detections(),
        "mask": _base64(MASK_SIZE),
        "chips": [_base64(_chip_size(index)) for index in range(CHIPS)],
        "count": 1,
        "summary": "one vessel",
        "p99": 0.99,
    }


def sample_outputs() -> dict[str, Behaviour | Sequence[Behaviour]]:
    """The same outputs as results of a stateful job, each with the media type that PESTO gives it."""
    return {
        "detections": Answer(sample_detections()),
        "mask": AnswerImage(MASK_SIZE),
        "chips": [AnswerImage(_chip_size(index)) for index in range(CHIPS)],
        "count": Answer(1),
        "summary": AnswerText("one vessel"),
        "p99": AnswerText("0.99"),
    }


def _chip_size(index: int) -> int:
    return 100 + index  # all different, so that a wrong order shows


def _base64(size: int) -> str:
    return base64.b64encode(b"".join(Pattern(size).blocks())).decode()
