"""Bodies of water as an atlas has them, and how far a detection is from that.

Pure: geometry in longitude and latitude goes in, numbers come out. The atlas values are of other origin than the image:

- Black Sea and Caspian: shorelines of OpenStreetMap (© OpenStreetMap contributors, ODbL) as packaged in
  roaring-landmask 0.11.0, sampled every 1/120 degree; the Black Sea with the Sea of Azov from the Bosporus on, the
  Caspian without Garabogaz Bay.
- Garabogaz Bay: Natural Earth, 1:10 million. Lakes Urmia and Van: GSHHG, intermediate resolution.

A centre is the centre of mass in the plane of longitude and latitude, here and there.

Atlases do not agree on the Caspian. Its flat north is reed and mud: Natural Earth and GSHHG draw the old shore behind
the reeds, which puts the centre at latitude 41.78, OpenStreetMap draws the edge of the open water, 41.63. The detector
looks for open water, so OpenStreetMap is what it is compared with: it is 0.08° off that, and would be 0.23° off the
other two. The Black Sea is within 0.05° of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import shapely
from pyproj import Geod

from cador_trio.job import JsonObject

TOLERANCE: Final = 0.1  # degrees that a centre may be off; a swapped axis or a wrong sign is off by far more
REACH: Final = 1.2  # degrees from an atlas centre within which a body takes its name
EDGE: Final = 1e-6  # degrees; rounding of positions that lie on the edge of the image

_WGS84: Final = Geod(ellps="WGS84")


@dataclass(frozen=True, slots=True)
class AtlasBody:
    """A body of water in an atlas. Degrees and km²; without `area` it lends its name only: the image shows a part.

    `decides`: the detection must have it, within `TOLERANCE`.
    """

    name: str
    longitude: float
    latitude: float
    area: float | None = None
    decides: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """A detected body of water beside what the atlas says.

    Attributes:
        area: km² on the ellipsoid, islands subtracted.
        south: latitude of its southernmost point.
        is_cut: it reaches the edge of the image, so its numbers are those of a part.
        atlas: what it is compared with; None if it is cut, or not in our atlas.
    """

    name: str
    longitude: float
    latitude: float
    area: float
    south: float
    is_cut: bool
    atlas: AtlasBody | None

    @property
    def off(self) -> float | None:
        """Degrees between the two centres in longitude or latitude, whichever is more; None without an atlas value."""
        if self.atlas is None:
            return None
        return max(abs(self.longitude - self.atlas.longitude), abs(self.latitude - self.atlas.latitude))


ATLAS: Final = (
    AtlasBody("Black Sea and Azov", 34.41, 43.50, 461_500, decides=True),
    AtlasBody("Caspian Sea", 50.70, 41.63, 371_400, decides=True),
    AtlasBody("Garabogaz Bay", 53.64, 41.35, 16_990),
    AtlasBody("Lake Urmia", 45.43, 37.69, 4_390),
    AtlasBody("Lake Van", 42.96, 38.64, 3_490),
    AtlasBody("Sarygamysh Lake", 57.4, 41.9),
    AtlasBody("Aral Sea, a part", 59.2, 45.2),
    AtlasBody("Mediterranean", 28.6, 36.4),  # what the image shows of it
)


def compare(features: Sequence[JsonObject], edges: tuple[float, float, float, float]) -> list[Sighting]:
    """Find every detected polygon in the atlas, in the order given.

    `edges` are west, south, east, north of the image. Raises ValueError, KeyError or TypeError if a feature is no
    GeoJSON Feature with a polygon.
    """
    return [_sighting(shapely.Polygon(*_rings(feature)), edges) for feature in features]


def shortcomings(sightings: Sequence[Sighting]) -> list[str]:
    """What is wrong with a detection, a sentence each: a deciding body is missing, or its centre is off."""
    found = []
    for body in (body for body in ATLAS if body.decides):
        offs = [sighting.off for sighting in sightings if sighting.atlas is body and sighting.off is not None]
        if not offs:
            found.append(f"no {body.name} was found near {body.longitude:.2f} {body.latitude:.2f}")
        elif offs[0] > TOLERANCE:
            found.append(f"the centre of the {body.name} is {offs[0]:.2f}° off, more than {TOLERANCE}°")
    return found


def area_km2(polygon: shapely.Polygon) -> float:
    """Area on the WGS 84 ellipsoid in km², holes subtracted, whichever way the rings run."""
    rings = [polygon.exterior, *polygon.interiors]
    outer, *holes = (abs(_WGS84.polygon_area_perimeter(*ring.coords.xy)[0]) for ring in rings)
    return float(outer - sum(holes)) / 1e6


def _rings(feature: JsonObject) -> tuple[list[list[float]], list[list[list[float]]]]:
    outer, *holes = feature["geometry"]["coordinates"]
    return outer, holes


def _sighting(polygon: shapely.Polygon, edges: tuple[float, float, float, float]) -> Sighting:
    centre = polygon.centroid
    is_cut = any(abs(bound - edge) < EDGE for bound, edge in zip(polygon.bounds, edges, strict=True))
    body = _nearest(centre.x, centre.y)
    is_comparable = body is not None and body.area is not None and not is_cut
    return Sighting(
        name="not in our atlas" if body is None else body.name,
        longitude=centre.x,
        latitude=centre.y,
        area=area_km2(polygon),
        south=polygon.bounds[1],
        is_cut=is_cut,
        atlas=body if is_comparable else None,
    )


def _nearest(longitude: float, latitude: float) -> AtlasBody | None:
    body = min(ATLAS, key=lambda body: math.hypot(body.longitude - longitude, body.latitude - latitude))
    near = math.hypot(body.longitude - longitude, body.latitude - latitude) <= REACH
    return body if near else None
