"""A broker that goes away: longer than the session, before the start, in mid commit, and while the daemon stops."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio

from tests.daemon.process import IMAGE, Daemon, client_of, running_daemon, wait_answer
from tests.kafka.held import open_held_algorithm, release_all, releasing, request_of, runs, wait_running
from tests.kafka.street import KafkaStreet, ends, running
from tests.peers.fake_algorithm import Answer, open_fake_algorithm
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import OwnKafka, Topics

# At its first commit the broker dies: before it has heard of it, or after it has done it.
LOST_AT_COMMIT: Final = """
import os
from confluent_kafka import KafkaError, KafkaException, Producer
from cador_trio import cli
from cador_trio.kafka import clients

class LostAtCommit(Producer):
    is_lost = False

    def commit_transaction(self, timeout):
        if LostAtCommit.is_lost:
            return super().commit_transaction(timeout)
        LostAtCommit.is_lost = True
        if os.environ["HEARD"] == "yes":
            super().commit_transaction(timeout)
        raise KafkaException(KafkaError(KafkaError._FATAL, "lost", True))

clients.Producer = LostAtCommit
cli.main(["serve"])
"""
QUICK_SESSION: Final = "session.timeout.ms=3000;heartbeat.interval.ms=500"


@pytest.fixture
def broker(own_kafka: OwnKafka) -> RealKafka:
    return own_kafka()


@pytest.fixture
def street(broker: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(broker, topics)


async def watch_for(client: httpx.AsyncClient, seconds: float) -> None:
    """For so long, `/livez` is 200 and `/readyz` is not."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        await trio.sleep(0.2)


async def stop_patiently(daemon: Daemon) -> int:
    """Its exit code; what has its time, such as the last commits, is waited for."""
    daemon.process.send_signal(signal.SIGTERM)
    with trio.fail_after(90):
        return await daemon.process.wait()


async def test_a_broker_that_is_away_longer_than_the_session(
    broker: RealKafka, street: KafkaStreet, tmp_path: Path
) -> None:
    """The daemon stays alive, says that Kafka is away, goes on by itself, and loses and doubles nothing."""
    await street.create(partitions=2)
    settings = street.settings(CADOR_MAX_CONCURRENT_JOBS="4", CADOR_KAFKA_PROPERTIES_CONSUMER=QUICK_SESSION)
    async with (
        open_held_algorithm() as fake,
        running(tmp_path, fake, settings) as daemon,
        client_of(daemon) as client,
    ):
        names = ["a", "b", "c", "d"]
        for number, name in enumerate(names):
            await street.request(request_of(name), partition=number % 2)
        await wait_running(fake, *names)
        await trio.to_thread.run_sync(broker.stop)
        fake.release()  # one ends while the broker is away, the others after it has come back
        answer = await wait_answer(client, "/readyz", 503)
        assert any(reason.startswith("Kafka") for reason in answer.json()["reasons"])
        await watch_for(client, 5)
        await trio.to_thread.run_sync(broker.start)
        await wait_answer(client, "/readyz", 200)
        async with releasing(fake):
            await street.request(request_of("quick"))
            found = await street.wait_ends(5, seconds=90)
        assert await daemon.stop() == 0
    assert sorted((end["taskId"], end["status"]) for end in found) == [
        (name, "SUCCEEDED") for name in [*names, "quick"]
    ]
    assert sorted(record.key or b"" for record in await street.read("outputs")) == [b"a", b"b", b"c", b"d", b"quick"]
    assert sum((await street.committed()).values()) == 5
    assert runs(fake)["quick"] == 1


async def test_a_broker_that_is_away_at_start(broker: RealKafka, street: KafkaStreet, tmp_path: Path) -> None:
    """The daemon waits for it, works for HTTP meanwhile, and then takes the jobs that wait."""
    await street.create()
    await street.request(request_of("a"))
    await trio.to_thread.run_sync(broker.stop)
    async with (
        open_held_algorithm() as fake,
        releasing(fake),
        running(tmp_path, fake, street.settings()) as daemon,
        client_of(daemon) as client,
    ):
        await daemon.wait_event("the algorithm is reachable")
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert any(reason.startswith("Kafka") for reason in answer.json()["reasons"])
        assert (await client.get("/livez")).status_code == 200
        assert (await client.post("/jobs", json=request_of("quick"))).status_code == 200
        await trio.to_thread.run_sync(broker.start)
        (end,) = await street.wait_ends(1, seconds=90)
        assert (end["taskId"], end["status"]) == ("a", "SUCCEEDED")
        await wait_answer(client, "/readyz", 200)
        assert await daemon.stop() == 0


async def test_told_to_stop_while_the_broker_is_away(broker: RealKafka, street: KafkaStreet, tmp_path: Path) -> None:
    """It ends with code 0 though nothing can be committed; the next one finds the jobs and each ends once."""
    await street.create()
    settings = street.settings(
        CADOR_MAX_CONCURRENT_JOBS="2",
        CADOR_SHUTDOWN_GRACE_SECONDS="1",
        CADOR_KAFKA_PROPERTIES_CONSUMER=QUICK_SESSION,
    )
    async with open_held_algorithm() as fake:
        async with running(tmp_path / "first", fake, settings) as daemon:
            await street.request(request_of("a"), request_of("b"), request_of("quick"))
            await wait_running(fake, "a", "b")
            await trio.to_thread.run_sync(broker.stop)
            fake.release()  # it has ended and can't say so; another one runs
            assert await stop_patiently(daemon) == 0
        release_all(fake)
        await trio.to_thread.run_sync(broker.start)
        async with releasing(fake), running(tmp_path / "second", fake, settings) as daemon:
            found = await street.wait_ends(3, seconds=90)
            assert await daemon.stop() == 0
    assert sorted((end["taskId"], end["status"]) for end in found) == [
        (name, "SUCCEEDED") for name in ["a", "b", "quick"]
    ]
    assert len(await street.read("outputs")) == 3
    assert await street.committed() == {0: 3}


async def test_told_to_stop_while_the_broker_has_never_been_there(
    broker: RealKafka, street: KafkaStreet, tmp_path: Path
) -> None:
    """It ends with code 0."""
    await trio.to_thread.run_sync(broker.stop)
    async with open_held_algorithm() as fake, running(tmp_path, fake, street.settings()) as daemon:
        assert await stop_patiently(daemon) == 0


@pytest.mark.parametrize("heard", ["yes", "no"])
async def test_a_job_by_http_whose_commit_is_in_doubt(
    kafka: RealKafka, topics: Topics, tmp_path: Path, heard: str
) -> None:
    """It has no offset that tells, so its messages are looked for: they come once, whatever the broker has heard."""
    street = KafkaStreet(kafka, topics)
    await street.create()
    settings = street.settings(CADOR_PUBLISH_REST_JOBS="true", HEARD=heard)
    async with (
        open_fake_algorithm(default=Answer({"count": 3})) as fake,
        running_daemon(tmp_path, fake.url, command=["-c", LOST_AT_COMMIT], **settings) as daemon,
        client_of(daemon) as client,
    ):
        await wait_answer(client, "/readyz", 200)
        assert (await client.post("/api/v1/jobs", json=IMAGE)).status_code == 200
        assert (await client.post("/api/v1/jobs", json=IMAGE)).status_code == 200
        await street.wait_ends(2)
        await daemon.wait_event("the outcome of a transaction is not known, so it is looked up")
        assert await daemon.stop() == 0
    assert len(fake.seen("POST")) == 2
    assert len(await street.read("outputs")) == 2
    assert len(ends(await street.read("statuses"))) == 2
