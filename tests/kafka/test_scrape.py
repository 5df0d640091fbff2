"""The numbers of a scrape, held against what topics, store and algorithm have seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.daemon.process import IMAGE, Daemon, client_of
from tests.kafka.street import KafkaStreet, ends, running, value_of
from tests.observe.scraping import Scrape, scrape, wait_scrape
from tests.peers.fake_algorithm import (
    Answer,
    Behaviour,
    CloseBeforeAnswer,
    FakeAlgorithm,
    Hold,
    SeenRequest,
    Status,
    open_fake_algorithm,
    sample_answer,
)
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import Topics

TOKEN = "a-token-that-nobody-sees"
GOOD, FAILS, DIES_ONCE, DIES, REFUSED, HELD = range(6)


@pytest.fixture
def street(kafka: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(kafka, topics)


class Moody:
    """An algorithm that does what the threshold of a request asks for."""

    def __init__(self) -> None:
        self._died = False

    def __call__(self, request: SeenRequest) -> Behaviour:
        match request.json()["threshold"]:
            case 1:
                return Status(500, {"message": "it can't"})
            case 2 if not self._died:
                self._died = True
                return CloseBeforeAnswer()
            case 3:
                return CloseBeforeAnswer()
            case 4:
                return Status(422, {"message": "not that image"})
            case 5:
                return Hold(Answer(sample_answer()))
            case _:
                return Answer(sample_answer())


def job(name: str, mood: int, folder: Path | None = None, **technical: Any) -> dict[str, Any]:
    if folder is not None:
        technical["outputStorage"] = {"POSIX": {"folder": str(folder)}}
    return {**IMAGE, "threshold": mood, "technicalMetadata": {"taskId": name, **technical}}


async def cancel_the_running_one(client: httpx.AsyncClient, door: str) -> None:
    """Over HTTP, whatever door it came in by."""
    jobs = (await client.get("/jobs", params={"status": "RUNNING"})).json()
    (job_id,) = [job_id for job_id, row in jobs.items() if row["door"] == door]
    assert (await client.delete(f"/jobs/{job_id}")).status_code == 204


async def test_a_mixed_run_adds_up(street: KafkaStreet, tmp_path: Path) -> None:
    """Jobs by both doors, good, failing, retried, refused and cancelled: every count is what others have seen."""
    await street.create()
    settings = street.settings(
        CADOR_API_TOKEN=TOKEN, CADOR_MAX_CONCURRENT_JOBS="4", CADOR_PUBLISH_REST_JOBS="true", CADOR_MAX_ATTEMPTS="2"
    )
    async with (
        open_fake_algorithm(default=Moody()) as fake,
        running(tmp_path, fake, settings) as daemon,
        client_of(daemon) as client,
    ):
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        await street.request(job("kafka-held", HELD))
        await fake.wait_for_request(1, "POST")
        await requests_by_kafka(street, daemon)
        await requests_by_http(client, fake, daemon)
        await street.wait_ends(KAFKA_ENDS + HTTP_ENDS)
        # One job runs: nothing behind it can be committed by offset, though all of it is done.
        await wait_scrape(
            client,
            lambda found: (lag(found), *map(found, UNFINISHED)) == (1 + KAFKA_ENDS, 1, 1),
        )
        assert (await street.committed())[0] == 0
        await cancel_the_running_one(client, "kafka")
        fake.release()
        await street.wait_ends(1 + KAFKA_ENDS + HTTP_ENDS)
        seen = await topics_of(street)
        found = await wait_scrape(client, lambda found: lag(found) == 0 and kinds(found) == kinds_in(seen))
        compare(found, seen, daemon, fake)
        keeps_secrets(found, daemon)
        assert await daemon.stop() == 0


KAFKA_ENDS, HTTP_ENDS = 9, 4
UNFINISHED = "cador_kafka_unfinished_offsets", "cador_unfinished_jobs"


async def requests_by_kafka(street: KafkaStreet, daemon: Daemon) -> None:
    """Those that end by themselves: KAFKA_ENDS."""
    await street.request(
        job("kafka-1", GOOD, daemon.store, postProcessing={"tags": True}),
        job("kafka-2", GOOD, daemon.store),
        job("kafka-3", GOOD),
        job("kafka-4", FAILS),
        job("kafka-5", DIES_ONCE),
        job("kafka-6", DIES),
        job("kafka-7", REFUSED),
        b"no request",
        {"image": 7},
    )


async def requests_by_http(client: httpx.AsyncClient, fake: FakeAlgorithm, daemon: Daemon) -> None:
    """Those that end: HTTP_ENDS; and two that are no jobs."""
    assert (await client.post("/jobs", json=job("http-1", GOOD, daemon.store))).status_code == 200
    assert (await client.post("/api/v1/jobs", json=job("http-2", GOOD))).status_code == 200
    assert (await client.post("/jobs", json=job("http-3", FAILS))).status_code == 500
    assert (await client.post("/jobs", content=b"no request")).status_code == 400
    assert (await client.post("/jobs", json={}, headers={"Content-Type": "text/csv"})).status_code == 415
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.post("/jobs", json=job("http-held", HELD)))
        await fake.wait_until(lambda: fake.held == 2)
        await cancel_the_running_one(client, "http")
    fake.release(1)


async def topics_of(street: KafkaStreet) -> dict[str, list[Any]]:
    """All that consumers can read, by kind; of a dead letter its headers."""
    found = {kind: await street.read(kind) for kind in ("outputs", "statuses", "tags", "dead")}
    return {
        "output": [value_of(record) for record in found["outputs"]],
        "status": [value_of(record) for record in found["statuses"]],
        "tag": [value_of(record) for record in found["tags"]],
        "dead_letter": [dict(record.headers) for record in found["dead"]],
        "end": ends(found["statuses"]),
    }


def lag(found: Scrape) -> float | None:
    return found("cador_consumer_lag") if "cador_consumer_lag{" in found.text else None


def kinds(found: Scrape) -> dict[str, float]:
    return found.by("kind", "cador_messages_total")


def kinds_in(seen: dict[str, list[Any]]) -> dict[str, float]:
    return {kind: len(seen[kind]) for kind in ("output", "status", "tag", "dead_letter")}


def compare(found: Scrape, seen: dict[str, list[Any]], daemon: Daemon, fake: FakeAlgorithm) -> None:
    """Topics, folder, algorithm and callers have seen what is counted."""
    # Refused requests by Kafka have a FAILED status, those by HTTP an answer.
    outcomes = found.by("outcome", "cador_jobs_total")
    assert outcomes.pop("refused") == 4
    told = Counter(end["status"].lower() for end in seen["end"])
    told["failed"] -= 2
    assert outcomes == told == {"succeeded": 6, "failed": 4, "cancelled": 2}
    assert found.by("outcome", "cador_jobs_total", door="http") == {
        "succeeded": 2,
        "failed": 1,
        "refused": 2,
        "cancelled": 1,
    }
    classes = Counter(headers["cador-error-class"].decode() for headers in seen["dead_letter"])
    assert found.by("error_class", "cador_dead_letters_total") == classes
    assert found.by("error_class", "cador_job_errors_total", door="kafka") == classes
    assert kinds(found) == kinds_in(seen)
    assert found("cador_messages_left_out_total") == 0

    stored = [path for path in daemon.store.rglob("*") if path.is_file()]
    assert found("cador_stored_objects_total", type="POSIX") == len(stored) > 0
    assert found("cador_stored_bytes_total", type="POSIX") == sum(path.stat().st_size for path in stored)

    attempts = found.by("result", "cador_algorithm_attempts_total")
    assert sum(attempts.values()) == len(fake.seen("POST"))
    assert attempts == {"succeeded": 6, "died": 3, "failed": 2, "refused": 1, "cancelled": 2}
    jobs_at_algorithm = 6 + 4 + 2
    assert found("cador_stage_seconds_count", stage="algorithm") == jobs_at_algorithm
    assert found("cador_stage_seconds_count", stage="publish") == jobs_at_algorithm
    assert found("cador_stage_seconds_count", stage="store") == 3

    assert found("cador_http_requests_total", route="/jobs", method="POST") == 5
    assert found("cador_http_requests_total", route="/api/v1/jobs", status="2xx") == 1
    assert found("cador_http_requests_total", route="/jobs/<job_id>", method="DELETE", status="2xx") == 2
    assert found("cador_transactions_total", result="committed") > 0
    assert found("cador_kafka_partition_changes_total", change="assigned") == 1
    for idle in ("cador_slots_in_use", "cador_unfinished_jobs", "cador_stage_jobs", "cador_waiting_jobs"):
        assert found(idle) == 0
    assert found("cador_ready") == found("cador_kafka_up") == found("cador_algorithm_up") == 1


def keeps_secrets(found: Scrape, daemon: Daemon) -> None:
    """Nothing of what callers wrote, nor of what the operator keeps to himself."""
    for secret in (TOKEN, "kafka-1", "http-1", str(daemon.store), "no request", IMAGE["image"]):
        assert secret not in found.text


async def test_brokers_that_are_away(tmp_path: Path, topics: Topics) -> None:
    """A scrape asks nobody, so it is answered, and says that Kafka is down."""
    with trio.socket.socket() as nobody:
        await nobody.bind(("127.0.0.1", 0))  # bound, and never listening
        settings = {
            "KAFKA_BROKERS_REQUEST": f"127.0.0.1:{nobody.getsockname()[1]}",
            "KAFKA_CONSUMER_GROUP": topics("group"),
            "EOPAAS_JOB_REQUEST_TOPIC": topics("requests"),
            "EOPAAS_STATUS_UPDATE_TOPIC": topics("statuses"),
        }
        async with (
            open_fake_algorithm() as fake,
            running(tmp_path, fake, settings) as daemon,
            client_of(daemon) as client,
        ):
            found = await scrape(client)
            assert found("cador_kafka_up") == found("cador_ready") == found("cador_kafka_assigned_partitions") == 0
            assert found("cador_slots") == 1
            assert lag(found) is None
