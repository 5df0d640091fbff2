"""Effects made visible: one transaction at a time, or, at-least-once, delivery and then a commit.

Blocking, for a thread of its own. A writer tries again whatever a try can cure, however long that takes, until
`give_up`; it tells apart what the committer has to decide: a message that is refused, partitions that are gone, an
outcome that nobody knows.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from cador_trio.errors import InstanceFenced, KafkaUnavailable
from cador_trio.kafka.clients import is_fatal
from cador_trio.kafka.consumer import PollingThread, offset_of
from cador_trio.kafka.effects import MAX_LISTED_TAGS, Commit, Effects, Role, Whereabouts
from cador_trio.kafka.messages import Coordinates, Message
from cador_trio.observe.metrics import TRANSACTIONS

T = TypeVar("T")

log = structlog.get_logger(__name__)

CALL_SECONDS: Final = 2.0  # one wait inside librdkafka; after it we look whether to give up
FLUSH_SECONDS: Final = 0.1  # the same for `flush`; after it we look whether a message was refused
OFFSETS_SECONDS: Final = 10.0  # for the group coordinator to take offsets; then it is tried with fresh metadata
DECISION_SECONDS: Final = 10.0  # between the end of a transaction's time and the broker's noticing it
ELSEWHERE_SECONDS: Final = 5.0  # for another cluster to take statuses, while a transaction is open
HANG_SECONDS: Final = 10.0  # past the wait that librdkafka was asked for: it will not return
FIRST_PAUSE_SECONDS: Final = 0.05
LAST_PAUSE_SECONDS: Final = 2.0
_FENCES: Final = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}  # noqa: SLF001 - librdkafka's names for its own errors start so
_TOO_LARGE: Final = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}


class MessageRefused(Exception):
    """One message is too large for its topic; nothing was committed."""

    def __init__(self, effects: Effects, role: Role, size: int) -> None:
        super().__init__(f"a message of {size} bytes was refused as {role}")
        self.effects = effects
        self.role = role
        self.size = size


class MessagesBroken(Exception):
    """The messages of one job can't be made, for a reason that nobody thought of; nothing was committed."""

    def __init__(self, effects: Effects) -> None:
        super().__init__("messages can't be made")
        self.effects = effects


class PartitionsGone(Exception):
    """These partitions are another member's; nothing was committed."""

    def __init__(self, partitions: set[int]) -> None:
        super().__init__(f"partitions {sorted(partitions)} are no longer ours")
        self.partitions = partitions


class OutcomeUnknown(Exception):
    """The producer is of no use any more; the transaction may have been committed or not.

    If it was, a message of it is at `place`. None: it is not known that any has arrived.
    """

    def __init__(self, reason: str, place: Coordinates | None = None) -> None:
        super().__init__(reason)
        self.place = place


class GaveUp(Exception):
    """The daemon stops, and no broker helps."""


class _Hindered(Exception):
    """The transaction can't go on at the moment, through no fault of its own."""


class _Aborted(Exception):
    """Nothing was committed, and another try may do."""


class Writer(Protocol):
    """How effects become visible."""

    def open(self) -> None:
        """Be ready to write. Raises GaveUp."""

    def write(self, commit: Commit) -> None:
        """Make it visible.

        Raises:
            MessageRefused, MessagesBroken: one job of it can't be told so.
            PartitionsGone, OutcomeUnknown, GaveUp: see there.
            InstanceFenced: another instance uses our id.
            KafkaUnavailable: a producer is of no use any more.
        """

    def give_up(self) -> None:
        """End whatever is tried at the moment, and all that comes. Called from another thread."""


@dataclass
class _Sent:
    """Where the messages of one job have gone, as their delivery reports come in."""

    effects: Effects
    tags: dict[int, Coordinates] = field(default_factory=dict)
    output: Coordinates | None = None
    status: Coordinates | None = None

    def place(self, roles: Collection[Role]) -> Coordinates | None:
        """Where any message of these roles is, if one has arrived."""
        places = {Role.STATUS: self.status, Role.OUTPUT: self.output, Role.TAG: next(iter(self.tags.values()), None)}
        return next((place for role, place in places.items() if role in roles and place is not None), None)

    @property
    def whereabouts(self) -> Whereabouts:
        return Whereabouts([self.tags[index] for index in sorted(self.tags)], self.output)


class Post:
    """Sends the messages of some roles through some producers, and hears what became of them."""

    def __init__(self, topics: Mapping[Role, str], patience: Patience) -> None:
        self._topics = topics
        self._patience = patience
        self._failure: tuple[Effects, Role, int, KafkaError] | None = None

    def letters(self, sent: _Sent, producers: Mapping[Role, Producer]) -> None:
        """Tags, output and dead letter of one job, as far as these producers are for them."""
        effects = sent.effects
        if Role.TAG in producers and Role.TAG in self._topics:
            for index, tag in enumerate(_made(effects)):
                self._send(producers[Role.TAG], effects, Role.TAG, tag, self._tag_report(sent, index, tag.size))
        for role, message in ((Role.OUTPUT, effects.output), (Role.DEAD_LETTER, effects.dead_letter)):
            if role in producers and role in self._topics and message is not None:
                self._send(producers[role], effects, role, message, self._report(sent, role, message.size))

    def status(self, sent: _Sent, producers: Mapping[Role, Producer]) -> None:
        """The terminal status, which tells where the others went."""
        effects = sent.effects
        if Role.STATUS in producers and Role.STATUS in self._topics and effects.status is not None:
            message = _made_status(effects.status, sent)
            report = self._report(sent, Role.STATUS, message.size)
            self._send(producers[Role.STATUS], effects, Role.STATUS, message, report)

    def flush(self, producers: Mapping[Role, Producer], seconds: float = math.inf) -> None:
        """Wait until all is acknowledged, or has failed.

        Raises:
            MessageRefused: a message is too large for its topic.
            KafkaException: another failure of one of them.
            TimeoutError: it takes longer than so many seconds.
        """
        until = time.monotonic() + seconds
        for producer in set(producers.values()):
            # A transaction that has failed keeps back what it has not sent yet, until that times out with it.
            while producer.flush(FLUSH_SECONDS) and self._failure is None:
                self._patience.check()
                if time.monotonic() > until:
                    raise TimeoutError
        failure, self._failure = self._failure, None
        if failure is not None:
            effects, role, size, error = failure
            if error.code() in _TOO_LARGE:
                raise MessageRefused(effects, role, size)
            raise KafkaException(error)

    def deliver(
        self,
        sent: Sequence[_Sent],
        producers: Mapping[Role, Producer],
        step: Callable[[_Sent, Mapping[Role, Producer]], None],
    ) -> None:
        """One step for all jobs, outside of transactions; all of it again if a message of it failed.

        Raises:
            MessageRefused: a message is too large for its topic.
            KafkaUnavailable: a producer is of no use any more.
        """
        while True:
            try:
                for one in sent:
                    step(one, producers)
                self.flush(producers)
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if is_fatal(reason):
                    raise _lost(reason) from error
                log.warning("messages were not taken, and are sent again", reason=reason.str())
                self._patience.rest()
            else:
                return

    def forget(self) -> None:
        """What failed is over: the transaction is aborted."""
        self._failure = None

    def _send(
        self, producer: Producer, effects: Effects, role: Role, message: Message, report: Callable[..., None]
    ) -> None:
        while True:
            try:
                producer.produce(
                    self._topics[role],
                    value=message.value,
                    key=message.key,
                    headers=list(message.headers),
                    on_delivery=report,
                )
            except BufferError:  # 100,000 are on their way: some of them have to arrive first
                producer.poll(FIRST_PAUSE_SECONDS)
                self._patience.check()
            except KafkaException as error:
                if error.args[0].code() in _TOO_LARGE:
                    raise MessageRefused(effects, role, message.size) from None
                raise
            else:
                return

    def _note_failure(self, effects: Effects, role: Role, size: int, error: KafkaError) -> None:
        """The first counts; but a broker refuses a batch whole for its largest message, which counts more then."""
        known = 0
        if self._failure is not None:
            _, _, known_size, known_error = self._failure
            known = known_size if known_error.code() in _TOO_LARGE else 0
        if self._failure is None or (error.code() in _TOO_LARGE and size > known):
            self._failure = (effects, role, size, error)

    def _report(self, sent: _Sent, role: Role, size: int) -> Callable[[KafkaError | None, KafkaMessage], None]:
        def report(error: KafkaError | None, message: KafkaMessage) -> None:
            if error is not None:
                self._note_failure(sent.effects, role, size, error)
            elif role is Role.OUTPUT:
                sent.output = _coordinates(message)
            elif role is Role.STATUS:
                sent.status = _coordinates(message)

        return report

    def _tag_report(self, sent: _Sent, index: int, size: int) -> Callable[[KafkaError | None, KafkaMessage], None]:
        def report(error: KafkaError | None, message: KafkaMessage) -> None:
            if error is not None:
                self._note_failure(sent.effects, Role.TAG, size, error)
            elif index < MAX_LISTED_TAGS and (place := _coordinates(message)) is not None:
                sent.tags[index] = place

        return report


class Patience:
    """Whether trying again is still wanted, and the pauses between two tries."""

    def __init__(self) -> None:
        self._given_up = threading.Event()
        self._pause = FIRST_PAUSE_SECONDS

    def give_up(self) -> None:
        """No more."""
        self._given_up.set()

    def check(self) -> None:
        """Raises GaveUp if it is not."""
        if self._given_up.is_set():
            raise GaveUp

    def rest(self) -> None:
        """A pause, each longer than the last, until `refresh`. Raises GaveUp."""
        self._given_up.wait(self._pause)
        self._pause = min(2 * self._pause, LAST_PAUSE_SECONDS)
        self.check()

    def refresh(self) -> None:
        """Something has worked."""
        self._pause = FIRST_PAUSE_SECONDS

    def insist(self, call: Callable[[], T], seconds: float = math.inf) -> T:
        """The same call again, for so long, as long as that may cure it. Raises KafkaException, GaveUp."""
        until = time.monotonic() + seconds
        while True:
            try:
                return call()
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                is_hopeless = not reason.retriable() or is_fatal(reason) or reason.txn_requires_abort()
                if is_hopeless or time.monotonic() > until:
                    raise
            self.rest()


class Line:
    """Calls into librdkafka that may never return, in a thread that can be left behind with them.

    Tried: when a broker restarts at the wrong moment, `send_offsets_to_transaction` waits for ever, whatever its
    timeout says.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], object], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="kafka-transaction", daemon=True).start()

    def call(self, function: Callable[[], T]) -> T:
        """What it returns or raises. Raises OutcomeUnknown if it does neither; the line is of no use then."""
        answer: Future[T] = Future()
        self._calls.put((function, answer))
        try:
            return answer.result(timeout=CALL_SECONDS + HANG_SECONDS)
        except TimeoutError:
            raise OutcomeUnknown("a call of the transaction does not return") from None

    def close(self) -> None:
        """No more calls; the thread ends, unless it hangs."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, answer = call
            try:
                answer.set_result(function())
            except Exception as error:  # raised where it was called
                answer.set_exception(error)


class ExactlyOnce:
    """A job's messages and its offset in one transaction. Topics on other clusters get theirs first, at least once."""

    def __init__(  # noqa: PLR0913 - all by name
        self,
        *,
        producer: Callable[[], Producer],
        elsewhere: Mapping[Role, Producer],
        topics: Mapping[Role, str],
        request_topic: str,
        polling: PollingThread,
        transaction_seconds: float,
    ) -> None:
        """`producer` makes a new transactional one each time; `transaction_seconds` is its transaction.timeout.ms."""
        self._make_producer = producer
        self._producer: Producer
        self._elsewhere = elsewhere
        self._here: Mapping[Role, Producer] = {}
        self._roles_here = [role for role in Role if role not in elsewhere]
        self._request_topic = request_topic
        self._polling = polling
        self._transaction_seconds = transaction_seconds
        self._patience = Patience()
        self._post = Post(topics, self._patience)
        self._line: Line | None = None
        self._began_at = 0.0

    def open(self) -> None:
        """A producer with our transactional id: what an earlier one left open is aborted, and it is fenced."""
        if self._line is not None:
            self._line.close()
        self._line = Line()
        while True:
            self._producer = self._make_producer()
            self._began_at = time.monotonic()
            try:
                self._patience.insist(lambda: self._producer.init_transactions(CALL_SECONDS))
            except KafkaException as error:
                log.warning("transactions are not to be had yet", reason=error.args[0].str())
                self._patience.rest()
            else:
                self._here = dict.fromkeys(self._roles_here, self._producer)
                self._patience.refresh()
                return

    def write(self, commit: Commit) -> None:
        """See Writer."""
        sent = [_Sent(effects) for effects in commit.batch]
        self._deliver_elsewhere(sent)
        while True:
            try:
                self._attempt(commit, sent)
            except _Aborted as error:
                log.warning("a transaction was aborted and is tried again", reason=str(error))
                self._patience.rest()
            except OutcomeUnknown as doubt:
                TRANSACTIONS.labels("unknown").inc()
                doubt.place = next((place for one in sent if (place := one.place(self._here)) is not None), None)
                raise
            except InstanceFenced:
                TRANSACTIONS.labels("fenced").inc()
                raise
            else:
                TRANSACTIONS.labels("committed").inc()
                self._patience.refresh()
                return

    def give_up(self) -> None:
        """See Writer."""
        self._patience.give_up()

    def _deliver_elsewhere(self, sent: Sequence[_Sent]) -> None:
        """No transaction is open while another cluster keeps us waiting."""
        if self._elsewhere:
            self._post.deliver(sent, self._elsewhere, self._post.letters)

    def _attempt(self, commit: Commit, sent: Sequence[_Sent]) -> None:
        try:
            self._began_at = time.monotonic()
            self._producer.begin_transaction()
            self._fill(commit, sent)
            self._commit()
        except KafkaException as error:
            self._judge(error.args[0])
        except (MessageRefused, MessagesBroken, PartitionsGone, KafkaUnavailable):
            self._abort()
            raise
        except _Hindered as hindrance:
            self._abort()
            raise _Aborted(str(hindrance)) from hindrance

    def _fill(self, commit: Commit, sent: Sequence[_Sent]) -> None:
        for one in sent:
            self._post.letters(one, self._here)
        self._post.flush(self._here)  # true offsets for the statuses
        for one in sent:
            self._post.status(one, self._here)
        # Before the offsets, or librdkafka waits a tenth of a second for the broker to keep up with itself.
        self._post.flush(self._here)
        if Role.STATUS in self._elsewhere:
            self._tell_elsewhere(sent)
        if commit.points:
            self._add_offsets(commit)

    def _tell_elsewhere(self, sent: Sequence[_Sent]) -> None:
        """Terminal statuses for another cluster: only now it is known what they say."""
        try:
            for one in sent:
                self._post.status(one, self._elsewhere)
            self._post.flush(self._elsewhere, ELSEWHERE_SECONDS)
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if is_fatal(reason):
                raise _lost(reason) from error
            raise _Hindered(f"the statuses' cluster does not take them: {reason.str()}") from error
        except TimeoutError:
            raise _Hindered("the statuses' cluster does not answer") from None

    def _add_offsets(self, commit: Commit) -> None:
        try:
            snapshot = self._polling.take_snapshot()
        except KafkaUnavailable as error:
            raise _Hindered(error.message) from error
        gone = {part for part, number in commit.numbers.items() if snapshot.owned.get(part) != number}
        if gone:
            raise PartitionsGone(gone)
        offsets = [offset_of(self._request_topic, part, point) for part, point in commit.points.items()]
        # What is asked with the metadata of a membership that has ended meanwhile is asked in vain.
        self._patience.insist(
            lambda: self._on_line(
                partial(self._producer.send_offsets_to_transaction, offsets, snapshot.metadata, CALL_SECONDS)
            ),
            OFFSETS_SECONDS,
        )

    def _commit(self) -> None:
        """Once this is asked for, the broker decides; it has decided when the transaction's time is over."""
        try:
            self._patience.insist(
                lambda: self._on_line(partial(self._producer.commit_transaction, CALL_SECONDS)),
                self._transaction_seconds + DECISION_SECONDS,
            )
        except KafkaException as error:
            if error.args[0].retriable() and not error.args[0].txn_requires_abort():
                raise OutcomeUnknown(error.args[0].str()) from error
            raise

    def _on_line(self, call: Callable[[], T]) -> T:
        return call() if self._line is None else self._line.call(call)

    def _judge(self, error: KafkaError) -> None:
        """After a failure: abort what can be aborted; what can't is for the committer."""
        if error.code() in _FENCES and time.monotonic() - self._began_at < self._transaction_seconds:
            # The broker fences by itself only what has been open for longer than that.
            raise InstanceFenced(
                "another instance has taken over our transactions",
                hint="give every instance its own CADOR_INSTANCE_ID",
            )
        if is_fatal(error) or error.code() in _FENCES:
            raise OutcomeUnknown(error.str())
        self._abort()
        raise _Aborted(error.str())

    def _abort(self) -> None:
        try:
            self._patience.insist(
                lambda: self._on_line(partial(self._producer.abort_transaction, CALL_SECONDS)),
                self._transaction_seconds + DECISION_SECONDS,
            )
        except KafkaException as error:
            raise OutcomeUnknown(error.args[0].str()) from error
        else:
            TRANSACTIONS.labels("aborted").inc()
        finally:
            for producer in set(self._elsewhere.values()):
                producer.purge()  # they would tell of messages that are nowhere
                producer.poll(0)
            with suppress(KafkaException):  # one that has failed for good says so again, and is replaced
                self._producer.flush(0)  # what was purged reports that now
            self._post.forget()


class AtLeastOnce:
    """Everything delivered and acknowledged first, then the offsets: a crash in between says it twice."""

    def __init__(
        self, *, producers: Mapping[Role, Producer], topics: Mapping[Role, str], polling: PollingThread
    ) -> None:
        self._producers = producers
        self._polling = polling
        self._patience = Patience()
        self._post = Post(topics, self._patience)

    def open(self) -> None:
        """Nothing to prepare."""

    def write(self, commit: Commit) -> None:
        """See Writer."""
        sent = [_Sent(effects) for effects in commit.batch]
        self._post.deliver(sent, self._producers, self._post.letters)
        self._post.deliver(sent, self._producers, self._post.status)
        self._commit(commit)

    def give_up(self) -> None:
        """See Writer."""
        self._patience.give_up()

    def _commit(self, commit: Commit) -> None:
        """The messages are out, so the jobs are done here; others do them too if their partitions have gone."""
        while commit.points:
            try:
                committed = self._polling.commit(commit.points, commit.numbers)
            except KafkaUnavailable as error:
                log.warning("offsets are not committed yet", reason=error.message)
                self._patience.rest()
            else:
                if gone := set(commit.points) - committed:
                    log.warning("partitions have gone before their offsets were committed", partitions=sorted(gone))
                break
        self._patience.refresh()


def _lost(reason: KafkaError) -> KafkaUnavailable:
    return KafkaUnavailable(f"a Kafka producer has given up: {reason.str()}")


def _made(effects: Effects) -> Iterator[Message]:
    """Its tags."""
    try:
        yield from effects.tags()
    except Exception as error:
        raise MessagesBroken(effects) from error


def _made_status(status: Callable[[Whereabouts], Message], sent: _Sent) -> Message:
    try:
        return status(sent.whereabouts)
    except Exception as error:
        raise MessagesBroken(sent.effects) from error


def _coordinates(message: KafkaMessage) -> Coordinates | None:
    """Where it is; None if the broker has not told."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    return None if topic is None or partition is None or offset is None else Coordinates(topic, partition, offset)
