"""Tags of an answer: the contract's examples, measures of every type, what is skipped and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import ResultRefused
from cador_trio.job import WHOLE_ANSWER, Answer, Referential, Value
from cador_trio.results.georeference import georeference
from cador_trio.results.measures import GEOMETRIES_PER_STEP
from cador_trio.results.tags import TagContext, TagSet, build_tags

HERE = Path(__file__).parent / "vectors"
GEOMETRIES = json.loads((HERE / "georeference-vectors.json").read_text())
PIXELS = TagContext(inputs=[], outputs=[], task_id="t", tagger="o.n.1", timestamp=1, now=2, referenced=False)
DEGREES = replace(PIXELS, referenced=True)
POINT = {"type": "Point", "coordinates": [1.0, 2.0]}
SQUARE = [[0, 0], [0, 4], [4, 4], [4, 0], [0, 0]]
HOLE = [[1, 1], [3, 1], [3, 3], [1, 3], [1, 1]]


def vector(name: str) -> Any:
    return json.loads((HERE / name).read_text())


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def tags_of(*features: Any, context: TagContext = PIXELS) -> TagSet:
    return build_tags(Answer({"d": Value({"type": "FeatureCollection", "features": list(features)})}), context)


def tag_of(geometry: Any, context: TagContext = PIXELS) -> Any:
    return tags_of(feature(geometry), context=context)[0]["tag"]


@pytest.fixture
def example() -> tuple[Answer, TagContext]:
    """The answer behind the contract's tags, still in pixels for those who ask for it, and what its tags share."""
    output = vector("output-posix-referential.json")
    context = TagContext(
        inputs=[{"uri": "file:///data/in/scene.tif"}],
        outputs=[output["mask"]],
        task_id=output["technicalMetadata"]["taskId"],
        tagger="Example Organisation.bright-target.0.3.1",
        timestamp=output["technicalMetadata"]["inputTimestamp"],
        now=1764000002400,
        referenced=True,
    )
    names = ("detections", "mask", "count", "summary")
    return Answer({name: Value(output[name]) for name in names}), context


@pytest.mark.parametrize("number", [0, 1])
def test_the_contracts_tags(example: tuple[Answer, TagContext], number: int) -> None:
    """Both example tags come out to the letter, members in their order."""
    answer, context = example
    tags = build_tags(answer, context)
    assert len(tags) == 2
    assert json.dumps(tags[number]) == json.dumps(vector(f"tag-{number}.json"))


def test_tags_of_the_algorithms_own_answer(example: tuple[Answer, TagContext]) -> None:
    """Georeferencing the algorithm's pixels and tagging gives the same tags."""
    pixels = vector("algorithm-stateless-answer.json")["detections"]
    converted = georeference(pixels, Referential(5.3, 43.3, 1.5e-5, -1e-5))
    tags = build_tags(Answer({"detections": Value(converted)}), example[1])
    assert list(tags) == [vector("tag-0.json"), vector("tag-1.json")]


def test_every_field_of_the_originals_tag(example: tuple[Answer, TagContext]) -> None:
    """A reader of the original's tags finds each field with its type; what was null may now say something."""
    original, ours = vector("tag-original-0.json"), build_tags(*example)[0]
    for theirs, mine in ((original, ours), (original["tag"], ours["tag"])):
        for name, value in theirs.items():
            assert name in mine
            assert value is None or type(mine[name]) is type(value), name


@pytest.mark.parametrize(
    "case", [case for case in GEOMETRIES["vectors"] if case["pixel"]], ids=lambda case: case["name"]
)
def test_measures_of_the_contracts_geometries(case: dict[str, Any]) -> None:
    """Area, centroid, bounds and square metres of every type are the contract's."""
    tag = tag_of(case["lonLat"], DEGREES)
    degrees, relative = GEOMETRIES["tolerance"]["degrees"], GEOMETRIES["tolerance"]["areaRelative"]
    assert tag["area"] == pytest.approx(case["areaDegrees2"], rel=relative, abs=1e-24)
    assert tag["centroid"]["coordinates"] == pytest.approx(case["centroid"], abs=degrees)
    assert tag["bbox"] == pytest.approx(case["bounds"], abs=degrees)
    assert tag["areaM2"] == pytest.approx(case["areaM2Wgs84"], rel=relative, abs=1e-24)


@pytest.mark.parametrize("outer", [SQUARE, SQUARE[::-1]], ids=["outer as is", "outer turned"])
@pytest.mark.parametrize("hole", [HOLE, HOLE[::-1]], ids=["hole as is", "hole turned"])
def test_area_does_not_depend_on_the_winding(outer: Any, hole: Any) -> None:
    """Area is the outer ring minus its holes, on the plane and on the ellipsoid, whichever way they turn."""
    tag = tag_of({"type": "Polygon", "coordinates": [outer, hole]}, DEGREES)
    assert tag["area"] == 12.0
    whole = tag_of({"type": "Polygon", "coordinates": [SQUARE]}, DEGREES)["areaM2"]
    missing = tag_of({"type": "Polygon", "coordinates": [HOLE]}, DEGREES)["areaM2"]
    assert tag["areaM2"] == pytest.approx(whole - missing, rel=1e-12)
    assert missing > 4 * 110_000**2


def test_polygons_of_a_collection_add_up() -> None:
    """A GeometryCollection's area is that of all polygons in it, at any depth; its lines weigh nothing."""
    polygon = {"type": "Polygon", "coordinates": [SQUARE]}
    line = {"type": "LineString", "coordinates": [[0, 0], [100, 0]]}
    inner = {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [HOLE]}]}
    tag = tag_of({"type": "GeometryCollection", "geometries": [polygon, line, inner, POINT]}, DEGREES)
    assert tag["area"] == 20.0
    assert tag["centroid"]["coordinates"] == [2.0, 2.0]
    assert tag["bbox"] == [0.0, 0.0, 100.0, 4.0]
    alone = tag_of(polygon, DEGREES)["areaM2"] + tag_of(inner, DEGREES)["areaM2"]
    assert tag["areaM2"] == pytest.approx(alone, rel=1e-12)


def test_open_rings_are_closed() -> None:
    """A ring whose last position is not its first is measured as if it were closed, and published as it is."""
    polygon = {"type": "Polygon", "coordinates": [SQUARE[:-1]]}
    tag = tag_of(polygon, DEGREES)
    assert tag["area"] == 16.0
    assert tag["areaM2"] == tag_of({"type": "Polygon", "coordinates": [SQUARE]}, DEGREES)["areaM2"]
    assert tag["geometry"] is polygon


def test_a_flat_polygon_has_a_centroid() -> None:
    """A polygon without area still lies somewhere."""
    tag = tag_of({"type": "Polygon", "coordinates": [[[2, 3], [2, 3], [2, 3], [2, 3]]]})
    assert tag["area"] == 0.0
    assert tag["centroid"] == {"type": "Point", "coordinates": [2.0, 3.0]}


def test_pixels_have_no_square_metres() -> None:
    """Without a referential there is no `areaM2`, and areas are in square pixels."""
    tag = tag_of({"type": "Polygon", "coordinates": [SQUARE]})
    assert "areaM2" not in tag
    assert tag["area"] == 16.0


EMPTY = [
    None,
    {"type": "Polygon", "coordinates": []},
    {"type": "Polygon", "coordinates": [[]]},
    {"type": "MultiPolygon", "coordinates": [[], [[]]]},
    {"type": "MultiPoint", "coordinates": []},
    {"type": "MultiLineString", "coordinates": [[]]},
    {"type": "GeometryCollection", "geometries": []},
]


@pytest.mark.parametrize("geometry", EMPTY)
def test_features_without_a_geometry_have_no_tag(geometry: Any) -> None:
    """Null and empty geometries are skipped and counted; `linkedId` stays the place in the features."""
    tags = tags_of(feature(geometry), feature(POINT), feature(geometry))
    assert tags.skipped == 2
    assert [tag["tag"]["linkedId"] for tag in tags] == [1]


def test_empty_parts_beside_others_are_passed_over() -> None:
    """An empty polygon or line inside a multi-geometry changes no measure."""
    polygons = {"type": "MultiPolygon", "coordinates": [[], [SQUARE], [[]]]}
    lines = {"type": "MultiLineString", "coordinates": [[], [[0, 0], [2, 0]]]}
    assert tag_of(polygons)["area"] == 16.0
    assert tag_of(lines)["bbox"] == [0.0, 0.0, 2.0, 0.0]


def test_outputs_that_are_tagged() -> None:
    """Collections (also without a type) and single Features are; images, free objects and bare geometries are not."""
    outputs = {
        "a": {"features": [feature(POINT)]},
        "b": feature(POINT),
        "c": POINT,
        "d": {"features": ["ndvi"]},
        "e": "text",
        "f": {"type": "FeatureCollection", "features": [feature(None), feature(POINT)]},
    }
    answer = Answer({**{name: Value(value) for name, value in outputs.items()}, "g": ()})
    found = [(tag["tag"]["output"], tag["tag"]["linkedId"]) for tag in build_tags(answer, PIXELS)]
    assert found == [("a", 0), ("b", 0), ("f", 1)]


def test_a_whole_answer_has_no_output_name() -> None:
    """`output` is null, and errors name no output, where the answer itself is the collection."""
    answer = Answer({WHOLE_ANSWER: Value({"features": [feature(POINT)]})}, whole=True)
    assert build_tags(answer, PIXELS)[0]["tag"]["output"] is None
    bad = Answer({WHOLE_ANSWER: Value({"features": [feature(POINT, confidence="a")]})}, whole=True)
    with pytest.raises(ResultRefused, match=r"^features\[0\]\.properties\.confidence is 'a'"):
        build_tags(bad, PIXELS)


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"name": "a", "category": "b"}, "a"),
        ({"name": 7}, 7),
        ({"name": None, "category": "b"}, "b"),
        ({"category": ["ship", "tanker", 3]}, "ship,tanker,3"),
        ({"category": []}, ""),
        ({}, None),
        (None, None),
        (["name"], None),
    ],
)
def test_name_falls_back_to_category(properties: Any, name: Any) -> None:
    """`name`, else `category` with a list joined by commas, else null."""
    one = {"type": "Feature", "geometry": POINT, "properties": properties}
    assert tags_of(one)[0]["tag"]["name"] == name


def test_value_and_confidence_are_passed_on() -> None:
    """`value` is any JSON; `confidence` keeps its type and is 1.0 where absent."""
    tags = tags_of(feature(POINT, value={"m": [1]}, confidence=1), feature(POINT))
    assert [(tag["tag"]["value"], repr(tag["confidence"])) for tag in tags] == [({"m": [1]}, "1"), (None, "1.0")]


@pytest.mark.parametrize("confidence", ["0.5", None, True, math.nan, math.inf, 10**400, [1]])
def test_a_confidence_that_is_no_number_is_refused(confidence: Any) -> None:
    """One such feature refuses all tags, and is named; also if it would have no tag."""
    with pytest.raises(ResultRefused, match=r"^d\.features\[1\]\.properties\.confidence is .*, not a finite number$"):
        tags_of(feature(POINT), feature(None, confidence=confidence))


@pytest.mark.parametrize(
    ("geometry", "problem"),
    [
        ({"type": "Point", "coordinates": [1, "2"]}, "coordinates is not a position"),
        ({"type": "Circle", "coordinates": [1, 2]}, "type is 'Circle'"),
        ({"type": "LineString", "coordinates": [[1, 2]]}, "coordinates is a line of one position"),
        ({"type": "Polygon", "coordinates": [SQUARE, [[1, 2], [1, 3]]]}, "coordinates[1] is a ring of 2 positions"),
        ({"type": "Polygon", "coordinates": [SQUARE, []]}, "coordinates[1] is a ring of 0 positions"),
        ({"type": "MultiPolygon", "coordinates": [[0]]}, "coordinates[0][0] is 0, not an array"),
    ],
)
def test_what_cannot_be_measured_is_refused(geometry: Any, problem: str) -> None:
    """Also without a referential nothing is tagged whose place is not known; the error names it."""
    with pytest.raises(ResultRefused) as caught:
        tags_of(feature(POINT), feature(geometry))
    assert caught.value.message.startswith(f"d.features[1].geometry.{problem}")


def test_coordinates_too_large_to_multiply_are_refused() -> None:
    """An area that overflows would be no JSON."""
    polygon = {"type": "Polygon", "coordinates": [[[x * 1e200, y * 1e200] for x, y in SQUARE]]}
    with pytest.raises(ResultRefused, match=r"^d\.features\[0\]\.geometry has coordinates that are too large"):
        tag_of(polygon)


def test_steps_join_without_a_seam() -> None:
    """Features of several steps keep their own measures."""
    count = 2 * GEOMETRIES_PER_STEP + 1
    shapes: list[Any] = [POINT, None, {"type": "LineString", "coordinates": [[0, 0], [2, 0]]}]
    features = [feature(shapes[number % 3] or {"type": "Point", "coordinates": [number, 0]}) for number in range(count)]
    tags = tags_of(*features)
    assert len(tags) == count
    expected = {0: [1.0, 2.0, 1.0, 2.0], 2: [0.0, 0.0, 2.0, 0.0]}
    assert all(
        tag["tag"]["bbox"] == expected.get(number % 3, [number, 0.0, number, 0.0]) for number, tag in enumerate(tags)
    )


def test_a_tag_set_is_a_sequence() -> None:
    """It can be read again, by index and in slices, with equal tags each time."""
    tags = tags_of(feature(POINT, name="a"), feature(None), feature(POINT, name="b"))
    assert list(tags) == list(tags) == [tags[0], tags[1]]
    assert list(tags[1:]) == [tags[-1]]
    assert tags[-1]["tag"]["name"] == "b"
    with pytest.raises(IndexError):
        tags[2]


numbers = st.floats(-1e3, 1e3) | st.integers(-4, 4)
points = st.lists(numbers, min_size=2, max_size=3)
lists: st.SearchStrategy[Any] = st.recursive(
    points, lambda inner: st.lists(inner, max_size=4) | st.lists(points, min_size=3, max_size=5), max_leaves=30
)
kinds = st.sampled_from(["Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon"])
shapes = st.recursive(
    st.fixed_dictionaries({"type": kinds, "coordinates": lists}),
    lambda inner: st.fixed_dictionaries(
        {"type": st.just("GeometryCollection"), "geometries": st.lists(inner, max_size=3)}
    ),
    max_leaves=4,
)


@given(st.lists(shapes, max_size=4), st.booleans())
def test_anything_is_tagged_or_refused(geometries: list[Any], referenced: bool) -> None:
    """Whatever the coordinates are, there are finite tags of all geometries with positions, or a refusal."""
    try:
        tags = tags_of(*map(feature, geometries), context=replace(PIXELS, referenced=referenced))
    except ResultRefused:
        return
    assert len(tags) + tags.skipped == len(geometries)
    for tag in tags:
        json.dumps(tag, allow_nan=False)
        min_x, min_y, max_x, max_y = tag["tag"]["bbox"]
        assert min_x <= max_x
        assert min_y <= max_y
