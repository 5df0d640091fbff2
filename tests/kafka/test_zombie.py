"""A daemon that comes back after others have taken over, and two daemons that take themselves for the same one."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.kafka.held import open_held_algorithm, release_all, releasing, request_of, runs, wait_running
from tests.kafka.street import KINDS, KafkaStreet, running
from tests.peers.kafka_fixtures import OwnKafka, Topics

# The session of KIP-848 groups is the broker's: properties for it are refused.
PROTOCOLS: Final = {
    "classic": {"CADOR_KAFKA_PROPERTIES_CONSUMER": "session.timeout.ms=3000;heartbeat.interval.ms=500"},
    "consumer": {"CADOR_GROUP_PROTOCOL": "consumer"},
}


async def read_all(street: KafkaStreet) -> dict[str, list[tuple[int, int, bytes | None]]]:
    """Everything that `read_committed` shows, but for statuses that are no end."""
    found = {}
    for kind in KINDS:
        records = [record for record in await street.read(kind) if kind != "statuses" or _is_end(record.value)]
        found[kind] = [(record.partition, record.offset, record.value) for record in records]
    return found


def _is_end(status: bytes | None) -> bool:
    return b"SUCCEEDED" in (status or b"") or b"FAILED" in (status or b"") or b"CANCELLED" in (status or b"")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_zombie_leaves_no_trace(own_kafka: OwnKafka, topics: Topics, tmp_path: Path, protocol: str) -> None:
    """Stopped past its session with answers to its jobs at hand, it goes on when all is done, and is not seen."""
    street = KafkaStreet(own_kafka({"group.consumer.session.timeout.ms": 3_000}), topics)
    await street.create(partitions=2)
    settings = {**PROTOCOLS[protocol], "CADOR_MAX_CONCURRENT_JOBS": "4", "CADOR_SHUTDOWN_GRACE_SECONDS": "1"}
    names = ["a", "b", "c", "d"]
    async with (
        open_held_algorithm() as fake,
        running(tmp_path / "zombie", fake, street.settings("zombie", **settings)) as zombie,
    ):
        for number, name in enumerate(names):
            await street.request(request_of(name), partition=number % 2)
        await wait_running(fake, *names)
        zombie.process.send_signal(signal.SIGSTOP)
        release_all(fake)  # the answers wait in its sockets
        async with (
            releasing(fake),
            running(tmp_path / "heir", fake, street.settings("heir", **settings)) as heir,
        ):
            await street.wait_ends(4)
            seen, committed = await read_all(street), await street.committed()
            zombie.process.send_signal(signal.SIGCONT)
            await zombie.wait_event("partitions are lost")
            assert await zombie.stop() == 0
            assert await read_all(street) == seen
            assert await street.committed() == committed == {0: 2, 1: 2}
            assert await heir.stop() == 0
    assert len(seen["outputs"]) == len(seen["statuses"]) == 4
    assert runs(fake) == dict.fromkeys(names, 2)


async def test_two_daemons_with_one_instance_id(own_kafka: OwnKafka, topics: Topics, tmp_path: Path) -> None:
    """The first one is fenced by the second, says what to change and ends with code 4; every job ends once."""
    street = KafkaStreet(own_kafka(), topics)
    await street.create()
    settings = street.settings("same", CADOR_MAX_CONCURRENT_JOBS="4", CADOR_SHUTDOWN_GRACE_SECONDS="1")
    names = ["a", "b"]

    async def quick_jobs() -> None:
        while True:
            name = f"quick-{len(names)}"
            await street.request(request_of(name))
            names.append(name)
            await street.wait("outputs", len(names) - 2)

    async with (
        open_held_algorithm() as fake,
        running(tmp_path / "loser", fake, settings) as loser,
    ):
        await street.request(*map(request_of, names))
        await wait_running(fake, *names)
        async with running(tmp_path / "winner", fake, settings) as winner:
            await winner.wait_event("Kafka is there")
            async with trio.open_nursery() as traffic:
                traffic.start_soon(quick_jobs)  # when the first one is fenced shows only when it has something to say
                ending = await loser.wait_event("the daemon ends")
                traffic.cancel_scope.cancel("it was fenced")
            assert await loser.wait_exit() == 4
            async with releasing(fake):
                ends = await street.wait_ends(len(names))
            assert await winner.stop() == 0
    assert "CADOR_INSTANCE_ID" in ending["hint"]
    assert sorted(end["taskId"] for end in ends) == sorted(names)
    assert len(await street.read("outputs")) == len(names)
    assert await street.committed() == {0: len(names)}
