"""Pixels to degrees: the contract's vectors, the cases as files, and what holds for any input."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import ResultRefused
from cador_trio.job import Referential
from cador_trio.results.geojson import POSITIONS_PER_STEP
from cador_trio.results.georeference import georeference

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "vectors" / "georeference-vectors.json").read_text())["vectors"]
CASES = {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "cases").glob("*.json"))}
NORTH_UP = Referential(10.0, 50.0, 0.5, -0.25)

pixels = st.floats(-1e5, 1e5) | st.integers(-(10**5), 10**5)
positions = st.lists(pixels, min_size=2, max_size=4)
lines = st.lists(positions, max_size=5)


def shaped(kind: str, coordinates: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"type": st.just(kind), "coordinates": coordinates},
        optional={"bbox": st.lists(pixels, min_size=4, max_size=4) | st.lists(pixels, min_size=6, max_size=6)},
    )


simple_geometries = st.one_of(
    shaped("Point", positions),
    shaped("MultiPoint", lines),
    shaped("LineString", lines),
    shaped("MultiLineString", st.lists(lines, max_size=3)),
    shaped("Polygon", st.lists(lines, max_size=3)),
    shaped("MultiPolygon", st.lists(st.lists(lines, max_size=2), max_size=2)),
)
geometries = st.recursive(
    simple_geometries,
    lambda members: st.fixed_dictionaries(
        {"type": st.just("GeometryCollection"), "geometries": st.lists(members, max_size=3)}
    ),
    max_leaves=5,
)
features = st.fixed_dictionaries(
    {"type": st.just("Feature"), "geometry": st.none() | geometries, "properties": st.none() | st.just({"a": [1, 2]})},
    optional={"id": st.integers(), "bbox": st.lists(pixels, min_size=4, max_size=4)},
)
collections = st.fixed_dictionaries({"type": st.just("FeatureCollection"), "features": st.lists(features, max_size=4)})
geojson = st.one_of(geometries, features, collections, st.lists(st.one_of(geometries, features), max_size=3))

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
words = st.sampled_from(["type", "coordinates", "geometries", "geometry", "features", "bbox", "a"])
kinds = st.sampled_from(
    ["Feature", "FeatureCollection", "GeometryCollection", "Point", "LineString", "Polygon", "Circle"]
)
any_json = st.recursive(
    scalars | kinds,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words, inner, max_size=4)
        | st.builds(lambda members, kind: {**members, "type": kind}, st.dictionaries(words, inner, max_size=4), kinds)
    ),
    max_leaves=25,
)


def referential_of(case: dict[str, Any]) -> Referential:
    sent = case["referential"]
    return Referential(sent["upperLeft"]["lon"], sent["upperLeft"]["lat"], sent["lonStep"], sent["latStep"])


def positions_in(value: Any) -> list[list[Any]]:
    """Every position of some GeoJSON, boxes as their two corners, in order of reading."""
    if isinstance(value, list):
        is_position = bool(value) and not isinstance(value[0], list | dict)
        return [value] if is_position else [position for member in value for position in positions_in(member)]
    found = []
    for key in ("features", "geometry", "geometries", "coordinates"):
        found += positions_in(value[key]) if value.get(key) is not None else []
    if value.get("bbox") is not None:
        half = len(value["bbox"]) // 2
        found += [value["bbox"][:half], value["bbox"][half:]]
    return found


def without_positions(value: Any) -> Any:
    """The same GeoJSON with every number of its positions and boxes replaced by a mark."""
    if isinstance(value, list):
        return [without_positions(member) for member in value]
    if not isinstance(value, dict):
        return "*"
    places = ("features", "geometry", "geometries", "coordinates", "bbox")
    return {key: without_positions(member) if key in places else member for key, member in value.items()}


def drop_boxes(value: Any) -> None:
    if isinstance(value, dict):
        value.pop("bbox", None)
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        drop_boxes(member)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_contracts_vectors(vector: dict[str, Any]) -> None:
    """A Feature with the vector's geometry is converted to the last bit."""
    feature = {"type": "Feature", "id": 7, "geometry": vector["pixel"], "properties": {"x": [1, 2]}}
    assert georeference(feature, referential_of(vector)) == {**feature, "geometry": vector["lonLat"]}


@pytest.mark.parametrize("name", CASES)
def test_the_cases(name: str) -> None:
    """Each case does what it says, and leaves its input as it was."""
    case = CASES[name]
    before = copy.deepcopy(case["pixel"])
    if "refused" in case:
        with pytest.raises(ResultRefused) as caught:
            georeference(case["pixel"], referential_of(case))
        assert caught.value.message.startswith(case["refused"])
    else:
        assert georeference(case["pixel"], referential_of(case)) == case["expected"]
    assert case["pixel"] == before


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    """NaN and the infinities have no place."""
    with pytest.raises(ResultRefused, match="coordinates is not a position"):
        georeference({"type": "Point", "coordinates": [number, 0]}, NORTH_UP)


def test_a_longitude_past_all_numbers_is_refused() -> None:
    """Finite pixels whose longitude overflows are refused without a warning."""
    with pytest.raises(ResultRefused, match="longitude inf"):
        georeference({"type": "Point", "coordinates": [1e308, 0]}, Referential(0.0, 0.0, 1e10, 1e-5))


def test_the_poles_themselves_exist() -> None:
    """Latitudes of exactly 90 and -90 are allowed."""
    poles = {"type": "MultiPoint", "coordinates": [[0, 0], [0, 720]]}
    converted = georeference(poles, Referential(0.0, 90.0, 0.5, -0.25))
    assert converted["coordinates"] == [[0.0, 90.0], [0.0, -90.0]]


@pytest.mark.parametrize("lat_step", [0.25, -0.25])
def test_rows_go_south_on_request(lat_step: float) -> None:
    """`lat_step_down` makes the latitude fall with y, whatever the sign of the step."""
    point = {"type": "Point", "coordinates": [0, 4]}
    converted = georeference(point, Referential(10.0, 50.0, 0.5, lat_step), lat_step_down=True)
    assert converted["coordinates"] == [10.0, 49.0]


def test_the_output_is_named() -> None:
    """An error begins with the output's name, where it has one."""
    with pytest.raises(ResultRefused, match=r"^ships\[1\]\.geometry\.coordinates is not"):
        georeference([7, {"type": "Feature", "geometry": {"type": "Point"}}], NORTH_UP, output="ships")


def test_a_bad_position_is_found_behind_many_good_ones() -> None:
    """The place is right wherever the steps of the computation begin and end."""
    good = [[0, 0]] * (POSITIONS_PER_STEP - 3)
    line = {"type": "LineString", "coordinates": [*good, [0, 0], [0, 0], [0, 0], [0, 0], [0, "x"]]}
    answer = {
        "features": [
            {"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": good}},
            {"type": "Feature", "geometry": line},
        ]
    }
    with pytest.raises(ResultRefused, match=rf"^features\[1\]\.geometry\.coordinates\[{POSITIONS_PER_STEP + 1}\] is"):
        georeference(answer, NORTH_UP)


def test_steps_join_without_a_seam() -> None:
    """A line of several steps comes out whole and in order."""
    count = 2 * POSITIONS_PER_STEP + 1
    line = {"type": "LineString", "coordinates": [[x, 0] for x in range(count)]}
    converted = georeference(line, Referential(0.0, 0.0, 0.5, -0.25))
    assert converted["coordinates"] == [[x * 0.5, 0.0] for x in range(count)]


def test_collections_inside_each_other_have_a_limit() -> None:
    """GeometryCollections nested beyond reason are refused, not a crash."""
    geometry: dict[str, Any] = {"type": "Point", "coordinates": [0, 0]}
    for _ in range(400):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    with pytest.raises(ResultRefused, match="50 GeometryCollections deep"):
        georeference(geometry, NORTH_UP)


@given(geojson, st.floats(-180, 180), st.floats(-0.0005, 0.0005).filter(bool), st.floats(-0.0005, 0.0005).filter(bool))
def test_every_position_follows_the_formula(value: Any, lon: float, lon_step: float, lat_step: float) -> None:
    """Each position is plain Python's `upper left + pixel * step`, bit for bit; the rest and the structure stay."""
    before = copy.deepcopy(value)
    converted = georeference(value, Referential(lon, 10.0, lon_step, lat_step))
    assert value == before
    assert without_positions(converted) == without_positions(value)
    boxless, expected = copy.deepcopy((converted, value))
    for tree in (boxless, expected):
        drop_boxes(tree)
    for got, (x, y, *rest) in zip(positions_in(boxless), positions_in(expected), strict=True):
        assert got == [lon + x * lon_step, 10.0 + y * lat_step, *rest]
        assert [type(number) for number in got[:2]] == [float, float]


@given(st.lists(positions, min_size=1, max_size=10))
def test_pixels_can_be_found_again(points: list[list[Any]]) -> None:
    """The formula turned round gives the pixels, to a millionth of one."""
    converted = georeference({"type": "MultiPoint", "coordinates": points}, Referential(5.3, 43.3, 1.5e-5, -1e-5))
    for (x, y, *_), (lon, lat, *_) in zip(points, converted["coordinates"], strict=True):
        assert (lon - 5.3) / 1.5e-5 == pytest.approx(x, abs=1e-6)
        assert (lat - 43.3) / -1e-5 == pytest.approx(y, abs=1e-6)


@given(shaped("Point", positions), st.sampled_from([0.5, -0.5]), st.sampled_from([0.0001, -0.0001]))
def test_boxes_are_in_order(point: Any, lon_step: float, lat_step: float) -> None:
    """West, south, east, north, whatever the signs of the steps; heights keep their places."""
    box = georeference(point, Referential(10.0, 50.0, lon_step, lat_step)).get("bbox", [0, 0, 0, 0])
    half = len(box) // 2
    assert box[0] <= box[half]
    assert box[1] <= box[half + 1]
    if half == 3:
        assert [box[2], box[5]] == [point["bbox"][2], point["bbox"][5]]


free_names = st.text(max_size=3)  # too short for a member of GeoJSON
free_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(free_names, inner, max_size=4)
)


@given(free_json)
def test_what_is_no_geojson_comes_back_as_it_is(value: Any) -> None:
    """Numbers, texts, free objects and lists of them are returned, the same object."""
    assert georeference(value, NORTH_UP) is value


@given(any_json)
def test_anything_is_converted_or_refused(value: Any) -> None:
    """No JSON whatever makes it fail in another way, or changes its input."""
    before = copy.deepcopy(value)
    with contextlib.suppress(ResultRefused):
        georeference(value, NORTH_UP)
    assert repr(value) == repr(before)  # not ==, for NaN is unequal to itself
