"""The whole daemon in front of a real PESTO: from a request with an image to converted GeoJSON and stored images.

Stateless and stateful, the image by URI and as base64. Expected bytes are those that PESTO itself gives to a plain
client.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest
import trio

from cador_trio.daemon import serve
from cador_trio.settings import Settings
from tests.contract.algorithm_peers import (
    Peer,
    detector_values,
    direct_stateful_images,
    direct_stateless,
    inline_sha256,
    sha256,
)
from tests.peers.pesto.launcher import PestoPeer

BACKSTOP: Final = 90.0  # seconds; only a test that hangs meets it
REFERENTIAL: Final = {"upperLeft": {"lat": 48.0, "lon": 2.0}, "latStep": -0.001, "lonStep": 0.002}

Kind = Literal["stateless", "stateful"]
By = Literal["URI", "base64"]


@pytest.fixture(params=["stateless", "stateful"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return "stateful" if request.param == "stateful" else "stateless"


@pytest.fixture
def pesto(kind: Kind, request: pytest.FixtureRequest) -> PestoPeer:
    peer: PestoPeer = request.getfixturevalue(f"pesto_{kind}")
    return peer


@asynccontextmanager
async def open_daemon(pesto: PestoPeer, store: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a daemon in front of this PESTO, which it has reached."""
    settings = Settings(
        host="127.0.0.1", port=0, processing_server=pesto.url, posix_roots=(store,), shutdown_grace_seconds=0, **options
    )
    with trio.fail_after(BACKSTOP):
        async with trio.open_nursery() as nursery:
            serving = await nursery.start(serve, settings)
            async with httpx.AsyncClient(base_url=f"{serving.url}/api/v1", trust_env=False, timeout=None) as client:
                while (await client.get(f"{serving.url}/readyz")).status_code != 200:  # noqa: ASYNC110 - no event
                    pass
                yield client
            serving.stop()


def image_of(pesto: PestoPeer, by: By) -> str:
    if by == "URI":
        return f"file://{pesto.image_path}"
    return base64.b64encode(pesto.image_path.read_bytes()).decode()


def request_of(pesto: PestoPeer, by: By = "URI", store: Path | None = None, **more: Any) -> dict[str, Any]:
    technical: dict[str, Any] = {"taskId": "T-1", "referential": REFERENTIAL}
    if store is not None:
        technical["outputStorage"] = {"POSIX": {"folder": str(store)}}
    return {"image": image_of(pesto, by), "sigma": 2.5, "technicalMetadata": technical, **more}


async def expected_images(pesto: PestoPeer, kind: Kind) -> Mapping[str, Sequence[str]]:
    """The SHA-256 of each image, asked of PESTO directly; what that leaves there is deleted again."""
    inputs = {"image": f"file://{pesto.image_path}", "sigma": 2.5}
    peer = Peer(f"{pesto.url}/api/v1", inputs, detector_values(), "process", pesto=pesto)
    if kind == "stateful":
        return await direct_stateful_images(peer)
    direct = await direct_stateless(peer)
    return {"mask": [inline_sha256(direct["mask"])], "chips": [inline_sha256(text) for text in direct["chips"]]}


def converted_values() -> dict[str, Any]:
    """The detector's outputs in longitude and latitude, worked out one position at a time."""
    values = detector_values()
    return {**values, "detections": on_earth(values["detections"]), "polygon": on_earth(values["polygon"])}


def on_earth(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: positions_on_earth(member) if name == "coordinates" else on_earth(member)
            for name, member in value.items()
        }
    return [on_earth(member) for member in value] if isinstance(value, list) else value


def positions_on_earth(value: Any) -> Any:
    if isinstance(value[0], list):
        return [positions_on_earth(member) for member in value]
    x, y = value
    return [2.0 + x * 0.002, 48.0 + y * -0.001]


def check_stored(reference: dict[str, Any], store: Path, object_id: str, digest: str) -> None:
    """The reference says where the object is, and the object has these bytes."""
    content = (store / object_id).read_bytes()
    assert sha256(content) == digest
    assert reference == {
        "folder": str(store),
        "objectId": object_id,
        "path": str(store / object_id),
        "uri": f"file://{store / object_id}",
        "mediaType": "image/png",
        "size": len(content),
        "sha256": digest,
    }


def names_in(store: Path) -> set[str]:
    """The objects in the folder."""
    return {path.name for path in store.iterdir() if path.is_file()}


def check_nothing_is_left_on(pesto: PestoPeer) -> None:
    """PESTO holds no result of any job."""
    assert set(pesto.job_folders().values()) <= {()}


async def wait_end(client: httpx.AsyncClient, reference: dict[str, Any]) -> dict[str, Any]:
    """The last status of a job, by its events."""
    events = await client.get(reference["href"].removesuffix("/status") + "/events")
    status: dict[str, Any] = json.loads(events.text.rstrip().rpartition("data: ")[2])
    return status


# --- The whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["URI", "base64"])
async def test_a_job_with_all_outputs_converted_and_stored(
    kind: Kind, pesto: PestoPeer, by: By, tmp_path: Path
) -> None:
    """GeoJSON on the earth, images in the folder byte for byte, references in the answer, nothing left on PESTO."""
    store = tmp_path / "store"
    store.mkdir()
    async with open_daemon(pesto, store, rest_stateful="inline") as client:
        expected = await expected_images(pesto, kind)
        answer = await client.post("/jobs", json=request_of(pesto, by, store))
        assert answer.status_code == 200, answer.text
        document = answer.json()
        mask, chips = document.pop("mask"), document.pop("chips")
        assert document == converted_values()
        check_stored(mask, store, "T-1_mask", *expected["mask"])
        assert len(chips) == 12
        for index, (chip, digest) in enumerate(zip(chips, expected["chips"], strict=True)):
            check_stored(chip, store, f"T-1_chips_{index}", digest)
        assert names_in(store) == {"T-1_mask", *(f"T-1_chips_{index}" for index in range(12))}
        (job,) = (await client.get("/jobs")).json().values()
        status = (await client.get(job["link"])).json()
        assert (status["status"], status["progress"], status["taskId"]) == ("SUCCEEDED", 100, "T-1")
        check_nothing_is_left_on(pesto)


async def test_a_stateful_job_by_links(pesto_stateful: PestoPeer, tmp_path: Path) -> None:
    """A client of the plain API posts, watches, reads the index and fetches each result, images as images."""
    async with open_daemon(pesto_stateful, tmp_path) as client:
        expected = await expected_images(pesto_stateful, "stateful")
        answer = await client.post("/jobs", json=request_of(pesto_stateful))
        assert answer.status_code == 200, answer.text
        status = await wait_end(client, answer.json())
        assert status["status"] == "SUCCEEDED"
        check_nothing_is_left_on(pesto_stateful)
        index = {entry["id"]: entry["_link"] for entry in (await client.get(status["link"])).json()}
        values = converted_values()
        chips = [f"chips_{number}" for number in range(12)]
        assert set(index) == {*values, "mask", *chips}
        for name, value in values.items():
            result = await client.get(index[name]["href"])
            is_text = result.headers["content-type"].startswith("text/plain")
            assert is_text is (name == "summary")
            assert (result.text if is_text else result.json()) == value
        for result_id, digest in zip(["mask", *chips], [*expected["mask"], *expected["chips"]], strict=True):
            result = await client.get(index[result_id]["href"])
            assert (result.headers["content-type"], sha256(result.content)) == ("image/png", digest)


@pytest.mark.parametrize("by", ["URI", "base64"])
async def test_a_stateless_job_without_a_store_is_passed_on(pesto_stateless: PestoPeer, by: By, tmp_path: Path) -> None:
    """Images stay in the answer as PESTO encoded them, GeoJSON is converted all the same."""
    async with open_daemon(pesto_stateless, tmp_path) as client:
        expected = await expected_images(pesto_stateless, "stateless")
        document = (await client.post("/jobs", json=request_of(pesto_stateless, by))).json()
        assert [inline_sha256(document.pop("mask"))] == expected["mask"]
        assert [inline_sha256(chip) for chip in document.pop("chips")] == expected["chips"]
        assert document == converted_values()


# --- What goes wrong -------------------------------------------------------------------------------------------------


async def test_an_error_of_pesto_is_passed_on(kind: Kind, pesto: PestoPeer, tmp_path: Path) -> None:
    """500 with its text, nothing stored, and the next job runs."""
    async with open_daemon(pesto, tmp_path, rest_stateful="inline") as client:
        answer = await client.post("/jobs", json=request_of(pesto, store=tmp_path, fail="no water in sight"))
        assert answer.status_code == 500
        assert "no water in sight" in answer.json()["message"]
        assert names_in(tmp_path) == set()
        answer = await client.post("/jobs", json=request_of(pesto, image="file:///nowhere.png"))
        assert answer.status_code == 500
        assert "nowhere.png" in answer.json()["message"]
        assert (await client.post("/jobs", json=request_of(pesto))).status_code == 200
        check_nothing_is_left_on(pesto)


@pytest.mark.parametrize(
    "inputs", [{"image": 5}, {"image": None}, {"sigma": "high"}, {"seconds": -1}, {"hold_port": 1.5}], ids=repr
)
async def test_wrong_inputs_are_refused_before_pesto_hears_of_them(
    kind: Kind, pesto: PestoPeer, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    """400 at once, by PESTO's own schema, and its log knows of no further request."""
    async with open_daemon(pesto, tmp_path) as client:
        posts = pesto.log_path.read_text().count('"POST /api/v1/process')
        answer = await client.post("/jobs", json=request_of(pesto) | inputs)
        assert answer.status_code == 400, answer.text
        assert next(iter(inputs)) in f"{answer.json()['message']} {answer.json()['hint']}"
        assert (await client.get("/jobs")).json() == {}
        assert pesto.log_path.read_text().count('"POST /api/v1/process') == posts


async def test_a_pesto_that_somebody_else_keeps_busy_is_waited_for(
    kind: Kind, pesto: PestoPeer, tmp_path: Path
) -> None:
    """Its 429 is no failure: the job runs when PESTO is free."""
    async with open_daemon(pesto, tmp_path) as client, trio.open_nursery() as nursery:
        with pesto.hold() as hold:
            inputs = {"image": image_of(pesto, "URI"), "hold_port": hold.port}
            nursery.start_soon(somebody_else, pesto, inputs)
            await trio.to_thread.run_sync(hold.wait_begun)
            refusals = pesto.log_path.read_text().count('" 429')
            answer = await client.post("/jobs", json=request_of(pesto), headers={"Prefer": "respond-async"})
            assert answer.status_code == 202
            while pesto.log_path.read_text().count('" 429') == refusals:  # noqa: ASYNC110 - a log has no event
                await trio.lowlevel.checkpoint()
            status = (await client.get(answer.json()["href"])).json()
            assert status["status"] in {"ACCEPTED", "RUNNING"}
        assert (await wait_end(client, answer.json()))["status"] == "SUCCEEDED"


async def somebody_else(pesto: PestoPeer, inputs: dict[str, Any]) -> None:
    """A job that does not come through the daemon; what it leaves on PESTO is deleted."""
    async with httpx.AsyncClient(base_url=f"{pesto.url}/api/v1", trust_env=False, timeout=None) as http:
        answer = (await http.post("/process", json=inputs)).json()
        if "link" in answer:
            index = (await http.get(answer["link"].removesuffix("/status") + "/results")).json()
            for links in index.values():
                for link in [links] if isinstance(links, str) else links:
                    await http.delete(link)
