"""In-memory neighbours of the Kafka room: a writer, a polling thread, statuses and a producer that do as they are told.

No broker, and but for the producer's own callers no threads, so that committer and door keep to virtual time. The
neighbours of `run_job` are those of `tests/doubles.py`.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from cador_trio.errors import KafkaUnavailable
from cador_trio.intake.request import decode_request
from cador_trio.job import Json, StorageRequest
from cador_trio.kafka.committer import Claim, Claims, Committer
from cador_trio.kafka.consumer import Assigned, PollingThread, Snapshot
from cador_trio.kafka.delivery import Desk
from cador_trio.kafka.door import KafkaDoor
from cador_trio.kafka.effects import Commit, Effects, Role, Source, Whereabouts
from cador_trio.kafka.ledger import CommitPoint, Ledger
from cador_trio.kafka.messages import Coordinates, Headers, Message, Record
from cador_trio.kafka.statuses import Statuses, Ticket
from cador_trio.kafka.writer import GaveUp
from tests.doubles import EPOCH_MS, Halt, Street, open_street

T = TypeVar("T")

TOPIC = "requests"
ALL_ROLES = frozenset(Role)
WHEREABOUTS = Whereabouts()

Step = Exception | Callable[[Commit], Exception | None] | None
"""What a write comes to: an error, one that is made for the commit, or success."""


class ScriptedWriter:
    """Takes every commit, unless the script has another step for it."""

    def __init__(self) -> None:
        self.script: deque[Step] = deque()
        self.open_script: deque[Exception | None] = deque()
        self.tried: list[Commit] = []
        self.written: list[Commit] = []
        self.opened = 0
        self.halt = Halt()
        self.has_given_up = trio.Event()

    def open(self) -> None:
        self.opened += 1
        self._check()
        if self.open_script and (error := self.open_script.popleft()) is not None:
            raise error

    def write(self, commit: Commit) -> None:
        self._check()
        self.tried.append(commit)
        step = self.script.popleft() if self.script else None
        error = step(commit) if callable(step) else step
        if error is not None:
            raise error
        self.written.append(commit)

    def give_up(self) -> None:
        self.has_given_up.set()
        self.halt.open()

    def _check(self) -> None:
        if self.has_given_up.is_set():
            raise GaveUp

    @property
    def effects(self) -> list[Effects]:
        """Of all jobs, in the order of their commits."""
        return [effects for commit in self.written for effects in commit.batch]

    @property
    def offsets(self) -> list[int]:
        """Whose effects are committed, in that order."""
        return [effects.source.offset for effects in self.effects if effects.source is not None]

    @property
    def ends(self) -> list[dict[str, Any]]:
        """The terminal statuses."""
        made = (effects.status(WHEREABOUTS) for effects in self.effects if effects.status is not None)
        return [value_of(message) for message in made]

    @property
    def letters(self) -> list[Message]:
        """The dead letters."""
        return [effects.dead_letter for effects in self.effects if effects.dead_letter is not None]


class InlineCommitter(Committer):
    """The committer with its thread's work done in its task: virtual time and threads don't go together.

    As in a thread, the work goes on when the task is cancelled; the writer's halt is where it takes its time.
    """

    def __init__(self, polling: PollingThread, claims: Claims) -> None:
        super().__init__(polling, claims, self._look)
        self.looked_at: list[Coordinates] = []
        self.sights: deque[bool | Exception | None] = deque()  # what is seen there, one by one

    def _look(self, place: Coordinates, _is_wanted: Callable[[], bool]) -> bool | None:
        self.looked_at.append(place)
        sight = self.sights.popleft() if self.sights else KafkaUnavailable("not now")
        if isinstance(sight, Exception):
            raise sight
        return sight

    async def _in_thread(self, work: Callable[[], T]) -> T:
        writer = self._writer
        assert isinstance(writer, ScriptedWriter)
        with trio.CancelScope(shield=True):
            await writer.halt.pass_by()
        await trio.lowlevel.checkpoint()
        return work()


class StillPolling(PollingThread):
    """A membership without a thread: remembers what it is asked for, and shows what it is told to."""

    def __init__(self) -> None:
        super().__init__(_no_consumer, TOPIC)
        self.resumed: list[int] = []
        self.is_all_paused = False
        self.shown: dict[int, tuple[int | None, str]] = {}
        self.unavailable = 0  # how often what is committed can't be read
        self.owned: dict[int, int] = {}
        self.commits: list[dict[int, CommitPoint]] = []
        self.commit_errors = 0

    def resume(self, partitions: Sequence[int]) -> None:
        self.resumed += partitions

    def pause_all(self) -> None:
        self.is_all_paused = True

    def take_snapshot(self) -> Snapshot:
        return Snapshot("metadata", dict(self.owned))

    def committed(self, partitions: Sequence[int]) -> dict[int, tuple[int | None, str]]:
        if self.unavailable:
            self.unavailable -= 1
            raise KafkaUnavailable("not now")
        return {partition: self.shown.get(partition, (None, "")) for partition in partitions}

    def commit(self, points: Mapping[int, CommitPoint], numbers: Mapping[int, int]) -> set[int]:
        if self.commit_errors:
            self.commit_errors -= 1
            raise KafkaUnavailable("not now")
        ours = {number for number in points if self.owned.get(number) == numbers[number]}
        self.commits.append({number: points[number] for number in ours})
        return ours


def _no_consumer() -> Consumer:
    raise AssertionError("nobody polls here")


class HeardStatuses(Statuses):
    """Statuses that are acknowledged at once, or when the test says so."""

    def __init__(self) -> None:
        super().__init__(None, "statuses")
        self.sent: list[dict[str, Any]] = []
        self.are_held = False
        self._held: list[Ticket] = []

    def send(self, ticket: Ticket, message: Message) -> None:
        self.sent.append(value_of(message))
        ticket.add()
        self._held.append(ticket)
        if not self.are_held:
            self.acknowledge()

    def acknowledge(self) -> None:
        """All that was sent has arrived."""
        self.are_held = False
        while self._held:
            self._held.pop().done()

    def states(self, task_id: str) -> list[str]:
        """What was told of one task."""
        return [status["status"] for status in self.sent if status["taskId"] == task_id]


def value_of(message: Message | None) -> Any:
    """The JSON of a message."""
    assert message is not None
    return json.loads(message.value or b"null")


def record(
    offset: int,
    value: Json | bytes = None,
    *,
    partition: int = 0,
    key: bytes | None = None,
    headers: Headers = (),
) -> Record:
    """A request record; without a value a good one whose task id is `<partition>-<offset>`."""
    if value is None:
        value = {"image": "x", "technicalMetadata": {"taskId": f"{partition}-{offset}"}}
    encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Record(TOPIC, partition, offset, key, encoded, headers, EPOCH_MS)


def effects_of(claim: Claim, offset: int, *, size: int = 0, tag_count: int = 0) -> Effects:
    """Effects for one record, whose ledger has it delivered."""
    claim.ledger.deliver(offset)
    return Effects(Source(claim.partition, offset, claim.number), size=size, tag_count=tag_count)


def claim_of(claims: Claims, partition: int = 0, number: int = 1, position: int = 0) -> Claim:
    """A partition that is ours from now on."""
    claim = Claim(partition, number, Ledger(position, ""))
    claims.add(claim)
    return claim


# --- The door, with everything behind it -----------------------------------------------------------------------------


@dataclass
class KafkaHouse:
    """A door in front of a house among doubles."""

    street: Street
    door: KafkaDoor
    desk: Desk
    writer: ScriptedWriter
    committer: Committer
    polling: StillPolling
    statuses: HeardStatuses
    claims: Claims
    intake: trio.CancelScope
    numbers: dict[int, int]

    def assign(self, partition: int = 0, offset: int | None = 0, metadata: str = "") -> None:
        """A partition is ours, anew if it was before."""
        number = self.numbers[partition] = self.numbers.get(partition, 0) + 1
        self.door.assigned(Assigned(partition, number, offset, metadata))

    def receive(self, *records: Record) -> Sequence[int]:
        """These have come; the partitions that have to be paused."""
        return self.door.received(records)

    def begun_then_died(self, *offsets: int, times: int = 1) -> str:
        """Metadata of an owner that died `times` while these were running."""
        metadata = ""
        for _ in range(times):
            ledger = Ledger(0, metadata)
            for offset in range(max(offsets) + 1):
                ledger.deliver(offset)
            for offset in offsets:
                ledger.begin(offset)
            point = ledger.commit_point()
            assert point is not None
            metadata = point.metadata
        return metadata

    @property
    def ordered(self) -> list[str]:
        """Correlation ids of what has reached the algorithm, in that order."""
        return [order.headers["X-Correlation-ID"] for order in self.street.algorithm.orders]


@asynccontextmanager
async def open_kafka_house(  # noqa: PLR0913 - all by name, all with a default
    folder: Path,
    *,
    slots: int = 1,
    max_deliveries: int = 3,
    revoke_grace_seconds: float = 20,
    order_by_key: bool = False,
    topics: Collection[Role] = ALL_ROLES,
    inline_limit: int = 900_000,
    largest_message: int = 1_000_000,
) -> AsyncIterator[KafkaHouse]:
    """A door, its committer and a house behind it; what is unfinished at the end of the block is let go."""
    polling, claims, statuses, writer = StillPolling(), Claims(), HeardStatuses(), ScriptedWriter()
    committer = InlineCommitter(polling, claims)
    async with trio.open_nursery() as services:
        services.start_soon(committer.run, writer)
        async with open_street(folder, slots=slots) as street:
            desk = Desk(
                committer=committer,
                statuses=statuses,
                topics=frozenset(topics),
                inline_limit=inline_limit,
                largest_message=largest_message,
                echo_credentials=False,
                node="here",
                algorithm=lambda: "detector/1",
                now_ms=lambda: EPOCH_MS + round(trio.current_time() * 1_000),
            )
            door = KafkaDoor(
                house=street.house,
                desk=desk,
                claims=claims,
                polling=polling,
                decode=lambda data: decode_request(data, _read_storage),
                cluster_id="cluster",
                slots=slots,
                max_deliveries=max_deliveries,
                revoke_grace_seconds=revoke_grace_seconds,
                order_by_key=order_by_key,
            )
            intake = trio.CancelScope()

            async def take_on() -> None:
                with intake:
                    await door.take_on(street.jobs_nursery)

            services.start_soon(take_on)
            house = KafkaHouse(street, door, desk, writer, committer, polling, statuses, claims, intake, {})
            try:
                yield house
            finally:
                door.close()
                intake.cancel("the test is over")
                statuses.acknowledge()
                writer.halt.open()
        services.cancel_scope.cancel("the test is over")


def _read_storage(value: Json) -> StorageRequest | None:
    return None if not value else StorageRequest("POSIX", {"folder": "/results"})


# --- A producer ------------------------------------------------------------------------------------------------------


def kafka_error(code: int, *, fatal: bool = False, retriable: bool = False, abort: bool = False) -> KafkaError:
    """An error as librdkafka reports it."""
    return KafkaError(code, "as scripted", fatal, retriable, abort)


class ScriptedProducer:
    """As much of a transactional producer as writers use. Messages are acknowledged by `flush` and `poll`, in order.

    Attributes:
        calls: names of calls, `produce` with its topic.
        failures: by the call's name, what its next calls fail with; None lets one through.
        refusals: by topic, how the reports of its next messages read; None is an acknowledgement.
        full: how many more calls of `produce` find the queue full.
        is_away: `poll` brings no acknowledgements.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, deque[KafkaError | None]] = defaultdict(deque)
        self.refusals: dict[str, deque[KafkaError | None]] = defaultdict(deque)
        self.full = 0
        self.is_away = False
        self.on_call: Callable[[str], None] = lambda _: None
        self.visible: list[tuple[str, bytes | None]] = []  # topic and value of what transactions committed
        self.offsets: list[dict[int, tuple[int, str]]] = []
        self._open: list[tuple[str, bytes | None]] = []
        self._open_offsets: list[dict[int, tuple[int, str]]] = []
        self._queue: list[tuple[str, bytes | None, Callable[..., None]]] = []
        self._ends: dict[str, int] = defaultdict(int)

    def init_transactions(self, _seconds: float) -> None:
        self._call("init_transactions")

    def begin_transaction(self) -> None:
        self._call("begin_transaction")
        self._open, self._open_offsets = [], []

    def produce(self, topic: str, *, value: bytes | None, on_delivery: Callable[..., None], **_: Any) -> None:
        if self.full:
            self.full -= 1
            self.calls.append("full")
            raise BufferError
        self._call("produce", f"produce {topic}")
        self._queue.append((topic, value, on_delivery))

    def poll(self, _seconds: float) -> int:
        self._call("poll")
        if not self.is_away:
            self._deliver_all()
        return 0

    def flush(self, _seconds: float) -> int:
        self.calls.append("flush")
        self.on_call("flush")
        if self.failures["flush"] and self.failures["flush"].popleft() is not None:
            return len(self._queue) or 1
        self._deliver_all()
        return 0

    def report_one(self, error: KafkaError) -> None:
        """The first message in the queue was not taken."""
        if self._queue:
            topic, _, report = self._queue.pop(0)
            report(error, KafkaMessage(topic=topic, partition=0))

    def _deliver_all(self) -> None:
        queue, self._queue = self._queue, []
        for topic, value, report in queue:
            self._deliver(topic, value, report)

    def _deliver(self, topic: str, value: bytes | None, report: Callable[..., None]) -> None:
        error = self.refusals[topic].popleft() if self.refusals[topic] else None
        if error is None:
            self._open.append((topic, value))
            report(None, KafkaMessage(topic=topic, partition=0, offset=self._ends[topic]))
            self._ends[topic] += 1
        else:
            report(error, KafkaMessage(topic=topic, partition=0))

    def send_offsets_to_transaction(self, offsets: Sequence[TopicPartition], _metadata: Any, _seconds: float) -> None:
        self._call("send_offsets")
        self._open_offsets.append({one.partition: (one.offset, one.metadata or "") for one in offsets})

    def commit_transaction(self, _seconds: float) -> None:
        self._call("commit_transaction")
        self.visible += self._open
        self.offsets += self._open_offsets

    def abort_transaction(self, _seconds: float) -> None:
        self._call("abort_transaction")
        self.purge()

    def purge(self) -> None:
        purged, self._queue = self._queue, []
        for topic, _, report in purged:
            report(kafka_error(KafkaError._PURGE_QUEUE), KafkaMessage(topic=topic, partition=0))

    def _call(self, name: str, shown: str = "") -> None:
        self.calls.append(shown or name)
        self.on_call(name)
        if self.failures[name] and (error := self.failures[name].popleft()) is not None:
            raise KafkaException(error)


def messages(*values: bytes) -> Iterator[Message]:
    """Plain ones."""
    return iter([Message(None, value, ()) for value in values])
