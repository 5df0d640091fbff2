"""Detections to tags: one message body a feature (wire contract, 3.4), and what a tag says of the job's inputs.

Pure: no network, no clock. Everything is checked and measured before the first tag is handed out, so that there are
all of them or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, overload

from cador_trio.errors import ResultRefused
from cador_trio.job import Answer, Json, JsonObject, Value
from cador_trio.results.geojson import features_in, geometry_of, is_finite_number, kind_of, quoted
from cador_trio.results.measures import Measure, measure

FAMILY: Final = "detection"
DEFAULT_CONFIDENCE: Final = 1.0


@dataclass(frozen=True, slots=True)
class TagContext:
    """What all tags of one job have in common.

    Attributes:
        inputs: one entry an input image, as `input_references` makes them.
        outputs: the storage references of the job's images.
        task_id: as messages hold it.
        tagger: who detected: `organization.name.version`.
        timestamp: the request's `inputTimestamp`, else when the job was accepted, in epoch milliseconds.
        now: when the tags are sent, in epoch milliseconds.
        referenced: coordinates are degrees, so square metres can be told.
    """

    inputs: Sequence[JsonObject]
    outputs: Sequence[JsonObject]
    task_id: Json
    tagger: str
    timestamp: Json
    now: int
    referenced: bool


class _Detection(NamedTuple):
    """A feature that becomes a tag: its place in `features`, its output's name (None for a whole answer)."""

    feature: JsonObject
    linked_id: int
    output: str | None
    measure: Measure


class TagSet(Sequence[JsonObject]):
    """The tags of one job, in order. Each is made when it is asked for, and equal every time; they share the lists
    `inputs` and `outputs`, and geometries with the answer: read them only.

    Attributes:
        skipped: features without a geometry, for which there is no tag.
    """

    def __init__(self, detections: Sequence[_Detection], context: TagContext, *, skipped: int = 0) -> None:
        self.skipped = skipped
        self._detections = detections
        self._context = context

    def __len__(self) -> int:
        return len(self._detections)

    @overload
    def __getitem__(self, index: int) -> JsonObject: ...

    @overload
    def __getitem__(self, index: slice) -> TagSet: ...

    def __getitem__(self, index: int | slice) -> JsonObject | TagSet:
        if isinstance(index, slice):
            return TagSet(self._detections[index], self._context)
        return _tag(self._detections[index], self._context)

    def __iter__(self) -> Iterator[JsonObject]:
        return (_tag(detection, self._context) for detection in self._detections)


def build_tags(answer: Answer, context: TagContext) -> TagSet:
    """One tag a feature, for every output that is a collection of features, or a single Feature.

    Features with a null or empty geometry get none. CPU work of some microseconds a feature, in small steps: large
    answers belong in a worker thread.

    Raises:
        ResultRefused: a confidence is not a finite number, or a geometry can't be measured. The message names it.
    """
    detections: list[_Detection] = []
    skipped = 0
    for name, output in answer.outputs.items():
        if not isinstance(output, Value):
            continue
        at = "" if answer.whole else f"{name}."
        features = _features(output.json, at)
        measures = measure(_checked(features), geodesic=context.referenced)
        for index, ((feature, _), measured) in enumerate(zip(features, measures, strict=True)):
            if measured is None:
                skipped += 1
            else:
                detections.append(_Detection(feature, index, None if answer.whole else name, measured))
    return TagSet(detections, context, skipped=skipped)


def _features(value: Json, at: str) -> list[tuple[JsonObject, str]]:
    match kind_of(value):
        case "collection":
            return list(features_in(value, at))
        case "feature":
            return [(value, at)]
        case _:
            return []


def _checked(features: list[tuple[JsonObject, str]]) -> list[tuple[JsonObject | None, str]]:
    """The features' geometries with their places."""
    geometries: list[tuple[JsonObject | None, str]] = []
    for feature, at in features:
        confidence = _properties(feature).get("confidence", DEFAULT_CONFIDENCE)
        if not is_finite_number(confidence):
            raise ResultRefused(f"{at}properties.confidence is {quoted(confidence)}, not a finite number")
        geometries.append((geometry_of(feature, at), f"{at}geometry."))
    return geometries


def _tag(detection: _Detection, context: TagContext) -> JsonObject:
    feature, linked_id, output, measured = detection
    properties = _properties(feature)
    tag = {
        "linkedId": linked_id,
        "family": FAMILY,
        "geometry": feature["geometry"],
        "value": properties.get("value"),
        "name": _name(properties),
        "timestamp": context.timestamp,
        "area": measured.area,
        "centroid": {"type": "Point", "coordinates": measured.centroid},
    }
    if measured.area_m2 is not None:
        tag["areaM2"] = measured.area_m2
    tag["bbox"] = measured.bbox
    tag["output"] = output
    return {
        "inputs": context.inputs,
        "outputs": context.outputs,
        "confidence": properties.get("confidence", DEFAULT_CONFIDENCE),
        "tag": tag,
        "timestamp": context.now,
        "tagger": context.tagger,
        "taskId": context.task_id,
    }


def _properties(feature: JsonObject) -> JsonObject:
    """A feature's properties; GeoJSON allows null, and nothing can be read from anything else."""
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _name(properties: JsonObject) -> Json:
    """`name`, else the Geo Process API's `category`: a text, or a list of them."""
    name = properties.get("name")
    if name is not None:
        return name
    category = properties.get("category")
    if not isinstance(category, list):
        return category
    return ",".join(item if isinstance(item, str) else json.dumps(item) for item in category)
