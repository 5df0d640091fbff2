"""Each counter moves when its thing happens, and by as much: jobs, storage and HTTP. Kafka's are in its own folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from cador_trio.daemon import HEARTBEAT_SECONDS
from cador_trio.errors import AlgorithmFailed
from cador_trio.job import Door, EndReason
from cador_trio.observe.health import Health
from cador_trio.observe.loop_lag import LoopLag
from cador_trio.observe.metrics import registry_of
from cador_trio.readings import house_readings
from cador_trio.storage import buckets
from tests.doubles import Street, make_job, open_street
from tests.intake.running import open_daemon, start_job, wait_end_of
from tests.observe.scraping import Moved, Scrape, scrape, scrape_of
from tests.peers.fake_algorithm import Answer, CloseBeforeAnswer, Hold, Html, Status, Step, open_fake_algorithm
from tests.peers.object_stores.misbehaviour import Refuse
from tests.storage.bodies import image
from tests.storage.conftest import PosixUnderTest
from tests.storage.test_bucket_failures import open_world

# --- Jobs, among doubles -----------------------------------------------------------------------------------------


def readings_of(street: Street) -> Scrape:
    health = Health(trio.current_time)
    lag = LoopLag(trio.current_time, HEARTBEAT_SECONDS)
    return scrape_of(registry_of(lambda: house_readings(street.house, health, lag, lambda: True)))


async def test_jobs_by_their_ends(tmp_path: Path, autojump_clock: MockClock) -> None:
    """One count a job, by door and outcome; a failure also by its class."""
    moved = Moved()
    async with open_street(tmp_path) as street:
        await street.run(make_job())
        await street.run(make_job(door="kafka"))
        street.algorithm.error = AlgorithmFailed("no")
        await street.run(make_job())
    assert moved.by("outcome", "cador_jobs_total", door="http") == {"succeeded": 1, "failed": 1}
    assert moved.by("outcome", "cador_jobs_total", door="kafka") == {"succeeded": 1}
    assert moved.by("error_class", "cador_job_errors_total") == {"AlgorithmFailed": 1}


@pytest.mark.parametrize(
    ("door", "reason", "outcome"),
    [
        ("http", EndReason.SHUTDOWN, "cancelled"),
        ("http", EndReason.CALLER_LEFT, "cancelled"),
        ("kafka", EndReason.CALLER_CANCELLED, "cancelled"),
        ("kafka", EndReason.SHUTDOWN, "given_back"),
        ("kafka", EndReason.REVOKED, "given_back"),
    ],
)
async def test_jobs_that_end_early(
    tmp_path: Path, autojump_clock: MockClock, door: Door, reason: EndReason, outcome: str
) -> None:
    """Counted once, as what it is: cancelled, or given back; neither is a failure."""
    moved = Moved()
    async with open_street(tmp_path) as street:
        street.algorithm.halt.close()
        record = street.submit(make_job(door=door))
        await street.algorithm.halt.reached.wait()
        record.cancel(reason)
        await record.ended.wait()
    assert moved.by("outcome", "cador_jobs_total") == {outcome: 1}
    assert moved.by("error_class", "cador_job_errors_total") == {}


async def test_stages_of_a_job(tmp_path: Path, autojump_clock: MockClock) -> None:
    """While the algorithm works the job is in that stage, and nowhere once it has ended."""
    moved = Moved()
    async with open_street(tmp_path) as street:
        street.algorithm.images = (("mask", None, b"pixels"),)
        street.algorithm.halt.close()
        record = street.submit(make_job(stores=True))
        await street.algorithm.halt.reached.wait()
        assert moved.by("stage", "cador_stage_jobs") == {"algorithm": 1}
        await trio.sleep(30)
        street.algorithm.halt.open()
        await record.ended.wait()
    assert moved.by("stage", "cador_stage_jobs") == {}
    counts = {"queued": 1, "algorithm": 1, "store": 1, "publish": 1}
    assert moved.by("stage", "cador_stage_seconds_count") == counts
    assert moved.by("stage", "cador_stage_seconds_sum") == {"algorithm": 30}


async def test_capacity_and_age(tmp_path: Path, autojump_clock: MockClock) -> None:
    """One slot, three jobs: one works, two wait; the oldest is as old as the first."""
    async with open_street(tmp_path) as street:
        street.algorithm.halt.close()
        records = [street.submit(make_job(door=door)) for door in ("http", "kafka", "kafka")]
        await wait_all_tasks_blocked()
        await trio.sleep(5)
        found = readings_of(street)
        assert (found("cador_slots"), found("cador_slots_in_use"), found("cador_unfinished_jobs")) == (1, 1, 1)
        assert found("cador_waiting_jobs") == 2
        assert found("cador_oldest_unfinished_job_seconds") == 5
        street.algorithm.halt.open()
        for record in records:
            await record.ended.wait()
        await wait_all_tasks_blocked()
        found = readings_of(street)
        assert found("cador_oldest_unfinished_job_seconds") == found("cador_waiting_jobs") == 0
        assert found("cador_spool_bytes") == street.spool.used > 0


async def test_a_scrape_does_not_grow_with_jobs(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Neither what ran nor what waits adds a series; and nothing is waited for, so the loop goes on."""
    async with open_street(tmp_path) as street:
        await street.run(make_job())
        before = readings_of(street).samples.keys()
        for number in range(100):
            await street.run(make_job(task_id=f"task-{number}"))
        street.algorithm.halt.close()
        waiting = [street.submit(make_job(task_id=f"waiting-{number}")) for number in range(50)]
        await wait_all_tasks_blocked()
        with assert_no_checkpoints():
            after = readings_of(street)
        assert after("cador_waiting_jobs") == len(waiting) - 1
        assert after.samples.keys() == before
        assert "task-" not in after.text


# --- The store ---------------------------------------------------------------------------------------------------


async def test_what_is_stored(tmp_path: Path) -> None:
    """Bytes and objects, by type of store, once they are in place."""
    moved = Moved()
    world = PosixUnderTest(tmp_path)
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    for name in ("mask", "other"):
        await world.store.put(destination, image(b"x" * 100, name))
    assert moved.by("type", "cador_stored_bytes_total") == {"POSIX": 200}
    assert moved.by("type", "cador_stored_objects_total") == {"POSIX": 2}


async def test_calls_that_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each retry, and the object once."""
    monkeypatch.setattr(buckets, "FIRST_PAUSE_SECONDS", 0.001)
    moved = Moved()
    async with open_world(Refuse(503, "SlowDown"), Refuse(503, "SlowDown")) as world:
        await world.store.put(world.destination(), image(b"x" * 10))
    assert moved.by("type", "cador_store_retries_total") == {"S3": 2}
    assert moved.by("type", "cador_stored_bytes_total") == {"S3": 10}


# --- The daemon, over HTTP ---------------------------------------------------------------------------------------


async def test_attempts_at_the_algorithm() -> None:
    """Each try by what it came to; a retry is another one."""
    moved = Moved()
    script: list[Step] = [CloseBeforeAnswer(), Status(503), Answer({"count": 1}), Status(400), Status(500), Html()]
    async with open_fake_algorithm(script) as fake, open_daemon(fake) as client:
        for _ in range(4):
            await wait_end_of(client, await start_job(client))
        assert len(fake.seen("POST")) == len(script)
    assert moved.by("result", "cador_algorithm_attempts_total") == {
        "died": 1,
        "busy": 1,
        "succeeded": 1,
        "refused": 1,
        "failed": 1,
        "broken": 1,
    }


async def test_requests_that_never_became_jobs() -> None:
    """Refused, each with its reason; a token that is wrong is an answer, not a job."""
    moved = Moved()
    async with open_fake_algorithm() as fake, open_daemon(fake, max_body_bytes=1_000) as client:
        await client.post("/jobs", content=b"{")
        await client.post("/jobs", json={"image": 7})
        await client.post("/process", json={"image": "x" * 2_000})
        await client.post("/jobs", content=b"{}", headers={"Content-Type": "text/csv"})
    assert moved.by("outcome", "cador_jobs_total", door="http") == {"refused": 4}
    assert moved.by("error_class", "cador_job_errors_total", door="http") == {
        "RequestRefused": 2,
        "BodyTooLarge": 1,
        "UnsupportedMediaType": 1,
    }


async def test_full_house_is_counted() -> None:
    """Who is turned away for want of room."""
    moved = Moved()
    script = [Hold(Answer({"count": 1}))]
    async with open_fake_algorithm(script) as fake, open_daemon(fake, max_waiting_jobs=0) as client:
        job_id = await start_job(client)
        await fake.wait_for_request(1, "POST")
        assert (await client.post("/jobs", json={"image": "x"})).status_code == 503
        fake.release()
        await wait_end_of(client, job_id)
    assert moved.by("error_class", "cador_job_errors_total") == {"NotNow": 1}


async def test_requests_by_template() -> None:
    """Ids of jobs and names of results make no series; paths that lead nowhere make one."""
    moved = Moved()
    async with open_fake_algorithm() as fake, open_daemon(fake) as client:
        job_id = await start_job(client)
        await wait_end_of(client, job_id)
        for path in (f"/jobs/{job_id}/status", "/jobs/nobody/status", "/a", "/b?c=d", f"/jobs/{job_id}/results/mask"):
            await client.get(path)
        await client.request("BREW", "/livez")
        assert job_id not in (await scrape(client)).text
    assert moved.by("status", "cador_http_requests_total", route="/jobs/<job_id>/status") == {"2xx": 1, "4xx": 1}
    assert moved("cador_http_requests_total", route="/jobs/<job_id>/results/<path:result_id>") == 1
    assert moved.by("method", "cador_http_requests_total", route="none") == {"GET": 2, "other": 1}


async def test_two_daemons_are_told_apart() -> None:
    """A scrape reads the daemon that it asks, though one process runs both."""
    async with (
        open_fake_algorithm() as fake,
        open_fake_algorithm() as other,
        open_daemon(fake, max_concurrent_jobs=2) as one,
        open_daemon(other, max_concurrent_jobs=3) as two,
    ):
        assert [(await scrape(client))("cador_slots") for client in (one, two)] == [2, 3]
        await other.refuse_connections()
        await other.drop_connections()
        assert (await two.post("/jobs", json={"image": "x"})).status_code == 503
        assert [(await scrape(client))("cador_algorithm_up") for client in (one, two)] == [1, 0]
        assert [(await scrape(client))("cador_ready") for client in (one, two)] == [1, 0]


async def test_scrape_needs_no_token() -> None:
    """As the probes; the algorithm's own metrics are part of the API, and do."""
    async with open_fake_algorithm() as fake, open_daemon(fake, api_token="hush") as client:
        answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await client.head("/metrics")).content == b""
        assert (await client.get("/api/v1/metrics")).status_code == 401
