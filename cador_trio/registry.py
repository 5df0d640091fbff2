"""The jobs this process knows: their states, progress, results, and how to cancel them.

What the HTTP door, health and metrics read, and the only place that moves a job from state to state. Finished jobs are
kept for a while, bounded in number, time and bytes; running ones always.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import trio

from cador_trio.errors import Conflict, NotFound
from cador_trio.job import LEGAL_MOVES, EndReason, GivenBack, Job, JobState, Outcome, Product, Result, Succeeded

EXPIRY_CHECK_SECONDS = 10.0  # how late an expired job may go


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
        self._now_ms = now_ms
        self._changed = trio.Event()
        # Called once when the job no longer waits: its body stops counting as waiting.
        self.leave_queue: Callable[[], None] = lambda: None
        self._scope: trio.CancelScope | None = None
        self._sealed = False

    @property
    def product(self) -> Product | None:
        """The results, while we have them."""
        return self.outcome.product if isinstance(self.outcome, Succeeded) else None

    @property
    def duration(self) -> int:
        """Milliseconds from RUNNING to the last change; 0 before."""
        return 0 if self.started_at is None else max(0, self.modified_at - self.started_at)

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
        if self.state.is_terminal or self._sealed:
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
        if self.state is JobState.ACCEPTED:
            self.started_at = self._now_ms()
            self._move(JobState.RUNNING)
            self.leave_queue()

    def report_progress(self, percent: int) -> None:
        """What the algorithm says of its progress; never goes back."""
        percent = max(0, min(99, percent))
        if percent > self.progress and self.state is JobState.RUNNING:
            self.progress = percent
            self._touch()

    def end(self, outcome: Outcome) -> None:
        """The job's one end."""
        self.outcome = outcome
        if not isinstance(outcome, GivenBack):
            if isinstance(outcome, Succeeded):
                self.progress = 100
            self._move(outcome.state)
        self.leave_queue()
        self.ended.set()

    async def wait_change(self, seen: tuple[JobState, int]) -> tuple[JobState, int]:
        """(state, progress) as soon as it differs from `seen`."""
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

    def drop_result(self, record: JobRecord, result: Result) -> None:
        """One result is no longer wanted."""
        if record.product is None:
            return
        if result.body is not None:
            self._kept_bytes -= result.body.size
            result.body.close()
        record.outcome = Succeeded(record.product.without(result))

    def remove(self, record: JobRecord) -> None:
        """Forget a finished job."""
        self.drop_results(record)
        self._finished.pop(record.job.job_id, None)
        self._forget(record)

    def trim(self) -> None:
        """Let go of what is too old, too much or too many, the oldest end first."""
        oldest_allowed = trio.current_time() - self._history_seconds
        for job_id, ended_at in list(self._finished.items()):
            if (
                ended_at >= oldest_allowed
                and len(self._finished) <= self._history
                and self._kept_bytes <= self._history_bytes
            ):
                break
            self.remove(self._records[job_id])

    def make_room(self, size: int) -> None:
        """Drop the results of finished jobs, the oldest first, until `size` bytes are free again or none is left."""
        for job_id in self._finished:
            if size <= 0:
                break
            record = self._records[job_id]
            if record.product is not None:
                size -= record.product.size
                self.drop_results(record)

    async def expire(self) -> None:
        """Trim history while nothing happens; runs until cancelled."""
        while True:
            await trio.sleep(min(EXPIRY_CHECK_SECONDS, self._history_seconds))
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

    def _forget(self, record: JobRecord) -> None:
        del self._records[record.job.job_id]
        if record.idempotency_key is not None:
            self._keys.pop(record.idempotency_key, None)
