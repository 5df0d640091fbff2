"""Topics as a user reads and writes them: without a group, so that no daemon's place in a topic is touched.

Everything blocks, none of it longer than a stated time without a sign of life, and Ctrl-C gets through. Exceptions of
the client library end here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as Received

from cador_trio.commands.endings import CommandFailed, UsageWrong
from cador_trio.kafka.messages import Coordinates, Message, Record
from cador_trio.kafka.properties import admin_properties, delivery_properties, given_values
from cador_trio.settings import Settings

ANSWER_SECONDS: Final = 10.0  # for brokers to answer a question about a topic
SILENCE_SECONDS: Final = 30.0  # in which a topic that has more to read may bring nothing
DELIVERY_SECONDS: Final = 30.0  # for a message to be acknowledged
POLL_SECONDS: Final = 0.2  # how long Ctrl-C may have to wait

_log = logging.getLogger("cador_trio.librdkafka")
_log.addHandler(logging.NullHandler())  # what it has to say is told as an error of ours
_log.propagate = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """Offsets of a partition: the first that is there, and the one that the next message gets."""

    low: int
    high: int


class Complaints:
    """The last thing that the client library could not do, in its own words: the reason behind a mere timeout."""

    def __init__(self) -> None:
        self._last = ""

    def note(self, error: KafkaError) -> None:
        """The library's callback. "All brokers are down" says less than what came before it."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self._last:  # noqa: SLF001 - the library's public name
            self._last = error.str()

    def reason(self, error: KafkaError | None) -> str:
        """The best that is known."""
        return self._last or (error.str() if error is not None else "no answer in time")


class Reader:
    """Reads topics of one cluster, committed messages only."""

    def __init__(self, consumer: Consumer, brokers: str, complaints: Complaints) -> None:
        self._consumer = consumer
        self._brokers = brokers
        self._complaints = complaints

    def bounds(self, topic: str) -> dict[int, Bounds]:
        """Every partition of the topic. Raises CommandFailed if there is none, or nobody answers."""
        try:
            known = self._consumer.list_topics(topic, ANSWER_SECONDS).topics[topic]
            if known.error is not None:
                raise _failed_topic(topic, self._brokers, known.error)
            return {partition: self._bounds(topic, partition) for partition in sorted(known.partitions)}
        except KafkaException as error:
            raise self._unreachable(error.args[0]) from error

    def read(self, topic: str, begin: Mapping[int, int], end: Mapping[int, int]) -> Iterator[Record]:
        """Records from `begin` up to, not including, `end` (offsets by partition); in order within a partition.

        Raises:
            CommandFailed: the topic can't be read, or falls silent before the end.
        """
        left = {partition for partition in begin if begin[partition] < end[partition]}
        self._assign(topic, {partition: begin[partition] for partition in left})
        heard_at = time.monotonic()
        while left:
            received = self._consumer.poll(POLL_SECONDS)
            if received is None:
                if time.monotonic() - heard_at > SILENCE_SECONDS:
                    raise self._unreachable(None)
                continue
            heard_at = time.monotonic()
            partition = received.partition()
            if self._is_end(topic, received):
                left.discard(partition)
            elif partition in left:
                record = record_of(received)
                if record.offset < end[record.partition]:
                    yield record
                if record.offset + 1 >= end[record.partition]:
                    left.discard(record.partition)

    def follow(self, topic: str, begin: Mapping[int, int]) -> Iterator[Record | None]:
        """Records from `begin` on, for ever; None when there was nothing for a moment. Raises CommandFailed."""
        self._assign(topic, begin)
        while True:
            received = self._consumer.poll(POLL_SECONDS)
            yield None if received is None or self._is_end(topic, received) else record_of(received)

    def _bounds(self, topic: str, partition: int) -> Bounds:
        found = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), ANSWER_SECONDS)
        if found is None:
            raise self._unreachable(None)
        return Bounds(*found)

    def _assign(self, topic: str, begin: Mapping[int, int]) -> None:
        self._consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in begin.items()])

    def _is_end(self, topic: str, received: Received) -> bool:
        """It is not a message but the end of a partition. Raises CommandFailed if it is an error."""
        error = received.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's public name
            raise _failed_topic(topic, self._brokers, error)
        return error is not None

    def _unreachable(self, error: KafkaError | None) -> CommandFailed:
        self._consumer.poll(0)  # its complaints are delivered here
        return _unreachable(self._brokers, self._complaints.reason(error))


@contextmanager
def open_reader(settings: Settings, brokers: str) -> Iterator[Reader]:
    """A reader for the length of a block. Nothing is connected yet."""
    complaints = Complaints()
    properties = {
        **admin_properties(settings, brokers, as_consumer=True),
        "group.id": "cador-trio-command",  # asked for by the library; nobody joins it, nothing is committed
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
    }
    with _refused_properties(settings):
        consumer = Consumer({**properties, "error_cb": complaints.note}, logger=_log)
    try:
        yield Reader(consumer, brokers, complaints)
    finally:
        consumer.close()


class Writer:
    """Sends messages to topics of one cluster, one after the other."""

    def __init__(self, producer: Producer, brokers: str, complaints: Complaints) -> None:
        self._producer = producer
        self._brokers = brokers
        self._complaints = complaints

    def send(self, topic: str, message: Message) -> Coordinates:
        """Where the message is now, acknowledged. Raises CommandFailed if it was not: it may be there nevertheless."""
        outcome: list[tuple[KafkaError | None, Received]] = []
        try:
            self._producer.produce(
                topic,
                message.value,
                message.key,
                headers=list(message.headers),
                on_delivery=lambda error, sent: outcome.append((error, sent)),
            )
        except KafkaException as error:
            raise self._not_sent(topic, message, error.args[0]) from error
        while not outcome:
            self._producer.poll(POLL_SECONDS)
        failure, sent = outcome[0]
        if failure is not None:
            raise self._not_sent(topic, message, failure)
        return Coordinates(topic, _known(sent.partition), _known(sent.offset))

    def _not_sent(self, topic: str, message: Message, error: KafkaError) -> CommandFailed:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return CommandFailed(
                f"the message of about {message.size:,} bytes is too large for {topic}: {error.str()}",
                hint="raise message.max.bytes in CADOR_KAFKA_PROPERTIES_PRODUCER, and max.message.bytes of the topic",
            )
        if error.code() == KafkaError._MSG_TIMED_OUT:  # noqa: SLF001 - the library's public name
            return _unreachable(self._brokers, self._complaints.reason(error))
        return _failed_topic(topic, self._brokers, error)


@contextmanager
def open_writer(settings: Settings, brokers: str) -> Iterator[Writer]:
    """A writer for the length of a block. Nothing is connected yet, and nothing is pending at the end."""
    complaints = Complaints()
    properties = {
        **delivery_properties(settings, brokers),
        "message.timeout.ms": int(DELIVERY_SECONDS * 1000),  # somebody waits for it
        "linger.ms": 0,  # one message at a time has nothing to wait for
    }
    with _refused_properties(settings):
        producer = Producer({**properties, "error_cb": complaints.note}, logger=_log)
    yield Writer(producer, brokers, complaints)


def record_of(received: Received) -> Record:
    """A message without error, as a value."""
    return Record(
        _known(received.topic),
        _known(received.partition),
        _known(received.offset),
        received.key(),
        received.value(),
        _headers(received),
        received.timestamp()[1],
    )


def _headers(received: Received) -> tuple[tuple[str, bytes | None], ...]:
    found = received.headers() or ()
    if isinstance(found, dict):  # what is produced may be one; what comes from a broker is a list of bytes
        raise TypeError("headers in no order")
    return tuple((name, value.encode() if isinstance(value, str) else value) for name, value in found)


def _known(field: Callable[[], Any]) -> Any:
    """A coordinate of a message that came from a broker, or went there: they have all of them."""
    value = field()
    if value is None:
        raise CommandFailed("a message without coordinates", hint="this is a bug of the client library")
    return value


@contextmanager
def _refused_properties(settings: Settings) -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        text = error.args[0].str()
        for value in sorted(given_values(settings), key=len, reverse=True):
            text = text.replace(f'"{value}"', "***")  # it quotes what it refuses, and that may be a secret
        raise UsageWrong(
            f"the Kafka client refuses its properties: {text}", hint="see CADOR_KAFKA_PROPERTIES"
        ) from None


def _unreachable(brokers: str, reason: str) -> CommandFailed:
    return CommandFailed(
        f"the brokers at {brokers} can't be reached: {reason}",
        hint="are address and credentials right? see --kafka and CADOR_KAFKA_PROPERTIES",
    )


def _failed_topic(topic: str, brokers: str, error: KafkaError) -> CommandFailed:
    if error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}:  # noqa: SLF001 - a public name
        return CommandFailed(f"there is no topic {topic} at {brokers}", hint="is its name right? if so, create it")
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        return CommandFailed(f"{brokers} gives no right to the topic {topic}", hint="ask its operator for an ACL")
    return CommandFailed(f"the topic {topic} at {brokers}: {error.str()}", hint="")
