"""The polling thread: the one owner of the Consumer, from joining the group to leaving it.

It always polls, so that a slow job never costs the membership; what must not flow is paused. Everything else that needs
the Consumer (group metadata for a transaction, a plain commit, what is committed) is asked of this thread and done
between two polls. What a record means is for `door.py` to say.

Facts behind it, all tried on a real broker: two threads on one Consumer starve each other; the broker fences members
and not partitions, so group metadata and the set of owned partitions are taken together, here; `pause` outlasts every
rebalance; a Consumer may be used inside its own callbacks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, Final, Protocol, TypeVar

import structlog
import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from cador_trio.errors import CadorError, KafkaUnavailable
from cador_trio.kafka.clients import is_fatal
from cador_trio.kafka.ledger import CommitPoint
from cador_trio.kafka.messages import Record
from cador_trio.observe.metrics import KAFKA_CLIENT_ERRORS, PAUSES

T = TypeVar("T")

log = structlog.get_logger(__name__)

IDLE_POLL_SECONDS: Final = 0.1  # how late an idle thread hears of a wish
BUSY_POLL_SECONDS: Final = 0.005  # the same while jobs run and a transaction may want its group metadata
FULL_WAIT_SECONDS: Final = 0.05  # between polls while nothing may flow; wishes are heard at once
BATCH_RECORDS: Final = 100
BATCH_BYTES: Final = 1024 * 1024  # a batch whose first record is larger holds that one alone
COMMITTED_SECONDS: Final = 1.0  # one try to read what is committed
CLOSE_SECONDS: Final = 10.0  # leaving the group; a broker that is away can't be told


@dataclass(frozen=True)
class Snapshot:
    """Who we are to the group, and what is ours, at one moment; `owned` is partition -> assignment number."""

    metadata: Any
    owned: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Assigned:
    """A partition that is ours from now on. `number` tells this assignment from earlier ones of the same partition."""

    partition: int
    number: int
    offset: int | None
    metadata: str


class Listener(Protocol):
    """Who hears of partitions and records. Called in the Trio thread; none may fail."""

    @property
    def is_busy(self) -> bool:
        """Jobs run, so that wishes are to be expected; read from the polling thread."""

    def assigned(self, assigned: Assigned) -> None:
        """Records of this partition may come."""

    def received(self, records: Sequence[Record]) -> Sequence[int]:
        """Records of assigned partitions, in order. Returns the partitions that have to be paused."""

    async def revoked(self, partitions: Sequence[int]) -> None:
        """They go to another member when this returns: commit what is done until then."""

    def lost(self, partitions: Sequence[int]) -> None:
        """They have gone already; nothing may be committed."""


class PollingThread:
    """Membership in the group, while `run` runs. Methods that block are for other threads than Trio's."""

    def __init__(self, consumer: Callable[[], Consumer], topic: str) -> None:
        """`consumer` makes the Consumer, in the thread that it will belong to."""
        self._make_consumer = consumer
        self._topic = topic
        self.turns = 0  # goes up for as long as the thread is well
        self.turned_at: float | None = None  # the last of them, by time.monotonic; None: it does not run
        self._wishes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._leaving = False
        self._is_gone = threading.Event()
        self._ended = trio.Event()  # the same, for Trio's thread
        self._failure: Exception | None = None
        self._owned: dict[int, int] = {}
        self._assignments = 0
        self._unadopted: set[int] = set()  # owned, but what is committed of them is not known yet
        self._paused: set[int] = set()
        self._consumer: Consumer  # made by the thread

    # --- for Trio's thread; none of these waits

    async def run(self, listener: Listener) -> None:
        """Be a member until `leave`. Cancelling leaves too, without waiting for it.

        Raises:
            CadorError: librdkafka gave up for good.
        """
        self._listener = listener
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._revocations:
            thread = threading.Thread(target=self._live, name="kafka-polling", daemon=True)
            thread.start()
            try:
                await self._ended.wait()
            finally:
                self._leaving = True
        if self._failure is not None:
            raise self._failure

    @property
    def paused(self) -> int:
        """How many partitions are paused at the moment."""
        return len(self._paused)

    @property
    def is_leaving(self) -> bool:
        """Nothing is asked for any more."""
        return self._leaving

    async def leave(self) -> None:
        """Commit what is due through `Listener.revoked` and leave the group; bounded, should no broker be there."""
        self._leaving = True
        with trio.move_on_after(CLOSE_SECONDS) as patience:
            await self._ended.wait()
        if patience.cancelled_caught:
            log.warning("left the group without a word: no broker answers", seconds=CLOSE_SECONDS)

    def resume(self, partitions: Sequence[int]) -> None:
        """Let these flow again, if they are still ours."""
        self._wish(lambda: self._resume(partitions))

    def pause_all(self) -> None:
        """Nothing more is wanted; polling goes on."""
        self._wish(lambda: self._pause(list(self._owned)))

    # --- for other threads; these wait

    def take_snapshot(self) -> Snapshot:
        """Group metadata and the owned partitions, of one moment.

        Raises:
            KafkaUnavailable: the thread has ended.
        """
        return self._ask(self._snapshot)

    def commit(self, points: Mapping[int, CommitPoint], numbers: Mapping[int, int]) -> set[int]:
        """Commit plainly, without a transaction; the partitions that it was done for.

        Raises:
            KafkaUnavailable: the broker refused it for good, or the thread has ended.
        """
        return self._ask(lambda: self._commit(points, numbers))

    def committed(self, partitions: Sequence[int]) -> dict[int, tuple[int | None, str]]:
        """Offset (None: nothing) and metadata that the group has committed.

        Raises:
            KafkaUnavailable: not to be had at the moment.
        """
        return self._ask(lambda: self._read_committed(partitions))

    def _ask(self, question: Callable[[], T]) -> T:
        answer: Future[T] = Future()

        def reply() -> None:
            try:
                answer.set_result(question())
            except Exception as error:
                answer.set_exception(error)

        self._wish(reply)
        while True:
            try:
                return answer.result(timeout=1)
            except TimeoutError:
                if self._is_gone.is_set() and not answer.done():
                    raise KafkaUnavailable("the group has been left") from None

    def _wish(self, wish: Callable[[], None]) -> None:
        self._wishes.put(wish)

    # --- the thread itself

    def _live(self) -> None:
        try:
            self._consumer = self._make_consumer()
            self._consumer.subscribe(
                [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._leaving:
                self._turn()
            self._consumer.close()
        except trio.RunFinishedError:  # the whole process is going
            pass
        except Exception as error:
            self._failure = _told(error)
        finally:
            self.turned_at = None
            self._is_gone.set()
            with suppress(trio.RunFinishedError):
                self._tell(self._ended.set)

    def _turn(self) -> None:
        """One round: wishes, partitions that wait for their past, records."""
        self._count_turn()
        self._serve(0)
        self._adopt()
        flows = len(self._owned) > len(self._paused | self._unadopted)
        if flows or not self._owned:
            message = self._consumer.poll(BUSY_POLL_SECONDS if self._listener.is_busy else IDLE_POLL_SECONDS)
        else:
            self._serve(FULL_WAIT_SECONDS)
            message = self._consumer.poll(0)
        if message is not None:
            self._hand_on(self._batch(message))

    def _count_turn(self) -> None:
        self.turns += 1
        self.turned_at = time.monotonic()

    def _serve(self, seconds: float) -> None:
        """Do what is wished for; wait so long for a first wish."""
        try:
            wish = self._wishes.get(timeout=seconds) if seconds else self._wishes.get_nowait()
            while True:
                wish()
                wish = self._wishes.get_nowait()
        except queue.Empty:
            return

    def _batch(self, first: KafkaMessage) -> list[KafkaMessage]:
        """What is at hand besides the first one; `consume` with a patience of its own would wait it out."""
        if len(first) > BATCH_BYTES:
            return [first]
        return [first, *self._consumer.consume(BATCH_RECORDS - 1, 0)]

    def _hand_on(self, messages: Sequence[KafkaMessage]) -> None:
        records = []
        for message in messages:
            if (error := message.error()) is not None:
                self._note(error)
            elif message.partition() in self._owned:
                records.append(_record(message))
        if records:
            self._pause(trio.from_thread.run_sync(self._listener.received, records, trio_token=self._token))

    def _note(self, error: KafkaError) -> None:
        """librdkafka goes on after all but fatal errors; what they mean for readiness is watched elsewhere."""
        if is_fatal(error):
            raise KafkaException(error)
        KAFKA_CLIENT_ERRORS.labels(error.name()).inc()
        log.warning("the consumer reports trouble", error=error.str(), code=error.name())

    # --- partitions

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)  # until what is committed of them is known
        for partition in partitions:
            self._assignments += 1
            self._owned[partition.partition] = self._assignments
        self._unadopted.update(self._numbers(partitions))
        self._paused.difference_update(self._numbers(partitions))

    def _adopt(self) -> None:
        """Read the past of new partitions; one whose last owner's transaction is pending has to wait for its end."""
        if not self._unadopted:
            return
        try:
            known = self._read_committed(sorted(self._unadopted))
        except KafkaUnavailable as error:
            log.info("waiting to know what is committed", partitions=sorted(self._unadopted), reason=error.message)
            return
        for partition, (offset, metadata) in known.items():
            if partition in self._unadopted:
                self._unadopted.discard(partition)
                self._tell(self._listener.assigned, Assigned(partition, self._owned[partition], offset, metadata))
        self._consumer.resume([TopicPartition(self._topic, partition) for partition in known])

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Serve the committer's wishes until the jobs of these partitions have ended or were given back."""
        numbers = [number for number in self._numbers(partitions) if number not in self._unadopted]
        done = threading.Event()
        if numbers:
            self._tell(self._begin_revocation, numbers, done)
            while not done.is_set():
                self._count_turn()
                self._serve(FULL_WAIT_SECONDS)
        self._disown(partitions)

    def _begin_revocation(self, numbers: Sequence[int], done: threading.Event) -> None:
        async def revoke() -> None:
            try:
                await self._listener.revoked(numbers)
            finally:
                done.set()

        try:
            self._revocations.start_soon(revoke)
        except RuntimeError:  # the daemon is going down the hard way
            done.set()

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._tell(self._listener.lost, self._numbers(partitions))
        self._disown(partitions)

    def _disown(self, partitions: list[TopicPartition]) -> None:
        for number in self._numbers(partitions):
            self._owned.pop(number, None)
            self._unadopted.discard(number)
            self._paused.discard(number)

    def _pause(self, partitions: Sequence[int]) -> None:
        wanted = [number for number in partitions if number in self._owned and number not in self._paused]
        if wanted:
            PAUSES.inc(len(wanted))
            self._paused.update(wanted)
            self._consumer.pause([TopicPartition(self._topic, number) for number in wanted])

    def _resume(self, partitions: Sequence[int]) -> None:
        wanted = [number for number in partitions if number in self._paused]
        if wanted:
            self._paused.difference_update(wanted)
            self._consumer.resume([TopicPartition(self._topic, number) for number in wanted])

    def _numbers(self, partitions: list[TopicPartition]) -> list[int]:
        return [partition.partition for partition in partitions]

    # --- what is asked of the thread

    def _snapshot(self) -> Snapshot:
        # A member that the group has forgotten has no id, and still lists what it once had.
        is_member = self._consumer.memberid() is not None
        return Snapshot(self._consumer.consumer_group_metadata(), dict(self._owned) if is_member else {})

    def _commit(self, points: Mapping[int, CommitPoint], numbers: Mapping[int, int]) -> set[int]:
        ours = {number for number in points if self._owned.get(number) == numbers[number]}
        if ours:
            offsets = [offset_of(self._topic, number, points[number]) for number in sorted(ours)]
            try:
                # A commit waits for its coordinator as long as a session; this asks first, and is bounded.
                self._consumer.committed(offsets, timeout=COMMITTED_SECONDS)
                done: Any = self._consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                raise KafkaUnavailable(f"the offsets were not committed: {error.args[0].str()}") from error
            if failed := [str(one.error) for one in done or () if one.error is not None]:
                raise KafkaUnavailable(f"the offsets were not committed: {failed[0]}")
        return ours

    def _read_committed(self, partitions: Sequence[int]) -> dict[int, tuple[int | None, str]]:
        wanted = [TopicPartition(self._topic, number) for number in partitions]
        try:
            found = self._consumer.committed(wanted, timeout=COMMITTED_SECONDS)
        except KafkaException as error:
            raise KafkaUnavailable(f"the committed offsets are not to be had: {error.args[0].str()}") from error
        for partition in found:
            if partition.error is not None:
                raise KafkaUnavailable(f"the committed offsets are not to be had: {partition.error.str()}")
        return {
            found_one.partition: (found_one.offset if found_one.offset >= 0 else None, found_one.metadata or "")
            for found_one in found
        }

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        """Have this called in Trio's thread, in the order of these calls."""
        self._token.run_sync_soon(function, *arguments)


def offset_of(topic: str, partition: int, point: CommitPoint) -> TopicPartition:
    """A commit point as the client wants it."""
    return TopicPartition(topic, partition, point.offset, metadata=point.metadata)


def _record(message: KafkaMessage) -> Record:
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=tuple((name, _bytes(value)) for name, value in _headers(message)),
        timestamp=message.timestamp()[1],
    )


# If the name of a header is not UTF-8, the client's method returns a broken list and leaves an exception behind, which
# comes up wherever the interpreter looks for one next; a call that is made in C looks at once.
_headers_of: Final = methodcaller("headers")


def _headers(message: KafkaMessage) -> Sequence[tuple[str, str | bytes | None]]:
    try:
        headers: Any = _headers_of(message)  # a list of pairs, or None; its type says more
    except (SystemError, UnicodeDecodeError):
        where = f"{message.topic()}/{message.partition()}/{message.offset()}"
        log.warning("a record's headers are left out: a name is not UTF-8", record=where)
        return ()
    return headers or ()


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _told(error: Exception) -> Exception:
    if isinstance(error, KafkaException):
        return CadorError(
            f"the Kafka consumer has given up: {error.args[0].str()}", hint="is the group's setting right?"
        )
    return error
