"""The real PESTO behaves as this product believes: what the algorithm room is written against.

Asked directly over HTTP, without any of the product's code. When one of these fails after a change of PESTO's version,
the product's dialect needs a look.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.peers.pesto.detector.algorithm import rules
from tests.peers.pesto.hold import Hold
from tests.peers.pesto.images import decode_image, encode_image, sample_image
from tests.peers.pesto.launcher import PestoPeer

SAMPLE = sample_image()
JSON_OUTPUTS = {
    "detections": rules.detections(SAMPLE),
    "polygon": rules.polygon(SAMPLE),
    "count": rules.count(SAMPLE, sigma=2.5),
    "threshold_used": rules.threshold_used(SAMPLE, sigma=2.5),
    "summary": rules.summary(SAMPLE, sigma=2.5),
    "p99": rules.p99(SAMPLE),
}


@pytest.fixture
def stateless(pesto_stateless: PestoPeer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{pesto_stateless.url}/api/v1", timeout=30) as client:
        yield client


@pytest.fixture
def stateful(pesto_stateful: PestoPeer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{pesto_stateful.url}/api/v1", timeout=30) as client:
        yield client


@pytest.fixture
def hold() -> Iterator[Hold]:
    with Hold() as held:
        yield held


def base64_image(pixels: np.ndarray[Any, Any], driver: str = "PNG") -> str:
    return base64.b64encode(encode_image(pixels, "GTiff" if driver == "GTiff" else "PNG")).decode()


def pixels_of(text: str) -> np.ndarray[Any, Any]:
    return decode_image(base64.b64decode(text))


def run_stateful(client: httpx.Client, payload: dict[str, Any]) -> str:
    """Run a job to its end and return its URL."""
    answer = client.post("/process", json=payload)
    assert answer.status_code == 200, answer.text
    link: str = answer.json()["link"]
    return link.removesuffix("/status")


def file_uri(path: Path) -> str:
    return f"file://{path}"


# --- describe, version, health, openapi -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "asynchronous"), [("pesto_stateless", False), ("pesto_stateful", True)])
def test_describe_has_two_schemas_and_absolute_links(
    request: pytest.FixtureRequest, kind: str, asynchronous: bool
) -> None:
    """Input and output are both JSON Schemas by name, and every link is absolute, from the Host header."""
    peer: PestoPeer = request.getfixturevalue(kind)
    describe = httpx.get(f"{peer.url}/api/v1/describe").json()
    assert describe["asynchronous"] is asynchronous
    assert describe["input"]["properties"]["image"]["$ref"] == "#/definitions/Image"
    assert describe["input"]["required"] == ["image"]
    assert describe["output"]["properties"]["chips"]["$ref"] == "#/definitions/Images"
    assert set(describe["output"]["properties"]) == {*JSON_OUTPUTS, "mask", "chips"}
    assert {"Image", "Images", "Polygon"} <= set(describe["output"]["definitions"])
    assert "content" not in describe["output"]
    assert set(describe["_links"]) == {"self", "execution", "config", "version", "health"}
    assert describe["_links"]["execution"]["href"] == f"{peer.url}/api/v1/process"
    assert describe["_links"]["execution"]["type"].startswith("Complex type")


def test_links_name_port_none_when_the_host_header_has_no_port(stateless: httpx.Client) -> None:
    """A Host header without a port puts the text None where the port belongs."""
    links = stateless.get("/describe", headers={"Host": "algo"}).json()["_links"]
    assert links["execution"]["href"] == "http://algo:None/api/v1/process"


def test_the_announced_config_is_not_there(stateless: httpx.Client) -> None:
    """The config link of describe leads to 404."""
    assert stateless.get("/config").status_code == 404


def test_version_is_a_json_object(stateless: httpx.Client) -> None:
    """The version is an object with the packaging beside the version."""
    answer = stateless.get("/version")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["version"] == "1.2.3"
    assert answer.json()["__packaging"] == "packaged with PESTO v1.7.2"


def test_health_is_plain_ok_for_get_only(stateless: httpx.Client) -> None:
    """GET says OK as text, HEAD is not allowed."""
    answer = stateless.get("/health")
    assert (answer.status_code, answer.text) == (200, "OK")
    assert answer.headers["content-type"].startswith("text/plain")
    assert stateless.head("/health").status_code == 405


def test_openapi_is_yaml_announced_as_text(stateless: httpx.Client) -> None:
    """The specification comes as YAML, under the media type of plain text."""
    answer = stateless.get("/openapi")
    assert answer.text.startswith("openapi: 3")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


# --- stateless --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["base64", "file"])
def test_a_stateless_answer_is_one_json_object(
    stateless: httpx.Client, pesto_stateless: PestoPeer, source: str
) -> None:
    """All outputs come in one JSON object, images as base64 text, and nothing is left behind."""
    image = base64_image(SAMPLE) if source == "base64" else file_uri(pesto_stateless.image_path)
    answer = stateless.post("/process", json={"image": image, "sigma": 2.5}, headers={"Accept": "image/png"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    outputs = answer.json()
    assert {name: outputs[name] for name in JSON_OUTPUTS} == JSON_OUTPUTS
    np.testing.assert_array_equal(pixels_of(outputs["mask"]), rules.mask(SAMPLE, sigma=2.5))
    np.testing.assert_array_equal([pixels_of(chip) for chip in outputs["chips"]], rules.chips(SAMPLE))
    assert "type" not in outputs["detections"]
    assert pesto_stateless.job_folders() == {}


def test_stateless_images_keep_their_sample_type(stateless: httpx.Client) -> None:
    """A 16-bit image goes in and comes out with 16 bits, as PNG up to three bands and as TIFF from four."""
    deep = sample_image(bands=4).astype(np.uint16) * 100
    for bands, first_bytes in ((3, b"\x89PNG"), (4, b"II*\x00")):
        pixels = deep[:bands]
        chip = stateless.post("/process", json={"image": base64_image(pixels, "GTiff")}).json()["chips"][0]
        assert base64.b64decode(chip).startswith(first_bytes)
        np.testing.assert_array_equal(pixels_of(chip), rules.chips(pixels)[0])
        assert pixels_of(chip).dtype == np.uint16


# --- busy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pesto_stateless", "pesto_stateful"])
def test_post_blocks_and_a_second_one_is_refused(request: pytest.FixtureRequest, kind: str, hold: Hold) -> None:
    """The answer comes when the work is done; meanwhile others get 429 without Retry-After, and health says OK."""
    peer: PestoPeer = request.getfixturevalue(kind)
    image = file_uri(peer.image_path)
    url = f"{peer.url}/api/v1/process"
    with ThreadPoolExecutor(max_workers=1) as pool, hold:
        first = pool.submit(httpx.post, url, json={"image": image, "hold_port": hold.port}, timeout=30)
        hold.wait_begun()
        second = httpx.post(url, json={"image": image})
        assert second.status_code == 429
        assert second.json() == {"detail": "a processing is already running"}
        assert "retry-after" not in second.headers
        assert httpx.get(f"{peer.url}/api/v1/health").text == "OK"
        assert not first.done()
        hold.release()
        assert first.result().status_code == 200


def test_a_client_that_leaves_does_not_stop_the_work(pesto_stateless: PestoPeer, hold: Hold) -> None:
    """After the caller has hung up the algorithm works on, and the next POST is refused."""
    image = file_uri(pesto_stateless.image_path)
    leaver = http.client.HTTPConnection(pesto_stateless.url.removeprefix("http://"))
    leaver.request("POST", "/api/v1/process", json.dumps({"image": image, "hold_port": hold.port}))
    hold.wait_begun()
    leaver.close()
    refused = httpx.post(f"{pesto_stateless.url}/api/v1/process", json={"image": image})
    assert refused.status_code == 429
    hold.release()
    wait_until_free(pesto_stateless.url, image)


def wait_until_free(url: str, image: str) -> None:
    """Ask until PESTO takes a job again; it answers every time, so this needs no pause, only an end."""
    for _ in range(2000):
        if httpx.post(f"{url}/api/v1/process", json={"image": image}, timeout=30).status_code == 200:
            return
    pytest.fail("PESTO is still busy")


# --- stateful ---------------------------------------------------------------------------------------------------------


def test_the_results_of_a_stateful_job_are_found_by_links(stateful: httpx.Client, pesto_stateful: PestoPeer) -> None:
    """Status is DONE at once; list items are sorted as text; a name that ends in digits is folded into a list."""
    job = run_stateful(stateful, {"image": file_uri(pesto_stateful.image_path)})
    assert job.startswith(f"{pesto_stateful.url}/api/v1/jobs/")
    assert stateful.get(f"{job}/status").json() == {"status": "DONE", "progress": 100, "link": f"{job}/results"}

    index = stateful.get(f"{job}/results").json()
    names = ["count", "detections", "mask", "polygon", "summary", "threshold_used"]
    text_order = sorted(range(12), key=str)
    assert text_order[:4] == [0, 1, 10, 11]
    assert index == {name: f"{job}/results/{name}" for name in names} | {
        "chips": [f"{job}/results/chips{number}" for number in text_order],
        "p": [f"{job}/results/p99"],
    }
    job_id = job.rpartition("/")[2]
    assert stateful.get("/jobs").json()[job_id] == {"link": f"{job}/status"}


def test_each_stateful_result_has_the_media_type_of_its_schema(
    stateful: httpx.Client, pesto_stateful: PestoPeer
) -> None:
    """Numbers and texts are plain text, other values JSON, images PNG."""
    job = run_stateful(stateful, {"image": file_uri(pesto_stateful.image_path), "sigma": 2.5})

    for name in ("detections", "polygon", "count"):
        answer = stateful.get(f"{job}/results/{name}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == JSON_OUTPUTS[name]
    for name in ("threshold_used", "p99", "summary"):
        answer = stateful.get(f"{job}/results/{name}")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.content.decode() == str(JSON_OUTPUTS[name])

    mask = stateful.get(f"{job}/results/mask")
    assert mask.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(decode_image(mask.content), rules.mask(SAMPLE, sigma=2.5))
    chips = [decode_image(stateful.get(f"{job}/results/chips{number}").content) for number in range(12)]
    np.testing.assert_array_equal(chips, rules.chips(SAMPLE))


def test_stateful_images_are_cut_to_eight_bits_and_always_called_png(stateful: httpx.Client) -> None:
    """Values are taken modulo 256, and a TIFF of five bands is announced as image/png."""
    deep = sample_image(bands=5).astype(np.uint16) * 100
    job = run_stateful(stateful, {"image": base64_image(deep, "GTiff")})
    chip = stateful.get(f"{job}/results/chips0")
    assert chip.headers["content-type"] == "image/png"
    assert chip.content.startswith(b"II*\x00")
    np.testing.assert_array_equal(decode_image(chip.content), rules.chips(deep)[0] % 256)


def test_results_are_deleted_one_by_one_and_the_job_never(stateful: httpx.Client, pesto_stateful: PestoPeer) -> None:
    """DELETE by id gives 200 and removes the file, by folded name does nothing; an emptied job claims to run."""
    job = run_stateful(stateful, {"image": file_uri(pesto_stateful.image_path)})
    job_id = job.rpartition("/")[2]
    links = [link for value in stateful.get(f"{job}/results").json().values() for link in np.ravel(value)]
    assert len(links) == len(pesto_stateful.job_folders()[job_id]) == 19

    assert stateful.get(f"{job}/results/chips").status_code == 500
    for absent in (f"{job}/results/chips", f"{job}/results/p", "/jobs/12/results/mask"):
        assert stateful.delete(absent).status_code == 200
    assert len(pesto_stateful.job_folders()[job_id]) == 19

    for link in links:
        answer = stateful.delete(str(link))
        assert (answer.status_code, answer.json()) == (200, {})
    assert pesto_stateful.job_folders()[job_id] == ()
    assert stateful.get(f"{job}/status").json() == {"status": "RUNNING", "progress": 0}
    assert stateful.delete(job).status_code == 404
    assert stateful.delete(f"{job}/results").status_code == 405


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pesto_stateless", "pesto_stateful"])
def test_every_failure_is_500_with_a_detail(request: pytest.FixtureRequest, kind: str) -> None:
    """What the algorithm raises, a payload against the schema, a null input and a broken image all look alike."""
    peer: PestoPeer = request.getfixturevalue(kind)
    good = {"image": file_uri(peer.image_path)}
    cases = [
        (good | {"fail": "no water, déjà vu"}, "no water, déjà vu"),
        (good | {"sigma": "much"}, "'much' is not of type 'number'"),
        (good | {"sigma": None}, "None is not of type 'number'"),
        ({}, "'image' is a required property"),
        ({"image": "bm8gaW1hZ2U="}, "Error while processing"),
    ]
    for payload, text in cases:
        answer = httpx.post(f"{peer.url}/api/v1/process", json=payload)
        assert answer.status_code == 500
        assert text in answer.json()["detail"]


def test_what_pesto_does_not_catch_is_500_in_plain_text_and_drops_the_line(pesto_stateful: PestoPeer) -> None:
    """A body that is no JSON, an unknown job and the broken `POST /jobs`: no JSON, and the connection ends unannounced.

    Each is asked on a connection of its own, since a second request on the same one would meet a dead socket.
    """
    cases = [("POST", "/process", b"not json"), ("POST", "/jobs", b"{}"), ("GET", "/jobs/12/status", None)]
    for method, path, body in cases:
        connection = http.client.HTTPConnection(pesto_stateful.url.removeprefix("http://"), timeout=3)
        with closing(connection):
            connection.request(method, f"/api/v1{path}", body)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (500, b"Internal Server Error")
            assert answer.getheader("content-type") == "text/plain; charset=utf-8"
            assert answer.getheader("connection") is None
            # Three seconds are less than the five after which PESTO ends any idle connection.
            assert connection.sock.recv(1) == b""


def test_unknown_payload_keys_are_ignored(stateless: httpx.Client, pesto_stateless: PestoPeer) -> None:
    """A key that no input has does no harm."""
    payload = {"image": file_uri(pesto_stateless.image_path), "technicalMetadata": {"taskId": "t"}}
    assert stateless.post("/process", json=payload).status_code == 200
