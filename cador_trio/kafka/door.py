"""Records to jobs: what is taken on and when, in which order, and what becomes of it when its partition goes.

Runs in Trio's thread. Each partition that is ours is a lane of waiting records; each record that is taken on is an
errand, from its first look to the end of its job. What is unfinished elsewhere (slots, the store, the spool) holds
back the errands, they hold back the lanes, and a lane that is full pauses its partition.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import structlog
import trio

from cador_trio.errors import (
    AlgorithmUnreachable,
    CadorError,
    Conflict,
    DeliveredTooOften,
    RequestRefused,
    SpoolFull,
    unexpected_error,
)
from cador_trio.job import EndReason, Job, JobRequest
from cador_trio.json_text import THREAD_BYTES
from cador_trio.kafka.committer import Claim, Claims
from cador_trio.kafka.consumer import Assigned, PollingThread
from cador_trio.kafka.delivery import Desk, KafkaDelivery
from cador_trio.kafka.effects import Done, Effects, Refused, Role, Verdict
from cador_trio.kafka.ledger import Delivered, Ledger
from cador_trio.kafka.messages import (
    CORRELATION_HEADER,
    KIND_HEADER,
    TRACE_HEADER,
    TRACE_STATE_HEADER,
    Record,
    Subject,
)
from cador_trio.observe.metrics import MESSAGES_LEFT_OUT, PARTITION_CHANGES, REDELIVERIES, SKIPPED_RECORDS, count_end
from cador_trio.observe.traces import Identity, job_span, note_refusal, trace_id_of
from cador_trio.registry import JobRecord
from cador_trio.run_job import House, Plan, admit, run_job

log = structlog.get_logger(__name__)

# What may wait in a lane before its partition is paused. A paused one drops what librdkafka has fetched of it, and
# takes a quarter of a second to flow again: so many records keep even quick jobs busy meanwhile. As many may wait
# aside, for an earlier job with their task id.
LANE_RECORDS: Final = 250
WAITING_BYTES: Final = 64 * 1024 * 1024  # the same, in bytes, over all lanes
RETRY_SECONDS: Final = 1.0  # between two looks whether a job can be admitted
SETTLE_SECONDS: Final = 10.0  # for what is already with the committer when a partition goes
LONGEST_TASK_ID: Final = 1_000  # characters: it is a key, a header and part of every message
_OUR_KINDS: Final = {b"output", b"status", b"tag"}

Decode = Callable[[bytes], JobRequest]


@dataclass(eq=False)
class Lane:
    """A partition that is ours, and its records that wait."""

    claim: Claim
    waiting: deque[tuple[Record, Delivered]] = field(default_factory=deque)
    size: int = 0  # bytes of the waiting records
    is_paused: bool = False
    errands: set[Errand] = field(default_factory=set)

    def put(self, record: Record, delivered: Delivered) -> None:
        """One more waits."""
        self.waiting.append((record, delivered))
        self.size += _size(record)

    def take(self, index: int) -> tuple[Record, Delivered]:
        """This one has waited long enough."""
        taken = self.waiting[index]
        del self.waiting[index]
        self.size -= _size(taken[0])
        return taken


class Errand:
    """One record, from the first look at it to its end."""

    def __init__(self, door: KafkaDoor, lane: Lane, record: Record, delivered: Delivered) -> None:
        self.record = record
        self.lane = lane
        self.is_queued = True  # has not reached the algorithm
        self._is_aside = False  # waits for an earlier job with its task id
        self.over = trio.Event()
        self._door = door
        self._delivered = delivered
        self._job_id = door.job_id_of(record)
        self._scope = trio.CancelScope()
        self._reason = EndReason.SHUTDOWN
        self._job_record: JobRecord | None = None
        self._delivery = KafkaDelivery(door.desk, lane.claim, record, self._leave_queue)
        self._subject = Subject(
            task_id=str(self._job_id),
            correlation_id=_text(record, CORRELATION_HEADER) or str(uuid4()),
            traceparent=_text(record, TRACE_HEADER),
            attempt=1,
            tracestate=_text(record, TRACE_STATE_HEADER),
        )
        self._is_read = False  # so the subject is the job's own

    async def run(self) -> None:
        """Its whole life. Raises nothing but Cancelled."""
        self._bind_ids()  # for the log, in this task of its own
        try:
            await self._run()
        except CadorError as error:
            await self._refuse(error)
        except Exception:
            log.exception("a request failed for a reason that nobody thought of", record=repr(self.record))
            await self._refuse(unexpected_error())
        finally:
            self._leave_queue()
            self._delivery.close()
            self._job_record = None
            self._door.errand_over(self)
            self.over.set()

    def _bind_ids(self) -> None:
        trace_id = trace_id_of(self._subject.traceparent)
        structlog.contextvars.bind_contextvars(
            job_id=str(self._job_id),
            task_id=self._subject.task_name,
            correlation_id=self._subject.correlation_id,
            **({"trace_id": trace_id} if trace_id else {}),
        )

    def end(self, reason: EndReason, *, only_queued: bool = False) -> None:
        """It is not wanted here any more; what is past the point of no return goes on."""
        if only_queued and not self.is_queued:
            return
        self._reason = reason
        self._scope.cancel(reason)
        if self._job_record is not None:
            with suppress(Conflict):
                self._job_record.cancel(reason)

    async def _run(self) -> None:
        if self.record.header(KIND_HEADER) in _OUR_KINDS:
            SKIPPED_RECORDS.labels("own_message").inc()
            log.info("passed over a message of ours among the requests", record=repr(self.record))
            await self._settle(self._delivery.passed_over())
            return
        admitted: tuple[Job, Plan] | None = None
        with self._scope:
            admitted = await self._admitted()
        if admitted is None or self._scope.cancel_called:  # nothing on its way there may have waited
            count_end("kafka", "given_back")
            log.info("request given back before it began", record=repr(self.record), reason=str(self._reason))
            return
        job, plan = admitted
        registry = self._door.house.registry
        if registry.is_turn_taken(job.task_name):
            self._step_aside()
        self._job_record = registry.add(job)
        await run_job(self._job_record, plan, self._door.house, self._delivery)

    async def _admitted(self) -> tuple[Job, Plan]:
        """The job, once somebody can work on it. Raises CadorError: it never will be one."""
        if self._delivered.begun >= self._door.max_deliveries:
            raise DeliveredTooOften(
                f"the request began {self._delivered.begun} times, and each time the process that ran it died",
                hint="CADOR_MAX_DELIVERIES sets the limit; does it take more memory than there is?",
            )
        job = await self._decoded()
        house, told = self._door.house, ""
        while True:
            try:
                plan = admit(job.request, job.task_name, house)
            except (AlgorithmUnreachable, SpoolFull) as error:
                if error.message != told:
                    log.info("a request waits", record=repr(self.record), reason=error.message)
                    told = error.message
                await trio.sleep(RETRY_SECONDS)
                continue
            if plan.destination is None and house.algorithm.gives_bare_images:
                raise RequestRefused(
                    "the algorithm's results are images, and messages hold only references to images",
                    hint="ask for outputStorage in technicalMetadata",
                )
            if await self._is_first_here(job.job_id):
                return job, plan

    async def _decoded(self) -> Job:
        value = self.record.value
        if value is None:
            raise RequestRefused("the request has no value", hint="a null value is no request; send a JSON object")
        work = self._door.decode
        request = work(value) if len(value) <= THREAD_BYTES else await trio.to_thread.run_sync(work, value)
        subject = self._subject
        trace = {"traceparent": subject.traceparent, "tracestate": subject.tracestate}
        job = Job(
            job_id=self._job_id,
            door="kafka",
            request=request,
            correlation_id=subject.correlation_id,
            received_at=self._door.desk.now_ms(),
            forwarded={"X-Correlation-ID": subject.correlation_id}
            | {name: value for name, value in trace.items() if value is not None},
            traceparent=subject.traceparent,
            tracestate=subject.tracestate,
            attempt=self._delivered.begun + 1,
            origin=self.record.place,
        )
        if len(job.task_name) > LONGEST_TASK_ID:
            raise RequestRefused(
                f"technicalMetadata.taskId has {len(job.task_name)} characters, more than {LONGEST_TASK_ID}"
            )
        self._subject, self._is_read = Subject.of(job), True
        self._bind_ids()
        return job

    async def _is_first_here(self, job_id: UUID) -> bool:
        """Whether no run of an earlier delivery is still winding down here; waits for the end of one that is."""
        known = self._door.house.registry.find(job_id)
        if known is None or known.ended.is_set():
            return True
        await known.ended.wait()
        return False

    async def _refuse(self, error: CadorError) -> None:
        """Tell its sender, under its task id if one can be read."""
        value = self.record.value
        if not self._is_read and value is not None:
            read = partial(_with_task_id, self._subject, value)
            self._subject = read() if len(value) <= THREAD_BYTES else await trio.to_thread.run_sync(read)
        with job_span(self._identity()) as trace:
            self._subject = self._subject.within(trace.headers)
            self._bind_ids()
            note_refusal(error)
            log.warning("request refused", record=repr(self.record), error=error.message, hint=error.hint)
            await self._tell_refusal(error)

    def _identity(self) -> Identity:
        subject = self._subject
        return Identity(
            door="kafka",
            job_id=self._job_id,
            task_name=subject.task_name,
            correlation_id=subject.correlation_id,
            attempt=self._delivered.begun + 1,
            origin=self.record.place,
            traceparent=subject.traceparent,
            tracestate=subject.tracestate,
        )

    async def _tell_refusal(self, error: CadorError) -> None:
        """A dead letter that is too large for its topic goes in a smaller form; what fits in none is left out."""
        effects = self._delivery.refused(error, self._job_id, self._subject)
        while isinstance(verdict := await self._settle(effects), Refused) or verdict is Done.BROKEN:
            log.error("a refusal can't be told as it is", record=repr(self.record), verdict=str(verdict))
            if isinstance(verdict, Refused) and verdict.role is Role.DEAD_LETTER:
                letter = self._delivery.smaller_letter(verdict.size, error, self._job_id, self._subject)
                effects = replace(effects, dead_letter=letter)
            else:
                MESSAGES_LEFT_OUT.labels("status").inc()
                effects = replace(effects, status=None)
        if verdict is Done.COMMITTED:
            count_end("kafka", "refused", error)
        else:
            count_end("kafka", "given_back")

    async def _settle(self, effects: Effects) -> Verdict:
        size = _size(self.record)
        self._door.unqueued_bytes += size
        self._leave_queue()
        try:
            return await self._door.desk.committer.commit(effects)
        finally:
            self._door.unqueued_bytes -= size

    def _step_aside(self) -> None:
        """The job that it waits for may take long: others have its place in the queue meanwhile."""
        self._is_aside = True
        self._door.errand_stepped_aside(_size(self.record))

    def _leave_queue(self) -> None:
        if not self.is_queued:
            return
        self.is_queued = False
        if self._is_aside:
            self._door.errand_came_back(_size(self.record))
        else:
            self._door.errand_left_queue()


class KafkaDoor:
    """All lanes and errands; what the polling thread talks to."""

    def __init__(  # noqa: PLR0913 - all by name: an introduction
        self,
        *,
        house: House,
        desk: Desk,
        claims: Claims,
        polling: PollingThread,
        decode: Decode,
        cluster_id: str,
        slots: int,
        max_deliveries: int,
        revoke_grace_seconds: float,
        order_by_key: bool,
    ) -> None:
        self.house = house
        self.desk = desk
        self.decode = decode
        self.max_deliveries = max_deliveries
        self._claims = claims
        self._polling = polling
        self._cluster_id = cluster_id
        self._slots = slots
        self._grace = revoke_grace_seconds
        self._order_by_key = order_by_key
        self._lanes: dict[int, Lane] = {}
        self._errands: set[Errand] = set()
        self._queued = 0
        self._aside = 0
        self.unqueued_bytes = 0  # of records in no queue: refused and being committed, or aside
        self._alone: Errand | None = None
        self._busy_keys: set[tuple[int, bytes]] = set()
        self._turn = 0  # the lane that comes first next time
        self._wake = trio.Event()
        self._is_closed = False

    # --- intake

    async def take_on(self, jobs_nursery: trio.Nursery) -> None:
        """Start errands as far as there is room for them, until cancelled or closed."""
        while not self._is_closed:
            while (errand := self._next_errand()) is not None:
                jobs_nursery.start_soon(errand.run)
            await self._wake.wait()
            self._wake = trio.Event()

    def close(self) -> None:
        """No new jobs: partitions are paused, and what has not reached the algorithm is given back."""
        self._is_closed = True
        self._polling.pause_all()
        for lane in self._lanes.values():
            lane.waiting.clear()
        for errand in list(self._errands):
            errand.end(EndReason.SHUTDOWN, only_queued=True)
        self._wake.set()

    def errand_left_queue(self) -> None:
        """It has reached the algorithm, or its end, or makes way for others."""
        self._queued -= 1
        self._wake.set()

    def errand_stepped_aside(self, size: int) -> None:
        """It has so many bytes, and waits for no slot yet."""
        self._aside += 1
        self.unqueued_bytes += size
        self.errand_left_queue()

    def errand_came_back(self, size: int) -> None:
        """It has reached the algorithm, or its end, after all."""
        self._aside -= 1
        self.unqueued_bytes -= size
        self._wake.set()

    def errand_over(self, errand: Errand) -> None:
        """Its record is done, or given back."""
        self._errands.discard(errand)
        errand.lane.errands.discard(errand)
        if self._alone is errand:
            self._alone = None
        if errand.record.key is not None:
            self._busy_keys.discard((errand.record.partition, errand.record.key))
        self._wake.set()

    def job_id_of(self, record: Record) -> UUID:
        """The same for every delivery of the record."""
        return uuid5(NAMESPACE_URL, f"kafka:{self._cluster_id}/{record.topic}/{record.partition}/{record.offset}")

    def _next_errand(self) -> Errand | None:
        """The next record that may be taken on now; the lanes take turns."""
        if self._is_closed or self._alone is not None or self._is_full:
            return None
        lanes = list(self._lanes.values())
        for step in range(len(lanes)):
            lane = lanes[(self._turn + step) % len(lanes)]
            index = self._next_in(lane)
            if index is None:
                continue
            if lane.waiting[index][1].begun and self._errands:
                return None  # its process died once: it runs alone, as soon as the others have ended
            self._turn = (self._turn + step + 1) % len(lanes)
            return self._taken(lane, index)
        return None

    @property
    def _is_full(self) -> bool:
        """Enough records have been looked at, and have not reached the algorithm."""
        is_queue_full = self._queued >= max(2, self._slots)
        return is_queue_full or self._aside >= LANE_RECORDS or self.unqueued_bytes >= WAITING_BYTES

    def _next_in(self, lane: Lane) -> int | None:
        for index, (record, _) in enumerate(lane.waiting):
            if not lane.claim.ledger.may_begin(record.offset):
                return None
            if not (self._order_by_key and (record.partition, record.key) in self._busy_keys):
                return index
        return None

    def _taken(self, lane: Lane, index: int) -> Errand:
        record, delivered = lane.take(index)
        errand = Errand(self, lane, record, delivered)
        self._errands.add(errand)
        lane.errands.add(errand)
        self._queued += 1
        if delivered.begun:
            self._alone = errand
        if record.key is not None:
            self._busy_keys.add((record.partition, record.key))
        if lane.is_paused and len(lane.waiting) <= LANE_RECORDS // 2 and lane.size <= self._lane_bytes() // 2:
            lane.is_paused = False
            self._polling.resume([record.partition])
        return errand

    def _lane_bytes(self) -> int:
        """Bytes that may wait in one lane; one record more is no matter."""
        return WAITING_BYTES // max(1, len(self._lanes))

    @property
    def waiting(self) -> int:
        """How many records wait in the lanes."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    # --- the polling thread's listener

    @property
    def is_busy(self) -> bool:
        """See Listener."""
        return bool(self._errands)

    def assigned(self, assigned: Assigned) -> None:
        """See Listener."""
        ledger = Ledger(assigned.offset, assigned.metadata)
        claim = Claim(assigned.partition, assigned.number, ledger)
        self._claims.add(claim)
        self._lanes[assigned.partition] = Lane(claim)
        PARTITION_CHANGES.labels("assigned").inc()
        log.info("partition assigned", partition=assigned.partition, offset=assigned.offset)

    def received(self, records: Sequence[Record]) -> Sequence[int]:
        """See Listener."""
        full: list[int] = []
        for record in records:
            lane = self._lanes.get(record.partition)
            if lane is None or self._is_closed:
                continue
            delivered = lane.claim.ledger.deliver(record.offset)
            if delivered.is_done:
                SKIPPED_RECORDS.labels("done").inc()
                self.desk.committer.note_begun()
                continue
            REDELIVERIES.inc(delivered.begun > 0)
            lane.put(record, delivered)
            if not lane.is_paused and (len(lane.waiting) >= LANE_RECORDS or lane.size > self._lane_bytes()):
                lane.is_paused = True
                full.append(record.partition)
        self._wake.set()
        return full

    async def revoked(self, partitions: Sequence[int]) -> None:
        """See Listener. Running jobs get their grace; the rest is given back at once."""
        leaving = self._pop_lanes(partitions)
        errands = {errand for lane in leaving for errand in lane.errands}
        PARTITION_CHANGES.labels("revoked").inc(len(leaving))
        log.info("partitions are taken away", partitions=list(partitions), running=len(errands))
        for errand in errands:
            errand.end(EndReason.REVOKED, only_queued=True)
        # While the daemon stops, too: another member may come before the running jobs' last grace is over.
        with trio.move_on_after(self._grace):
            await _wait_over(errands)
        for errand in errands & self._errands:
            errand.end(EndReason.REVOKED)
        with trio.move_on_after(SETTLE_SECONDS):
            await _wait_over(errands)
            await self.desk.committer.wait_clean(partitions)
        self._let_go(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """See Listener."""
        leaving = self._pop_lanes(partitions)
        errands = {errand for lane in leaving for errand in lane.errands}
        PARTITION_CHANGES.labels("lost").inc(len(leaving))
        log.warning("partitions are lost", partitions=list(partitions), running=len(errands))
        self._let_go(partitions)
        for errand in errands:
            errand.end(EndReason.REVOKED)

    def _pop_lanes(self, partitions: Collection[int]) -> list[Lane]:
        lanes = [self._lanes.pop(partition) for partition in partitions if partition in self._lanes]
        for lane in lanes:
            lane.waiting.clear()
        return lanes

    def _let_go(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            self._claims.remove(partition)
        self.desk.committer.drop(partitions)


async def _wait_over(errands: Collection[Errand]) -> None:
    for errand in errands:
        await errand.over.wait()


def _size(record: Record) -> int:
    return len(record.value or b"") + len(record.key or b"")


def _text(record: Record, header: str) -> str | None:
    """A header as text, if there is one that an HTTP header can hold: short, printable, ASCII."""
    value = record.header(header)
    if not value or len(value) > LONGEST_TASK_ID:
        return None
    text = value.decode("latin-1").strip(" ")
    return text if text.isascii() and text.isprintable() else None


def _with_task_id(subject: Subject, value: bytes) -> Subject:
    """The task id of a request that may be refused yet, if one can be read: its FAILED goes under it."""
    if b"taskId" not in value:
        return subject
    try:
        # With a hook in Python, a large one lets other threads go on.
        task_id = json.loads(value, object_hook=lambda found: found)["technicalMetadata"]["taskId"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return subject
    is_one = isinstance(task_id, str | int) or (isinstance(task_id, float) and math.isfinite(task_id))
    if not is_one or isinstance(task_id, bool) or not 0 < len(str(task_id)) <= LONGEST_TASK_ID:
        return subject
    return replace(subject, task_id=task_id)
