"""Looks into a Kafka, and puts records there, with librdkafka's clients, each made for one question.

All functions block, may be called from any thread, and raise `KafkaException` for what the broker refuses.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any, Final, Literal, TypeAlias, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

# Where the library exports them from, it does so too vaguely for a type checker.
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.cimpl import NewTopic

from .records import Committed, TestRecord

Isolation: TypeAlias = Literal["read_committed", "read_uncommitted"]
Headers: TypeAlias = Sequence[tuple[str, bytes | None]]

CAP_SECONDS: Final = 30.0
"""No test waits longer for a Kafka, unless it says so."""
LARGEST_BYTES: Final = 200_000_000
"""Of a record that these clients send and read; what a broker takes is its own affair."""

_NOT_YET: Final = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
}
_TURN_SECONDS: Final = 0.1
_BATCH: Final = 10_000


def quiet(bootstrap: str) -> dict[str, Any]:
    """Properties of any client of that cluster; what librdkafka prints about brokers that are away is left out."""
    return {"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": lambda _error: None}


def is_answering(bootstrap: str, *, seconds: float = 1.0) -> bool:
    """Whether there is a broker that tells its cluster's metadata."""
    try:
        return bool(AdminClient(quiet(bootstrap)).list_topics(timeout=seconds).brokers)
    except KafkaException:
        return False


def create_topics(bootstrap: str, topics: Mapping[str, int], configs: Mapping[str, str] | None = None) -> None:
    """Create topics with so many partitions each, and wait until all of these have a leader that serves them.

    Args:
        bootstrap: where the brokers are.
        topics: numbers of partitions by name.
        configs: properties of all of them, such as `max.message.bytes`.

    Raises:
        KafkaException: one is there already, or the broker refuses another way.
        TimeoutError: a partition is without such a leader for half a minute.

    """
    admin = AdminClient(quiet(bootstrap))
    new = [NewTopic(name, partitions, 1, config=dict(configs or {})) for name, partitions in topics.items()]
    for made in admin.create_topics(new, operation_timeout=CAP_SECONDS).values():
        made.result()
    give_up_at = time.monotonic() + CAP_SECONDS
    for name in topics:
        while not (_has_leaders(admin, name, topics[name]) and _is_served(admin, name, topics[name])):
            _raise_after(give_up_at, f"topic {name} has no leader that serves it")
            time.sleep(0.01)


def allow_access(bootstrap: str, user: str, kind: ResourceType, name: str, operation: AclOperation) -> None:
    """Give a user, from any host, a right to one resource, and wait until it holds; asked by one who may do that."""
    right = (kind, name, ResourcePatternType.LITERAL, f"User:{user}", "*", operation, AclPermissionType.ALLOW)
    admin = AdminClient(quiet(bootstrap))
    for made in admin.create_acls([AclBinding(*right)]).values():
        made.result()
    give_up_at = time.monotonic() + CAP_SECONDS
    # The controller has it first. What the broker tells is what it goes by.
    while not admin.describe_acls(AclBindingFilter(*right)).result():
        _raise_after(give_up_at, f"{user} has no right to {operation.name} {name} yet")
        time.sleep(0.01)


def produce(  # noqa: PLR0913 - a record has so many parts
    bootstrap: str,
    topic: str,
    values: Iterable[bytes | None],
    *,
    keys: Iterable[bytes | None] | None = None,
    headers: Headers = (),
    partition: int = -1,
) -> list[TestRecord]:
    """Put records into a topic: `Writer` for once, which takes half a second."""
    return Writer(bootstrap).produce(topic, values, keys=keys, headers=headers, partition=partition)


class Writer:
    """Puts records into topics, each once, also over a broker's restart; its first call takes half a second."""

    def __init__(self, bootstrap: str) -> None:
        self._producer = Producer(
            {
                **quiet(bootstrap),
                "enable.idempotence": True,
                "linger.ms": 0,
                "delivery.timeout.ms": int(CAP_SECONDS * 1000),
                "message.max.bytes": LARGEST_BYTES,
                "reconnect.backoff.max.ms": 500,
            }
        )

    def produce(
        self,
        topic: str,
        values: Iterable[bytes | None],
        *,
        keys: Iterable[bytes | None] | None = None,
        headers: Headers = (),
        partition: int = -1,
    ) -> list[TestRecord]:
        """Put records into a topic; return them as they are there, in the given order.

        Args:
            topic: must exist, unless the broker makes it.
            values: one for each record.
            keys: as many; none at all if not given.
            headers: of each record.
            partition: by the key if not given.

        Raises:
            KafkaException: a record was refused, or not acknowledged in half a minute.
            ValueError: there are not as many keys as values.

        """
        send = partial(self._producer.produce, topic, partition=partition, headers=list(headers) or None)
        tickets: list[_Ticket] = []
        for value, key in zip(values, repeat(None)) if keys is None else zip(values, keys, strict=True):
            tickets.append(_Ticket())
            while not _is_queued(partial(send, value=value, key=key, on_delivery=tickets[-1].deliver)):
                self._producer.poll(_TURN_SECONDS)
        self._producer.flush()
        # What is reported is without headers.
        return [replace(ticket.record(), headers=tuple(headers)) for ticket in tickets]


def _is_queued(send: Callable[[], None]) -> bool:
    """Hand a record to librdkafka; False if its queue is full."""
    try:
        send()
    except BufferError:
        return False
    return True


class _Ticket:
    """Takes what is reported about one record."""

    def __init__(self) -> None:
        self._error: KafkaError | None = None
        self._message: Message | None = None

    def deliver(self, error: KafkaError | None, message: Message) -> None:
        self._error, self._message = error, message

    def record(self) -> TestRecord:
        """The record, as it was stored. Raises KafkaException if it was not."""
        if self._error is not None:
            raise KafkaException(self._error)
        if self._message is None:
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))
        return _record_of(self._message)


def read_topic(
    bootstrap: str, topic: str, isolation: Isolation = "read_committed", *, seconds: float = CAP_SECONDS
) -> list[TestRecord]:
    """All that is in a topic when asked, by partition and offset.

    Its end is the last stable offset for `read_committed`, where what is behind an open transaction is not seen, and
    the high watermark for `read_uncommitted`.

    Raises:
        UnknownTopic: there is no such topic.
        TimeoutError: the end was not reached in time.

    """
    give_up_at = time.monotonic() + seconds
    records: list[TestRecord] = []
    with _consumer(bootstrap, isolation) as consumer:
        ends = _ends(consumer, topic)
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
        while ends:
            _raise_after(give_up_at, f"the end of {topic} is not reached, {len(records)} records are read, {ends=}")
            for message in _some_messages(consumer):
                partition, offset, is_record = _where(message)
                end = ends.get(partition, 0)
                if is_record and offset < end:
                    records.append(_record_of(message))
                # Behind the last record may be aborted ones and marks of transactions: then only this event tells.
                if offset >= (end - 1 if is_record else end):
                    ends.pop(partition, None)
    return sorted(records, key=lambda record: (record.partition, record.offset))


def wait_for_records(  # noqa: PLR0913 - the last two are hardly ever given
    bootstrap: str,
    topic: str,
    holds: Callable[[list[TestRecord]], bool],
    isolation: Isolation = "read_committed",
    *,
    seconds: float = CAP_SECONDS,
    each_turn: Callable[[], None] = lambda: None,
) -> list[TestRecord]:
    """Read a topic from its beginning until a condition on all that was read holds; return that.

    Args:
        bootstrap: where the brokers are; they may be away, or start later.
        topic: may be created later.
        holds: asked before the first record and whenever there are more; must not change the list.
        isolation: which records are seen.
        seconds: the cap.
        each_turn: called ten times a second or more; what it raises ends the wait.

    Raises:
        TimeoutError: it does not hold in time; the text holds the last records.

    """
    give_up_at = time.monotonic() + seconds
    records: list[TestRecord] = []
    with _consumer(bootstrap, isolation) as consumer:
        is_assigned = False
        while not holds(records):
            each_turn()
            _raise_after(give_up_at, f"{topic} has {len(records)} records and is not as waited for: {records[-3:]}")
            if is_assigned:
                found = [message for message in _some_messages(consumer) if _where(message)[2]]
                records.extend(map(_record_of, found))
            else:
                is_assigned = _try_to_assign(consumer, topic)
    return records


def committed(bootstrap: str, group: str, topic: str, *, seconds: float = CAP_SECONDS) -> dict[int, Committed]:
    """What a group has committed, by partition; nothing where it has not. An open transaction is waited for.

    Raises:
        UnknownTopic: there is no such topic.

    """
    # A transaction's end takes a moment to reach the offsets; one who reads what is committed is told to ask again.
    with _consumer(bootstrap, "read_committed", group) as consumer:
        wanted = [TopicPartition(topic, partition) for partition in _partitions(consumer, topic)]
        found = consumer.committed(wanted, timeout=seconds)
    return {entry.partition: Committed(entry.offset, entry.metadata or "") for entry in found if entry.offset >= 0}


class UnknownTopic(Exception):
    """The cluster has no topic of that name."""


# --- Reading -------------------------------------------------------------------------------------------------------


@contextmanager
def _consumer(bootstrap: str, isolation: Isolation, group: str | None = None) -> Iterator[Consumer]:
    """Open a consumer that joins no group and commits nothing."""
    consumer = Consumer(
        {
            **quiet(bootstrap),
            "group.id": group or f"reader-{secrets.token_hex(8)}",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # The end is told by an empty answer: brokers keep that back for so long.
            "fetch.wait.max.ms": 10,
            "fetch.queue.backoff.ms": 5,
            "reconnect.backoff.max.ms": 500,
            "fetch.max.bytes": LARGEST_BYTES,
            "receive.message.max.bytes": LARGEST_BYTES + 1_000,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    described = consumer.list_topics(topic, timeout=CAP_SECONDS).topics[topic]
    if described.error is not None or not described.partitions:
        raise UnknownTopic(topic)
    return sorted(described.partitions)


def _ends(consumer: Consumer, topic: str) -> dict[int, int]:
    """Where the partitions that have anything end, as the consumer's isolation shows them."""
    ends = {}
    for partition in _partitions(consumer, topic):
        watermarks = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=CAP_SECONDS)
        if watermarks is None:
            raise TimeoutError(f"no answer about the end of {topic}-{partition}")
        low, end = watermarks
        if low < end:
            ends[partition] = end
    return ends


def _try_to_assign(consumer: Consumer, topic: str) -> bool:
    try:
        described = consumer.list_topics(topic, timeout=_TURN_SECONDS * 10).topics[topic]
    except KafkaException:
        return False
    found = [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in described.partitions]
    if found:
        consumer.assign(found)
    return bool(found)


def _some_messages(consumer: Consumer) -> list[Message]:
    """Messages and ends of partitions that are there; other errors pass by themselves."""
    first = consumer.poll(_TURN_SECONDS)
    if first is None:
        return []
    # Not `consume` alone: it waits the whole time for as many as it may return.
    return [message for message in (first, *consumer.consume(_BATCH, 0)) if _is_of_interest(message)]


def _is_of_interest(message: Message) -> bool:
    error = message.error()
    return error is None or error.code() == KafkaError._PARTITION_EOF


def _where(message: Message) -> tuple[int, int, bool]:
    """Partition, offset, and whether it is a record; else it is the end of the partition."""
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return partition, offset, message.error() is None


def _record_of(message: Message) -> TestRecord:
    topic = message.topic()
    assert topic is not None
    partition, offset, _ = _where(message)
    headers: Any = message.headers() or ()
    _, timestamp = message.timestamp()
    return TestRecord(topic, partition, offset, message.key(), message.value(), tuple(headers), timestamp)


def _has_leaders(admin: AdminClient, topic: str, partitions: int) -> bool:
    described = admin.list_topics(topic, timeout=CAP_SECONDS).topics[topic]
    leaders = [partition.leader for partition in described.partitions.values() if partition.error is None]
    return len(leaders) == partitions and all(leader >= 0 for leader in leaders)


def _is_served(admin: AdminClient, topic: str, partitions: int) -> bool:
    """A broker tells of its partitions a moment before it takes them over; until then it says that it does not lead."""
    newest = cast("Any", OffsetSpec).latest()  # which has no types
    wanted = {TopicPartition(topic, partition): newest for partition in range(partitions)}
    try:
        for told in admin.list_offsets(wanted, request_timeout=CAP_SECONDS).values():
            told.result()
    except KafkaException as error:
        if error.args[0].code() not in _NOT_YET:
            raise
        return False
    return True


def _raise_after(give_up_at: float, text: str) -> None:
    if time.monotonic() > give_up_at:
        raise TimeoutError(text)
