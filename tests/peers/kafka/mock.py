"""The mock cluster inside librdkafka: up at once, needs nothing, also for other processes, and no Kafka in two ways.

It has no transactions (it says yes to all of it, and aborted records are read) and no administration: topics come to be
when first used, with four partitions. Groups, offsets and their metadata, and idempotence are like the real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Producer

from .clients import CAP_SECONDS, quiet
from .peer import KafkaPeer

PARTITIONS = 4
"""Of every topic."""


class MockKafka(KafkaPeer):
    """A mock cluster that runs."""


@contextmanager
def running_mock_kafka(brokers: int = 1) -> Iterator[MockKafka]:
    """Run a mock cluster to the end of the block."""
    # The cluster lives as long as this client, which needs a bootstrap server and never asks it.
    owner = Producer({**quiet("127.0.0.1:9"), "test.mock.num.brokers": brokers})
    found = owner.list_topics(timeout=CAP_SECONDS).brokers.values()
    kafka = MockKafka(",".join(f"{broker.host}:{broker.port}" for broker in found))
    try:
        yield kafka
    finally:
        kafka.close()
        del owner
