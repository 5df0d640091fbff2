"""`POST /jobs`: what is answered when, and who waits for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import trio
from trio.testing import MockClock

from cador_trio.intake.http.door import wait_end
from cador_trio.intake.request import decode_request
from cador_trio.job import Job
from cador_trio.registry import JobRecord
from tests.intake.running import JOB, check_error, open_daemon, vector, wait_end_of
from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    AnswerText,
    FakeAlgorithm,
    Hang,
    Hold,
    Pattern,
    Status,
    minimal_describe,
    open_fake_algorithm,
    sample_answer,
    sample_outputs,
)

ASYNC = {"Prefer": "respond-async"}
REFERENCE = {"relation": "status", "type": "application/json", "method": "GET"}


def check_reference(answer: httpx.Response, status: int) -> str:
    """It is the Reference to a status and PESTO's link in one; the job's id."""
    assert answer.status_code == status
    url = answer.headers["Location"]
    assert answer.json() == REFERENCE | {"href": url, "link": url}
    base, job_id, end = url.rsplit("/", 2)
    assert (base, end) == (f"{str(answer.request.url).split('/jobs')[0]}/jobs", "status")
    return str(job_id)


# --- Answers at once ---------------------------------------------------------------------------------------------


async def test_answer_without_the_envelope(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """The algorithm gets its inputs alone, and the caller its outputs alone, as JSON."""
    answer = await client.post("/api/v1/jobs", json=JOB | {"technicalMetadata": {"taskId": "t"}, "userMetadata": [1]})
    assert (answer.status_code, answer.json()) == (200, sample_answer())
    assert answer.headers["Content-Type"] == "application/json"
    assert fake.seen("POST")[0].json() == JOB
    assert "Location" not in answer.headers


async def test_coordinates_are_converted(client: httpx.AsyncClient) -> None:
    """With a referential GeoJSON comes back in degrees, tags or not."""
    place = {"upperLeft": {"lon": 10, "lat": 50}, "lonStep": 0.5, "latStep": -0.5}
    technical = {"referential": place, "postProcessing": {"tags": True}}
    answer = await client.post("/jobs", json=JOB | {"technicalMetadata": technical})
    ring = answer.json()["detections"]["features"][0]["geometry"]["coordinates"][0]
    assert ring[0] == [15, 40]


@pytest.mark.parametrize("size", [5, 300_000])
async def test_a_bare_image(size: int) -> None:
    """An image that is the whole answer comes with its own type and bytes, from memory or from the spool."""
    image = Pattern(size, "image/tiff")
    async with (
        open_fake_algorithm(
            describe=minimal_describe(whole="image/tiff"), default=AnswerImage(size, "image/tiff")
        ) as fake,
        open_daemon(fake) as client,
    ):
        answer = await client.post("/jobs", json=JOB)
    assert answer.headers["Content-Type"] == "image/tiff"
    assert int(answer.headers["Content-Length"]) == size
    assert answer.headers["ETag"] == f'"{image.sha256}"'
    assert answer.content == b"".join(image.blocks())


@pytest.mark.parametrize(
    ("behaviour", "body", "media_type"),
    [
        (Answer([1, 2]), b"[1,2]", "application/json"),
        (
            Answer({"type": "Point", "coordinates": [1, 2]}, media_type="application/geo+json"),
            None,
            "application/geo+json",
        ),
        (AnswerText("one vessel"), b"one vessel", "text/plain; charset=utf-8"),
        (Answer({}), b"{}", "application/json"),
    ],
)
async def test_answers_without_names(
    fake: FakeAlgorithm, client: httpx.AsyncClient, behaviour: Answer | AnswerText, body: bytes | None, media_type: str
) -> None:
    """What has no output names is answered as it is, with its media type."""
    fake.default = behaviour
    answer = await client.post("/jobs", json=JOB)
    assert answer.headers["Content-Type"] == media_type
    assert answer.content == (body or b'{"type":"Point","coordinates":[1,2]}')


async def test_a_large_document(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Megabytes of JSON go through the spool and come out the same."""
    value = {"detections": {"features": []}, "table": [list(range(100))] * 5000}
    fake.default = Answer(value)
    answer = await client.post("/jobs", json=JOB)
    assert answer.json() == value
    assert int(answer.headers["Content-Length"]) == len(answer.content) > 1_000_000


async def test_stored_images_are_references(fake: FakeAlgorithm, tmp_path: Path) -> None:
    """With a store, images are replaced by where they are."""
    technical = {"taskId": "t", "outputStorage": {"POSIX": {"folder": str(tmp_path)}}}
    async with open_daemon(fake, posix_roots=(tmp_path,)) as client:
        answer = (await client.post("/jobs", json=JOB | {"technicalMetadata": technical})).json()
    assert answer["mask"]["path"] == str(tmp_path / "t_mask")
    assert [chip["objectId"] for chip in answer["chips"]] == [f"t_chips_{index}" for index in range(12)]
    assert answer["count"] == 1


async def test_a_bare_image_in_a_store(tmp_path: Path) -> None:
    """An image that is the whole answer is then a reference by the name `output`."""
    technical = {"taskId": "t", "outputStorage": {"POSIX": {"folder": str(tmp_path)}}}
    async with (
        open_fake_algorithm(describe=minimal_describe(whole="image/png"), default=AnswerImage(5)) as fake,
        open_daemon(fake, posix_roots=(tmp_path,)) as client,
    ):
        answer = await client.post("/jobs", json=JOB | {"technicalMetadata": technical})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["output"]["objectId"] == "t_output"


@pytest.mark.parametrize("settings", [{"job_history": 0}, {"job_history_bytes": 1}], ids=["none", "too small"])
async def test_history_does_not_take_the_answer_away(fake: FakeAlgorithm, settings: dict[str, Any]) -> None:
    """A caller that waits gets its answer, even if it is not kept for a moment longer."""
    async with open_daemon(fake, **settings) as client:
        assert (await client.post("/jobs", json=JOB)).json() == sample_answer()
        waited = await client.post("/jobs", json=JOB, headers={"Prefer": "wait=30"})
        assert waited.json() == sample_answer()
        kept = [await client.get(f"/jobs/{job_id}/results") for job_id in (await client.get("/jobs")).json()]
        assert sum(answer.status_code == 200 for answer in kept) == (1 if "job_history_bytes" in settings else 0)


@pytest.mark.parametrize(
    ("behaviour", "status", "message"),
    [
        (Status(400, {"message": "too dark"}), 400, "the algorithm answered 400: too dark"),
        (Status(500, {"detail": "no bands"}), 500, "the algorithm answered 500: no bands"),
        (Answer({"technicalMetadata": {}}), 502, "the algorithm has an output called technicalMetadata"),
    ],
)
async def test_failures(
    fake: FakeAlgorithm, client: httpx.AsyncClient, behaviour: Answer | Status, status: int, message: str
) -> None:
    """A job that failed is answered with its error, as its status has it."""
    fake.default = behaviour
    error = check_error(await client.post("/jobs", json=JOB), status)
    assert error["message"].startswith(message)
    ((job_id, _),) = (await client.get("/jobs?status=failed")).json().items()
    assert (await client.get(f"/jobs/{job_id}/status")).json()["message"] == error["message"]


async def test_the_deadline(fake: FakeAlgorithm) -> None:
    """A job that takes too long is 504."""
    fake.default = Hang()
    async with open_daemon(fake, job_timeout_seconds=0.05) as client:
        assert "deadline of 0.05 s" in check_error(await client.post("/jobs", json=JOB), 504)["message"]


async def test_every_refusal_of_the_envelope(fake: FakeAlgorithm, tmp_path: Path) -> None:
    """Requests that are wrong by the contract are 400, before the algorithm hears of them."""
    async with open_daemon(fake, posix_roots=(tmp_path, "/data/out")) as client:
        for request in vector("requests-invalid").values():
            check_error(await client.post("/jobs", json=request), 400)
        check_error(await client.post("/jobs", content=b'{"image": "x", "image": "y"}'), 400)
        check_error(await client.post("/jobs", content=b""), 400)
    assert fake.seen("POST") == []


# --- Links instead -----------------------------------------------------------------------------------------------


async def test_respond_async(client: httpx.AsyncClient) -> None:
    """`respond-async`: 202, the link, and what was applied; the job goes on by itself."""
    answer = await client.post("/api/v1/jobs", json=JOB, headers=ASYNC)
    job_id = check_reference(answer, 202)
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert (await wait_end_of(client, job_id))["status"] == "SUCCEEDED"


async def test_stateful_algorithm() -> None:
    """A stateful algorithm's job is answered with its link, 200, unasked."""
    async with open_fake_algorithm(describe=minimal_describe(asynchronous=True)) as fake, open_daemon(fake) as client:
        answer = await client.post("/api/v1/jobs", json=JOB)
        job_id = check_reference(answer, 200)
        assert "Preference-Applied" not in answer.headers
        assert (await wait_end_of(client, job_id))["status"] == "SUCCEEDED"


async def test_stateful_algorithm_inline() -> None:
    """With CADOR_REST_STATEFUL=inline all outputs come in one answer; images, which are no JSON, as their links."""
    async with (
        open_fake_algorithm(dialect="pesto", describe=minimal_describe(asynchronous=True, pesto=True)) as fake,
        open_daemon(fake, rest_stateful="inline") as client,
    ):
        answer = (await client.post("/jobs", json=JOB)).json()
        assert set(answer) == set(sample_outputs())
        assert (answer["count"], answer["summary"], answer["p99"]) == (1, "one vessel", 0.99)
        assert (await client.get(answer["mask"]["href"])).headers["Content-Type"] == "image/png"
        assert check_reference(await client.post("/api/v1/jobs", json=JOB, headers=ASYNC), 202)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_wait_in_time(asynchronous: bool) -> None:
    """`wait=N`: the merged answer, if it is there in time, from any algorithm."""
    async with (
        open_fake_algorithm(describe=minimal_describe(asynchronous=asynchronous)) as fake,
        open_daemon(fake) as client,
    ):
        answer = await client.post("/jobs", json=JOB, headers={"Prefer": "wait=30"})
    assert (answer.status_code, answer.json()["count"]) == (200, 1)
    assert answer.headers["Preference-Applied"] == "wait=30"


@pytest.mark.parametrize(
    ("prefer", "applied"), [("wait=0", "wait=0"), ("respond-async, wait=0", "respond-async, wait=0")]
)
async def test_wait_too_short(fake: FakeAlgorithm, client: httpx.AsyncClient, prefer: str, applied: str) -> None:
    """`wait=N`: else the link, and the job goes on."""
    fake.default = Hold(Answer({"count": 3}))
    answer = await client.post("/api/v1/jobs", json=JOB, headers={"Prefer": prefer})
    job_id = check_reference(answer, 202)
    assert answer.headers["Preference-Applied"] == applied
    await fake.wait_for_request(1, "POST")
    fake.release()
    assert (await wait_end_of(client, job_id))["status"] == "SUCCEEDED"


async def test_wait_end(autojump_clock: MockClock) -> None:
    """A wait ends with its time or with the job, whichever is first."""
    request = decode_request(b"{}", lambda _: None)
    job = Job(uuid4(), "http", request, correlation_id="c", received_at=0)
    record = JobRecord(job, trio.current_time(), lambda: 0, None)
    assert not await wait_end(record, 7)
    assert trio.current_time() == pytest.approx(7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_end, record, 7)
        record.ended.set()
    assert await wait_end(record, 0)
    assert trio.current_time() == pytest.approx(7)


# --- Callers that leave, and come back ---------------------------------------------------------------------------


async def leave(fake: FakeAlgorithm, client: httpx.AsyncClient, **headers: str) -> None:
    """Post a job, and leave once it is at the algorithm."""

    async def post() -> None:
        await client.post("/jobs", json=JOB, headers=headers)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(post)
        await fake.wait_for_request(1, "POST")
        nursery.cancel_scope.cancel()


async def only_job(client: httpx.AsyncClient) -> str:
    ((job_id, _),) = (await client.get("/jobs")).json().items()
    return str(job_id)


async def test_a_caller_that_leaves(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """The job of a caller that waited for it, and left, is cancelled."""
    fake.default = Hold(Answer({}))
    await leave(fake, client)
    end = await wait_end_of(client, await only_job(client))
    assert (end["status"], end["message"]) == ("CANCELLED", "the caller left")


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "k"}, {"Prefer": "wait=30"}])
async def test_a_caller_that_may_leave(fake: FakeAlgorithm, client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """With a key, or with a wait that has an end anyway, the job goes on without its caller."""
    fake.default = Hold(Answer({}))
    await leave(fake, client, **headers)
    job_id = await only_job(client)
    assert (await client.get(f"/jobs/{job_id}/status")).json()["status"] == "RUNNING"
    fake.release()
    assert (await wait_end_of(client, job_id))["status"] == "SUCCEEDED"


async def test_coming_back_with_the_key(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """A retry finds the job that runs, and later the one that has ended; the algorithm works once."""
    fake.default = Hold(Answer({"count": 3}))
    key = {"Idempotency-Key": "k"}
    await leave(fake, client, **key)
    answers: list[httpx.Response] = []

    async def come_back() -> None:
        answers.append(await client.post("/jobs", json=JOB, headers=key))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        nursery.start_soon(come_back)
        again = await client.post("/api/v1/jobs", json=JOB, headers=key | ASYNC)
        assert check_reference(again, 202) == await only_job(client)
        fake.release()
    await come_back()
    assert [answer.json() for answer in answers] == [{"count": 3}] * 3
    assert len(fake.seen("POST")) == 1


async def test_another_key_is_another_job(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Keys are compared as they are; a job that is forgotten frees its key."""
    for key in ("k", "K", "k"):
        await client.post("/jobs", json=JOB, headers={"Idempotency-Key": key})
    jobs = (await client.get("/jobs")).json()
    assert len(jobs) == 2
    for job_id in jobs:
        await client.delete(f"/jobs/{job_id}")
    await client.post("/jobs", json=JOB, headers={"Idempotency-Key": "k"})
    assert len((await client.get("/jobs")).json()) == 1


async def test_a_refused_job_keeps_no_key(client: httpx.AsyncClient) -> None:
    """After a refusal the same key can be used with the request put right."""
    key = {"Idempotency-Key": "k"}
    check_error(await client.post("/jobs", json={}, headers=key), 400)
    assert (await client.post("/jobs", json=JOB, headers=key)).status_code == 200


async def test_a_caller_whose_job_another_one_cancels(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """It is told: 409."""
    fake.default = Hold(Answer({}))
    answers: list[httpx.Response] = []

    async def post() -> None:
        answers.append(await client.post("/jobs", json=JOB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(post)
        await fake.wait_for_request(1, "POST")
        assert (await client.delete(f"/jobs/{await only_job(client)}")).status_code == 204
    assert "cancelled by the client" in check_error(answers[0], 409)["message"]


async def test_a_caller_whose_daemon_stops(fake: FakeAlgorithm) -> None:
    """It is told to send the job again: 503."""
    fake.default = Hold(Answer({}))
    answers: list[httpx.Response] = []
    async with open_daemon(fake) as client:

        async def post() -> None:
            answers.append(await client.post("/jobs", json=JOB))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post)
            await fake.wait_for_request(1, "POST")
            client.stop()
    check_error(answers[0], 503)
    assert answers[0].headers["Retry-After"] == "5"
