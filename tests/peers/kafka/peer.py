"""What tests can do with any Kafka, a real broker or librdkafka's mock cluster."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping

import trio

from . import clients
from .clients import CAP_SECONDS, Headers, Isolation
from .records import Committed, TestRecord


class KafkaPeer:
    """A Kafka that runs; see `clients` for what is raised. What is not `async` blocks, for milliseconds as a rule."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        """Host and port, as `bootstrap.servers` takes them."""
        self._writer = clients.Writer(bootstrap)

    def close(self) -> None:
        """Nobody writes any more: a client whose broker has gone would look for it to the end of the session."""
        del self._writer
        gc.collect()

    def create_topics(self, topics: Mapping[str, int], configs: Mapping[str, str] | None = None) -> None:
        """Create topics with so many partitions each, all with the same properties."""
        clients.create_topics(self.bootstrap, topics, configs)

    def produce(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        keys: Iterable[bytes | None] | None = None,
        headers: Headers = (),
        partition: int = -1,
    ) -> list[TestRecord]:
        """Put records into a topic, acknowledged, each once; return them as they are there."""
        return self._writer.produce(topic, values, keys=keys, headers=headers, partition=partition)

    def read_topic(self, topic: str, isolation: Isolation = "read_committed") -> list[TestRecord]:
        """All that is in a topic now, by partition and offset."""
        return clients.read_topic(self.bootstrap, topic, isolation)

    def committed(self, group: str, topic: str) -> dict[int, Committed]:
        """What a group has committed, by partition; nothing where it has not."""
        return clients.committed(self.bootstrap, group, topic)

    async def wait_for_records(
        self,
        topic: str,
        holds: Callable[[list[TestRecord]], bool],
        isolation: Isolation = "read_committed",
        *,
        seconds: float = CAP_SECONDS,
    ) -> list[TestRecord]:
        """Wait until a condition on all records of a topic holds, which is asked in a thread; return them.

        Cancellation is noticed within a second.
        """
        return await trio.to_thread.run_sync(
            lambda: clients.wait_for_records(
                self.bootstrap, topic, holds, isolation, seconds=seconds, each_turn=trio.from_thread.check_cancelled
            )
        )
