"""Detections beside the atlas: centres, areas, what counts as cut, and what decides."""

from __future__ import annotations

import pytest
import shapely

from cador_trio.commands.atlas import ATLAS, AtlasBody, area_km2, compare, shortcomings
from cador_trio.job import JsonObject

EDGES = (24.0, 34.0, 64.0, 50.0)


def square(longitude: float, latitude: float, half: float = 0.5) -> JsonObject:
    """A feature centred there, `half` degrees to each side."""
    west, east, south, north = longitude - half, longitude + half, latitude - half, latitude + half
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}


def deciding() -> list[AtlasBody]:
    return [body for body in ATLAS if body.decides]


def test_area_is_geodesic() -> None:
    """A square degree at the equator has 12,309 km², at latitude 60 about half of it."""
    assert area_km2(shapely.box(0, 0, 1, 1)) == pytest.approx(12_309, rel=1e-3)
    assert area_km2(shapely.box(0, 59.5, 1, 60.5)) == pytest.approx(12_309 / 2, rel=0.02)


def test_islands_are_subtracted_whichever_way_their_rings_run() -> None:
    """A hole makes the area smaller, wound like the outer ring or against it."""
    outer = [(0, 0), (2, 0), (2, 2), (0, 2)]
    hole = [(0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (0.5, 1.5)]
    expected = area_km2(shapely.Polygon(outer)) - area_km2(shapely.Polygon(hole))
    assert area_km2(shapely.Polygon(outer, [hole])) == pytest.approx(expected)
    assert area_km2(shapely.Polygon(outer, [hole[::-1]])) == pytest.approx(expected)


def test_a_body_is_named_by_the_nearest_atlas_centre() -> None:
    """Off by 0.3° in latitude and 0.1° in longitude: it is the Caspian, and 0.3° off."""
    (sighting,) = compare([square(50.80, 41.93)], EDGES)
    assert sighting.name == "Caspian Sea"
    assert sighting.off == pytest.approx(0.3)


def test_far_from_everything_is_not_in_the_atlas() -> None:
    """Water in the middle of Anatolia has no name and nothing to be compared with."""
    (sighting,) = compare([square(33.4, 38.8, 0.1)], EDGES)
    assert (sighting.name, sighting.atlas, sighting.off) == ("not in our atlas", None, None)


@pytest.mark.parametrize("place", [(24.5, 43.0), (63.5, 43.0), (40.0, 34.5), (40.0, 49.5)])
def test_what_reaches_an_edge_is_cut(place: tuple[float, float]) -> None:
    """A body that ends at the west, east, south or north edge of the image is not compared."""
    (sighting,) = compare([square(*place)], EDGES)
    assert (sighting.is_cut, sighting.atlas) == (True, None)


def test_good_detections_have_no_shortcomings() -> None:
    """Everything that decides is found, less than the tolerance off."""
    features = [square(body.longitude + 0.09, body.latitude - 0.09) for body in deciding()]
    assert shortcomings(compare(features, EDGES)) == []


@pytest.mark.parametrize("shift", [(0.11, 0.0), (-0.11, 0.0), (0.0, 0.11), (0.0, -0.11)])
def test_a_shift_is_a_shortcoming(shift: tuple[float, float]) -> None:
    """A centre that is more than 0.1° off in any direction is named."""
    features = [square(body.longitude + shift[0], body.latitude + shift[1]) for body in deciding()]
    wrong = shortcomings(compare(features, EDGES))
    assert [body.name in text for body, text in zip(deciding(), wrong, strict=True)] == [True, True]


def test_a_missing_sea_is_a_shortcoming() -> None:
    """With swapped axes nothing is where it should be, and both seas are missed by name."""
    features = [square(body.latitude, body.longitude) for body in deciding()]
    assert len(shortcomings(compare(features, (0.0, 0.0, 90.0, 90.0)))) == 2


def test_what_is_no_polygon_is_refused() -> None:
    """A feature without coordinates is an error, not a missing body."""
    with pytest.raises(KeyError):
        compare([{"type": "Feature"}], EDGES)
