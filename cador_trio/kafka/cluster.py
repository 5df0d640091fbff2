"""What a Kafka says of itself before anything is read or sent: clusters, topics, rights; and which guarantee follows.

All functions that ask a broker block, for as long as their caller says: call them in a thread. They change nothing
there, but `try_transactions` leaves a transactional id behind, which expires by itself.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

# Their package has these names too, but not for type checkers.
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec

from cador_trio.errors import KafkaUnavailable, SettingsError
from cador_trio.kafka.effects import Role
from cador_trio.kafka.properties import (
    Properties,
    admin_properties,
    check_properties,
    consumer_properties,
    delivery_properties,
    given_values,
    transactional_id,
    transactional_properties,
    variable_of_property,
)
from cador_trio.settings import Settings

_Made = TypeVar("_Made")

_FIRST_PATIENCE: Final = 1.0  # seconds; then it is looked whether waiting makes sense
_ADMIN_SECONDS: Final = 3.0  # for what may stay unknown: some brokers never answer it
_PROBE: Final = ".check"  # behind the transactional id, so that a probe fences no instance

_ABSENT: Final = KafkaError.UNKNOWN_TOPIC_OR_PART
_FORBIDDEN: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}

# What librdkafka logs while we look is told by the error that we raise.
_SILENT: Final = logging.getLogger(f"{__name__}.silent")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
_SILENT.setLevel(logging.CRITICAL)

# How librdkafka complains about a configuration. The last thing in quotes is the property; before it may be its value.
_UNKNOWN: Final = re.compile(r'No such configuration property: "([a-z][a-z0-9._-]*)"$')
_OUT_OF_RANGE: Final = re.compile(r'property "([a-z][a-z0-9._-]*)".* outside allowed range ([\d.-]+)\s*$', re.DOTALL)
_BAD_VALUE: Final = re.compile(
    r'^(?:Invalid|Expected).* for (?:configuration property )?"([a-z][a-z0-9._-]*)"', re.DOTALL
)


# --- What the settings name ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A topic that the settings name; `role` is what is sent there, None for the requests that come from it."""

    variable: str
    topic: str
    brokers: str
    role: Role | None

    @property
    def needed_right(self) -> str:
        """READ or WRITE."""
        return "READ" if self.role is None else "WRITE"

    def __str__(self) -> str:
        return f"{self.role or 'request'} topic {self.topic}"


def places(settings: Settings) -> tuple[Place, ...]:
    """Every topic in use, the one of the requests first; none without Kafka."""
    if not settings.has_kafka:
        return ()
    home = settings.kafka_brokers_request or ""
    tags = "EOPAAS_JOB_TAGS_TOPIC" if settings.job_tags_topic else "EOPAAS_JOB_OUTPUT_TOPIC"
    named = (
        ("EOPAAS_JOB_REQUEST_TOPIC", settings.job_request_topic, home, None),
        ("EOPAAS_JOB_OUTPUT_TOPIC", settings.job_output_topic, settings.output_brokers, Role.OUTPUT),
        (tags, settings.tags_topic, settings.tags_brokers, Role.TAG),
        ("EOPAAS_STATUS_UPDATE_TOPIC", settings.status_update_topic, settings.status_brokers, Role.STATUS),
        ("CADOR_DEAD_LETTER_TOPIC", settings.dead_letter_topic, home, Role.DEAD_LETTER),
    )
    return tuple(Place(variable, topic, brokers, role) for variable, topic, brokers, role in named if topic)


def by_client(some: Sequence[Place]) -> dict[tuple[str, bool], list[Place]]:
    """Places by their brokers and by whether they are read from: consumer and producers may be different users."""
    found: dict[tuple[str, bool], list[Place]] = {}
    for place in some:
        found.setdefault((place.brokers, place.role is None), []).append(place)
    return found


# --- The guarantee ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guarantee:
    """How often a message of a job may come; `sentence` says it to people, with the reason.

    Attributes:
        kind: `mixed` is exactly once for some topics and at least once for those `elsewhere`.
        elsewhere: what is sent to another cluster than the requests come from, so outside of transactions.
    """

    kind: Literal["exactly-once", "mixed", "at-least-once"]
    sentence: str
    elsewhere: frozenset[Role] = frozenset()

    @property
    def has_transactions(self) -> bool:
        """Offsets, and messages on the request cluster, go in transactions."""
        return self.kind != "at-least-once" or bool(self.elsewhere)


_NAMES: Final = {Role.OUTPUT: "output", Role.TAG: "tags", Role.STATUS: "statuses", Role.DEAD_LETTER: "dead letters"}


def guarantee(settings: Settings, cluster_ids: Mapping[str, str]) -> Guarantee:
    """Which delivery guarantee holds, from the cluster id behind each list of brokers in `places`.

    Raises:
        SettingsError: `CADOR_DELIVERY` asks for exactly once, and that can't be held.
    """
    if settings.delivery == "at-least-once":
        return Guarantee(
            "at-least-once", "at least once, as CADOR_DELIVERY says: after a crash, messages of a job may come again"
        )
    sent = [place for place in places(settings) if place.role is not None]
    elsewhere = [place for place in sent if not _is_home(place, settings, cluster_ids)]
    if elsewhere and settings.delivery == "exactly-once":
        raise SettingsError(
            [
                f"CADOR_DELIVERY: exactly-once can't be held: the {place} is on another cluster than the requests"
                for place in elsewhere
            ]
        )
    inside = [place for place in sent if place not in elsewhere]
    if not elsewhere:
        what = _listed([*_names(inside), "the request's offset"])
        return Guarantee("exactly-once", f"exactly once: one transaction holds {what}")
    away = frozenset(place.role for place in elsewhere if place.role is not None)
    reason = f"{_listed(_names(elsewhere))} at least once, being on another cluster than the requests"
    if not inside:
        return Guarantee("at-least-once", reason, away)
    return Guarantee("mixed", f"{_listed(_names(inside))} exactly once; {reason}", away)


def _is_home(place: Place, settings: Settings, cluster_ids: Mapping[str, str]) -> bool:
    """On the cluster of the requests. A broker that tells no id proves nothing but its own address."""
    home = settings.kafka_brokers_request or ""
    return place.brokers == home or cluster_ids.get(place.brokers, "") == cluster_ids.get(home, "") != ""


def _names(some: Sequence[Place]) -> list[str]:
    return [_NAMES[place.role] for place in some if place.role is not None]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- Looking ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Topic:
    """What is known of a topic; `problem` says why it can't be used, and is empty if nothing speaks against it.

    Attributes:
        rights: operations that we may do there, such as READ; None: not known.
        largest_message: bytes, `max.message.bytes` of the topic; None: not known.
    """

    partitions: int
    problem: str = ""
    rights: frozenset[str] | None = None
    largest_message: int | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known of a cluster; `cluster_id` is empty if the brokers have none."""

    cluster_id: str
    topics: Mapping[str, Topic]


@dataclass(frozen=True, slots=True)
class Survey:
    """All clusters of the settings: the id behind each list of brokers, and what is wrong with topics, in sentences."""

    cluster_ids: Mapping[str, str]
    problems: Sequence[str]


def survey(settings: Settings, *, seconds: float) -> Survey:
    """Ask all brokers of the settings for their cluster id and topics; each list of them has so many seconds.

    Raises:
        KafkaUnavailable: one of them does not answer in time, or not without other credentials.
        SettingsError: the operator's properties can't be used.
    """
    cluster_ids: dict[str, str] = {}
    problems: list[str] = []
    for (brokers, as_consumer), there in by_client(places(settings)).items():
        names = {place.topic for place in there}
        cluster = look(settings, brokers, names, seconds=seconds, as_consumer=as_consumer)
        cluster_ids[brokers] = cluster.cluster_id
        found = ((place, cluster.topics[place.topic].problem) for place in there)
        problems += [f"{place} at {brokers}: {problem} ({place.variable})" for place, problem in found if problem]
    return Survey(cluster_ids, problems)


def look(
    settings: Settings, brokers: str, topics: Collection[str], *, seconds: float, as_consumer: bool = False
) -> Cluster:
    """Ask these brokers for their cluster id and for some topics, at least one. No topic is created by asking.

    Raises:
        KafkaUnavailable: no answer in time, or none without other credentials.
        SettingsError: the operator's properties can't be used.
    """
    client = _Client(settings, brokers, time.monotonic() + seconds, as_consumer=as_consumer)
    return client.look(topics)


def look_closely(
    settings: Settings, brokers: str, topics: Collection[str], *, seconds: float, as_consumer: bool = False
) -> Cluster:
    """As `look`, with rights and sizes where the brokers tell them.

    Raises:
        KafkaUnavailable: no answer in time, or none without other credentials.
        SettingsError: the operator's properties can't be used.
    """
    client = _Client(settings, brokers, time.monotonic() + seconds, as_consumer=as_consumer)
    cluster = client.look(topics)
    there = [name for name, topic in cluster.topics.items() if not topic.problem]
    rights, sizes = client.rights_and_sizes(there)
    topics = {
        name: replace(topic, rights=rights.get(name), largest_message=sizes.get(name))
        for name, topic in cluster.topics.items()
    }
    return replace(cluster, topics=topics)


def may_join_group(settings: Settings, *, seconds: float) -> bool | None:
    """Whether the consumer may read in its group; None if the brokers don't tell.

    Raises:
        SettingsError: the operator's properties can't be used.
    """
    brokers = settings.kafka_brokers_request or ""
    client = _Client(settings, brokers, time.monotonic() + seconds, as_consumer=True)
    return client.may_read_in(settings.kafka_consumer_group or "")


def try_transactions(settings: Settings, *, seconds: float) -> None:
    """Find out whether the request cluster gives us transactions, by a transactional id beside our own.

    Raises:
        KafkaUnavailable: no answer in time, or a refusal; the message says which.
        SettingsError: the operator's properties can't be used.
    """
    complaints = _Complaints()
    probe_id = transactional_id(settings) + _PROBE
    properties = {**transactional_properties(settings), "transactional.id": probe_id, "error_cb": complaints.note}
    producer = _made(settings, lambda: Producer(properties, logger=_SILENT))
    try:
        producer.init_transactions(seconds)
    except KafkaException as error:
        raise unavailable(error, f"Kafka: transactions as {probe_id}", complaints.worst) from error


def verify_properties(settings: Settings) -> None:
    """Find out whether librdkafka takes what our clients are configured with. Asks no broker.

    Raises:
        SettingsError: the operator's properties can't be used; one finding for each, as far as librdkafka tells.
    """
    check_properties(settings)
    consumer = consumer_properties(settings)
    _made(settings, lambda: Consumer(_nowhere(consumer), logger=_SILENT)).close()
    for producer in (transactional_properties(settings), delivery_properties(settings, "")):
        _made(settings, partial(Producer, _nowhere(producer), logger=_SILENT))


def _nowhere(properties: Properties) -> Properties:
    return {name: value for name, value in properties.items() if name != "bootstrap.servers"}


# --- librdkafka's words, and ours ---------------------------------------------------------------------------------


def unavailable(error: KafkaException, what: str, complaint: KafkaError | None = None) -> KafkaUnavailable:
    """The error of ours for what went wrong with `what`.

    A mere timeout tells nothing: `complaint` is the most telling of what the client's `error_cb` was given meanwhile.
    """
    cause: KafkaError = error.args[0]
    if complaint is not None and cause.code() not in _FORBIDDEN:
        cause = complaint
    said = _short(cause.str())
    if cause.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
        hint = "allow this user WRITE and DESCRIBE on transactional ids that begin with cador."
        return KafkaUnavailable(f"{what}: {said}", hint=hint)
    if cause.code() in _FORBIDDEN:
        return KafkaUnavailable(f"{what}: {said}", hint="the brokers' ACLs must allow it to this user")
    if cause.code() == _ABSENT:
        return KafkaUnavailable(f"{what}: does not exist", hint="create it, or name another one")
    if _is_refusal(cause):
        return KafkaUnavailable(f"{what}: {said}", hint="look at security.* and sasl.* in CADOR_KAFKA_PROPERTIES")
    return KafkaUnavailable(f"{what}: {said}")


def refused_properties(error: KafkaException, settings: Settings) -> SettingsError:
    """The finding for what a client's constructor says: it names variable and property, and never a value."""
    said = str(error.args[0].str()).strip()
    for pattern, meaning in (
        (_UNKNOWN, "no such property"),
        (_OUT_OF_RANGE, "not within {}"),
        (_BAD_VALUE, "not a value that it may have"),
    ):
        if found := pattern.search(said):
            name = found[1]
            variable = variable_of_property(settings, name) or "CADOR_KAFKA_PROPERTIES"
            return SettingsError([f"{variable}: {name}: {meaning.format(*found.groups()[1:])}"])
    text = re.sub(r"^Failed to create \w+: ", "", said)
    return SettingsError([f"CADOR_KAFKA_PROPERTIES: {_without_values(text, given_values(settings))}"])


def _without_values(text: str, values: Collection[str]) -> str:
    """Long values are masked anywhere, short ones where they stand alone: `1` is also part of many error codes."""
    for value in sorted((value for value in values if value), key=len, reverse=True):
        pattern = re.escape(value) if len(value) >= 8 else rf"(?<![\w.]){re.escape(value)}(?!\w)"
        text = re.sub(pattern, "***", text)
    return text


def _is_refusal(error: KafkaError) -> bool:
    return bool(error.code() == KafkaError._AUTHENTICATION)  # noqa: SLF001 - the library's public name


def _short(text: str) -> str:
    return re.sub(r"\s*\(after \d+ms in state \w+[^)]*\)", "", text)


class _Complaints:
    """What librdkafka could not do, of that the most telling."""

    def __init__(self) -> None:
        self.worst: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """The library's callback, in the thread that polls the client."""
        says_nothing = error.code() == KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001 - the library's public name
        if self.worst is None or not (self.is_refused or says_nothing):
            self.worst = error

    @property
    def is_refused(self) -> bool:
        """The broker does not take our credentials: waiting won't help."""
        return self.worst is not None and _is_refusal(self.worst)


def _made(settings: Settings, make: Callable[[], _Made]) -> _Made:
    try:
        return make()
    except KafkaException as error:
        raise refused_properties(error, settings) from None  # its text may quote a value


class _Client:
    """An admin client that has until a point of `time.monotonic` for everything that it is asked."""

    def __init__(self, settings: Settings, brokers: str, until: float, *, as_consumer: bool) -> None:
        self._what = f"Kafka at {brokers}"
        self._until = until
        self._complaints = _Complaints()
        properties: dict[str, Any] = {**admin_properties(settings, brokers, as_consumer=as_consumer)}
        properties["error_cb"] = self._complaints.note
        self._admin = _made(settings, lambda: AdminClient(properties, logger=_SILENT))

    def look(self, names: Collection[str]) -> Cluster:
        cluster_id = ""
        topics: dict[str, Topic] = {}
        for name in names:
            metadata = self._metadata(name)
            cluster_id = metadata.cluster_id or ""
            found = metadata.topics[name]
            topics[name] = Topic(len(found.partitions), _problem(found.error))
        return Cluster(cluster_id, topics)

    def rights_and_sizes(self, names: Sequence[str]) -> tuple[dict[str, frozenset[str]], dict[str, int]]:
        """What the brokers tell of either, by topic."""
        if not names:
            return {}, {}
        seconds = self._admin_seconds()
        described = self._admin.describe_topics(
            TopicCollection(list(names)), include_authorized_operations=True, request_timeout=seconds
        )
        configured = self._admin.describe_configs(
            [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names], request_timeout=seconds
        )
        rights = {name: _rights(_answer(future)) for name, future in described.items()}
        sizes = {resource.name: _size(_answer(future)) for resource, future in configured.items()}
        return (
            {name: operations for name, operations in rights.items() if operations is not None},
            {name: size for name, size in sizes.items() if size is not None},
        )

    def may_read_in(self, group: str) -> bool | None:
        asked = self._admin.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=self._admin_seconds()
        )
        try:
            rights = _rights(asked[group].result())
        except KafkaException as error:
            return False if error.args[0].code() in _FORBIDDEN else None
        return None if rights is None else "READ" in rights

    def _metadata(self, topic: str) -> Any:  # the library publishes no type for it
        """Ask with growing patience, so that an answer that can't come is not waited for."""
        patience = _FIRST_PATIENCE
        while True:
            left = self._until - time.monotonic()
            try:
                return self._admin.list_topics(topic, timeout=max(0.1, min(patience, left)))
            except KafkaException as error:
                self._admin.poll(0)
                if self._complaints.is_refused or left <= patience:
                    raise unavailable(error, self._what, self._complaints.worst) from error
                patience *= 2

    def _admin_seconds(self) -> float:
        return max(1.0, min(_ADMIN_SECONDS, self._until - time.monotonic()))


class Watermarks:
    """The ends of the request topic's partitions, asked for by a client that is kept; brokers are not asked before."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError: the operator's properties can't be used."""
        brokers = settings.kafka_brokers_request or ""
        self._topic = settings.job_request_topic or ""
        self._what = f"Kafka at {brokers}"
        properties: dict[str, Any] = {**admin_properties(settings, brokers, as_consumer=True)}
        properties["error_cb"] = lambda _: None  # the other clients complain already
        self._admin = _made(settings, lambda: AdminClient(properties, logger=_SILENT))

    def read(self, partitions: Sequence[int]) -> dict[int, int]:
        """The high watermark of each whose leader answers.

        Raises:
            KafkaUnavailable: none does at the moment.
        """
        latest: Any = OffsetSpec.latest  # it publishes no type
        wanted = {TopicPartition(self._topic, number): latest() for number in partitions}
        asked = self._admin.list_offsets(wanted, request_timeout=_ADMIN_SECONDS)
        answers = {partition.partition: _answer(future) for partition, future in asked.items()}
        ends = {partition: answer.offset for partition, answer in answers.items() if answer is not None}
        if not ends:
            raise KafkaUnavailable(f"{self._what} tells no watermarks")
        return ends


def _problem(error: KafkaError | None) -> str:
    if error is None:
        return ""
    if error.code() == _ABSENT:
        return "does not exist"
    if error.code() in _FORBIDDEN:
        return "may not be seen by this user, or does not exist"
    return error.str()


def _answer(future: Any) -> Any:
    """None if the broker doesn't tell: it may be too old, too simple or too strict for such a question."""
    try:
        return future.result()
    except KafkaException:
        return None


def _rights(described: Any) -> frozenset[str] | None:
    operations = getattr(described, "authorized_operations", None)
    return None if operations is None else frozenset(operation.name for operation in operations)


def _size(configured: Any) -> int | None:
    entry = configured.get("max.message.bytes") if configured else None
    return int(entry.value) if entry is not None and entry.value is not None else None
