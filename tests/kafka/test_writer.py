"""Both writers against a scripted producer: the order of calls, and what each kind of error leads to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from cador_trio.errors import InstanceFenced, KafkaUnavailable
from cador_trio.kafka import writer as writer_module
from cador_trio.kafka.effects import MAX_LISTED_TAGS, Commit, Effects, Role, Source, Whereabouts
from cador_trio.kafka.ledger import CommitPoint
from cador_trio.kafka.messages import Coordinates, Message
from cador_trio.kafka.writer import (
    AtLeastOnce,
    ExactlyOnce,
    GaveUp,
    MessageRefused,
    MessagesBroken,
    OutcomeUnknown,
    PartitionsGone,
)
from tests.kafka.doubles import ScriptedProducer, StillPolling, kafka_error, messages

TOPICS = {Role.OUTPUT: "outputs", Role.TAG: "tags", Role.STATUS: "statuses", Role.DEAD_LETTER: "dead"}
TOO_LARGE = kafka_error(KafkaError.MSG_SIZE_TOO_LARGE)
RETRIABLE = kafka_error(KafkaError._TIMED_OUT, retriable=True)
ABORTABLE = kafka_error(KafkaError.INVALID_TXN_STATE, abort=True)
FENCED = kafka_error(KafkaError._FENCED, fatal=True)
FATAL = kafka_error(KafkaError._FATAL, fatal=True)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses take no time here."""
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_SECONDS", 0.0)


@dataclass
class Bench:
    """A writer between its producers and the group."""

    made: list[ScriptedProducer] = field(default_factory=list)
    elsewhere: dict[Role, ScriptedProducer] = field(default_factory=dict)
    polling: StillPolling = field(default_factory=StillPolling)
    transaction_seconds: float = 1_000
    topics: dict[Role, str] = field(default_factory=lambda: dict(TOPICS))
    prepare: Callable[[ScriptedProducer], None] = lambda _: None

    def open(self) -> ExactlyOnce:
        self.polling.owned = {0: 1}
        writer = ExactlyOnce(
            producer=self._make,
            elsewhere=cast("dict[Role, Producer]", self.elsewhere),
            topics=self.topics,
            request_topic="requests",
            polling=self.polling,
            transaction_seconds=self.transaction_seconds,
        )
        writer.open()
        return writer

    def _make(self) -> Producer:
        self.made.append(ScriptedProducer())
        self.prepare(self.made[-1])
        return cast("Producer", self.made[-1])

    @property
    def producer(self) -> ScriptedProducer:
        return self.made[-1]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@dataclass
class Told:
    """What a status was made of, at each try."""

    where: list[Whereabouts] = field(default_factory=list)

    def status(self, where: Whereabouts) -> Message:
        self.where.append(where)
        return Message(b"key", b"status", ())


def effects(offset: int = 0, *, tags: int = 0, told: Told | None = None, letter: bool = False) -> Effects:
    """A job's: output (or dead letter) and status, with so many tags."""
    values = [b"tag %d" % index for index in range(tags)]
    return Effects(
        Source(0, offset, 1),
        tags=lambda: messages(*values),
        tag_count=tags,
        output=None if letter else Message(b"key", b"output", ()),
        dead_letter=Message(b"key", b"letter", ()) if letter else None,
        status=(told or Told()).status,
    )


def commit_of(*batch: Effects, point: int = 1) -> Commit:
    return Commit(list(batch), {0: CommitPoint(point, "metadata")}, {0: 1})


def topics_of(producer: ScriptedProducer) -> list[str]:
    """Of the messages that are visible, in their order."""
    return [topic for topic, _ in producer.visible]


# --- The order ----------------------------------------------------------------------------------------------------


def test_the_order_of_calls(bench: Bench) -> None:
    """Tags, output, a flush for true offsets, the status, a flush before the offsets, the offsets, the commit."""
    told = Told()
    writer = bench.open()
    writer.write(commit_of(effects(tags=2, told=told)))
    assert bench.producer.calls == [
        "init_transactions",
        "begin_transaction",
        "produce tags",
        "produce tags",
        "produce outputs",
        "flush",
        "produce statuses",
        "flush",
        "send_offsets",
        "commit_transaction",
    ]
    (where,) = told.where
    assert where.output == Coordinates("outputs", 0, 0)
    assert list(where.tags) == [Coordinates("tags", 0, 0), Coordinates("tags", 0, 1)]
    assert bench.producer.offsets == [{0: (1, "metadata")}]


def test_dead_letters_come_before_their_status(bench: Bench) -> None:
    """And no output is sent."""
    bench.open().write(commit_of(effects(letter=True)))
    assert topics_of(bench.producer) == ["dead", "statuses"]


def test_begun_jobs_alone(bench: Bench) -> None:
    """A commit without effects is a transaction of offsets."""
    bench.open().write(commit_of())
    assert [call for call in bench.producer.calls if call != "flush"] == [
        "init_transactions",
        "begin_transaction",
        "send_offsets",
        "commit_transaction",
    ]


def test_messages_without_an_offset(bench: Bench) -> None:
    """A REST job's transaction sends no offsets, and asks nothing of the group."""
    bench.polling.owned = {}
    bench.open().write(Commit([effects()]))
    assert "send_offsets" not in bench.producer.calls
    assert topics_of(bench.producer) == ["outputs", "statuses"]


def test_no_more_coordinates_than_are_listed(bench: Bench) -> None:
    """The first tags' coordinates are kept, all of the tags are sent."""
    told = Told()
    bench.open().write(commit_of(effects(tags=MAX_LISTED_TAGS + 10, told=told)))
    assert len(told.where[0].tags) == MAX_LISTED_TAGS
    assert topics_of(bench.producer).count("tags") == MAX_LISTED_TAGS + 10


def test_a_full_queue_is_waited_for(bench: Bench) -> None:
    """librdkafka takes 100,000 messages at once: the next is sent when some have gone."""
    writer = bench.open()
    bench.producer.full = 3
    writer.write(commit_of(effects(tags=2)))
    assert topics_of(bench.producer) == ["tags", "tags", "outputs", "statuses"]
    assert bench.producer.calls.count("poll") == 3


# --- Errors that a try can cure -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["send_offsets", "commit_transaction"])
def test_retriable_is_the_same_call_again(bench: Bench, call: str) -> None:
    """As often as it takes, without a new transaction."""
    writer = bench.open()
    bench.producer.failures[call].extend([RETRIABLE, RETRIABLE, RETRIABLE])
    writer.write(commit_of(effects()))
    assert bench.producer.calls.count(call) == 4
    assert bench.producer.calls.count("begin_transaction") == 1
    assert topics_of(bench.producer) == ["outputs", "statuses"]


def test_opening_is_tried_until_it_works(bench: Bench) -> None:
    """Retriable on the same producer; for anything else a new one is made."""

    def prepare(producer: ScriptedProducer) -> None:
        producer.failures["init_transactions"].extend([RETRIABLE, FATAL] if len(bench.made) < 3 else [])

    bench.prepare = prepare
    bench.open()
    assert [producer.calls.count("init_transactions") for producer in bench.made] == [2, 2, 1]


@pytest.mark.parametrize("call", ["begin_transaction", "produce", "send_offsets", "commit_transaction"])
def test_abort_and_again_more_than_once(bench: Bench, call: str) -> None:
    """What needs an abort is aborted and built anew, twice if need be; statuses tell of the last try alone."""
    told = Told()
    writer = bench.open()
    bench.producer.failures[call].extend([ABORTABLE, ABORTABLE])
    writer.write(commit_of(effects(tags=1, told=told)))
    assert bench.producer.calls.count("abort_transaction") == 2
    assert bench.producer.calls.count("begin_transaction") == 3
    assert topics_of(bench.producer) == ["tags", "outputs", "statuses"]
    output = told.where[-1].output
    assert output is not None
    assert output.offset == len([call for call in bench.producer.calls if call == "produce outputs"]) - 1 or (
        call == "produce"
    )
    assert bench.producer.offsets == [{0: (1, "metadata")}]


def test_a_message_that_is_not_acknowledged(bench: Bench) -> None:
    """A report that says no spoils the transaction; it is aborted and all of it is sent again."""
    writer = bench.open()
    bench.producer.refusals["outputs"].append(kafka_error(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, abort=True))
    writer.write(commit_of(effects(tags=1)))
    assert topics_of(bench.producer) == ["tags", "outputs", "statuses"]
    assert bench.producer.calls.count("abort_transaction") == 1


def test_what_was_purged_is_no_failure_of_the_next_try(bench: Bench) -> None:
    """Reports of an aborted transaction say nothing about the one after it."""
    writer = bench.open()
    bench.producer.failures["produce"].extend([None, None, ABORTABLE])  # two are in the queue by then
    writer.write(commit_of(effects(tags=2)))
    assert bench.producer.calls.count("abort_transaction") == 1
    assert topics_of(bench.producer) == ["tags", "tags", "outputs", "statuses"]


def test_a_group_that_has_no_word_for_us(bench: Bench) -> None:
    """The polling thread can't answer: the transaction is aborted, not left open, and tried again."""
    writer = bench.open()
    answers = [KafkaUnavailable("not now"), None]
    real = bench.polling.take_snapshot

    def take_snapshot() -> Any:
        if (error := answers.pop(0)) is not None:
            raise error
        return real()

    bench.polling.take_snapshot = take_snapshot  # type: ignore[method-assign]  # a double of a double
    writer.write(commit_of(effects()))
    assert bench.producer.calls.count("abort_transaction") == 1
    assert topics_of(bench.producer) == ["outputs", "statuses"]


# --- What the committer decides -----------------------------------------------------------------------------------


def test_partitions_that_are_not_ours(bench: Bench) -> None:
    """Those that the group has given away, or to us anew: aborted, nothing visible."""
    writer = bench.open()
    bench.polling.owned = {0: 1, 1: 2}
    points = {number: CommitPoint(1, "") for number in (0, 1, 2)}
    with pytest.raises(PartitionsGone) as caught:
        writer.write(Commit([effects()], points, {0: 1, 1: 1, 2: 1}))
    assert caught.value.partitions == {1, 2}
    assert bench.producer.calls[-2:] == ["abort_transaction", "flush"]
    assert bench.producer.visible == []


def test_ownership_is_looked_at_last(bench: Bench) -> None:
    """With the messages sent and the offsets next: nothing slow lies between the look and the offsets."""
    writer = bench.open()

    def lose(call: str) -> None:
        if call == "flush":
            bench.polling.owned = {}

    bench.producer.on_call = lose
    with pytest.raises(PartitionsGone):
        writer.write(commit_of(effects()))
    assert "send_offsets" not in bench.producer.calls


@pytest.mark.parametrize("is_local", [True, False], ids=["by the client", "by the broker"])
@pytest.mark.parametrize("role", [Role.TAG, Role.OUTPUT, Role.DEAD_LETTER, Role.STATUS])
def test_a_message_that_is_too_large(bench: Bench, role: Role, is_local: bool) -> None:
    """The transaction is aborted; which job, role and size is known; the next write works."""
    writer = bench.open()
    good, bad = effects(0), effects(1, tags=1, letter=role is Role.DEAD_LETTER)
    if is_local:
        # Client calls in order: output of the good one; tag, output or letter of the bad one; both statuses.
        before = {Role.TAG: 1, Role.OUTPUT: 2, Role.DEAD_LETTER: 2, Role.STATUS: 4}[role]
        bench.producer.failures["produce"].extend([*[None] * before, TOO_LARGE])
    else:
        is_shared = role in {Role.OUTPUT, Role.STATUS}
        bench.producer.refusals[TOPICS[role]].extend([*[None] * is_shared, TOO_LARGE])
    with pytest.raises(MessageRefused) as caught:
        writer.write(commit_of(good, bad))
    assert (caught.value.effects, caught.value.role) == (bad, role)
    assert caught.value.size > 0
    assert bench.producer.visible == []
    assert "abort_transaction" in bench.producer.calls
    writer.write(commit_of(good))
    assert topics_of(bench.producer) == ["outputs", "statuses"]


def test_a_batch_that_is_refused_whole(bench: Bench) -> None:
    """The broker refuses a batch for its largest message, and all in it with it: only that one's job is refused."""
    small, large = effects(0), Effects(Source(0, 1, 1), output=Message(None, b"x" * 10_000, ()))
    for batch in ([small, large], [large, small]):
        writer = bench.open()
        bench.producer.refusals["outputs"].extend([TOO_LARGE, TOO_LARGE])
        with pytest.raises(MessageRefused) as caught:
            writer.write(commit_of(*batch))
        assert caught.value.effects is large


@pytest.mark.parametrize("error", [FENCED, kafka_error(KafkaError.PRODUCER_FENCED), FATAL], ids=lambda one: one.name())
@pytest.mark.parametrize("call", ["begin_transaction", "produce", "send_offsets", "commit_transaction"])
def test_a_producer_that_is_of_no_use_any_more(bench: Bench, call: str, error: KafkaError) -> None:
    """Fatal, or fenced after the transaction's time (the broker's own doing): nobody knows the outcome."""
    bench.transaction_seconds = 0
    writer = bench.open()
    bench.producer.failures[call].append(error)
    with pytest.raises(OutcomeUnknown):
        writer.write(commit_of(effects()))
    writer.open()
    assert len(bench.made) == 2
    writer.write(commit_of(effects()))
    assert topics_of(bench.producer) == ["outputs", "statuses"]


@pytest.mark.parametrize("call", ["begin_transaction", "send_offsets", "commit_transaction"])
@pytest.mark.parametrize("code", [KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH])
def test_fenced_by_another_instance(bench: Bench, call: str, code: int) -> None:
    """Within the transaction's time only another producer with our id can have done that."""
    writer = bench.open()
    bench.producer.failures[call].append(kafka_error(code, fatal=True))
    with pytest.raises(InstanceFenced, match="another instance"):
        writer.write(commit_of(effects()))


@pytest.mark.parametrize(
    ("call", "topics", "place"),
    [
        ("begin_transaction", TOPICS, None),
        ("produce", TOPICS, None),
        ("commit_transaction", TOPICS, Coordinates("statuses", 0, 0)),
        ("commit_transaction", {Role.OUTPUT: "outputs"}, Coordinates("outputs", 0, 0)),
    ],
)
def test_where_a_message_of_an_unknown_outcome_is(
    bench: Bench, call: str, topics: dict[Role, str], place: Coordinates | None
) -> None:
    """If one has arrived."""
    bench.topics = topics
    writer = bench.open()
    bench.producer.failures[call].append(FATAL)
    with pytest.raises(OutcomeUnknown) as caught:
        writer.write(commit_of(effects()))
    assert caught.value.place == place


def test_an_abort_that_fails(bench: Bench) -> None:
    """Retriable is tried again; beyond that the outcome is unknown."""
    writer = bench.open()
    bench.producer.failures["commit_transaction"].append(ABORTABLE)
    bench.producer.failures["abort_transaction"].extend([RETRIABLE, FATAL])
    with pytest.raises(OutcomeUnknown):
        writer.write(commit_of(effects()))
    assert bench.producer.calls.count("abort_transaction") == 2


def test_an_abort_by_a_producer_that_has_failed_for_good(bench: Bench) -> None:
    """Whatever is asked of it afterwards fails in the same way: the outcome is unknown all the same."""
    writer = bench.open()
    producer = bench.producer
    producer.failures["commit_transaction"].append(ABORTABLE)
    producer.failures["abort_transaction"].append(FATAL)

    def fail_again(call: str) -> None:
        if call == "flush" and "abort_transaction" in producer.calls:
            raise KafkaException(FATAL)

    producer.on_call = fail_again
    with pytest.raises(OutcomeUnknown):
        writer.write(commit_of(effects()))


def test_a_refusal_does_not_wait_for_the_others(bench: Bench) -> None:
    """What a failed transaction has not sent yet is reported when it times out: it is aborted before that."""
    writer = bench.open()

    def refuse(call: str) -> None:
        if call == "flush":
            bench.producer.failures["flush"].append(RETRIABLE)  # never empty
            bench.producer.report_one(TOO_LARGE)

    bench.producer.on_call = refuse
    with pytest.raises(MessageRefused):
        writer.write(commit_of(effects(0), effects(1)))
    assert bench.producer.calls.count("abort_transaction") == 1


# --- Giving up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("flush", RETRIABLE),
        ("send_offsets", RETRIABLE),
        ("commit_transaction", RETRIABLE),
        ("commit_transaction", ABORTABLE),
        ("abort_transaction", RETRIABLE),
    ],
)
def test_giving_up_ends_every_try(bench: Bench, call: str, error: KafkaError) -> None:
    """Whatever is tried again and again, another thread can end it."""
    writer = bench.open()
    bench.producer.failures[call].extend([error] * 1_000)
    if call == "abort_transaction":
        bench.producer.failures["commit_transaction"].append(ABORTABLE)
    seen: list[str] = []

    def on_call(name: str) -> None:
        seen.append(name)
        if seen.count(call) == 5:
            thread = threading.Thread(target=writer.give_up)
            thread.start()
            thread.join()

    bench.producer.on_call = on_call
    with pytest.raises(GaveUp):
        writer.write(commit_of(effects()))
    assert bench.producer.visible == []


def test_giving_up_while_opening(bench: Bench) -> None:
    """No broker at all: opening ends, too."""
    writer = bench.open()

    def prepare(producer: ScriptedProducer) -> None:
        producer.failures["init_transactions"].extend([RETRIABLE] * 1_000)
        producer.on_call = lambda _: writer.give_up()

    bench.prepare = prepare
    with pytest.raises(GaveUp):
        writer.open()


# --- Other clusters -----------------------------------------------------------------------------------------------


def test_topics_elsewhere_come_first(bench: Bench) -> None:
    """What another cluster has to take is acknowledged there before a transaction begins."""
    away = bench.elsewhere[Role.OUTPUT] = ScriptedProducer()
    writer = bench.open()
    away.on_call = lambda name: bench.producer.calls.append(f"away: {name}")
    told = Told()
    writer.write(commit_of(effects(told=told)))
    assert bench.producer.calls.index("away: flush") < bench.producer.calls.index("begin_transaction")
    assert away.calls.count("produce outputs") == 1
    assert topics_of(bench.producer) == ["statuses"]
    assert told.where[-1].output == Coordinates("outputs", 0, 0)


def test_topics_elsewhere_are_not_sent_again(bench: Bench) -> None:
    """A transaction that is tried again sends its own messages, and not those of other clusters."""
    away = bench.elsewhere[Role.OUTPUT] = ScriptedProducer()
    writer = bench.open()
    bench.producer.failures["commit_transaction"].append(ABORTABLE)
    writer.write(commit_of(effects()))
    assert away.calls.count("produce outputs") == 1


def test_a_message_that_is_too_large_elsewhere(bench: Bench) -> None:
    """No transaction is begun for it."""
    away = bench.elsewhere[Role.OUTPUT] = ScriptedProducer()
    away.refusals["outputs"].append(TOO_LARGE)
    writer = bench.open()
    with pytest.raises(MessageRefused):
        writer.write(commit_of(effects()))
    assert "begin_transaction" not in bench.producer.calls


def test_statuses_elsewhere_hold_no_transaction_open(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is away is waited for between transactions, and is told no place that a message never had."""
    monkeypatch.setattr(writer_module, "ELSEWHERE_SECONDS", -1)
    away = bench.elsewhere[Role.STATUS] = ScriptedProducer()
    away.failures["flush"].extend([None, RETRIABLE])  # before the transaction, and in it
    writer = bench.open()
    told = Told()
    writer.write(commit_of(effects(told=told)))
    assert bench.producer.calls.count("abort_transaction") == 1
    assert bench.producer.calls.count("commit_transaction") == 1
    assert topics_of(bench.producer) == ["outputs"]
    assert len(told.where) == 2
    assert len(away._open) == 1  # the first was purged


def test_statuses_elsewhere_that_are_not_taken(bench: Bench) -> None:
    """They are told again, in a new transaction."""
    away = bench.elsewhere[Role.STATUS] = ScriptedProducer()
    away.refusals["statuses"].append(kafka_error(KafkaError.NOT_ENOUGH_REPLICAS))
    bench.open().write(commit_of(effects()))
    assert bench.producer.calls.count("abort_transaction") == 1
    assert away.calls.count("produce statuses") == 2


def test_a_producer_elsewhere_that_has_given_up(bench: Bench) -> None:
    """Its failure is not ours: the transaction is aborted, and the daemon starts anew."""
    away = bench.elsewhere[Role.STATUS] = ScriptedProducer()
    away.refusals["statuses"].append(FATAL)
    writer = bench.open()
    with pytest.raises(KafkaUnavailable, match="given up"):
        writer.write(commit_of(effects()))
    assert bench.producer.calls[-2:] == ["abort_transaction", "flush"]


# --- Messages that can't be made -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["tags", "status"])
def test_messages_that_can_t_be_made(bench: Bench, part: str) -> None:
    """That is told of the one job; nothing of the others is committed yet."""

    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    broken = replace(effects(1), tags=fail) if part == "tags" else replace(effects(1), status=fail)
    writer = bench.open()
    with pytest.raises(MessagesBroken) as failure:
        writer.write(commit_of(effects(0), broken))
    assert failure.value.effects is broken
    assert bench.producer.visible == []
    writer.write(commit_of(effects(0)))
    assert topics_of(bench.producer) == ["outputs", "statuses"]


# --- At least once ------------------------------------------------------------------------------------------------


def plain_writer(producer: ScriptedProducer, polling: StillPolling) -> AtLeastOnce:
    producers = cast("dict[Role, Producer]", dict.fromkeys(Role, producer))
    writer = AtLeastOnce(producers=producers, topics=TOPICS, polling=polling)
    writer.open()
    return writer


def test_delivered_before_committed(bench: Bench) -> None:
    """Tags and output are acknowledged, then the status, then the offsets are committed."""
    producer = ScriptedProducer()
    bench.polling.owned = {0: 1}
    told = Told()

    def on_call(_: str) -> None:
        assert bench.polling.commits == []

    producer.on_call = on_call
    plain_writer(producer, bench.polling).write(commit_of(effects(tags=1, told=told)))
    assert producer.calls == ["produce tags", "produce outputs", "flush", "produce statuses", "flush"]
    assert told.where[-1].output == Coordinates("outputs", 0, 0)
    assert bench.polling.commits == [{0: CommitPoint(1, "metadata")}]


def test_what_is_not_delivered_is_sent_again(bench: Bench) -> None:
    """Until it is; and a commit that is refused is tried again, without sending anything twice."""
    producer = ScriptedProducer()
    bench.polling.owned = {0: 1}
    bench.polling.commit_errors = 3
    producer.refusals["outputs"].append(kafka_error(KafkaError.NOT_ENOUGH_REPLICAS))
    plain_writer(producer, bench.polling).write(commit_of(effects()))
    assert producer.calls.count("produce outputs") == 2
    assert producer.calls.count("produce statuses") == 1
    assert len(bench.polling.commits) == 1


def test_partitions_that_went_before_the_commit(bench: Bench) -> None:
    """The messages are out: that is at least once, and no reason to stop."""
    plain_writer(ScriptedProducer(), bench.polling).write(commit_of(effects()))
    assert bench.polling.commits == [{}]


def test_too_large_at_least_once(bench: Bench) -> None:
    """The job is refused, and no offset is committed."""
    producer = ScriptedProducer()
    producer.refusals["outputs"].append(TOO_LARGE)
    with pytest.raises(MessageRefused):
        plain_writer(producer, bench.polling).write(commit_of(effects()))
    assert bench.polling.commits == []


def test_a_plain_producer_that_has_given_up(bench: Bench) -> None:
    """Fatal for an idempotent producer is the end: the daemon starts anew rather than sends out of order."""
    producer = ScriptedProducer()
    producer.refusals["outputs"].append(FATAL)
    with pytest.raises(KafkaUnavailable, match="given up"):
        plain_writer(producer, bench.polling).write(commit_of(effects()))


@pytest.mark.parametrize("stuck", [["flush"], ["commit"]], ids=str)
def test_giving_up_at_least_once(bench: Bench, stuck: Sequence[str]) -> None:
    """A broker that is away can be given up."""
    producer = ScriptedProducer()
    writer = plain_writer(producer, bench.polling)
    if stuck == ["flush"]:
        producer.failures["flush"].extend([RETRIABLE] * 1_000)
    else:
        bench.polling.commit_errors = 1_000
    producer.on_call = lambda _: writer.give_up()
    with pytest.raises(GaveUp):
        writer.write(commit_of(effects()))
