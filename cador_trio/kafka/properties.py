"""What each Kafka client is configured with: the operator's librdkafka properties, and ours, which the guarantee needs.

Pure but for a file that an operator names by `@/path`. Callbacks, loggers and log levels are their callers'. Values may
be secrets, so none is ever quoted: a finding names the variable and the property.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cador_trio.errors import SettingsError
from cador_trio.settings import Settings

Properties = dict[str, str | int | float | bool]

LARGEST_MESSAGE: Final = 1_000_000  # bytes; librdkafka's default of `message.max.bytes`
ENVELOPE: Final = 64 * 1024  # bytes that an output message may hold besides its result: request, headers, framing
MAX_POLL_INTERVAL: Final = 300_000  # ms; librdkafka's default
RECONNECT: Final = 2_000  # ms; the longest pause between two tries to reach a broker; librdkafka has 10 s
TRANSACTION_TIMEOUT: Final = 30_000  # ms; how long a killed instance holds back readers that wait for its transaction

_ALL: Final = "CADOR_KAFKA_PROPERTIES"
_CONSUMER: Final = "CADOR_KAFKA_PROPERTIES_CONSUMER"
_PRODUCER: Final = "CADOR_KAFKA_PROPERTIES_PRODUCER"

_NAME: Final = re.compile(r"[a-z][a-z0-9._-]*")
_SEPARATOR: Final = re.compile(r"(?<!\\);")

_OURS: Final = "it is part of how jobs are delivered"
_ENDLESS: Final = "a message waits for its broker as long as it takes"
_ORDER: Final = "it is part of why nothing is lost, doubled or reordered"
_CODE: Final = "it is for programs, not for operators"

# Why an operator may not set a property. A name that ends in a dot stands for all that begin with it.
REFUSED: Final = {
    "bootstrap.servers": "the KAFKA_BROKERS_… variables say where the brokers are",
    "metadata.broker.list": "the KAFKA_BROKERS_… variables say where the brokers are",
    "group.id": "set KAFKA_CONSUMER_GROUP",
    "group.protocol": "set CADOR_GROUP_PROTOCOL",
    "group.protocol.type": "set CADOR_GROUP_PROTOCOL",
    "partition.assignment.strategy": "it follows CADOR_GROUP_PROTOCOL",
    "group.instance.id": "instances would share it, and a stopped one would keep its partitions until its session ends",
    "auto.offset.reset": "set CADOR_START_OFFSET",
    "isolation.level": _OURS,
    "enable.auto.commit": _OURS,
    "enable.auto.offset.store": _OURS,
    "auto.commit.": _OURS,
    "offset.store.": _OURS,
    "enable.partition.eof": _OURS,
    "transactional.id": "it follows KAFKA_CONSUMER_GROUP and CADOR_INSTANCE_ID",
    "enable.idempotence": _ORDER,
    "enable.gapless.guarantee": _ORDER,
    "acks": _ORDER,
    "request.required.acks": _ORDER,
    "max.in.flight": _ORDER,
    "max.in.flight.": _ORDER,
    "queuing.strategy": _ORDER,
    "retries": _ENDLESS,
    "message.send.max.retries": _ENDLESS,
    "message.timeout.ms": _ENDLESS,
    "delivery.timeout.ms": _ENDLESS,
    "delivery.report.only.error": "messages say where the ones before them are, so every delivery is reported",
    "produce.offset.report": "messages say where the ones before them are, so every delivery is reported",
    "test.mock.": "it would replace the brokers by a pretence of them",
    "log_level": "set CADOR_LOG_LEVEL",
    "logger": _CODE,
    "log.queue": _CODE,
    "opaque": _CODE,
    "interceptors": _CODE,
    "enabled_events": _CODE,
    "on_commit": _CODE,
    "on_delivery": _CODE,
    "default_topic_conf": _CODE,
    "default.topic.config": _CODE,
    "internal.termination.signal": _CODE,
}
# librdkafka refuses these with KIP-848; said here so that the operator reads whose they are then.
_BROKERS_OWN: Final = ("session.timeout.ms", "heartbeat.interval.ms")


def parse(text: str, variable: str) -> dict[str, str]:
    r"""Read `name=value` entries: one a line or separated by `;` (`\;` inside a value), `#` begins a comment.

    Raises:
        SettingsError: an entry is none, stands twice, or may not be set; or the file of `@/path` can't be read.
    """
    properties: dict[str, str] = {}
    findings: list[str] = []
    for number, entry in enumerate(_entries(_text_of(text, variable)), start=1):
        name, is_pair, value = (part.strip() for part in entry.partition("="))
        if not is_pair or not _NAME.fullmatch(name):  # not quoted: it may be the second half of a password
            findings.append(f"{variable}: entry {number} is not name=value; write \\; for a ; inside a value")
        elif name in properties:
            findings.append(f"{variable}: {name} is there twice")
        elif reason := _refusal(name):
            findings.append(f"{variable}: {name} can't be set: {reason}")
        else:
            properties[name] = value.replace("\\;", ";")
    if findings:
        raise SettingsError(findings)
    return properties


def consumer_properties(settings: Settings) -> Properties:
    """Of the one consumer of the request topic."""
    is_classic = settings.group_protocol == "classic"
    return {
        **_everyone(settings, settings.kafka_brokers_request or ""),
        "queued.max.messages.kbytes": 16 * 1024,  # a message that is larger still comes
        "fetch.queue.backoff.ms": 5,  # the default stops a partition for a second each time the queue is full
        # A record above this can't even be skipped, and its partition would stand still for ever. It is refused by us.
        "receive.message.max.bytes": 1_000_000_000,
        **_theirs(settings, _CONSUMER),
        "group.id": settings.kafka_consumer_group or "",
        "group.protocol": settings.group_protocol,
        **({"partition.assignment.strategy": "cooperative-sticky"} if is_classic else {}),
        "auto.offset.reset": settings.start_offset,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": False,
    }


def transactional_properties(settings: Settings) -> Properties:
    """Of the producer whose transactions hold the effects of finished jobs.

    A message's time is the transaction's (librdkafka sees to it): past that the broker has aborted both.
    """
    ours: Properties = {
        "linger.ms": 1,
        "transaction.timeout.ms": TRANSACTION_TIMEOUT,
        # Else, when all brokers were away, librdkafka forgets them, but for a cached group coordinator that it then
        # waits for without end (its issue 5511). If every address has changed, the writer makes a new producer.
        "metadata.recovery.strategy": "none",
    }
    return {
        **_producer(settings, settings.kafka_brokers_request or "", ours),
        "transactional.id": transactional_id(settings),
    }


def delivery_properties(settings: Settings, brokers: str) -> Properties:
    """Of a producer of output, tags and the like outside transactions: idempotent, and never giving up."""
    return {**_producer(settings, brokers, {"linger.ms": 1}), "message.timeout.ms": 0}


def status_properties(settings: Settings, brokers: str) -> Properties:
    """Of a producer of statuses: as `delivery_properties`, but a message waits for no other."""
    return {**_producer(settings, brokers, {"linger.ms": 0}), "message.timeout.ms": 0}


def admin_properties(settings: Settings, brokers: str, *, as_consumer: bool = False) -> Properties:
    """Of a client that only looks, with the identity of the producers or of the consumer. It creates no topics."""
    return {
        **_everyone(settings, brokers),
        **_theirs(settings, _CONSUMER if as_consumer else _PRODUCER),
        # Asking for the metadata of a topic would create it where brokers do that.
        "allow.auto.create.topics": False,
    }


def transactional_id(settings: Settings) -> str:
    """Stable over restarts, so that a killed instance's open transaction is ended by its successor at once."""
    return f"cador.{settings.kafka_consumer_group}.{settings.instance_id}"


def largest_message(settings: Settings) -> int:
    """Bytes of the largest message that our producers take, by librdkafka's count.

    Raises:
        SettingsError: the operator's properties can't be used.
    """
    return int(_producer(settings, "", {})["message.max.bytes"])


def check_properties(settings: Settings) -> None:
    """Find what is wrong with the operator's properties by themselves and together with other settings.

    Raises:
        SettingsError: with one finding for everything.
    """
    findings: list[str] = []
    for variable in (_ALL, _CONSUMER, _PRODUCER):
        try:
            _given(settings, variable)
        except SettingsError as error:
            findings += error.findings
    if not findings:
        findings = [*_consumer_contradictions(settings), *_producer_contradictions(settings)]
    if findings:
        raise SettingsError(findings)


def variable_of_property(settings: Settings, name: str) -> str | None:
    """The variable that sets it: the narrower one if both do; None if it is ours or librdkafka's default."""
    given = (variable for variable in (_CONSUMER, _PRODUCER, _ALL) if name in _given(settings, variable))
    return next(given, None)


def given_values(settings: Settings) -> set[str]:
    """Every value of the operator's properties that no message may hold: all but words such as `ssl`.

    Words that property names are made of are librdkafka's, and without them its messages can't be understood.
    """
    given = [pair for variable in (_ALL, _CONSUMER, _PRODUCER) for pair in _given(settings, variable).items()]
    words = {word for name, _ in given for word in name.split(".")}
    return {value for _, value in given} - words - {""}


def _consumer_contradictions(settings: Settings) -> Iterator[str]:
    theirs = _theirs(settings, _CONSUMER)
    if settings.group_protocol == "consumer":
        for name in theirs.keys() & _BROKERS_OWN:
            variable = variable_of_property(settings, name)
            yield f"{variable}: {name} can't be set with CADOR_GROUP_PROTOCOL=consumer: it is the broker's then"
    interval = theirs.get("max.poll.interval.ms", str(MAX_POLL_INTERVAL))
    if interval.isdecimal() and settings.revoke_grace_seconds * 1000 > int(interval) / 2:
        yield (
            "CADOR_REVOKE_GRACE_SECONDS: must be at most half of the consumer's max.poll.interval.ms "
            f"({int(interval) / 2000:g} seconds), or the group takes the consumer for dead"
        )


def _producer_contradictions(settings: Settings) -> Iterator[str]:
    name = "message.max.bytes"
    limit = _theirs(settings, _PRODUCER).get(name, "")
    needed = settings.inline_result_limit + ENVELOPE
    if limit.isdecimal() and int(limit) < needed:
        variable = variable_of_property(settings, name)
        yield (
            f"{variable}: {name} is too small for CADOR_INLINE_RESULT_LIMIT: it must be {needed} at least "
            "(a result and what is sent with it)"
        )


def _everyone(settings: Settings, brokers: str) -> Properties:
    return {
        "bootstrap.servers": brokers,
        "client.id": f"cador-{settings.instance_id}",
        "reconnect.backoff.max.ms": RECONNECT,
    }


def _producer(settings: Settings, brokers: str, ours: Properties) -> Properties:
    return {
        **_everyone(settings, brokers),
        "compression.type": "lz4",
        "message.max.bytes": max(LARGEST_MESSAGE, settings.inline_result_limit + ENVELOPE),
        **ours,
        **_theirs(settings, _PRODUCER),
        "enable.idempotence": True,
    }


def _theirs(settings: Settings, own: str) -> dict[str, str]:
    """What the operator gives to one kind of client: the properties for all, and over them its own."""
    return {**_given(settings, _ALL), **_given(settings, own)}


def _given(settings: Settings, variable: str) -> dict[str, str]:
    texts = {
        _ALL: settings.kafka_properties,
        _CONSUMER: settings.kafka_properties_consumer,
        _PRODUCER: settings.kafka_properties_producer,
    }
    text = texts[variable]
    return parse(text.get_secret_value(), variable) if text is not None else {}


def _text_of(text: str, variable: str) -> str:
    text = text.strip()
    if not text.startswith("@"):
        return text
    path = Path(text.removeprefix("@").strip())
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError([f"{variable}: {path}: {error.strerror or 'unreadable'}"]) from error
    except ValueError as error:  # not UTF-8, or no path at all
        raise SettingsError([f"{variable}: the file that it names is not UTF-8 text"]) from error


def _entries(text: str) -> Iterator[str]:
    for line in text.splitlines():
        for part in _SEPARATOR.split(line):
            entry = part.strip()
            if entry.startswith("#"):
                break
            if entry:
                yield entry


def _refusal(name: str) -> str:
    """Why it can't be set, or nothing. `topic.` before a name is librdkafka's other way to write it."""
    name = name.removeprefix("topic.")
    if name.endswith("_cb"):
        return _CODE
    if name in REFUSED:
        return REFUSED[name]
    return next((why for start, why in REFUSED.items() if start.endswith(".") and name.startswith(start)), "")
