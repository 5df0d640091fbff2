"""Outcomes of finished jobs, gathered into transactions.

Group commit: each transaction takes what is ready when the last one has ended. In exactly-once mode nobody else writes
offsets. Begun jobs are written down with the next transaction, or soon by one of their own; nobody waits for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

from cador_trio.errors import KafkaUnavailable
from cador_trio.kafka.consumer import PollingThread
from cador_trio.kafka.dead_letters import error_class_of
from cador_trio.kafka.effects import Commit, Done, Effects, Refused, Role, Verdict
from cador_trio.kafka.ledger import Ledger
from cador_trio.kafka.messages import Coordinates
from cador_trio.kafka.writer import GaveUp, MessageRefused, MessagesBroken, OutcomeUnknown, PartitionsGone, Writer
from cador_trio.observe.metrics import DEAD_LETTERS, MESSAGES, MESSAGES_LEFT_OUT
from cador_trio.observe.stages import stage
from cador_trio.observe.traces import SpanLink, current_link

T = TypeVar("T")

log = structlog.get_logger(__name__)

MAX_JOBS: Final = 1_000  # of one transaction
MAX_BYTES: Final = 32 * 1024 * 1024  # the same; a job that has more is alone in its own
MAX_TAGS: Final = 20_000  # the same
BEGUN_SECONDS: Final = 0.2  # how long begun jobs wait for a transaction that takes them along
RECOVERY_PAUSE_SECONDS: Final = 0.5
SIGHT_SECONDS: Final = 60.0  # to find out whether a message was committed; a broker may be starting


@dataclass(eq=False)
class Claim:
    """One assignment of a partition, and what is known of its records."""

    partition: int
    number: int
    ledger: Ledger
    gone: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _Pending:
    effects: Effects
    decided: trio.Event
    link: SpanLink | None  # to the span of the job that waits for it
    verdict: Verdict = Done.DROPPED


class Claims:
    """The partitions that are ours, as Trio's thread knows them."""

    def __init__(self) -> None:
        self._by_partition: dict[int, Claim] = {}

    def add(self, claim: Claim) -> None:
        """It is ours from now on."""
        self._by_partition[claim.partition] = claim

    def remove(self, partition: int) -> None:
        """It is not any more."""
        if (claim := self._by_partition.pop(partition, None)) is not None:
            claim.gone.set()

    def current(self, partition: int, number: int) -> Claim | None:
        """The claim of this assignment, if it still holds."""
        claim = self._by_partition.get(partition)
        return claim if claim is not None and claim.number == number else None

    def all(self) -> list[Claim]:
        """Every one."""
        return list(self._by_partition.values())


class Committer:
    """The queue in front of the writer."""

    def __init__(
        self,
        polling: PollingThread,
        claims: Claims,
        is_visible: Callable[[Coordinates, Callable[[], bool]], bool | None],
        topics: frozenset[Role] = frozenset(Role),
    ) -> None:
        """`is_visible`: see there. `topics` are those that there are, for counting: what has none is not sent."""
        self._writer: Writer
        self._topics = topics
        self._polling = polling
        self._claims = claims
        self._is_visible = is_visible
        self._queue: deque[_Pending] = deque()
        self._wake = trio.Event()
        self._has_ended = False
        self._is_patient = True  # read by threads: what is tried goes on
        self._is_running = False
        self._round_over = trio.Event()
        self._limiter = trio.CapacityLimiter(1)  # a thread of its own: uploads must not keep commits waiting

    async def commit(self, effects: Effects) -> Verdict:
        """Make these visible; what became of them. Cancelling leaves them in the queue, and nobody hears of them.

        What comes from no record is dropped at once if too much of it waits: nothing else holds it back.
        """
        pending = _Pending(effects, trio.Event(), current_link())
        is_bounded = effects.source is not None or self._sourceless_bytes() + effects.size <= MAX_BYTES
        if not self._has_ended and is_bounded:
            self._queue.append(pending)
            self._wake.set()
            await pending.decided.wait()
        else:
            self._decide(pending, Done.DROPPED)
        return pending.verdict

    @property
    def waiting(self) -> int:
        """How many jobs' ends wait for the next transaction."""
        return len(self._queue)

    def _sourceless_bytes(self) -> int:
        return sum(one.effects.size for one in self._queue if one.effects.source is None)

    def note_begun(self) -> None:
        """Something is known that should be written down before long."""
        self._wake.set()

    async def wait_clean(self, partitions: Collection[int]) -> None:
        """Wait until all that is known of these partitions is committed. To be bounded by the caller."""
        while not self._has_ended and any(self._is_dirty(partition) for partition in partitions):
            self._wake.set()
            await self._round_over.wait()

    def drop(self, partitions: Collection[int]) -> None:
        """What waits for these partitions is not wanted any more: they have gone."""
        for pending in [
            one for one in self._queue if one.effects.source and one.effects.source.partition in partitions
        ]:
            self._queue.remove(pending)
            self._decide(pending, Done.DROPPED)

    def give_up(self) -> None:
        """The daemon stops and no broker helps: everything that waits is dropped."""
        self._end()
        if self._is_running:
            self._lose_patience()

    async def run(self, writer: Writer) -> None:
        """Commit what comes through this writer, until cancelled; what is tried at that moment is given up.

        Raises:
            InstanceFenced: another instance uses our id.
            KafkaUnavailable: a producer is of no use any more.
        """
        self._writer, self._is_running = writer, True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up_when_cancelled)
                await self._in_thread(writer.open)
                while True:
                    await self._wait_for_work()
                    await self._round()
        except* GaveUp:
            await trio.sleep_forever()
        finally:
            self._end()

    async def _give_up_when_cancelled(self) -> None:
        """Threads hear of nothing else."""
        try:
            await trio.sleep_forever()
        finally:
            self._lose_patience()

    def _lose_patience(self) -> None:
        self._is_patient = False
        self._writer.give_up()

    def _end(self) -> None:
        """Nothing is committed any more."""
        self._has_ended = True
        while self._queue:
            self._decide(self._queue.popleft(), Done.DROPPED)
        for claim in self._claims.all():
            self._claims.remove(claim.partition)
        self._round_over.set()

    async def _wait_for_work(self) -> None:
        while not self._queue:
            await self._wake.wait()
            self._wake = trio.Event()
            if not self._queue:
                with trio.move_on_after(BEGUN_SECONDS):
                    await self._wake.wait()
                return
        self._wake = trio.Event()

    async def _round(self) -> None:
        batch = self._take()
        points, numbers = {}, {}
        for claim in self._claims.all():
            offsets = _offsets((one.effects for one in batch), claim)
            point = claim.ledger.commit_point(offsets)
            if point is not None and (offsets or claim.ledger.is_dirty):
                points[claim.partition], numbers[claim.partition] = point, claim.number
        if batch or points:
            try:
                await self._write(batch, Commit([one.effects for one in batch], points, numbers))
            except BaseException:  # nothing goes on after that, and no job may be left without a verdict
                for pending in batch:
                    if not pending.decided.is_set():
                        self._decide(pending, Done.DROPPED)
                raise
        self._round_over.set()
        self._round_over = trio.Event()

    async def _write(self, batch: list[_Pending], commit: Commit) -> None:
        """One transaction, and what follows from how it ended."""
        try:
            with stage("commit", [one.link for one in batch if one.link is not None]):
                await self._in_thread(lambda: self._writer.write(commit))
        except MessageRefused as refusal:
            self._decide_some(batch, [refusal.effects], Refused(refusal.role, refusal.size))
        except MessagesBroken as failure:
            log.exception("a job's messages can't be made for a reason that nobody thought of")
            self._decide_some(batch, [failure.effects], Done.BROKEN)
        except PartitionsGone as loss:
            # The polling thread will say so soon; until then nothing is decided.
            log.info("partitions have gone, or the group has lost sight of us", partitions=sorted(loss.partitions))
            self._decide_some(batch, (), Done.DROPPED)
            await trio.sleep(RECOVERY_PAUSE_SECONDS)
        except OutcomeUnknown as doubt:
            log.warning("the outcome of a transaction is not known, so it is looked up", reason=str(doubt))
            await self._recover(batch, commit, doubt.place)
        else:
            self._note(commit)
            self._decide_some(batch, commit.batch, Done.COMMITTED)

    async def _recover(self, batch: list[_Pending], commit: Commit, place: Coordinates | None) -> None:
        """A new producer, and then: what does Kafka show as done?"""
        await self._in_thread(self._writer.open)
        if await self._went_through(commit, place):
            self._note(commit)
            self._decide_some(batch, commit.batch, Done.COMMITTED)
        else:
            self._decide_some(batch, (), Done.DROPPED)

    async def _went_through(self, commit: Commit, place: Coordinates | None) -> bool:
        """The commit did for all that it holds, or for nothing: one sign is enough."""
        shown = await self._shown(commit)
        if any(shown.get(number) == (point.offset, point.metadata) for number, point in commit.points.items()):
            return True
        # Jobs whose partitions have gone are others' now. Those that came from no record have only their messages.
        if place is None or all(effects.source is not None for effects in commit.batch):
            return False
        is_visible = await self._seen(place)
        if is_visible is None:
            log.warning("nobody knows whether messages of HTTP jobs were sent, so they are sent (again)", place=place)
        return bool(is_visible)

    async def _seen(self, place: Coordinates) -> bool | None:
        """Whether the message there was committed. Jobs from Kafka wait meanwhile, so after a while None: not known."""
        with trio.move_on_after(SIGHT_SECONDS):
            return await self._look_up(lambda: partial(self._is_visible, place, lambda: self._is_patient))
        return None

    async def _shown(self, commit: Commit) -> dict[int, tuple[int | None, str]]:
        """What is committed of the partitions that are still ours."""

        def question() -> Callable[[], dict[int, tuple[int | None, str]]]:
            partitions = [number for number in commit.points if self._is_ours(number, commit)]
            return partial(self._polling.committed, partitions) if partitions else dict

        return await self._look_up(question)

    async def _look_up(self, question: Callable[[], Callable[[], T]]) -> T:
        """What the brokers answer, as soon as they do; the question is made anew for each try.

        Raises:
            GaveUp: they have not, and the daemon stops.
        """
        while self._is_patient:
            try:
                return await self._in_thread(question())
            except KafkaUnavailable as error:
                log.info("waiting to know what is committed", reason=error.message)
                await trio.sleep(RECOVERY_PAUSE_SECONDS)
        raise GaveUp

    def _take(self) -> list[_Pending]:
        """What is ready and fits one transaction; at least one, if there is any."""
        taken: list[_Pending] = []
        size = tags = 0
        while self._queue and len(taken) < MAX_JOBS:
            effects = self._queue[0].effects
            size, tags = size + effects.size, tags + effects.tag_count
            if taken and (size > MAX_BYTES or tags > MAX_TAGS):
                break
            pending = self._queue.popleft()
            if effects.source is None or self._is_current(effects):
                taken.append(pending)
            else:
                self._decide(pending, Done.DROPPED)
        return taken

    def _note(self, commit: Commit) -> None:
        """It is committed."""
        self._count(commit.batch)
        for partition, point in commit.points.items():
            claim = self._claims.current(partition, commit.numbers[partition])
            if claim is not None:
                claim.ledger.finish(_offsets(commit.batch, claim))
                claim.ledger.note_committed(point)

    def _count(self, batch: Sequence[Effects]) -> None:
        """These can be read now."""
        counts = [effects.count() for effects in batch]
        for role in self._topics:
            MESSAGES.labels(label_of(role)).inc(sum(count[role] for count in counts))
        for effects in batch:
            if effects.dead_letter is not None and Role.DEAD_LETTER in self._topics:
                DEAD_LETTERS.labels(error_class_of(effects.dead_letter)).inc()

    def _decide(self, pending: _Pending, verdict: Verdict) -> None:
        """What has a record behind it comes again; what has none is lost if it was not committed."""
        pending.verdict = verdict
        pending.decided.set()
        if pending.effects.source is None and verdict is not Done.COMMITTED:
            for role, number in pending.effects.count().items():
                MESSAGES_LEFT_OUT.labels(label_of(role)).inc(number if role in self._topics else 0)

    def _decide_some(self, batch: list[_Pending], decided: Sequence[Effects], verdict: Verdict) -> None:
        """This is the verdict on those; the rest of the batch has its turn again, before all others."""
        chosen = {id(effects) for effects in decided}
        for pending in reversed(batch):
            if id(pending.effects) in chosen:
                self._decide(pending, verdict)
            else:
                self._queue.appendleft(pending)
        if self._queue:
            self._wake.set()

    def _is_current(self, effects: Effects) -> bool:
        source = effects.source
        return source is not None and self._claims.current(source.partition, source.number) is not None

    def _is_ours(self, partition: int, commit: Commit) -> bool:
        return self._claims.current(partition, commit.numbers[partition]) is not None

    def _is_dirty(self, partition: int) -> bool:
        return any(claim.partition == partition and claim.ledger.is_dirty for claim in self._claims.all())

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _offsets(batch: Iterable[Effects], claim: Claim) -> list[int]:
    """What of this batch is from that assignment."""
    sources = (effects.source for effects in batch)
    here = (claim.partition, claim.number)
    return [source.offset for source in sources if source is not None and (source.partition, source.number) == here]


def label_of(role: Role) -> str:
    """A role as a label of metrics."""
    return role.name.lower()
