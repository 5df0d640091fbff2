"""Who may run when: slots at the algorithm, the doors' shares of them, what is unfinished, what waits.

Knows jobs only as numbers. A slot counts work at the algorithm from dispatch to the last byte of its answer; work that
its job has left (a timeout, a cancellation) keeps the slot until the algorithm is free again. What comes after the
algorithm goes on without a slot, bounded by the number of unfinished jobs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import outcome
import structlog
import trio

from cador_trio.errors import CadorError, NotNow
from cador_trio.job import Door

T = TypeVar("T")
C = TypeVar("C")

log = structlog.get_logger(__name__)

DOORS: Final[tuple[Door, ...]] = ("http", "kafka")
RECENT_DURATIONS = 20  # jobs whose mean duration Retry-After is computed from
FIRST_GUESS_SECONDS = 5.0  # Retry-After before any job has ended


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The operator's bounds: settings.py says what each means. `linger_seconds` bounds work that its job has left."""

    unfinished: int
    http_share: float
    waiting: int
    waiting_bytes: int
    linger_seconds: float


def next_door(
    waiting: Mapping[Door, int], in_use: Mapping[Door, int], limit: int, share: float, last: Door
) -> Door | None:
    """The door whose job gets the free slot: pure, so that the policy can be read and tested on its own.

    HTTP goes first up to its share of the slots, at least one; with a single slot the doors alternate. A share that
    nobody asks for is the other door's.
    """
    wanting = [door for door in DOORS if waiting[door]]
    if len(wanting) < len(DOORS):
        return wanting[0] if wanting else None
    if limit == 1:
        return "kafka" if last == "http" else "http"
    # A tenth of ten slots is one, whatever binary fractions make of it.
    return "http" if in_use["http"] < max(1, math.floor(share * limit + 1e-9)) else "kafka"


class Exchange:
    """One piece of work at the algorithm, seen from inside.

    Its job can leave it (`abandoned`): then it is cancelled at once, but for what it does inside `masked`, since an
    algorithm that can't cancel goes on whether we listen or not.
    """

    def __init__(self, linger_seconds: float) -> None:
        self.abandoned = False
        self._linger_seconds = linger_seconds
        self._scope = trio.CancelScope()
        self._mask = trio.CancelScope(shield=True)
        self._last_words = 0.0  # seconds that the current mask may still take when the daemon stops
        self._ended = False

    async def masked(self, work: Callable[[], Awaitable[T]], *, last_words: float = 0.0) -> T:
        """Do this piece of the work even after the job has left, for a bounded time. Only then is it cancelled.

        `last_words`: seconds that it may still take when the daemon stops.
        """
        self._mask = trio.CancelScope(shield=True)
        self._last_words = last_words
        self._bound_mask()
        with self._mask:
            return await work()
        return await trio.sleep_forever()  # the mask has fallen, so everything around it is cancelled

    def abandon(self, reason: str) -> None:
        """The job has left."""
        self.abandoned = True
        self._bound_mask()
        self._scope.cancel(reason)

    def end(self, reason: str) -> None:
        """The daemon stops: nothing goes on but last words."""
        self._ended = True
        self._bound_mask()
        self._scope.cancel(reason)

    def _bound_mask(self) -> None:
        if self._ended or self.abandoned:
            seconds = self._last_words if self._ended else self._linger_seconds
            self._mask.deadline = min(self._mask.deadline, trio.current_time() + seconds)


@dataclass(frozen=True, eq=False)
class Slot(Generic[C]):
    """One place at the algorithm, with the connection that belongs to it."""

    connection: C


class Dispatch(Generic[C]):
    """A job's permit: a slot first, then a place among the unfinished until it settles."""

    def __init__(self, capacity: Capacity[C], door: Door, slot: Slot[C]) -> None:
        self._capacity = capacity
        self._door = door
        self._slot: Slot[C] | None = slot

    async def at_algorithm(self, work: Callable[[C, Exchange], Awaitable[T]], dispose: Callable[[T], None]) -> T:
        """Run `work` in the slot and give the slot back when it ends.

        Cancelling leaves the work: it ends at once where it can, keeps the slot where it can't, and what it still
        yields is disposed of. Errors of `work` come out here.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # the algorithm is not asked for what nobody wants any more
        slot, self._slot = self._slot, None
        if slot is None:
            raise RuntimeError("a dispatch is good for one visit at the algorithm")
        return await self._capacity.visit(self._door, slot, work, dispose)

    def close(self) -> None:
        """Settled, or it never got that far."""
        if self._slot is not None:
            self._capacity.free(self._door, self._slot)
            self._slot = None
        self._capacity.settled()


class BytesReservation:
    """What one waiting job takes up: the bytes of its body from the first chunk on, then one of the waiting places."""

    def __init__(self, capacity: Capacity[Any]) -> None:
        self._capacity = capacity
        self._size = 0
        self._has_place = False

    def grow(self, size: int) -> None:
        """Count this many more.

        Raises:
            NotNow: more than `CADOR_MAX_WAITING_BYTES` would wait.
        """
        self._capacity.count_waiting_bytes(size)
        self._size += size

    def take_place(self) -> None:
        """Wait for a slot from now on, or for whatever comes before it.

        Raises:
            NotNow: no slot is free and all `CADOR_MAX_WAITING_JOBS` places are taken; with the seconds after which one
                should be free.
        """
        self._capacity.take_waiting_place()
        self._has_place = True

    def release(self) -> None:
        """The job no longer waits: it runs, or it has ended. Harmless a second time."""
        self._capacity.count_waiting_bytes(-self._size)
        self._size = 0
        if self._has_place:
            self._has_place = False
            self._capacity.leave_waiting_place()


@dataclass(frozen=True)
class CapacityFigures:
    """What health and metrics say about capacity."""

    slots: int
    in_use: int
    unfinished: int
    unfinished_limit: int
    waiting: Mapping[Door, int]
    waiting_bytes: int


class Capacity(Generic[C]):
    """The one limiter for all doors. Made by `open_capacity`."""

    def __init__(self, connections: list[C], limits: Limits, work_nursery: trio.Nursery) -> None:
        self._free = [Slot(connection) for connection in connections]
        self._slots = len(connections)
        self._limits = limits
        self._work_nursery = work_nursery
        self._exchanges: set[Exchange] = set()
        self._in_use: dict[Door, int] = dict.fromkeys(DOORS, 0)
        self._waiters: dict[Door, deque[_Waiter[C]]] = {door: deque() for door in DOORS}
        self._unfinished = 0
        self._waiting_bytes = 0
        self._taken_places = 0
        self._last_door: Door = "kafka"
        self._durations: deque[float] = deque(maxlen=RECENT_DURATIONS)

    def figures(self) -> CapacityFigures:
        """A snapshot."""
        return CapacityFigures(
            slots=self._slots,
            in_use=sum(self._in_use.values()),
            unfinished=self._unfinished,
            unfinished_limit=self._limits.unfinished,
            waiting={door: len(waiters) for door, waiters in self._waiters.items()},
            waiting_bytes=self._waiting_bytes,
        )

    def reserve_bytes(self) -> BytesReservation:
        """For a body that will wait in memory; nothing is counted yet."""
        return BytesReservation(self)

    def count_waiting_bytes(self, size: int) -> None:
        """See `BytesReservation.grow`."""
        if size > 0 and self._waiting_bytes + size > self._limits.waiting_bytes:
            raise NotNow(
                "too many request bodies are waiting, try again later",
                hint=f"{self._waiting_bytes} bytes of CADOR_MAX_WAITING_BYTES={self._limits.waiting_bytes} are taken",
                retry_after=self.retry_after(),
            )
        self._waiting_bytes += size

    def take_waiting_place(self) -> None:
        """See `BytesReservation.take_place`. Counted from admission on, since a job may wait for more than a slot."""
        ready_slots = min(len(self._free), self._limits.unfinished - self._unfinished)
        if self._taken_places >= ready_slots + self._limits.waiting:
            raise NotNow(
                "all processing slots are taken, try again later",
                hint=f"{sum(self._in_use.values())} running, {self._taken_places} waiting",
                retry_after=self.retry_after(),
            )
        self._taken_places += 1

    def leave_waiting_place(self) -> None:
        """See `BytesReservation.release`."""
        self._taken_places -= 1

    def retry_after(self) -> float:
        """Seconds until a newcomer would get a slot, from what recent jobs took; at least 1."""
        mean = sum(self._durations) / len(self._durations) if self._durations else FIRST_GUESS_SECONDS
        ahead = max(self._taken_places, sum(len(waiters) for waiters in self._waiters.values())) + 1
        return max(1.0, mean * ahead / self._slots)

    @asynccontextmanager
    async def dispatch(self, door: Door) -> AsyncIterator[Dispatch[C]]:
        """Wait for a slot; the permit holds until the block ends. Cancelling while waiting gives the place up."""
        dispatch = Dispatch(self, door, await self._wait_slot(door))
        try:
            yield dispatch
        finally:
            dispatch.close()

    async def visit(
        self, door: Door, slot: Slot[C], work: Callable[[C, Exchange], Awaitable[T]], dispose: Callable[[T], None]
    ) -> T:
        """See `Dispatch.at_algorithm`."""
        visit = _Visit(Exchange(self._limits.linger_seconds), work, dispose)
        self._exchanges.add(visit.exchange)
        self._work_nursery.start_soon(self._host, door, slot, visit)
        try:
            await visit.ended.wait()
        except trio.Cancelled:
            visit.leave("its job has left")
            raise
        return visit.result()

    async def _host(self, door: Door, slot: Slot[C], visit: _Visit[C, T]) -> None:
        started = trio.current_time()
        try:
            await visit.run(slot.connection)
        finally:
            self._exchanges.discard(visit.exchange)
            self._durations.append(trio.current_time() - started)
            self.free(door, slot)

    def free(self, door: Door, slot: Slot[C]) -> None:
        """The slot is free again."""
        self._in_use[door] -= 1
        self._free.append(slot)
        self._hand_out()

    def settled(self) -> None:
        """One job fewer is unfinished."""
        self._unfinished -= 1
        self._hand_out()

    def end_all(self, reason: str) -> None:
        """The daemon stops: leftover work at the algorithm is dropped."""
        for exchange in self._exchanges:
            exchange.end(reason)

    async def _wait_slot(self, door: Door) -> Slot[C]:
        waiter: _Waiter[C] = _Waiter()
        self._waiters[door].append(waiter)
        self._hand_out()
        try:
            await waiter.granted.wait()
        except trio.Cancelled:
            if waiter.slot is None:
                self._waiters[door].remove(waiter)
            else:  # granted in the same moment
                self.free(door, waiter.slot)
                self.settled()
            raise
        if waiter.slot is None:
            raise RuntimeError("granted without a slot")
        return waiter.slot

    def _hand_out(self) -> None:
        while self._free and self._unfinished < self._limits.unfinished:
            waiting = {door: len(waiters) for door, waiters in self._waiters.items()}
            door = next_door(waiting, self._in_use, self._slots, self._limits.http_share, self._last_door)
            if door is None:
                return
            self._last_door = door
            self._in_use[door] += 1
            self._unfinished += 1
            # The connection used last is the one most likely to be still open.
            self._waiters[door].popleft().grant(self._free.pop())


class _Waiter(Generic[C]):
    def __init__(self) -> None:
        self.granted = trio.Event()
        self.slot: Slot[C] | None = None

    def grant(self, slot: Slot[C]) -> None:
        self.slot = slot
        self.granted.set()


class _Visit(Generic[C, T]):
    """Work on its way in a task of the slots; the job waits for it, or has left."""

    def __init__(
        self, exchange: Exchange, work: Callable[[C, Exchange], Awaitable[T]], dispose: Callable[[T], None]
    ) -> None:
        self.exchange = exchange
        self.ended = trio.Event()
        self._work = work
        self._dispose = dispose
        self._outcome: outcome.Value[T] | outcome.Error | None = None

    async def run(self, connection: C) -> None:
        with self.exchange._scope:  # noqa: SLF001 - Exchange is this module's
            try:
                self._outcome = outcome.Value(await self._work(connection, self.exchange))
            except Exception as error:  # unwrapped in the job's task
                self._outcome = outcome.Error(error)
        self.ended.set()
        if self.exchange.abandoned:
            self._drop()

    def leave(self, reason: str) -> None:
        self.exchange.abandon(reason)
        if self.ended.is_set():
            self._drop()

    def result(self) -> T:
        if self._outcome is None:
            raise NotNow("the daemon is stopping")
        return self._outcome.unwrap()

    def _drop(self) -> None:
        match self._outcome:
            case outcome.Value(value):
                self._dispose(value)
            case outcome.Error(CadorError() as error):
                log.info("work that its job had left failed", reason=error.message)
            case outcome.Error(error):
                log.error("work that its job had left failed for a reason that nobody thought of", exc_info=error)
        self._outcome = None


@asynccontextmanager
async def open_capacity(connections: list[C], limits: Limits) -> AsyncIterator[Capacity[C]]:
    """Slots over these connections (one each); work that was left behind ends with the block."""
    async with trio.open_nursery() as work_nursery:
        capacity = Capacity(connections, limits, work_nursery)
        try:
            yield capacity
        finally:
            capacity.end_all("the daemon stops")
