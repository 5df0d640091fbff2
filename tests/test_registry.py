"""The jobs that a process knows: their moves, what is told of them, and how history lets go of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.errors import AlgorithmFailed, Conflict, NotFound
from cador_trio.job import (
    LEGAL_MOVES,
    Cancelled,
    EndReason,
    Failed,
    GivenBack,
    JobState,
    Outcome,
    Product,
    Result,
    Succeeded,
)
from cador_trio.registry import EXPIRY_CHECK_SECONDS, JobRecord, Registry
from cador_trio.spool import Spool, SpooledBody
from tests.doubles import EPOCH_MS, make_job

FAILED = Failed(AlgorithmFailed("no water"))
CANCELLED = Cancelled(EndReason.CALLER_CANCELLED)
EMPTY = Succeeded(Product({}))


class Clock:
    """Epoch milliseconds as the test wants them."""

    def __init__(self) -> None:
        self.now = EPOCH_MS

    def __call__(self) -> int:
        return self.now


def make_registry(
    *,
    history: int = 100,
    history_seconds: float = 1e9,
    history_bytes: int = 10**9,
    now_ms: Callable[[], int] = lambda: EPOCH_MS,
) -> Registry:
    return Registry(history=history, history_seconds=history_seconds, history_bytes=history_bytes, now_ms=now_ms)


def succeeded(spool: Spool, *sizes: int) -> Succeeded:
    """A product with results of these sizes, called r0, r1, …"""
    results: dict[str, Result | tuple[Result, ...]] = {}
    for number, size in enumerate(sizes):
        spool.used += size
        body = SpooledBody(spool, b"x" * size, size, "")
        results[f"r{number}"] = Result(f"r{number}", f"r{number}", None, "text/plain", body)
    return Succeeded(Product(results))


def ended(registry: Registry, outcome: Outcome) -> JobRecord:
    record = registry.add(make_job())
    registry.end(record, outcome)
    return record


def sizes_kept(records: list[JobRecord]) -> list[int]:
    return [0 if record.product is None else record.product.size for record in records]


# --- Moves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", JobState)
def test_the_table_of_moves(state: JobState) -> None:
    """ACCEPTED may end without running, nothing leads back, and nothing leads out of an end."""
    ends = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    expected = {JobState.ACCEPTED: ends | {JobState.RUNNING}, JobState.RUNNING: ends}
    assert LEGAL_MOVES[state] == expected.get(state, set())
    assert state.is_terminal is (state in ends)


async def test_a_job_runs_once() -> None:
    """A second attempt at the algorithm is no second start."""
    clock = Clock()
    record = make_registry(now_ms=clock).add(make_job())
    clock.now += 10
    record.run()
    clock.now += 10
    record.run()
    assert record.started_at == EPOCH_MS + 10
    assert record.state is JobState.RUNNING


@pytest.mark.parametrize("first", [FAILED, CANCELLED, EMPTY, GivenBack(EndReason.REVOKED)])
@pytest.mark.parametrize("second", [FAILED, CANCELLED, EMPTY, GivenBack(EndReason.REVOKED)])
async def test_a_job_ends_once(first: Outcome, second: Outcome) -> None:
    """A second end is a mistake of ours, and the first stands."""
    record = make_registry().add(make_job())
    record.end(first)
    state = record.state
    with pytest.raises(RuntimeError, match="can't end twice"):
        record.end(second)
    assert (record.outcome, record.state) == (first, state)


@pytest.mark.parametrize("outcome", [FAILED, CANCELLED, EMPTY, GivenBack(EndReason.REVOKED)])
async def test_nothing_moves_after_the_end(outcome: Outcome) -> None:
    """Work that lingers at the algorithm still reports; nobody listens any more."""
    record = make_registry().add(make_job())
    record.end(outcome)
    before = (record.state, record.progress, record.modified_at, record.started_at)
    record.run()
    record.report_progress(50)
    assert (record.state, record.progress, record.modified_at, record.started_at) == before


async def test_progress_never_goes_back_and_is_done_only_at_the_end() -> None:
    """Whatever the algorithm says: 0 to 99 while running, 100 when succeeded."""
    record = make_registry().add(make_job())
    record.report_progress(20)
    assert record.progress == 0  # not before it runs
    record.run()
    seen = []
    for percent in (-5, 10, 5, 120, 50):
        record.report_progress(percent)
        seen.append(record.progress)
    assert seen == [0, 10, 10, 99, 99]
    record.end(EMPTY)
    assert record.progress == 100


@given(st.lists(st.tuples(st.sampled_from(["run", "progress", "end"]), st.integers(-1_000, 1_000)), max_size=20))
def test_modified_at_never_decreases(steps: list[tuple[str, int]]) -> None:
    """Not even when the system's clock is set back; and a duration is never negative."""

    async def live() -> None:
        clock = Clock()
        record = make_registry(now_ms=clock).add(make_job())
        last = record.modified_at
        for number, (step, change) in enumerate(steps):
            clock.now += change
            if step == "run":
                record.run()
            elif step == "progress":
                record.report_progress(number)
            elif not record.ended.is_set():
                record.end(FAILED)
            assert record.modified_at >= last
            assert record.duration >= 0
            last = record.modified_at

    trio.run(live)


async def test_the_duration_runs_from_running_to_the_end() -> None:
    """Milliseconds: none before it runs, growing while it runs, fixed at the end."""
    clock = Clock()
    record = make_registry(now_ms=clock).add(make_job())
    clock.now += 1_000
    assert record.duration == 0
    record.run()
    clock.now += 250
    assert record.duration == 250
    record.end(EMPTY)
    clock.now += 10_000
    assert record.duration == 250


async def test_a_job_that_never_ran_has_no_duration() -> None:
    """Cancelled in the queue: it took no time of the algorithm's."""
    clock = Clock()
    record = make_registry(now_ms=clock).add(make_job())
    clock.now += 1_000
    record.end(CANCELLED)
    assert record.duration == 0


async def test_the_queue_is_left_once_the_job_runs_and_at_its_end() -> None:
    """Its waiting place is free from then on; releasing twice is the releaser's to bear."""
    left = []
    for step in ("run", "end"):
        record = make_registry().add(make_job())
        record.leave_queue = lambda step=step: left.append(step)  # type: ignore[misc] # binds it now
        record.run() if step == "run" else record.end(CANCELLED)
    assert left == ["run", "end"]


# --- Cancelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [FAILED, CANCELLED, EMPTY, GivenBack(EndReason.REVOKED)])
async def test_an_ended_job_can_not_be_cancelled(outcome: Outcome) -> None:
    """A conflict that says how it stands, 409 to a caller."""
    record = make_registry().add(make_job())
    record.end(outcome)
    with pytest.raises(Conflict, match="point of no return") as conflict:
        record.cancel(EndReason.CALLER_CANCELLED)
    assert conflict.value.http_status == 409
    assert record.end_reason is None


async def test_a_sealed_job_can_not_be_cancelled() -> None:
    """Its outcome is on its way out."""
    record = make_registry().add(make_job())
    scope = trio.CancelScope()
    record.attach(scope)
    record.seal()
    with pytest.raises(Conflict):
        record.cancel(EndReason.CALLER_CANCELLED)
    assert not scope.cancel_called


async def test_a_cancellation_before_the_job_began_takes_effect_when_it_begins() -> None:
    """It is not lost, and the first reason stands."""
    record = make_registry().add(make_job())
    record.cancel(EndReason.CALLER_LEFT)
    record.cancel(EndReason.SHUTDOWN)
    with trio.CancelScope() as scope:
        record.attach(scope)
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert record.end_reason is EndReason.CALLER_LEFT


# --- Watching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [FAILED, CANCELLED, EMPTY, GivenBack(EndReason.REVOKED)])
async def test_a_watcher_is_told_of_the_end(autojump_clock: MockClock, outcome: Outcome) -> None:
    """Whatever it saw before, and however the job ended, the wait is over; and it is over for those who come later."""
    record = make_registry().add(make_job())
    told: list[tuple[JobState, int]] = []

    async def watch() -> None:
        seen = (record.state, record.progress)
        while not record.ended.is_set():
            seen = await record.wait_change(seen)
        told.append(seen)

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await wait_all_tasks_blocked()
            record.run()
            await wait_all_tasks_blocked()
            record.end(outcome)
        assert told == [(record.state, record.progress)]
        assert await record.wait_change((record.state, record.progress)) == told[0]


async def test_a_watcher_misses_nothing_that_lasts(autojump_clock: MockClock) -> None:
    """Every state and progress that stands until the watcher looks is seen once, in order."""
    record = make_registry().add(make_job())
    seen = [(record.state, record.progress)]

    async def watch() -> None:
        while not record.ended.is_set():
            seen.append(await record.wait_change(seen[-1]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for step in (record.run, lambda: record.report_progress(30), lambda: record.report_progress(30)):
            await wait_all_tasks_blocked()
            step()
        await wait_all_tasks_blocked()
        record.end(EMPTY)
    assert seen == [("ACCEPTED", 0), ("RUNNING", 0), ("RUNNING", 30), ("SUCCEEDED", 100)]


async def test_waiting_for_all_jobs(autojump_clock: MockClock) -> None:
    """Returns when the last one has ended, at once if none runs."""
    registry = make_registry()
    with trio.fail_after(1):
        await registry.wait_all_ended()
    records = [registry.add(make_job()) for _ in range(3)]

    async def end_all() -> None:
        for seconds, record in enumerate(reversed(records), 1):
            await trio.sleep(seconds)
            registry.end(record, CANCELLED)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_all)
        await registry.wait_all_ended()
        assert registry.unfinished() == []
    assert trio.current_time() == pytest.approx(records[0].accepted_at + 6)


# --- Finding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", ["", "nonsense", str(uuid4()), "x" * 10_000, "../../etc"])
async def test_an_unknown_job_is_not_found(job_id: str) -> None:
    """404, with a short message whatever was asked for."""
    with pytest.raises(NotFound) as missing:
        make_registry().get(job_id)
    assert missing.value.http_status == 404
    assert len(missing.value.message) < 100


async def test_jobs_are_listed_newest_first() -> None:
    """All of them, or those in one state."""
    registry = make_registry()
    first, second, third = (registry.add(make_job()) for _ in range(3))
    second.run()
    registry.end(first, FAILED)
    assert registry.newest_first() == [third, second, first]
    assert registry.newest_first(JobState.ACCEPTED) == [third]
    assert registry.newest_first(JobState.FAILED) == [first]
    assert registry.unfinished() == [second, third]
    assert registry.get(str(first.job.job_id)) is first


async def test_an_idempotency_key_finds_its_job_as_long_as_it_is_known() -> None:
    """Running or finished; forgotten with the job, and free for another one then."""
    registry = make_registry()
    record = registry.add(make_job(), "key")
    assert registry.by_idempotency_key("key") is record
    assert registry.by_idempotency_key("other") is None
    registry.end(record, EMPTY)
    assert registry.by_idempotency_key("key") is record
    registry.remove(record)
    assert registry.by_idempotency_key("key") is None
    again = registry.add(make_job(), "key")
    assert registry.by_idempotency_key("key") is again


async def test_a_job_that_is_given_back_is_forgotten() -> None:
    """Its next owner tells of it; here it is no job any more, and neither is its key."""
    registry = make_registry()
    record = registry.add(make_job(door="kafka"), "key")
    registry.end(record, GivenBack(EndReason.REVOKED))
    assert registry.newest_first() == []
    assert registry.by_idempotency_key("key") is None
    assert not record.state.is_terminal
    assert record.ended.is_set()


async def test_a_job_that_is_delivered_again_takes_the_place_of_its_record(tmp_path: Path) -> None:
    """A redelivered record has the same id: the finished one gives way with its results, a running one never does."""
    spool, registry = Spool(tmp_path, 1_000), make_registry()
    job = make_job(door="kafka")
    old = registry.add(job)
    with pytest.raises(RuntimeError, match="already"):
        registry.add(job)
    registry.end(old, succeeded(spool, 10))
    new = registry.add(job)
    assert registry.newest_first() == [new]
    assert spool.used == 0
    registry.end(new, EMPTY)
    assert registry.get(str(job.job_id)) is new


# --- History ------------------------------------------------------------------------------------------------------


async def test_history_is_bounded_in_number() -> None:
    """The jobs that ended first go first, whenever they came; running ones stay."""
    registry = make_registry(history=2)
    running, early, late = (registry.add(make_job()) for _ in range(3))
    registry.end(late, FAILED)
    registry.end(early, FAILED)
    newest = ended(registry, FAILED)
    assert registry.newest_first() == [newest, early, running]


async def test_history_is_bounded_in_time(autojump_clock: MockClock) -> None:
    """A job goes soon after its time, while nothing else happens."""
    registry = make_registry(history_seconds=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.expire)
        old = ended(registry, FAILED)
        await trio.sleep(50)
        young = ended(registry, FAILED)
        await trio.sleep(49)
        assert registry.newest_first() == [young, old]
        await trio.sleep(1.5 + EXPIRY_CHECK_SECONDS)  # and a half: not at the very moment of a check
        assert registry.newest_first() == [young]
        await trio.sleep(100)
        assert registry.newest_first() == []
        nursery.cancel_scope.cancel()


async def test_a_short_history_is_no_busy_loop(autojump_clock: MockClock) -> None:
    """Milliseconds of history do not wake the daemon thousands of times a second."""
    registry = make_registry(history_seconds=0.001)
    trims: list[float] = []
    registry.trim = lambda: trims.append(trio.current_time())  # type: ignore[method-assign] # counts
    with trio.move_on_after(60):
        await registry.expire()
    assert len(trims) <= 60


async def test_history_is_bounded_in_bytes(tmp_path: Path) -> None:
    """The oldest results go, their jobs' status stays, and results that are let go of give their bytes back."""
    spool, registry = Spool(tmp_path, 1_000), make_registry(history_bytes=100)
    records = [ended(registry, succeeded(spool, 30, 10)) for _ in range(2)]
    assert sizes_kept(records) == [40, 40]
    records.append(ended(registry, succeeded(spool, 40)))
    assert sizes_kept(records) == [0, 40, 40]
    assert [record.has_lost_results for record in records] == [True, False, False]
    assert spool.used == 80
    assert [record.state for record in records] == [JobState.SUCCEEDED] * 3
    assert registry.newest_first() == records[::-1]


async def test_the_newest_results_stay_whatever_their_size(tmp_path: Path) -> None:
    """A result that is larger than history can still be fetched, until the next one comes."""
    spool, registry = Spool(tmp_path, 1_000), make_registry(history_bytes=100)
    small, large = ended(registry, succeeded(spool, 40)), ended(registry, succeeded(spool, 500))
    ended(registry, FAILED)
    assert sizes_kept([small, large]) == [0, 500]
    small = ended(registry, succeeded(spool, 40))
    assert sizes_kept([large, small]) == [0, 40]
    assert spool.used == 40


async def test_results_that_somebody_waits_for_stay(tmp_path: Path) -> None:
    """No bound takes them away before they are opened; the moment they are let go of, the bounds hold."""
    spool, registry = Spool(tmp_path, 1_000), make_registry(history=0, history_bytes=10)
    record = registry.add(make_job())
    with registry.held(record):
        registry.end(record, succeeded(spool, 500))
        ended(registry, succeeded(spool, 5))
        registry.make_room(1_000)
        registry.trim()
        assert registry.newest_first() == [record]
        assert sizes_kept([record]) == [500]
    assert registry.newest_first() == []
    assert spool.used == 0


async def test_two_may_wait_for_the_same_results(tmp_path: Path) -> None:
    """The first to leave takes nothing from the second."""
    spool, registry = Spool(tmp_path, 1_000), make_registry(history=0)
    record = registry.add(make_job())
    with registry.held(record):
        with registry.held(record):
            registry.end(record, succeeded(spool, 5))
        assert sizes_kept([record]) == [5]
    assert registry.newest_first() == []


async def test_making_room_drops_the_oldest_results_and_no_more_than_needed(tmp_path: Path) -> None:
    """The spool asks for bytes; jobs without any are left alone."""
    spool, registry = Spool(tmp_path, 1_000), make_registry()
    records = [
        ended(registry, FAILED),
        *(ended(registry, succeeded(spool, 40)) for _ in range(3)),
    ]
    registry.make_room(0)
    assert spool.used == 120
    registry.make_room(41)
    assert sizes_kept(records) == [0, 0, 0, 40]
    registry.make_room(10_000)
    assert spool.used == 0
    assert len(registry.newest_first()) == 4


async def test_one_result_can_be_dropped(tmp_path: Path) -> None:
    """Its bytes are free, the others stay; dropping it again changes nothing, and the count of bytes stays right."""
    spool, registry = Spool(tmp_path, 1_000), make_registry(history_bytes=100)
    record = ended(registry, succeeded(spool, 30, 50))
    assert record.product is not None
    (first, second) = record.product.results
    registry.drop_result(record, first)
    registry.drop_result(record, first)
    assert record.product.results == [second]
    assert record.has_lost_results
    assert spool.used == 50
    ended(registry, succeeded(spool, 50))
    assert sizes_kept([record]) == [50]
    ended(registry, succeeded(spool, 1))
    assert sizes_kept([record]) == [0]


async def test_dropping_an_item_of_a_list_leaves_the_list(tmp_path: Path) -> None:
    """Items are results of their own."""
    registry = make_registry()
    items = tuple(Result(f"chips_{index}", "chips", index, "image/png", None, "none", {}) for index in range(2))
    record = ended(registry, Succeeded(Product({"chips": items})))
    registry.drop_result(record, items[0])
    assert record.product is not None
    assert record.product.results == [items[1]]


@pytest.mark.parametrize("outcome", [FAILED, CANCELLED, EMPTY])
async def test_dropping_what_is_not_there_is_harmless(outcome: Outcome) -> None:
    """A job that failed has nothing to drop."""
    registry = make_registry()
    record = ended(registry, outcome)
    registry.drop_results(record)
    registry.drop_result(record, Result("r", "r", None, "text/plain", None))
    assert record.outcome == outcome
    assert not record.has_lost_results


async def test_a_removed_job_gives_everything_back(tmp_path: Path) -> None:
    """Its bytes and its name."""
    spool, registry = Spool(tmp_path, 1_000), make_registry()
    record = ended(registry, succeeded(spool, 30, 50))
    registry.remove(record)
    assert spool.used == 0
    with pytest.raises(NotFound):
        registry.get(str(record.job.job_id))


operations: Any = st.lists(
    st.tuples(st.sampled_from(["end", "drop", "drop one", "remove", "room", "time"]), st.integers(0, 60)), max_size=40
)


@given(operations, st.integers(0, 5), st.integers(0, 100))
def test_the_bounds_hold_and_every_byte_is_accounted_for(plan: list[Any], history: int, history_bytes: int) -> None:
    """Whatever is done in whatever order: the spool holds exactly the results that are kept, within all bounds."""

    async def live() -> None:
        spool = Spool(Path("unused"), 10_000)
        registry = make_registry(history=history, history_seconds=50, history_bytes=history_bytes)
        for operation, number in plan:
            known = registry.newest_first()
            record = known[number % len(known)] if known else None
            if operation == "end":
                ended(registry, succeeded(spool, number, number // 2))
            elif operation == "time":
                await trio.sleep(number)
                registry.trim()
            elif operation == "room":
                registry.make_room(number)
            elif record is not None and operation == "remove":
                registry.remove(record)
            elif record is not None and operation == "drop":
                registry.drop_results(record)
            elif record is not None and record.product is not None and record.product.results:
                registry.drop_result(record, record.product.results[0])
            known = registry.newest_first()
            sizes = [size for size in sizes_kept(known) if size]
            assert registry._kept_bytes == spool.used == sum(sizes)
            assert len(known) <= history
            assert spool.used <= history_bytes or len(sizes) == 1

    trio.run(live, clock=MockClock(autojump_threshold=0))


# --- Turns --------------------------------------------------------------------------------------------------------


async def test_jobs_of_one_task_take_turns_in_their_order(autojump_clock: MockClock) -> None:
    """One at a time; other tasks go their own way; nothing of a turn is left behind."""
    registry = make_registry()
    log: list[str] = []

    async def take(task: str, name: str) -> None:
        async with registry.turn(task):
            log.append(f"{name} begins")
            await trio.sleep(10)
            log.append(f"{name} ends")

    async with trio.open_nursery() as nursery:
        for task, name in (("t", "a"), ("t", "b"), ("t", "c"), ("u", "d")):
            nursery.start_soon(take, task, name)
            await wait_all_tasks_blocked()
        assert log == ["a begins", "d begins"]
    mine = [entry for entry in log if not entry.startswith("d")]
    assert mine == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]
    assert registry._turns == {}


async def test_who_stops_waiting_for_a_turn_is_skipped(autojump_clock: MockClock) -> None:
    """A cancellation in the line moves those behind up."""
    registry = make_registry()
    served: list[str] = []

    async def take(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with registry.turn("t"):
                served.append(name)
                await trio.sleep(10)

    scopes = [trio.CancelScope() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for name, scope in zip("abc", scopes, strict=True):
            nursery.start_soon(take, name, scope)
            await wait_all_tasks_blocked()
        scopes[1].cancel()
    assert served == ["a", "c"]
    assert registry._turns == {}
