"""Area, centroid and bounds of many geometries at once, in the units of their coordinates and in square metres.

The one module that knows shapely and pyproj. Geometries are taken apart into points, lines and polygons and put
together again as arrays. Empty parts are dropped on the way: GEOS knows no bounds of nothing, and shapely 2.2 crashes
the process when it builds a MultiPolygon with an empty member from a ragged array.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Geod

from cador_trio.errors import ResultRefused
from cador_trio.job import Json, JsonObject
from cador_trio.results.geojson import Floats, Positions, as_list, members_of, type_of

Offsets = npt.NDArray[np.int64]
Shapes = npt.NDArray[Any]  # of shapely geometries

# Geometries a step: a few milliseconds, most of them outside the interpreter lock.
GEOMETRIES_PER_STEP: Final = 1_000
SQUARE_METRE_DIGITS: Final = 6  # a square millimetre; positions are not better than that

_WGS84: Final = Geod(ellps="WGS84")


class Measure(NamedTuple):
    """What is measured of one geometry.

    Attributes:
        area: planar, in the coordinates' unit squared; outer rings minus holes, whatever their winding.
        centroid: planar, `[x, y]`, of the parts of the highest dimension.
        bbox: `[min x, min y, max x, max y]`.
        area_m2: on the WGS 84 ellipsoid, None unless asked for.
    """

    area: float
    centroid: list[float]
    bbox: list[float]
    area_m2: float | None


def measure(geometries: Sequence[tuple[JsonObject | None, str]], *, geodesic: bool) -> list[Measure | None]:
    """Measure geometries, each given with the place of its members for errors.

    Returns:
        One a geometry; None for a null one and for one without positions.

    Raises:
        ResultRefused: a geometry is none, a position is bad, a line has one position, a ring fewer than three, or the
            coordinates are too large to compute with.
    """
    measures: list[Measure | None] = []
    for start in range(0, len(geometries), GEOMETRIES_PER_STEP):
        measures.extend(_measure_step(geometries[start : start + GEOMETRIES_PER_STEP], geodesic=geodesic))
    return measures


def _measure_step(geometries: Sequence[tuple[JsonObject | None, str]], *, geodesic: bool) -> list[Measure | None]:
    parts = _Parts()
    for owner, (geometry, at) in enumerate(geometries):
        if geometry is not None:
            parts.add(geometry, at, owner)
    measures: list[Measure | None] = [None] * len(geometries)
    owners, numbers = parts.measured(geodesic=geodesic)
    bad = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if bad.size:
        raise ResultRefused(f"{geometries[owners[bad[0]]][1][:-1]} has coordinates that are too large to be measured")
    for owner, (area, area_m2, x, y, *bbox) in zip(owners, numbers.tolist(), strict=True):
        measures[owner] = Measure(area, [x, y], bbox, round(area_m2, SQUARE_METRE_DIGITS) if geodesic else None)
    return measures


class _Parts:
    """The points, lines and polygons of some geometries, each part with its owner's number."""

    def __init__(self) -> None:
        self._points = Positions()
        self._point_owners: list[int] = []
        self._lines = Positions()
        self._line_owners: list[int] = []
        self._rings = Positions()
        self._polygon_owners: list[int] = []
        self._polygon_sizes: list[int] = []  # rings a polygon, the outer one first

    def add(self, geometry: JsonObject, at: str, owner: int, depth: int = 0) -> None:
        kind = type_of(geometry, at)
        if kind == "GeometryCollection":
            for member, place in members_of(geometry, at, depth):
                self.add(member, place, owner, depth + 1)
            return
        coordinates, place = geometry.get("coordinates"), f"{at}coordinates"
        match kind:
            case "Point":
                self._add_points([coordinates], place, owner, indexed=False)
            case "MultiPoint":
                self._add_points(as_list(coordinates, place), place, owner)
            case "LineString":
                self._add_line(coordinates, place, owner)
            case "Polygon":
                self._add_polygon(coordinates, place, owner)
            case "MultiLineString":
                for index, line in enumerate(as_list(coordinates, place)):
                    self._add_line(line, f"{place}[{index}]", owner)
            case _:
                for index, polygon in enumerate(as_list(coordinates, place)):
                    self._add_polygon(polygon, f"{place}[{index}]", owner)

    def measured(self, *, geodesic: bool) -> tuple[list[int], Floats]:
        """The owners that have any position, and for each: area, square metres (0 unless `geodesic`), x and y of the
        centroid, the four bounds. Shape (owners, 8); what can't be computed is not finite.
        """
        rings, ring_ends = self._rings.numbers(), _ends(map(len, self._rings.runs))
        shapes = self._shapes(rings, ring_ends)
        part_owners = np.array([*self._point_owners, *self._line_owners, *self._polygon_owners], dtype=np.intp)
        owners, whole = np.unique(part_owners, return_inverse=True)
        square_metres = np.zeros(len(owners))
        if geodesic:
            polygons = slice(len(part_owners) - len(self._polygon_owners), None)
            np.add.at(square_metres, whole[polygons], self._square_metres(rings, ring_ends))
        order = np.argsort(whole, kind="stable")
        collected = shapely.geometrycollections(shapes[order], indices=whole[order])
        with np.errstate(all="ignore"):  # the caller looks for what is not finite
            centroids = shapely.centroid(collected)
            columns = (shapely.area(collected), square_metres, shapely.get_x(centroids), shapely.get_y(centroids))
            return owners.tolist(), np.column_stack((*columns, shapely.bounds(collected)))

    def _shapes(self, rings: Floats, ring_ends: Offsets) -> Shapes:
        """All parts: points, then lines, then polygons."""
        kind = shapely.GeometryType
        lines, line_ends = self._lines.numbers(), _ends(map(len, self._lines.runs))
        parts: Shapes = np.concatenate(
            (
                shapely.from_ragged_array(kind.POINT, self._points.numbers()),
                shapely.from_ragged_array(kind.LINESTRING, lines, (line_ends,)),
                shapely.from_ragged_array(kind.POLYGON, rings, (ring_ends, _ends(self._polygon_sizes))),
            )
        )
        return parts

    def _square_metres(self, rings: Floats, ring_ends: Offsets) -> list[float]:
        """Of each polygon: its first ring minus the others, whatever their winding."""
        areas = _ring_areas(rings, ring_ends)
        return [next(areas) - sum(islice(areas, size - 1)) for size in self._polygon_sizes]

    def _add_points(self, points: list[Json], place: str, owner: int, *, indexed: bool = True) -> None:
        self._points.add(points, place, indexed=indexed)
        self._point_owners.extend([owner] * len(points))

    def _add_line(self, line: Json, place: str, owner: int) -> None:
        if not as_list(line, place):
            return
        if len(line) < 2:
            raise ResultRefused(f"{place} is a line of one position")
        self._lines.add(line, place)
        self._line_owners.append(owner)

    def _add_polygon(self, polygon: Json, place: str, owner: int) -> None:
        rings = as_list(polygon, place)
        if rings == [[]] * len(rings):
            return
        for index, ring in enumerate(rings):
            # Shapely closes an open ring of three, as most readers of GeoJSON do.
            if len(as_list(ring, f"{place}[{index}]")) < 3:
                raise ResultRefused(f"{place}[{index}] is a ring of {len(ring)} positions")
            self._rings.add(ring, f"{place}[{index}]")
        self._polygon_owners.append(owner)
        self._polygon_sizes.append(len(rings))


def _ring_areas(rings: Floats, ends: Offsets) -> Iterator[float]:
    """Square metres inside each ring. PROJ closes open rings, and lets other threads run meanwhile."""
    lon, lat = (array("d", column.tobytes()) for column in rings.T)  # what pyproj takes in fastest, ring by ring
    for start, end in pairwise(ends.tolist()):
        yield abs(_WGS84.polygon_area_perimeter(lon[start:end], lat[start:end])[0])


def _ends(sizes: Iterable[int]) -> Offsets:
    """Where each of some consecutive runs starts, and where the last one ends."""
    return np.cumsum([0, *sizes], dtype=np.int64)
