"""Pixel coordinates to longitude and latitude, for one output of an answer.

The formula and the copying of GeoJSON around it, nothing else: no network, no clock, no area. It may run in a worker
thread; it never holds the interpreter lock for long, and it changes nothing that it was given.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cador_trio.errors import ResultRefused
from cador_trio.job import Json, JsonObject, Referential
from cador_trio.results.geojson import (
    NESTING,
    POSITIONS_PER_STEP,
    Floats,
    Positions,
    as_list,
    features_in,
    geometry_of,
    kind_of,
    members_of,
    type_of,
)

_BOX_SIZES: Final = (4, 6)  # numbers of a `bbox` without and with heights (RFC 7946, 5)


def georeference(
    value: Json, referential: Referential, *, lat_step_down: bool = False, output: str | None = None
) -> Json:
    """Convert the GeoJSON at the top level of one output from pixels to degrees.

    Converted are a Feature, a FeatureCollection (its `type` may be missing), a bare geometry, and those elements of a
    list that are one of these, with all holes, parts and `bbox` members. Heights and further numbers, other members and
    the order of vertices stay. Longitudes are left as computed.

    Args:
        value: one output's JSON. It is not changed; the result shares with it whatever was not converted.
        referential: where pixel (0, 0) lies, and degrees per pixel.
        lat_step_down: take `-abs(lat_step)`, so that rows go south whatever the sign.
        output: the output's name, for errors. None if the answer as a whole is the output.

    Returns:
        A converted copy; `value` itself if there is nothing to convert.

    Raises:
        ResultRefused: one position or box can't be converted, then nothing is. The message names the place.
    """
    copying = _Copying()
    copy = copying.output(value, output or "")
    copying.fill(_degrees(copying.positions, referential, lat_step_down=lat_step_down))
    return copy


def _degrees(positions: Positions, referential: Referential, *, lat_step_down: bool) -> list[list[Json]]:
    """Every position in degrees, with its further numbers."""
    lat_step = -abs(referential.lat_step) if lat_step_down else referential.lat_step
    pixels = positions.numbers()
    with np.errstate(over="ignore"):  # the check finds it
        # Two operations, two roundings, as in plain Python: results are the same to the last bit.
        degrees = pixels * (referential.lon_step, lat_step) + (referential.upper_left_lon, referential.upper_left_lat)
    _check(degrees, positions)
    return _as_lists(degrees, positions.all())


def _check(degrees: Floats, positions: Positions) -> None:
    """Refuse what lies on no globe. Longitudes past 180 are another turn, and stay."""
    bad = np.flatnonzero(~np.isfinite(degrees[:, 0]) | ~(np.abs(degrees[:, 1]) <= 90))
    if bad.size:
        lon, lat = degrees[bad[0]].tolist()
        raise ResultRefused(f"{positions.place(int(bad[0]))} would lie at longitude {lon}, latitude {lat}")


def _as_lists(degrees: Floats, originals: list[Json]) -> list[list[Json]]:
    result: list[list[Json]] = []
    for start in range(0, len(degrees), POSITIONS_PER_STEP):
        result.extend(degrees[start : start + POSITIONS_PER_STEP].tolist())
    for converted, original in zip(result, originals, strict=True):
        if len(original) > 2:
            converted.extend(original[2:])
    return result


class _Copying:
    """Copies an output down to its lists of positions, which `fill` overwrites when all are known to be good."""

    def __init__(self) -> None:
        self.positions = Positions()
        self._points: list[tuple[JsonObject, list[Json]]] = []
        self._boxes: list[tuple[JsonObject, list[Json]]] = []

    def output(self, value: Json, name: str) -> Json:
        if not isinstance(value, list):
            return self._object(value, f"{name}." if name else "")
        if not any(map(kind_of, value)):
            return value
        return [self._object(element, f"{name}[{index}].") for index, element in enumerate(value)]

    def fill(self, degrees: list[list[Json]]) -> None:
        """Put converted positions, in the order in which they were gathered, into the copies."""
        start = 0
        for run in self.positions.runs:
            end = start + len(run)
            run[:] = degrees[start:end]
            start = end
        for owner, (position,) in self._points:
            owner["coordinates"] = position
        for owner, corners in self._boxes:
            owner["bbox"] = _box(*corners)

    def _object(self, value: Json, at: str) -> Json:
        kind = kind_of(value)
        if kind == "collection":
            return self._collection(value, at)
        if kind == "feature":
            return self._feature(value, at)
        return self._geometry(value, at) if kind == "geometry" else value

    def _collection(self, collection: JsonObject, at: str) -> JsonObject:
        copy = self._shell(collection, at)
        copy["features"] = [self._feature(feature, place) for feature, place in features_in(collection, at)]
        return copy

    def _feature(self, feature: JsonObject, at: str) -> JsonObject:
        copy = self._shell(feature, at)
        geometry = geometry_of(feature, at)
        if geometry is not None:
            copy["geometry"] = self._geometry(geometry, f"{at}geometry.")
        return copy

    def _geometry(self, geometry: JsonObject, at: str, depth: int = 0) -> JsonObject:
        kind = type_of(geometry, at)
        copy = self._shell(geometry, at)
        if kind == "GeometryCollection":
            members = members_of(geometry, at, depth)
            copy["geometries"] = [self._geometry(member, place, depth + 1) for member, place in members]
        elif kind == "Point":
            point = [geometry.get("coordinates")]
            self.positions.add(point, f"{at}coordinates", indexed=False)
            self._points.append((copy, point))
        else:
            copy["coordinates"] = self._lists(geometry.get("coordinates"), NESTING[kind], f"{at}coordinates")
        return copy

    def _lists(self, value: Json, nesting: int, place: str) -> list[Json]:
        parts = as_list(value, place)
        if nesting > 1:
            return [self._lists(part, nesting - 1, f"{place}[{index}]") for index, part in enumerate(parts)]
        run = parts.copy()
        self.positions.add(run, place)
        return run

    def _shell(self, owner: JsonObject, at: str) -> JsonObject:
        """A shallow copy of the object, its `bbox` noted. A null one says nothing, and stays."""
        copy = owner.copy()
        box = owner.get("bbox")
        if box is not None:
            if not isinstance(box, list) or len(box) not in _BOX_SIZES:
                raise ResultRefused(f"{at}bbox is not an array of 4 or 6 numbers")
            corners = [box[: len(box) // 2], box[len(box) // 2 :]]
            self.positions.add(corners, f"{at}bbox", indexed=False)
            self._boxes.append((copy, corners))
        return copy


def _box(corner: list[Json], opposite: list[Json]) -> list[Json]:
    """Two corners as a box: west, south, lowest, east, north, highest. A negative step has swapped some of them."""
    low = [min(pair) for pair in zip(corner[:2], opposite[:2], strict=True)]
    high = [max(pair) for pair in zip(corner[:2], opposite[:2], strict=True)]
    return [*low, *corner[2:], *high, *opposite[2:]]
