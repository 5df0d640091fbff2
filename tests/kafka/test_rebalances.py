"""Members that join, leave and die, with jobs running in every partition; and a job that outlasts the poll interval."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.daemon.process import Daemon
from tests.kafka.held import open_held_algorithm, release_all, releasing, request_of, runs, wait_running
from tests.kafka.street import KafkaStreet, running
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import Topics

PARTITIONS: Final = 4
# The session of KIP-848 groups is the broker's: properties for it are refused.
PROTOCOLS: Final = {
    "classic": {"CADOR_KAFKA_PROPERTIES_CONSUMER": "session.timeout.ms=10000;heartbeat.interval.ms=500"},
    "consumer": {"CADOR_GROUP_PROTOCOL": "consumer"},
}


@pytest.fixture
def street(kafka: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(kafka, topics)


async def fill(street: KafkaStreet, word: str) -> list[str]:
    """A job in every partition; their names."""
    names = [f"{word}-{partition}" for partition in range(PARTITIONS)]
    for partition, name in enumerate(names):
        await street.request(request_of(name), partition=partition)
    return names


async def wait_assigned(daemon: Daemon, *, seconds: float = 60) -> None:
    """Wait until it has got a partition."""
    with trio.fail_after(seconds):
        await daemon.wait_event("partition assigned")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_members_come_and_go(street: KafkaStreet, tmp_path: Path, protocol: str) -> None:
    """One joins, one leaves: no job is begun twice. One is killed: only its own jobs are. None is lost or doubled."""
    await street.create(PARTITIONS)
    settings = {
        **PROTOCOLS[protocol],
        "CADOR_MAX_CONCURRENT_JOBS": str(PARTITIONS),
        "CADOR_SHUTDOWN_GRACE_SECONDS": "60",
        "CADOR_REVOKE_GRACE_SECONDS": "60",
    }
    async with (
        open_held_algorithm() as fake,
        running(tmp_path / "first", fake, street.settings("first", **settings)) as first,
    ):
        names = await fill(street, "alone")
        await wait_running(fake, *names)
        async with running(tmp_path / "second", fake, street.settings("second", **settings)) as second:
            await first.wait_event("partitions are taken away")  # and waits for their jobs
            release_all(fake)
            await wait_assigned(second)
            names += await fill(street, "both")
            await wait_running(fake, *names)
            second.process.send_signal(signal.SIGTERM)
            await second.wait_event("stopping: jobs have their grace")
            release_all(fake)
            assert await second.wait_exit() == 0
        names += await fill(street, "one-left")
        await wait_running(fake, *names)
        assert runs(fake) == Counter(names)
        async with running(tmp_path / "third", fake, street.settings("third", **settings)) as third:
            release_all(fake)
            await wait_assigned(third)
            killed = await fill(street, "killed")
            await wait_running(fake, *killed)
            await third.stop(signal.SIGKILL)
        async with releasing(fake):
            await street.wait_ends(len(names + killed))
        assert await first.stop() == 0
    assert {name for name, count in runs(fake).items() if count > 1} <= set(killed)
    assert max(runs(fake).values()) <= 2
    outputs = [record.key or b"" for record in await street.read("outputs")]
    assert sorted(outputs) == sorted(name.encode() for name in names + killed)
    assert await street.committed() == dict.fromkeys(range(PARTITIONS), 4)


async def test_a_job_longer_than_the_poll_interval(street: KafkaStreet, tmp_path: Path) -> None:
    """It does not cost the membership, though its partition is full and nothing can be read: it runs once."""
    await street.create()
    properties = "session.timeout.ms=6000;heartbeat.interval.ms=500;max.poll.interval.ms=6000"
    settings = {"CADOR_KAFKA_PROPERTIES_CONSUMER": properties, "CADOR_REVOKE_GRACE_SECONDS": "1"}
    async with (
        open_held_algorithm() as fake,
        running(tmp_path, fake, street.settings(**settings)) as daemon,
    ):
        names = ["long", *(f"quick-{number}" for number in range(2_000))]
        await street.request(*map(request_of, names))
        await wait_running(fake, "long")
        await trio.sleep(13)  # the interval, twice: a member that is silent is thrown out
        release_all(fake)
        await street.wait("outputs", 100)
        assert await daemon.stop() == 0
    assert runs(fake)["long"] == 1
    events = [line["event"] for line in daemon.lines]
    assert events.count("partition assigned") == 1
    assert "partitions are lost" not in events
