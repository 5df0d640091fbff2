"""SIGTERM in the middle of a batch."""

from __future__ import annotations

import signal
from pathlib import Path

import trio

from cador_trio.kafka.ledger import Ledger
from tests.kafka.held import name_of, open_held_algorithm, release_all, releasing, request_of, runs, wait_running
from tests.kafka.street import KafkaStreet, ends, running
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import Topics


async def done_and_begun(street: KafkaStreet, count: int) -> list[tuple[bool, int]]:
    """Of each record of the one partition, as it is committed: is it done, and how often did it begin and die?"""
    found = await trio.to_thread.run_sync(street.kafka.committed, street.name("group"), street.name("requests"))
    committed = found[0]
    ledger = Ledger(committed.offset, committed.metadata)
    behind = [(True, 0)] * (committed.offset or 0)  # nobody is told of those again
    known = [ledger.deliver(offset) for offset in range(len(behind), count)]
    return behind + [(one.is_done, one.begun) for one in known]


async def test_told_to_stop_in_the_middle_of_a_batch(kafka: RealKafka, topics: Topics, tmp_path: Path) -> None:
    """Finished jobs are committed, one more ends in its grace, the rest is given back unmarked; the group is left."""
    street = KafkaStreet(kafka, topics)
    await street.create()
    settings = street.settings(
        CADOR_MAX_CONCURRENT_JOBS="4",
        CADOR_SHUTDOWN_GRACE_SECONDS="3",
        # Who waits for the end of this session waits longer than any test does.
        CADOR_KAFKA_PROPERTIES_CONSUMER="session.timeout.ms=300000;heartbeat.interval.ms=1000",
    )
    async with open_held_algorithm() as fake:
        async with running(tmp_path / "first", fake, settings) as first:
            names = ["a", "b", "c"]
            await street.request(*map(request_of, names))
            await wait_running(fake, *names)
            in_time = name_of(fake.seen("POST")[1])
            await street.request(request_of("quick"))
            await street.wait_ends(1)
            await street.request(request_of("d"))
            await wait_running(fake, "d")
            await street.request(request_of("waiting"), request_of("quick-last"))
            names += ["quick", "d", "waiting", "quick-last"]
            first.process.send_signal(signal.SIGTERM)
            await first.wait_event("stopping: jobs have their grace")
            fake.release(1)
            assert await first.wait_exit() == 0
        assert {end["taskId"]: end["status"] for end in ends(await street.read("statuses"))} == {
            "quick": "SUCCEEDED",
            in_time: "SUCCEEDED",
        }
        assert await done_and_begun(street, len(names)) == [(name in {"quick", in_time}, 0) for name in names]
        release_all(fake)
        async with releasing(fake), running(tmp_path / "second", fake, settings) as second:
            await second.wait_event("partition assigned")
            await street.wait_ends(len(names))
            assert await second.stop() == 0
    assert runs(fake) == {name: 2 if name in {"a", "b", "c", "d"} - {in_time} else 1 for name in names}
    statuses = await street.read("statuses")
    assert {record.header("cador-attempt") for record in statuses} == {b"1"}
    assert sorted(end["taskId"] for end in ends(statuses)) == sorted(names)
    assert sorted(record.key or b"" for record in await street.read("outputs")) == sorted(map(str.encode, names))
    assert await street.committed() == {0: len(names)}
