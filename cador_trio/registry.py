"""The jobs this process knows: their states, progress, results, and how to cancel them.

What the HTTP door, health and metrics read, and the only place that moves a job from state to state. Finished jobs are
kept for a while, bounded in number, time and bytes; running ones always.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

import trio

from cador_trio.errors import CadorError, Conflict, NotFound
from cador_trio.job import (
    LEGAL_MOVES,
    Attempt,
    EndReason,
    GivenBack,
    Job,
    JobState,
    Outcome,
    Product,
    Result,
    Succeeded,
)

EXPIRY_CHECK_SECONDS = 10.0  # how late an expired job may go
LEAST_EXPIRY_CHECK_SECONDS = 1.0  # a history of milliseconds is no reason to wake up all the time


class JobRecord:
    """One job's life, as others see it."""

    def __init__(self, job: Job, accepted_at: float, now_ms: Callable[[], int], idempotency_key: str | None) -> None:
        self.job = job
        self.idempotency_key = idempotency_key
        self.accepted_at = accepted_at  # trio's clock, for the deadline
        self.state = JobState.ACCEPTED
        self.progress = 0
        self.outcome: Outcome | None = None
        self.modified_at = job.received_at  # epoch ms
        self.started_at: int | None = None
        self.end_reason: EndReason | None = None
        self.ended = trio.Event()
        self.failed_attempts: list[Attempt] = []
        # Called at every change of state or progress, in the task that makes it; must neither wait nor fail.
        self.on_change: Callable[[JobRecord], None] = _tell_nobody
        self._now_ms = now_ms
        self._changed = trio.Event()
        self.readers = 0  # callers that wait for the results
        self.results_gone = False  # there were some, and they are deleted or were let go of
        self.has_lost_results = False  # some were deleted, or history has let go of them
        # Called once when the job no longer waits: its body stops counting as waiting.
        self.leave_queue: Callable[[], None] = _do_nothing
        self._scope: trio.CancelScope | None = None
        self._sealed = False

    @property
    def product(self) -> Product | None:
        """The results, while we have them."""
        return self.outcome.product if isinstance(self.outcome, Succeeded) else None

    @property
    def duration(self) -> int:
        """Milliseconds from RUNNING to the end, or to now; 0 before."""
        if self.started_at is None:
            return 0
        return max(0, (self.modified_at if self.ended.is_set() else self._now_ms()) - self.started_at)

    def attach(self, scope: trio.CancelScope) -> None:
        """The scope that the job runs in; a cancellation that came before takes effect now."""
        self._scope = scope
        if self.end_reason is not None:
            scope.cancel(self.end_reason)

    def cancel(self, reason: EndReason) -> None:
        """End the job for this reason; the first reason stands. Returns at once: wait for `ended`.

        Raises:
            Conflict: it has ended, or its outcome is already on its way out.
        """
        if self.ended.is_set() or self._sealed:
            raise Conflict(f"the job is past the point of no return: {self.state}", hint="read its status and results")
        if self.end_reason is None:
            self.end_reason = reason
            if self._scope is not None:
                self._scope.cancel(reason)

    def seal(self) -> None:
        """The point of no return."""
        self._sealed = True

    def run(self) -> None:
        """Handed to the algorithm; a second attempt changes nothing."""
        if self.state is JobState.ACCEPTED and not self.ended.is_set():
            self.started_at = self._now_ms()
            self._move(JobState.RUNNING)
            self.leave_queue()

    def report_progress(self, percent: int) -> None:
        """What the algorithm says of its progress; never goes back."""
        percent = max(0, min(99, percent))
        if percent > self.progress and self.state is JobState.RUNNING and not self.ended.is_set():
            self.progress = percent
            self._touch()

    def note_attempt(self, error: CadorError) -> None:
        """A try at the algorithm has failed; another one follows."""
        self.failed_attempts.append(Attempt(self._now_ms(), error.message))

    def end(self, outcome: Outcome) -> None:
        """The job's one end. Its payload is let go of."""
        if self.ended.is_set():
            raise RuntimeError(f"a job can't end twice: it is {self.state}")
        if isinstance(outcome, GivenBack):
            self._touch()  # whoever watches learns that nothing more comes
        else:
            if isinstance(outcome, Succeeded):
                self.progress = 100
            self._move(outcome.state)
        self.outcome = outcome
        self.job = self.job.without_payload()
        self.leave_queue()
        # What ran the job goes now: history is long, and would keep the request itself alive through these.
        self.on_change, self.leave_queue, self._scope = _tell_nobody, _do_nothing, None
        self.ended.set()

    async def wait_change(self, seen: tuple[JobState, int]) -> tuple[JobState, int]:
        """(state, progress) as soon as it differs from `seen`, or the job has ended."""
        while (self.state, self.progress) == seen and not self.ended.is_set():
            await self._changed.wait()
        return self.state, self.progress

    def _move(self, state: JobState) -> None:
        if state not in LEGAL_MOVES[self.state]:
            raise RuntimeError(f"a job can't go from {self.state} to {state}")
        self.state = state
        self._touch()

    def _touch(self) -> None:
        self.modified_at = max(self.modified_at, self._now_ms())
        self._changed.set()
        self._changed = trio.Event()
        self.on_change(self)


def _tell_nobody(_: JobRecord) -> None:
    """Nobody wants to know."""


def _do_nothing() -> None:
    """Nothing is to be done."""


class Registry:
    """All jobs of this process, by id; the oldest first."""

    def __init__(self, *, history: int, history_seconds: float, history_bytes: int, now_ms: Callable[[], int]) -> None:
        self._history = history
        self._history_seconds = history_seconds
        self._history_bytes = history_bytes
        self._now_ms = now_ms
        self._records: dict[UUID, JobRecord] = {}
        self._finished: dict[UUID, float] = {}  # when, in the order of their ends
        self._kept_bytes = 0
        self._keys: dict[str, UUID] = {}
        self._turns: dict[str, tuple[trio.Lock, int]] = {}

    def add(self, job: Job, idempotency_key: str | None = None) -> JobRecord:
        """Take a job in; from now on it is listed and can be cancelled."""
        if (known := self._records.get(job.job_id)) is not None:
            if not known.ended.is_set():
                raise RuntimeError("a job with this id runs here already")
            self.remove(known)  # delivered again
        record = JobRecord(job, trio.current_time(), self._now_ms, idempotency_key)
        self._records[job.job_id] = record
        if idempotency_key is not None:
            self._keys[idempotency_key] = job.job_id
        return record

    def get(self, job_id: str) -> JobRecord:
        """The job of this id.

        Raises:
            NotFound: unknown here, or forgotten.
        """
        try:
            return self._records[UUID(job_id)]
        except (ValueError, KeyError):
            raise NotFound(
                f"no job {job_id[:60]!r} here", hint="jobs are known to the process that runs them, for a while"
            ) from None

    def find(self, job_id: UUID) -> JobRecord | None:
        """The job of this id, if it is known here."""
        return self._records.get(job_id)

    def by_idempotency_key(self, key: str) -> JobRecord | None:
        """The job that was posted with this `Idempotency-Key`, if it is still known."""
        job_id = self._keys.get(key)
        return None if job_id is None else self._records.get(job_id)

    def newest_first(self, state: JobState | None = None) -> list[JobRecord]:
        """All jobs, or those in one state."""
        return [record for record in reversed(self._records.values()) if state is None or record.state is state]

    def unfinished(self) -> list[JobRecord]:
        """Jobs that have not ended."""
        return [record for record in self._records.values() if not record.ended.is_set()]

    def oldest_unfinished(self) -> JobRecord | None:
        """The one that was taken in first of those that have not ended."""
        return next((record for record in self._records.values() if not record.ended.is_set()), None)

    async def wait_all_ended(self) -> None:
        """Return once no job runs; more may come meanwhile, unless the doors are closed."""
        while running := self.unfinished():
            await running[0].ended.wait()

    def end(self, record: JobRecord, outcome: Outcome) -> None:
        """The job has ended: into history it goes, or out of memory if it was given back."""
        record.end(outcome)
        if isinstance(outcome, GivenBack):
            self._forget(record)
            return
        self._finished[record.job.job_id] = trio.current_time()
        if record.product is not None:
            self._kept_bytes += record.product.size
        self.trim()

    def drop_results(self, record: JobRecord) -> None:
        """Its results are no longer wanted; its status stays. Harmless when there are none."""
        if record.product is not None and record.product.outputs:
            self._kept_bytes -= record.product.size
            record.product.close()
            record.outcome = Succeeded(Product(outputs={}))
            record.results_gone = True
            record.has_lost_results = True

    def drop_result(self, record: JobRecord, result: Result) -> None:
        """One result is no longer wanted. Harmless when it is gone."""
        if record.product is None or not any(kept is result for kept in record.product.results):
            return
        if result.body is not None:
            self._kept_bytes -= result.body.size
            result.body.close()
        record.outcome = Succeeded(record.product.without(result))
        record.has_lost_results = True

    def remove(self, record: JobRecord) -> None:
        """Forget a finished job."""
        self.drop_results(record)
        self._finished.pop(record.job.job_id, None)
        self._forget(record)

    @contextmanager
    def held(self, record: JobRecord) -> Iterator[None]:
        """Its results stay while this block waits for them or opens them, whatever history's bounds say."""
        record.readers += 1
        try:
            yield
        finally:
            record.readers -= 1
            self.trim()

    def trim(self) -> None:
        """Let go of jobs that are too old or too many, and of results that are too much, the oldest end first.

        Not of what somebody waits for; and the newest results stay whatever their size, since otherwise nobody could
        ever fetch them: the spool's own bound stands above.
        """
        while (record := self._first_to_go()) is not None:
            self.remove(record)
        if self._kept_bytes > self._history_bytes:
            for record in self._with_idle_results()[:-1]:
                if self._kept_bytes <= self._history_bytes:
                    break
                self.drop_results(record)

    def _first_to_go(self) -> JobRecord | None:
        """The oldest job that time or number push out; looked for at every end of a job, so nothing is copied."""
        oldest_allowed = trio.current_time() - self._history_seconds
        for job_id, ended_at in self._finished.items():
            if ended_at >= oldest_allowed and len(self._finished) <= self._history:
                return None
            if not self._records[job_id].readers:
                return self._records[job_id]
        return None

    def make_room(self, size: int) -> None:
        """Drop the results of finished jobs, the oldest first, until `size` bytes are free again or none is left."""
        for record in self._with_idle_results():
            if size <= 0:
                break
            size -= 0 if record.product is None else record.product.size
            self.drop_results(record)

    def _with_idle_results(self) -> list[JobRecord]:
        """Finished jobs with bytes in the spool that nobody waits for, the oldest end first."""
        finished = (self._records[job_id] for job_id in self._finished)
        return [record for record in finished if not record.readers and record.product and record.product.size]

    async def expire(self) -> None:
        """Trim history while nothing happens; runs until cancelled."""
        while True:
            await trio.sleep(max(LEAST_EXPIRY_CHECK_SECONDS, min(EXPIRY_CHECK_SECONDS, self._history_seconds)))
            self.trim()

    @asynccontextmanager
    async def turn(self, task_name: str) -> AsyncIterator[None]:
        """Two jobs with one task id would write the same objects: they go one after the other."""
        lock, users = self._turns.get(task_name, (trio.Lock(), 0))
        self._turns[task_name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(task_name)
            if users > 1:
                self._turns[task_name] = (lock, users - 1)

    def is_turn_taken(self, task_name: str) -> bool:
        """Would a job with this task id have to wait for another one?"""
        return task_name in self._turns

    def _forget(self, record: JobRecord) -> None:
        del self._records[record.job.job_id]
        if record.idempotency_key is not None and self._keys.get(record.idempotency_key) == record.job.job_id:
            del self._keys[record.idempotency_key]
