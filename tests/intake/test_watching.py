"""Jobs as others see them: the list, a job's status, its events, and its end by DELETE."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import pytest
import trio
from trio.testing import MockClock

from cador_trio.intake.http.events import KEEP_ALIVE_SECONDS, Events
from cador_trio.intake.request import decode_request
from cador_trio.job import Cancelled, EndReason, GivenBack, Job, Outcome
from cador_trio.registry import JobRecord
from cador_trio.run_job import Untold
from tests.intake.running import JOB, check_error, end_one_job, events_of, open_daemon, start_job, wait_end_of
from tests.peers.fake_algorithm import (
    Answer,
    FakeAlgorithm,
    Hold,
    Stateful,
    Status,
    minimal_describe,
    open_fake_algorithm,
)


def a_record() -> JobRecord:
    request = decode_request(b"{}", lambda _: None)
    job = Job(UUID(int=1), "http", request, correlation_id="c", received_at=0)
    return JobRecord(job, trio.current_time(), lambda: 0, None)


# --- The list ----------------------------------------------------------------------------------------------------


async def test_pages(client: httpx.AsyncClient) -> None:
    """The newest jobs come first, so many a page, and each page but the last one says where the next one is."""
    ids = [await end_one_job(client) for _ in range(5)]
    seen: list[str] = []
    sizes = []
    url = "/api/v1/jobs?limit=2"
    while url:
        page = await client.get(url)
        seen += page.json()
        sizes.append(len(page.json()))
        url = page.links["next"]["url"] if "next" in page.links else ""
    assert seen == ids[::-1]
    assert sizes == [2, 2, 1]


async def test_pages_of_one_state(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Only jobs in the state that is asked for are listed and counted, on the next pages, too."""
    fake.script.extend([Status(500), Answer({}), Status(500), Answer({}), Answer({})])
    ids = [await end_one_job(client) for _ in range(5)]
    first = await client.get("/jobs?limit=1&status=FAILED")
    assert list(first.json()) == [ids[2]]
    second = await client.get(first.links["next"]["url"])
    assert list(second.json()) == [ids[0]]
    assert "Link" not in second.headers
    assert list((await client.get("/jobs?status=succeeded&offset=2")).json()) == [ids[1]]
    assert (await client.get("/jobs?status=RUNNING")).json() == {}


async def test_a_listed_job(client: httpx.AsyncClient) -> None:
    """PESTO's keys, and more: where its status is, what it is called, and how it came in."""
    job_id = await end_one_job(client, technicalMetadata={"taskId": 7})
    url = f"{str(client.base_url).rstrip('/')}/api/v1/jobs/{job_id}/status"
    entry = {"link": url, "href": url, "status": "SUCCEEDED", "taskId": 7, "door": "http"}
    assert (await client.get("/jobs")).json() == {job_id: entry}


# --- Status ------------------------------------------------------------------------------------------------------


async def test_status_of_a_life(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """RUNNING while the algorithm works; then SUCCEEDED, 100 percent, and the link to the results."""
    fake.default = Hold(Answer({}))
    job_id = await start_job(client)
    await fake.wait_for_request(1, "POST")
    status = (await client.get(f"/jobs/{job_id}/status")).json()
    assert (status["status"], status["progress"], status["jobId"], status["taskId"]) == ("RUNNING", 0, job_id, job_id)
    assert not {"link", "href", "message"} & set(status)
    fake.release()
    end = await wait_end_of(client, job_id)
    assert (end["status"], end["progress"]) == ("SUCCEEDED", 100)
    assert end["modifiedAt"] >= status["modifiedAt"]
    assert isinstance(end["duration"], int)
    assert end["link"] == end["href"] == f"{str(client.base_url).rstrip('/')}/api/v1/jobs/{job_id}/results"


async def test_status_of_a_waiting_job(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """ACCEPTED until there is a slot."""
    fake.default = Hold(Answer({}))
    await start_job(client)
    await fake.wait_for_request(1, "POST")
    waiting = await start_job(client)
    assert (await client.get(f"/jobs/{waiting}/status")).json()["status"] == "ACCEPTED"


async def test_status_of_a_failure(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """FAILED says why, without links to results that are not there."""
    fake.default = Status(500, {"detail": "no bands"})
    status = await wait_end_of(client, await start_job(client))
    assert (status["status"], status["message"]) == ("FAILED", "the algorithm answered 500: no bands")
    assert "hint" in status
    assert not {"link", "href"} & set(status)


# --- Events ------------------------------------------------------------------------------------------------------


async def test_events_of_a_life(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """The status now, at every change, and no more after the terminal one."""
    fake.default = Hold(Answer({}))
    job_id = await start_job(client)
    await fake.wait_for_request(1, "POST")
    async with client.stream("GET", f"/jobs/{job_id}/events") as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert stream.headers["Cache-Control"] == "no-store"
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: status"
        assert '"status":"RUNNING"' in await anext(lines)
        fake.release()
        rest = [line async for line in lines if line]
    assert rest[0] == "event: status"
    assert '"status":"SUCCEEDED"' in rest[1]
    assert len(rest) == 2


async def test_events_of_the_algorithms_progress() -> None:
    """Progress that a stateful algorithm tells is an event."""
    states: list[Any] = [{"status": "RUNNING", "progress": 40}, "SUCCEEDED"]
    async with (
        open_fake_algorithm(
            describe=minimal_describe(asynchronous=True, outputs=["count"]),
            default=Hold(Stateful({"count": Answer(1)}, states=states)),
        ) as fake,
        open_daemon(fake) as client,
    ):
        job_id = await start_job(client)
        await fake.wait_for_request(1, "POST")
        async with client.stream("GET", f"/jobs/{job_id}/events") as stream:
            fake.release()
            text = (await stream.aread()).decode()
    assert [text.count(f'"progress":{percent},') for percent in (40, 100)] == [1, 1]


async def test_events_of_an_ended_job(client: httpx.AsyncClient) -> None:
    """One event, the last one."""
    assert [event["status"] for event in await events_of(client, await end_one_job(client))] == ["SUCCEEDED"]


async def test_a_silent_stream_gives_signs_of_life(autojump_clock: MockClock) -> None:
    """While nothing changes a comment comes now and then, so that no proxy takes the stream for dead."""
    stream = Events(a_record(), lambda record: {"status": record.state})
    assert await anext(stream) == b'event: status\ndata: {"status":"ACCEPTED"}\n\n'
    for count in (1, 2):
        assert (await anext(stream)).startswith(b": ")
        assert trio.current_time() == pytest.approx(count * KEEP_ALIVE_SECONDS)


async def test_a_stream_ends_with_a_job_that_is_given_back(autojump_clock: MockClock) -> None:
    """A job that ends without a terminal state ends its stream, too."""
    record = a_record()
    stream = Events(record, lambda record: {"status": record.state})
    await anext(stream)
    record.end(GivenBack(EndReason.REVOKED))
    assert (await anext(stream)).startswith(b"event: status")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_in_one_piece() -> None:
    """The test client of the framework wants a stream as a whole."""
    record = a_record()
    record.end(Cancelled(EndReason.SHUTDOWN))
    assert (await Events(record, lambda record: {}).convert_to_sequence()).count(b"event:") == 1


# --- DELETE ------------------------------------------------------------------------------------------------------


async def test_cancelling_a_running_job(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """204 once it is cancelled; its status says so, and the next job gets its turn when the algorithm is free."""
    fake.script.append(Hold(Answer({})))
    job_id = await start_job(client)
    await fake.wait_for_request(1, "POST")
    assert (await client.delete(f"/jobs/{job_id}")).status_code == 204
    status = (await client.get(f"/jobs/{job_id}/status")).json()
    assert (status["status"], status["message"]) == ("CANCELLED", "cancelled by the client")
    fake.release()
    assert (await client.post("/jobs", json=JOB)).status_code == 200


async def test_cancelling_a_waiting_job(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """It never comes to the algorithm."""
    fake.default = Hold(Answer({}))
    first = await start_job(client)
    await fake.wait_for_request(1, "POST")
    waiting = await start_job(client)
    assert (await client.delete(f"/jobs/{waiting}")).status_code == 204
    fake.release()
    await wait_end_of(client, first)
    assert (await client.get(f"/jobs/{waiting}/status")).json()["status"] == "CANCELLED"
    assert len(fake.seen("POST")) == 1


async def test_forgetting_an_ended_job(client: httpx.AsyncClient) -> None:
    """204, and it is not found any more."""
    job_id = await end_one_job(client)
    assert (await client.delete(f"/jobs/{job_id}")).status_code == 204
    for path in ("status", "results", "results/mask", "events"):
        check_error(await client.get(f"/jobs/{job_id}/{path}"), 404)
    check_error(await client.delete(f"/jobs/{job_id}"), 404)
    assert (await client.get("/jobs")).json() == {}


async def test_past_the_point_of_no_return(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose outcome is on its way can't be cancelled: 409 with its state, and it succeeds."""
    publishing, published = trio.Event(), trio.Event()

    async def publish(_: Untold, _record: object, outcome: Outcome, _tags: object) -> Outcome:
        publishing.set()
        await published.wait()
        return outcome

    monkeypatch.setattr(Untold, "publish", publish)
    job_id = await start_job(client)
    await publishing.wait()
    assert "RUNNING" in check_error(await client.delete(f"/jobs/{job_id}"), 409)["message"]
    published.set()
    assert (await wait_end_of(client, job_id))["status"] == "SUCCEEDED"


async def test_two_cancel_at_once(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Both are told that it is cancelled, or gone."""
    fake.default = Hold(Answer({}))
    job_id = await start_job(client)
    await fake.wait_for_request(1, "POST")
    codes: list[int] = []

    async def cancel() -> None:
        codes.append((await client.delete(f"/jobs/{job_id}")).status_code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        nursery.start_soon(cancel)
    assert codes == [204, 204]
