"""Requests from a real Kafka broker: jobs per second beside FastStream, and how busy slow jobs keep the slots.

`python -m benchmarks.kafka`; needs Java 17 and Maven. All contenders work on the same broker in the same run, and take
turns. Broker, algorithm and contender share the machine's cores, so the ratio says more than the rates.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from benchmarks.processes import running, running_daemon
from tests.peers.kafka.broker import RealKafka, running_kafka

SLOTS: Final = 64
PARTITIONS: Final = 4
JOBS: Final = 6_000  # of one round
ROUNDS: Final = 3
SLOW_JOBS: Final = 1_000
SLOW_SECONDS: Final = 0.2
PATIENCE_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.1
RATE_GOAL: Final = 2.0  # times FastStream's
BUSY_GOAL: Final = 0.95  # of slots times seconds
OURS: Final = "cador-trio, exactly once"
PLAIN: Final = "cador-trio, at least once"
PEER: Final = "FastStream, at least once"


@dataclass
class Rates:
    """Jobs per second of each round, by contender."""

    by_contender: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, rate: float) -> None:
        """One more round."""
        self.by_contender.setdefault(contender, []).append(rate)

    def table(self) -> str:
        """Medians over the rounds, and ratios to FastStream's."""
        peer = statistics.median(self.by_contender[PEER])
        lines = ["contender                    jobs/s  (rounds: low - high)   / FastStream"]
        for name, rates in self.by_contender.items():
            median = statistics.median(rates)
            lines.append(f"{name:26}  {median:7.0f}  {min(rates):12.0f} - {max(rates):6.0f}  {median / peer:13.2f}")
        return "\n".join(lines)


@contextmanager
def our_daemon(kafka: RealKafka, algorithm: str, prefix: str, delivery: str) -> Iterator[None]:
    """The daemon on the topics of this prefix."""
    settings = {
        "KAFKA_BROKERS_REQUEST": kafka.bootstrap,
        "KAFKA_CONSUMER_GROUP": f"{prefix}-group",
        "EOPAAS_JOB_REQUEST_TOPIC": f"{prefix}-requests",
        "EOPAAS_JOB_OUTPUT_TOPIC": f"{prefix}-outputs",
        "EOPAAS_STATUS_UPDATE_TOPIC": f"{prefix}-statuses",
        "CADOR_DELIVERY": delivery,
        "CADOR_INSTANCE_ID": prefix,
        "CADOR_MAX_CONCURRENT_JOBS": str(SLOTS),
    }
    with running_daemon(algorithm, **settings):
        yield


@contextmanager
def faststream(kafka: RealKafka, algorithm: str, prefix: str) -> Iterator[None]:
    """The peer on the topics of this prefix."""
    with running("benchmarks.faststream_worker", kafka.bootstrap, algorithm, prefix):
        yield


Start = Callable[[RealKafka, str, str], AbstractContextManager[None]]
CONTENDERS: Final[dict[str, Start]] = {
    OURS: partial(our_daemon, delivery="exactly-once"),
    PLAIN: partial(our_daemon, delivery="at-least-once"),
    PEER: faststream,
}


def measure_rates(kafka: RealKafka) -> Rates:
    """All rounds of all contenders with an algorithm that answers at once, taking turns."""
    rates = Rates()
    with running("benchmarks.instant_algorithm") as algorithm:
        for number in range(ROUNDS):
            for index, (name, start) in enumerate(CONTENDERS.items()):
                prefix = f"rate-{number}-{index}"
                fill(kafka, prefix, PARTITIONS, JOBS)
                with start(kafka, algorithm.url, prefix):
                    rates.add(name, rate_of(kafka, f"{prefix}-outputs"))
    return rates


def measure_slots(kafka: RealKafka) -> float:
    """Slow jobs in one partition: busy seconds over slots times seconds, between the first and the last dispatch."""
    with running("benchmarks.instant_algorithm", str(SLOW_SECONDS)) as algorithm:
        fill(kafka, "slow", 1, SLOW_JOBS)
        with our_daemon(kafka, algorithm.url, "slow", "exactly-once"):
            _wait_for_all(kafka, "slow-outputs", SLOW_JOBS)
        with urllib.request.urlopen(f"{algorithm.url}/visits") as answer:  # noqa: S310 - the URL is of our own process
            visits: list[tuple[float, float]] = json.load(answer)
    begin, end = min(came for came, _ in visits), max(came for came, _ in visits)
    busy = sum(min(went, end) - came for came, went in visits)
    return busy / (SLOTS * (end - begin))


def fill(kafka: RealKafka, prefix: str, partitions: int, jobs: int) -> None:
    """Topics of this prefix, with so many requests waiting."""
    kafka.create_topics({f"{prefix}-requests": partitions})
    kafka.create_topics(
        {f"{prefix}-{kind}": PARTITIONS for kind in ("outputs", "statuses")},
        {"message.timestamp.type": "LogAppendTime"},  # when the broker got them, by its own clock
    )
    requests = ({"image": "aW1hZ2U=", "technicalMetadata": {"taskId": f"task-{number}"}} for number in range(jobs))
    for partition in range(partitions):
        mine = itertools.islice(requests, jobs // partitions)
        kafka.produce(f"{prefix}-requests", (json.dumps(one).encode() for one in mine), partition=partition)


def rate_of(kafka: RealKafka, topic: str) -> float:
    """Jobs per second, from the first output's time to the last one's."""
    times = _wait_for_all(kafka, topic, JOBS)
    return (len(times) - 1) * 1_000 / (max(times) - min(times))


def _wait_for_all(kafka: RealKafka, topic: str, count: int) -> list[int]:
    """The broker's times of so many outputs that readers can see, in milliseconds."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "bench", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])
        times: list[int] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(times) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {len(times)} of {count} outputs within {PATIENCE_SECONDS:g} s")
            times += [message.timestamp()[1] for message in consumer.consume(1_000, LOOK_SECONDS)]
        return times
    finally:
        consumer.close()


def main() -> None:
    """Measure and print."""
    with TemporaryDirectory(prefix="cador-trio-bench-") as folder, running_kafka(Path(folder)) as kafka:
        busy = measure_slots(kafka)
        sys.stdout.write(
            f"{SLOW_JOBS} jobs of {SLOW_SECONDS:g} s in one partition, {SLOTS} slots: {busy:.1%} busy\n"
            f"goal: {BUSY_GOAL:.0%}\n\n"
        )
        sys.stdout.flush()
        rates = measure_rates(kafka)
    sys.stdout.write(
        f"{JOBS} jobs in {PARTITIONS} partitions, {SLOTS} slots, an algorithm that answers at once\n"
        f"{rates.table()}\ngoal: exactly once at {RATE_GOAL:g} times FastStream's\n"
    )


if __name__ == "__main__":
    main()
