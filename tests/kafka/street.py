"""A daemon process between the topics of a broker and the fake algorithm: what most tests of this room stand on.

Every message that is read here is held against the schema that the daemon publishes for it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from tests.daemon.process import Daemon, open_daemon
from tests.kafka.schemas import check_dead_letter, check_message, check_status
from tests.leaks import watch, watch_headers
from tests.peers.fake_algorithm import FakeAlgorithm
from tests.peers.kafka.peer import KafkaPeer
from tests.peers.kafka.records import TestRecord
from tests.peers.kafka_fixtures import Topics

# By topic; a tag may be among the outputs, if there is no topic for it.
CHECKS: Final = {
    "outputs": check_message,
    "statuses": check_status,
    "tags": check_message,
    "dead": check_dead_letter,
}
KINDS = ("requests", "outputs", "statuses", "tags", "dead")


@dataclass(frozen=True)
class KafkaStreet:
    """The five topics and the group of one test, on one broker."""

    kafka: KafkaPeer
    name: Topics

    def settings(self, instance: str = "one", **more: str) -> dict[str, str]:
        """The environment of a daemon that uses them."""
        return {
            "KAFKA_BROKERS_REQUEST": self.kafka.bootstrap,
            "KAFKA_CONSUMER_GROUP": self.name("group"),
            "EOPAAS_JOB_REQUEST_TOPIC": self.name("requests"),
            "EOPAAS_JOB_OUTPUT_TOPIC": self.name("outputs"),
            "EOPAAS_STATUS_UPDATE_TOPIC": self.name("statuses"),
            "EOPAAS_JOB_TAGS_TOPIC": self.name("tags"),
            "CADOR_DEAD_LETTER_TOPIC": self.name("dead"),
            "CADOR_INSTANCE_ID": instance,
            **more,
        }

    async def create(self, partitions: int = 1) -> None:
        """The request topic has so many partitions, the others one."""
        counts = {self.name(kind): partitions if kind == "requests" else 1 for kind in KINDS}
        await trio.to_thread.run_sync(self.kafka.create_topics, counts)

    async def request(self, *values: Any, partition: int = -1, **more: Any) -> list[TestRecord]:
        """Produce these: bytes as they are, anything else as JSON. `more` goes to `KafkaPeer.produce`."""
        encoded = [value if isinstance(value, bytes | None) else json.dumps(value).encode() for value in values]

        def produce() -> list[TestRecord]:
            return self.kafka.produce(self.name("requests"), encoded, partition=partition, **more)

        return await trio.to_thread.run_sync(produce)

    async def wait(
        self,
        kind: str,
        count: int = 1,
        holds: Callable[[Sequence[TestRecord]], bool] | None = None,
        seconds: float = 60,
    ) -> list[TestRecord]:
        """Wait until that many records of a topic can be read, or until they are as wanted."""
        return _checked(
            kind,
            await self.kafka.wait_for_records(
                self.name(kind), holds or (lambda records: len(records) >= count), seconds=seconds
            ),
        )

    async def wait_ends(self, count: int, seconds: float = 60) -> list[dict[str, Any]]:
        """Wait until that many jobs have ended; their terminal statuses."""
        records = await self.wait("statuses", holds=lambda found: len(ends(found)) >= count, seconds=seconds)
        return ends(records)

    async def read(self, kind: str) -> list[TestRecord]:
        """All that can be read of a topic now."""
        return _checked(kind, await trio.to_thread.run_sync(self.kafka.read_topic, self.name(kind)))

    async def committed(self) -> dict[int, int]:
        """The group's offsets."""
        found = await trio.to_thread.run_sync(self.kafka.committed, self.name("group"), self.name("requests"))
        return {partition: position.offset for partition, position in found.items()}


def _checked(kind: str, records: list[TestRecord]) -> list[TestRecord]:
    """These records, which are what the schema of their kind says; requests may be anything."""
    if (check := CHECKS.get(kind)) is not None:
        for record in records:
            check(record)
            watch_record(kind, record)
    return records


def watch_record(kind: str, record: TestRecord) -> None:
    """A dead letter holds what its sender wrote; only what we add to it is ours."""
    if kind != "dead":
        watch(kind, record.value)
    watch_headers(kind, [one for one in record.headers if kind != "dead" or one[0].startswith("cador-")])


def ends(records: Sequence[TestRecord]) -> list[dict[str, Any]]:
    """Terminal statuses among status records."""
    found = [value_of(record) for record in records]
    return [status for status in found if status["status"] in {"SUCCEEDED", "FAILED", "CANCELLED"}]


def value_of(record: TestRecord) -> Any:
    """The JSON of a record."""
    return json.loads(record.value or b"null")


@asynccontextmanager
async def running(folder: Path, fake: FakeAlgorithm, settings: dict[str, str]) -> AsyncIterator[Daemon]:
    """A daemon that serves, in front of the fake algorithm; its membership in the group may come later."""
    await trio.Path(folder).mkdir(exist_ok=True)
    async with open_daemon(folder, fake.url, **settings) as daemon:
        daemon.url = (await daemon.wait_event("serving"))["url"]
        yield daemon
