"""What counts as GeoJSON in an answer, and its positions as one checked array of numbers.

Recognising, descending and checking only: nothing is converted or measured here. Every complaint names the place, such
as `features[3].geometry.coordinates[0][2]`. A place that ends with a dot (`at`) is where an object's members are found;
it is empty at the top.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Final, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from cador_trio.errors import ResultRefused
from cador_trio.job import Json, JsonObject

Floats = npt.NDArray[np.float64]

# How many lists lie between `coordinates` and a position, by type (RFC 7946, 3.1). A GeometryCollection has none.
NESTING: Final = {
    "Point": 0,
    "MultiPoint": 1,
    "LineString": 1,
    "MultiLineString": 2,
    "Polygon": 2,
    "MultiPolygon": 3,
}
# GeometryCollections inside each other. JSON of 100 levels, the most that a request may have, holds about as many.
MAX_COLLECTION_NESTING: Final = 50
# Positions per step. A step is a few calls into C that hold the interpreter lock for under a millisecond each, so that
# the event loop gets its turn while a worker thread goes through a large answer.
POSITIONS_PER_STEP: Final = 4_096

_TEXT_IN_ERRORS: Final = 60  # characters of a foreign value that an error quotes


def kind_of(value: Json) -> Literal["collection", "feature", "geometry"] | None:
    """What sort of GeoJSON a value is at its top level; None for everything else.

    An object without a `type` is a collection if its array `features` is empty or holds a Feature: PESTO's template
    leaves the type out, and a free object may have a list of that name too. An object with a text `type` and an array
    `coordinates` is taken for a geometry, known or not.
    """
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    if kind == "Feature":
        return "feature"
    if isinstance(kind, str) and (isinstance(value.get("coordinates"), list) or _claims_geometry(kind, value)):
        return "geometry"
    if kind == "FeatureCollection" or _holds_features(value.get("features")):
        return "collection"
    return None


def features_in(collection: JsonObject, at: str) -> Iterator[tuple[JsonObject, str]]:
    """The features of a collection, each with the place of its members.

    Raises:
        ResultRefused: `features` is not an array, or holds something else than Features.
    """
    for index, feature in enumerate(as_list(collection.get("features"), f"{at}features")):
        if not _is_feature(feature):
            raise ResultRefused(f"{at}features[{index}] is not a Feature")
        yield feature, f"{at}features[{index}]."


def geometry_of(feature: JsonObject, at: str) -> JsonObject | None:
    """A feature's geometry, None where it has none.

    Raises:
        ResultRefused: it is neither an object nor null.
    """
    geometry = feature.get("geometry")
    if geometry is None or isinstance(geometry, dict):
        return geometry
    raise ResultRefused(f"{at}geometry is {quoted(geometry)}, neither an object nor null")


def members_of(collection: JsonObject, at: str, depth: int) -> Iterator[tuple[JsonObject, str]]:
    """The geometries of a GeometryCollection at `depth` (0 for an outermost one), each with its place.

    Raises:
        ResultRefused: `geometries` is not an array of objects, or the collections lie too deep inside each other.
    """
    if depth >= MAX_COLLECTION_NESTING:
        raise ResultRefused(f"{at}geometries lies more than {MAX_COLLECTION_NESTING} GeometryCollections deep")
    for index, member in enumerate(as_list(collection.get("geometries"), f"{at}geometries")):
        if not isinstance(member, dict):
            raise ResultRefused(f"{at}geometries[{index}] is {quoted(member)}, not a geometry")
        yield member, f"{at}geometries[{index}]."


def type_of(geometry: JsonObject, at: str) -> str:
    """The type of a geometry, one of the seven.

    Raises:
        ResultRefused: it is another, or missing.
    """
    kind = geometry.get("type")
    if isinstance(kind, str) and (kind in NESTING or kind == "GeometryCollection"):
        return kind
    raise ResultRefused(f"{at}type is {quoted(kind)}, not a geometry type")


def as_list(value: Json, place: str) -> list[Json]:
    """The value, if it is a list.

    Raises:
        ResultRefused: it is something else.
    """
    if isinstance(value, list):
        return value
    raise ResultRefused(f"{place} is {quoted(value)}, not an array")


def is_finite_number(value: Json) -> bool:
    """Whether JSON's value is a number that a 64-bit float can hold; booleans are none."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond 1.8e308
        return False


def quoted(value: Json) -> str:
    """A foreign value for an error's text: short, and containers by their kind only."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and not is_finite_number(value):
        return "an integer past the largest float"
    text = repr(value)
    return text if len(text) <= _TEXT_IN_ERRORS else f"{text[:_TEXT_IN_ERRORS]}…"


class Positions:
    """Positions of many geometries, gathered first and turned into numbers together.

    Attributes:
        runs: the lists that were added, in order.
    """

    def __init__(self) -> None:
        self.runs: list[list[Json]] = []
        self._places: list[tuple[str, bool]] = []

    def add(self, run: list[Json], place: str, *, indexed: bool = True) -> None:
        """Take in positions whose place is `place[0]`, `place[1]` …, or just `place` if not `indexed`."""
        self.runs.append(run)
        self._places.append((place, indexed))

    def place(self, index: int) -> str:
        """Where the position with this index, counted over all runs, was found."""
        for run, (place, indexed) in zip(self.runs, self._places, strict=True):
            if index < len(run):
                return f"{place}[{index}]" if indexed else place
            index -= len(run)
        raise IndexError(index)

    def all(self) -> list[Json]:
        """Every position, in order."""
        positions: list[Json] = []
        for run in self.runs:  # not in one call: see POSITIONS_PER_STEP
            positions.extend(run)
        return positions

    def numbers(self) -> Floats:
        """The first two numbers of every position, shape (positions, 2).

        Raises:
            ResultRefused: a position is not a list of at least two numbers, all of them finite.
        """
        positions = self.all()
        steps = [np.empty((0, 2))]
        for start in range(0, len(positions), POSITIONS_PER_STEP):
            numbers = _numbers(positions[start : start + POSITIONS_PER_STEP])
            if numbers is None:
                self._refuse(positions, start)
            steps.append(numbers)
        return np.concatenate(steps)

    def _refuse(self, positions: list[Json], start: int) -> NoReturn:
        bad = next(index for index in range(start, len(positions)) if _problem(positions[index]))
        raise ResultRefused(f"{self.place(bad)} is not a position, {_problem(positions[bad])}")


def _numbers(positions: list[Json]) -> Floats | None:
    """Shape (positions, 2), or None if one of them is bad."""
    if set(map(type, positions)) != {list}:
        return None
    lengths = np.fromiter(map(len, positions), np.intp, len(positions))
    numbers = list(chain.from_iterable(positions))
    if lengths.min() < 2 or not set(map(type, numbers)) <= {int, float}:
        return None
    try:
        flat = np.fromiter(numbers, np.float64, len(numbers))
    except OverflowError:  # an integer beyond 1.8e308
        return None
    if not np.isfinite(flat).all():
        return None
    first = lengths.cumsum() - lengths
    return np.stack((flat[first], flat[first + 1]), axis=1)


def _problem(position: Json) -> str:
    """What is wrong with a position, empty if nothing is."""
    if not isinstance(position, list):
        return f"but {quoted(position)}"
    if len(position) < 2:
        return f"its length is {len(position)} and should be 2 or more"
    return next((f"it holds {quoted(number)}" for number in position if not is_finite_number(number)), "")


def _claims_geometry(kind: str, value: JsonObject) -> bool:
    """Whether an object says that it is a geometry, and has the member which that type needs, sound or not."""
    return (kind in NESTING and "coordinates" in value) or (kind == "GeometryCollection" and "geometries" in value)


def _is_feature(value: Json) -> bool:
    """A Feature inside a collection, where its type may be missing as well."""
    if not isinstance(value, dict):
        return False
    return value["type"] == "Feature" if "type" in value else "geometry" in value


def _holds_features(value: Json) -> bool:
    return isinstance(value, list) and (not value or any(map(_is_feature, value)))
