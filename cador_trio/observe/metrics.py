"""Every metric of ours: what is counted where it happens, and what is read from a daemon when it is scraped.

The only importer of prometheus_client. Counters and histograms belong to the process, are moved by the rooms directly,
and may be moved from any thread. What has a value at any moment (a `Reading`) is kept nowhere: `registry_of` makes the
registry of one daemon, whose scrape asks the objects of that daemon. Labels have few values, known beforehand or named
by our own code: no ids, URLs, names from requests or texts of messages. docs/metrics.md explains each.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, TypeAlias, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cador_trio import __version__
from cador_trio.errors import CadorError
from cador_trio.job import Door

Registry: TypeAlias = CollectorRegistry

End = Literal["succeeded", "failed", "cancelled", "given_back", "refused"]
Stage = Literal["queued", "algorithm", "georeference", "store", "publish", "commit"]
Attempt = Literal["succeeded", "refused", "failed", "broken", "died", "busy", "unreachable", "cancelled", "other"]
StoreType = Literal["S3", "GCS", "POSIX"]
MessageKind = Literal["output", "tag", "status", "dead_letter"]
TransactionResult = Literal["committed", "aborted", "unknown", "fenced"]
PartitionChange = Literal["assigned", "revoked", "lost"]
SkipReason = Literal["done", "own_message"]

# From a quick answer to an hour's work at the algorithm.
_SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
# What HTTP knows, and we answer; a caller may invent others.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

# The time at which each series began doubles them, and nobody looks.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

SHARED: Final = CollectorRegistry()
ProcessCollector(registry=SHARED)
PlatformCollector(registry=SHARED)
GCCollector(registry=SHARED)


def _counter(name: str, text: str, **labels: Sequence[str]) -> Counter:
    """With a series for each combination of the labels' values from the start: rates want a zero to begin with."""
    counter = Counter(name, text, tuple(labels), registry=SHARED)
    if labels:
        for values in product(*labels.values()):
            counter.labels(*values)
    return counter


def _names(kind: type[CadorError]) -> Iterator[str]:
    yield kind.__name__
    for special in kind.__subclasses__():
        yield from _names(special)


ERROR_CLASSES: Final = tuple(_names(CadorError))

# --- Counted where it happens ------------------------------------------------------------------------------------

JOBS: Final = _counter(
    "cador_jobs_total",
    "Jobs that ended, by the door that they came in by; refused: requests that never became a job",
    door=get_args(Door),
    outcome=get_args(End),
)
JOB_ERRORS: Final = _counter(
    "cador_job_errors_total",
    "Jobs that failed and requests that were refused, by the class of the error",
    door=get_args(Door),
    error_class=ERROR_CLASSES,
)
STAGE_SECONDS: Final = Histogram(
    "cador_stage_seconds",
    "Time that jobs spent in a stage, however it ended; commit: time of one write of all that was ready",
    ("stage",),
    buckets=_SECONDS,
    registry=SHARED,
)
JOBS_IN_STAGE: Final = Gauge(
    "cador_stage_jobs", "Jobs that are in a stage; commit: writes that are going on", ("stage",), registry=SHARED
)
STAGES: Final = {name: (STAGE_SECONDS.labels(name), JOBS_IN_STAGE.labels(name)) for name in get_args(Stage)}

ALGORITHM_ATTEMPTS: Final = _counter(
    "cador_algorithm_attempts_total", "Tries at the algorithm, by what they came to", result=get_args(Attempt)
)
STORED_BYTES: Final = _counter(
    "cador_stored_bytes_total", "Bytes of the objects that were stored and verified", type=get_args(StoreType)
)
STORED_OBJECTS: Final = _counter(
    "cador_stored_objects_total", "Objects that were stored and verified", type=get_args(StoreType)
)
STORE_RETRIES: Final = _counter(
    "cador_store_retries_total", "Calls to a store that failed and were tried again", type=get_args(StoreType)
)

MESSAGES: Final = _counter(
    "cador_messages_total", "Messages that consumers can read: committed or acknowledged", kind=get_args(MessageKind)
)
MESSAGES_LEFT_OUT: Final = _counter(
    "cador_messages_left_out_total",
    "Messages that should have been sent and never will be, though their job goes on",
    kind=get_args(MessageKind),
)
DEAD_LETTERS: Final = _counter(
    "cador_dead_letters_total",
    "Dead letters that consumers can read, by the class of the error",
    error_class=ERROR_CLASSES,
)
TRANSACTIONS: Final = _counter(
    "cador_transactions_total", "Kafka transactions, by how they ended", result=get_args(TransactionResult)
)
PAUSES: Final = _counter(
    "cador_kafka_pauses_total",
    "Times that a partition was paused: as much as may wait of it waits, or the daemon stops",
)
PARTITION_CHANGES: Final = _counter(
    "cador_kafka_partition_changes_total",
    "Partitions that came to this daemon or went",
    change=get_args(PartitionChange),
)
SKIPPED_RECORDS: Final = _counter(
    "cador_kafka_skipped_records_total",
    "Request records passed over: done before a restart or rebalance, or messages of ours",
    reason=get_args(SkipReason),
)
REDELIVERIES: Final = _counter(
    "cador_kafka_redeliveries_total", "Requests that had begun when the process that ran them died"
)
KAFKA_CLIENT_ERRORS: Final = Counter(
    "cador_kafka_client_errors_total",
    "Complaints of the Kafka clients, most of which mend themselves",
    ("code",),
    registry=SHARED,
)

HTTP_REQUESTS: Final = Counter(
    "cador_http_requests_total",
    "Answered HTTP requests, by the route's template, method and class of status",
    ("route", "method", "status"),
    registry=SHARED,
)

BUILD: Final = Info("cador_build", "Versions of daemon and Python", registry=SHARED)
BUILD.info({"version": __version__, "python": platform.python_version()})


def count_end(door: Door, end: End, error: Exception | None = None) -> None:
    """One job, or one request that never became one, has come to this end."""
    JOBS.labels(door, end).inc()
    if error is not None:
        JOB_ERRORS.labels(door, type(error).__name__).inc()


def count_request(route: str | None, method: str, status: int) -> None:
    """One HTTP request was answered; the route's template is None where nothing is."""
    known = method if method in _METHODS else "other"
    HTTP_REQUESTS.labels(route or "none", known, f"{status // 100}xx").inc()


# --- Read when it is scraped -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A gauge whose value a daemon is asked for at each scrape."""

    name: str
    text: str
    labels: tuple[str, ...] = ()

    def at(self, value: float, *labels: str) -> Sample:
        """Its value now, of the series with these labels."""
        return self, labels, value


Sample: TypeAlias = tuple[Reading, tuple[str, ...], float]
Source: TypeAlias = Callable[[], Iterable[Sample]]

READY: Final = Reading("cador_ready", "1 if /readyz says so")
SLOTS: Final = Reading("cador_slots", "Jobs that may be at the algorithm at once")
SLOTS_IN_USE: Final = Reading("cador_slots_in_use", "Slots with work at the algorithm, wanted or left behind")
WAITING_JOBS: Final = Reading("cador_waiting_jobs", "Jobs that wait for a slot", ("door",))
WAITING_BYTES: Final = Reading("cador_waiting_bytes", "Bytes of the request bodies of HTTP jobs that wait")
UNFINISHED_JOBS: Final = Reading("cador_unfinished_jobs", "Jobs that were given a slot and are not settled yet")
UNFINISHED_LIMIT: Final = Reading("cador_unfinished_jobs_limit", "Jobs that may be unfinished at once")
OLDEST_JOB: Final = Reading(
    "cador_oldest_unfinished_job_seconds", "Age of the oldest job that has not ended; 0 without one"
)
SPOOL_BYTES: Final = Reading("cador_spool_bytes", "Bytes of results that lie in the spool")
SPOOL_LIMIT: Final = Reading("cador_spool_limit_bytes", "Bytes that the spool may hold")
ALGORITHM_UP: Final = Reading("cador_algorithm_up", "1 if the algorithm answers and can be used")
EVENT_LOOP_LAG: Final = Reading(
    "cador_event_loop_lag_seconds", "The longest that the event loop was late within the last minute"
)

KAFKA_UP: Final = Reading("cador_kafka_up", "1 if all brokers answer and all topics are there")
ASSIGNED_PARTITIONS: Final = Reading("cador_kafka_assigned_partitions", "Partitions that are this daemon's")
PAUSED_PARTITIONS: Final = Reading(
    "cador_kafka_paused_partitions", "Partitions of which nothing more is wanted just now"
)
WAITING_RECORDS: Final = Reading("cador_kafka_waiting_records", "Request records read and not taken on yet")
UNCOMMITTED_JOBS: Final = Reading("cador_kafka_uncommitted_jobs", "Jobs whose end waits to be committed")
POLL_AGE: Final = Reading("cador_kafka_poll_age_seconds", "Time since the polling thread's last turn")
CONSUMER_LAG: Final = Reading(
    "cador_consumer_lag", "High watermark minus committed offset of a partition of ours", ("topic", "partition")
)
UNFINISHED_OFFSETS: Final = Reading(
    "cador_kafka_unfinished_offsets", "Records of a partition read and not finished", ("topic", "partition")
)
PROGRESS_AGE: Final = Reading(
    "cador_kafka_progress_age_seconds",
    "Time since the committed offset of a partition moved; 0 if nothing is left to do there",
    ("topic", "partition"),
)


class _Readings(Collector):
    """What the sources say, family by family."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for source in self._sources:
            for reading, labels, value in source():
                if reading.name not in families:
                    families[reading.name] = GaugeMetricFamily(reading.name, reading.text, labels=reading.labels)
                families[reading.name].add_metric(labels, value)
        yield from families.values()


def registry_of(*sources: Source) -> Registry:
    """What a scrape of one daemon shows: what its process has counted, and what these sources say at that moment.

    A source must neither wait nor fail; it is asked in the task that renders.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SHARED)
    registry.register(_Readings(sources))
    return registry


def exposition(registry: Registry, accept: str) -> tuple[bytes, str]:
    """The text of a scrape, and its media type: OpenMetrics or Prometheus' own, as the `Accept` header asks."""
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
