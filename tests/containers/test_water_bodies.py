"""The example algorithm: the detector on tiny arrays and on the real image, and the API around it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import detector
import numpy as np
import pytest
import server
import trio
import yaml  # type: ignore[import-untyped]  # it publishes no types
from numpy.typing import NDArray
from PIL import Image
from quart.typing import TestClientProtocol as Client  # pytest would collect a name with Test

from cador_trio.algorithm.schema import compile_inputs

IMAGE = Path(detector.__file__).parent / "blue-marble-black-sea-caspian.png"
WATER = (10, 40, 90)
LAND = (120, 110, 80)


def picture(*rows: str) -> NDArray[np.uint8]:
    """An image with water where there is a `w`."""
    return np.array([[WATER if mark == "w" else LAND for mark in row] for row in rows], dtype=np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def rings(feature: dict[str, Any]) -> list[set[tuple[float, float]]]:
    """The corners of each ring, without their order."""
    return [set(map(tuple, ring)) for ring in feature["geometry"]["coordinates"]]


# --- The detector ------------------------------------------------------------------------------------------------


def test_outline_runs_along_pixel_edges() -> None:
    """The polygon of one pixel in column 2, row 1 spans from corner (2, 1) to corner (3, 2)."""
    found = detector.find_water(picture("....", "..w.", "...."), minimum_pixels=1)
    assert [rings(feature) for feature in found.features] == [[{(2, 1), (3, 1), (3, 2), (2, 2)}]]


def test_bodies_that_touch_at_a_corner_are_two() -> None:
    """Connectivity is by edges: two diagonal neighbours are two bodies."""
    found = detector.find_water(picture("w.", ".w"), minimum_pixels=1)
    assert [feature["properties"]["pixels"] for feature in found.features] == [1, 1]


def test_an_island_is_a_hole() -> None:
    """Land inside of water is a hole of its polygon and not counted; water on the island is a body of its own."""
    found = detector.find_water(picture("wwwww", "w...w", "w.w.w", "w...w", "wwwww"), minimum_pixels=1)
    sea, pond = found.features
    assert rings(sea) == [{(0, 0), (5, 0), (5, 5), (0, 5)}, {(1, 1), (4, 1), (4, 4), (1, 4)}]
    assert (sea["properties"]["pixels"], pond["properties"]["pixels"]) == (16, 1)


def test_small_bodies_are_left_out_of_features_and_mask() -> None:
    """What has fewer than `minimum_pixels` is in neither of the outputs."""
    found = detector.find_water(picture("ww.w", "ww.."), minimum_pixels=2)
    assert [feature["properties"]["pixels"] for feature in found.features] == [4]
    assert found.mask.tolist() == [[True, True, False, False], [True, True, False, False]]


def test_the_largest_body_comes_first() -> None:
    """Features are ordered by size and numbered in that order."""
    found = detector.find_water(picture("w.ww.www"), minimum_pixels=1)
    assert [(feature["id"], feature["properties"]["pixels"]) for feature in found.features] == [(0, 3), (1, 2), (2, 1)]


def test_dry_land_gives_nothing() -> None:
    """Without water there are no features, and the mask has the image's shape."""
    found = detector.find_water(picture("...", "..."))
    assert (found.features, found.mask.shape, bool(found.mask.any())) == ([], (2, 3), False)


@pytest.mark.parametrize(
    ("colour", "is_water"),
    [
        pytest.param((10, 40, 90), True, id="deep"),
        pytest.param((49, 81, 76), True, id="turquoise"),
        pytest.param((63, 94, 55), True, id="shallow green"),
        pytest.param((39, 69, 137), True, id="bright but clearly blue"),
        pytest.param((68, 102, 103), False, id="wet sand"),
        pytest.param((33, 47, 21), False, id="forest"),
        pytest.param((240, 245, 250), False, id="snow"),
        pytest.param((180, 150, 110), False, id="desert"),
    ],
)
def test_colours(colour: tuple[int, int, int], is_water: bool) -> None:
    """Water is known by its colour, and what often looks like it is not taken for it."""
    assert bool(detector.find_water(np.array([[colour]], dtype=np.uint8), minimum_pixels=1).features) is is_water


def test_confidence_is_the_mean_lead_over_red() -> None:
    """A lead of 50 or more counts as 1; half of it as a half; the body has the mean of its pixels."""
    found = detector.find_water(np.array([[(10, 20, 90), (10, 20, 35)]], dtype=np.uint8), minimum_pixels=1)
    assert found.features[0]["properties"]["confidence"] == 0.75


def test_seas_lie_where_the_atlas_has_them() -> None:
    """On the real image the centres of the Black Sea and the Caspian are within 0.1° of OpenStreetMap's."""
    with Image.open(IMAGE) as image:
        found = detector.find_water(np.asarray(image.convert("RGB")))
    black_sea, _, caspian = (centre_of(found, index) for index in range(3))
    assert black_sea == pytest.approx((34.41, 43.50), abs=0.1)
    assert caspian == pytest.approx((50.70, 41.63), abs=0.1)
    # Crete, Cyprus, Rhodes … : islands that the mask must not count as water.
    assert len(found.features[1]["geometry"]["coordinates"]) > 10
    assert int(found.mask.sum()) == sum(feature["properties"]["pixels"] for feature in found.features)


def centre_of(found: detector.Water, index: int) -> tuple[float, float]:
    """Degrees of the centre of mass: outer ring minus holes, by the shoelace formula."""
    mass, moment_x, moment_y = 0.0, 0.0, 0.0
    for number, ring in enumerate(found.features[index]["geometry"]["coordinates"]):
        x, y = np.array(ring, dtype=float).T
        cross = x[:-1] * y[1:] - x[1:] * y[:-1]
        # Positive for the outer ring, negative for holes, whichever way they run.
        sign = np.sign(cross.sum()) * (1 if number == 0 else -1)
        mass += sign * cross.sum() / 2
        moment_x += sign * ((x[:-1] + x[1:]) * cross).sum() / 6
        moment_y += sign * ((y[:-1] + y[1:]) * cross).sum() / 6
    return 24 + moment_x / mass / 15, 50 - moment_y / mass / 15


# --- The API -----------------------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Client:
    return server.app.test_client()


@pytest.fixture
def lake() -> bytes:
    """A PNG with one body of nine pixels."""
    return png(picture("www", "www", "www"))


async def post(client: Client, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    answer = await client.post("/api/v1/jobs", data=json.dumps(body), headers=headers)
    return answer.status_code, await answer.get_json()


async def test_job_with_base64(client: Client, lake: bytes) -> None:
    """An image as base64 text gives polygons, a PNG mask of the same size and the count."""
    status, answer = await post(client, {"image": base64.b64encode(lake).decode()})
    assert (status, answer["count"], len(answer["water"]["features"])) == (200, 1, 1)
    with Image.open(io.BytesIO(base64.b64decode(answer["mask"]))) as mask:
        assert (mask.format, mask.size, mask.getextrema()) == ("PNG", (3, 3), (255, 255))


async def test_job_with_uri(client: Client, lake: bytes, tmp_path: Path) -> None:
    """An image by file URI is read by the algorithm itself."""
    path = tmp_path / "a lake.png"
    path.write_bytes(lake)
    status, answer = await post(client, {"image": path.as_uri(), "minimumPixels": 10})
    assert (status, answer["count"]) == (200, 0)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        pytest.param([], "JSON object", id="not an object"),
        pytest.param({}, "JSON object", id="no image"),
        pytest.param({"image": 5}, "text", id="not a text"),
        pytest.param({"image": "?"}, "can't be read", id="not base64"),
        pytest.param({"image": "é"}, "can't be read", id="not ASCII"),
        pytest.param({"image": "AAAA"}, "can't be read", id="not an image"),
        pytest.param({"image": "file:///no/such/file.png"}, "No such file", id="no such file"),
        pytest.param({"image": "", "minimumPixels": 0}, "at least 1", id="minimum too small"),
        pytest.param({"image": "", "minimumPixels": True}, "integer", id="minimum a boolean"),
    ],
)
async def test_bad_input(client: Client, body: object, word: str) -> None:
    """Wrong input is the caller's fault: 400, and an Error object that says what is wrong."""
    status, answer = await post(client, body, **{"X-Correlation-ID": "c-1"})
    assert (status, answer["correlationId"]) == (400, "c-1")
    assert word in answer["message"]


async def test_not_json(client: Client) -> None:
    """A body that is no JSON is answered 400."""
    answer = await client.post("/api/v1/jobs", data=b"\xff{")
    assert answer.status_code == 400


async def test_busy(client: Client, lake: bytes) -> None:
    """While it works on one image another is answered 503."""
    with trio.fail_after(10):  # one that waited instead would wait for ever
        async with server.worker:
            status, answer = await post(client, {"image": base64.b64encode(lake).decode()})
    assert (status, "busy" in answer["message"]) == (503, True)


async def test_body_limit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body over the limit is answered 413."""
    monkeypatch.setitem(server.app.config, "MAX_CONTENT_LENGTH", 10)
    status, _ = await post(client, {"image": "A" * 20})
    assert status == 413


@pytest.mark.parametrize(("path", "status"), [("/api/v1/jobs", 405), ("/nowhere", 404)])
async def test_other_errors(client: Client, path: str, status: int) -> None:
    """A wrong method or path gets an Error object too."""
    answer = await client.get(path)
    assert answer.status_code == status
    assert {"message", "timestamp"} <= (await answer.get_json()).keys()


async def test_texts(client: Client) -> None:
    """Health and version are plain texts."""
    for path, text in (("health", "OK"), ("version", "1.0.0")):
        answer = await client.get(f"/api/v1/{path}")
        assert (answer.status_code, answer.mimetype) == (200, "text/plain")
        assert await answer.get_data(as_text=True) == text


async def test_openapi_covers_every_route(client: Client) -> None:
    """The OpenAPI document names the paths that are served, all of them."""
    answer = await client.get("/api/v1/openapi")
    document = yaml.safe_load(await answer.get_data(as_text=True))
    served = {rule.rule for rule in server.app.url_map.iter_rules() if rule.rule.startswith("/api")}
    assert set(document["paths"]) == served


async def test_describe(client: Client) -> None:
    """Describe says stateless, its input schema compiles, its links are served, and it names all outputs."""
    describe = await (await client.get("/api/v1/describe")).get_json()
    assert describe["asynchronous"] is False
    assert compile_inputs(describe["input"]).problem is None
    served = {rule.rule for rule in server.app.url_map.iter_rules()}
    assert {link["href"] for link in describe["_links"].values()} <= served
    assert list(describe["output"]["properties"]) == ["water", "mask", "count"]
