"""Slots, the doors' shares, waiting places and bytes, and work that its job has left; all under virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.capacity import (
    FIRST_GUESS_SECONDS,
    RECENT_DURATIONS,
    Capacity,
    Exchange,
    Limits,
    next_door,
    open_capacity,
)
from cador_trio.errors import AlgorithmFailed, NotNow
from cador_trio.job import Door

LINGER_SECONDS: Final = 50.0


def limits(*, unfinished: int = 100, http_share: float = 0.25, waiting: int = 2, waiting_bytes: int = 1_000) -> Limits:
    return Limits(
        unfinished=unfinished,
        http_share=http_share,
        waiting=waiting,
        waiting_bytes=waiting_bytes,
        linger_seconds=LINGER_SECONDS,
    )


class Client:
    """A job's worth of work: waits for a slot, works in it for some seconds, then settles for some."""

    def __init__(self, capacity: Capacity[str], door: Door = "http") -> None:
        self.capacity = capacity
        self.door = door
        self.connection: str | None = None
        self.scope = trio.CancelScope()
        self.result: str | None = None
        self.disposed: list[str] = []

    async def run(
        self,
        work: Callable[[Exchange], Awaitable[str]],
        settle_seconds: float = 0,
        dispatched: trio.Event | None = None,
    ) -> None:
        with self.scope:
            async with self.capacity.dispatch(self.door) as dispatch:
                if dispatched is not None:
                    dispatched.set()

                async def visit(connection: str, exchange: Exchange) -> str:
                    self.connection = connection
                    return await work(exchange)

                self.result = await dispatch.at_algorithm(visit, self.disposed.append)
                await trio.sleep(settle_seconds)


def working(seconds: float) -> Callable[[Exchange], Awaitable[str]]:
    """Work that a cancellation ends at once."""

    async def work(exchange: Exchange) -> str:
        await trio.sleep(seconds)
        return "done"

    return work


def stubborn(seconds: float) -> Callable[[Exchange], Awaitable[str]]:
    """Work that goes on after its job has left."""

    async def work(exchange: Exchange) -> str:
        await exchange.masked(partial(trio.sleep, seconds))
        return "done"

    return work


def is_idle(capacity: Capacity[str], slots: int) -> bool:
    figures = capacity.figures()
    return (figures.slots, figures.in_use, figures.unfinished, figures.waiting) == (
        slots,
        0,
        0,
        {"http": 0, "kafka": 0},
    )


# --- Who is next --------------------------------------------------------------------------------------------------

# waiting http, waiting kafka, slots in use by http, limit, share, last door -> next door
POLICY: Final[list[tuple[int, int, int, int, float, Door, Door | None]]] = [
    (0, 0, 0, 1, 0.25, "http", None),
    (1, 0, 0, 1, 0.25, "http", "http"),  # alone at the door: no alternation with nobody
    (0, 1, 0, 1, 0.25, "kafka", "kafka"),
    (1, 1, 0, 1, 0.25, "http", "kafka"),  # one slot: turn about
    (1, 1, 0, 1, 0.25, "kafka", "http"),
    (1, 1, 0, 1, 1.0, "http", "kafka"),
    (1, 1, 0, 4, 0.25, "http", "http"),  # the share is one of four
    (1, 1, 1, 4, 0.25, "http", "kafka"),
    (9, 0, 3, 4, 0.25, "http", "http"),  # what Kafka doesn't ask for is HTTP's
    (0, 9, 0, 4, 1.0, "kafka", "kafka"),  # and the other way round
    (1, 1, 0, 2, 0.0, "kafka", "http"),  # one at least, or HTTP would starve
    (1, 1, 1, 2, 0.0, "kafka", "kafka"),
    (1, 1, 2, 10, 0.3, "kafka", "http"),
    (1, 1, 3, 10, 0.3, "kafka", "kafka"),
    (1, 1, 28, 100, 0.29, "kafka", "http"),  # 0.29 * 100 is 28.999… in binary
    (1, 1, 29, 100, 0.29, "kafka", "kafka"),
]


@pytest.mark.parametrize(("http", "kafka", "in_use", "limit", "share", "last", "expected"), POLICY)
def test_the_next_door(  # noqa: PLR0917, PLR0913 - one row of the table
    http: int, kafka: int, in_use: int, limit: int, share: float, last: Door, expected: Door | None
) -> None:
    """The policy, row by row."""
    assert next_door({"http": http, "kafka": kafka}, {"http": in_use, "kafka": 0}, limit, share, last) == expected


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 8), st.integers(1, 8), st.floats(0, 1), st.booleans())
def test_a_slot_never_stays_free_while_somebody_waits(  # noqa: PLR0917, PLR0913 - one for each argument of the policy
    http: int, kafka: int, in_use: int, limit: int, share: float, was_http: bool
) -> None:
    """Work conserving: a door is named exactly when one has waiters, and it is one that has."""
    waiting: dict[Door, int] = {"http": http, "kafka": kafka}
    door = next_door(waiting, {"http": in_use, "kafka": 0}, limit, share, "http" if was_http else "kafka")
    if door is None:
        assert http == kafka == 0
    else:
        assert waiting[door] > 0


@given(st.integers(2, 12), st.floats(0, 1))
def test_with_both_doors_waiting_http_gets_its_share_exactly(limit: int, share: float) -> None:
    """Filling all slots under pressure from both doors gives HTTP its share, one at least, and Kafka the rest."""
    in_use: dict[Door, int] = {"http": 0, "kafka": 0}
    for _ in range(limit):
        door = next_door({"http": 1, "kafka": 1}, in_use, limit, share, "kafka")
        assert door is not None
        in_use[door] += 1
    assert in_use["http"] == max(1, int(share * limit + 1e-9))


async def test_with_one_slot_the_doors_alternate(autojump_clock: MockClock) -> None:
    """Neither door can starve the other, however many of its jobs wait."""
    order: list[Door] = []

    def noting(door: Door) -> Callable[[Exchange], Awaitable[str]]:
        async def work(exchange: Exchange) -> str:
            order.append(door)
            await trio.sleep(1)
            return "done"

        return work

    doors: list[Door] = ["http", "http", "http", "kafka", "kafka", "kafka"]
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        nursery.start_soon(Client(capacity, "kafka").run, working(1))
        await wait_all_tasks_blocked()
        for door in doors:
            nursery.start_soon(Client(capacity, door).run, noting(door))
    assert order == ["http", "kafka"] * 3


async def test_http_gets_the_freed_slots_up_to_its_share(autojump_clock: MockClock) -> None:
    """Kafka had all four slots; of what it frees HTTP gets one at a time, first, and no more than its quarter."""
    async with open_capacity(["a", "b", "c", "d"], limits()) as capacity, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(Client(capacity, "kafka").run, working(10))
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(Client(capacity, "http").run, working(10))
        await trio.sleep(15)
        assert Counter(capacity._in_use) == {"http": 1, "kafka": 3}
        await trio.sleep(10)
        assert Counter(capacity._in_use) == {"http": 2, "kafka": 1}  # one by its share, one since Kafka has no more


# --- Slots and permits --------------------------------------------------------------------------------------------


async def test_a_slot_is_free_when_the_work_ends_not_when_the_job_does(autojump_clock: MockClock) -> None:
    """Georeferencing, storing and publishing go on without a slot, but the job counts as unfinished."""
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        first = Client(capacity)
        nursery.start_soon(first.run, working(1), 100)
        await trio.sleep(2)
        assert first.result == "done"
        assert (capacity.figures().in_use, capacity.figures().unfinished) == (0, 1)
        second = Client(capacity)
        nursery.start_soon(second.run, working(1))
        await trio.sleep(2)
        assert second.result == "done"
    assert is_idle(capacity, 1)


async def test_no_more_than_the_limit_are_unfinished(autojump_clock: MockClock) -> None:
    """A free slot is of no use while too many jobs have not settled."""
    async with open_capacity(["a", "b"], limits(unfinished=2)) as capacity, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(Client(capacity).run, working(1), 100)
        await trio.sleep(5)
        third = Client(capacity)
        nursery.start_soon(third.run, working(1))
        await wait_all_tasks_blocked()
        assert capacity.figures().in_use == 0
        assert capacity.figures().waiting["http"] == 1
        await trio.sleep(100)
        assert third.result == "done"
    assert is_idle(capacity, 2)


async def test_waiters_of_a_door_are_served_in_their_order(autojump_clock: MockClock) -> None:
    """First come, first served."""
    served: list[int] = []
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        for number in range(5):

            async def work(exchange: Exchange, number: int = number) -> str:
                served.append(number)
                await trio.sleep(1)
                return ""

            nursery.start_soon(Client(capacity).run, work)
            await wait_all_tasks_blocked()
    assert served == [0, 1, 2, 3, 4]


async def test_each_slot_has_its_own_connection_and_the_last_one_goes_first(autojump_clock: MockClock) -> None:
    """No two jobs share one; the one used last is the most likely to be still open."""
    async with open_capacity(["a", "b"], limits()) as capacity, trio.open_nursery() as nursery:
        both = [Client(capacity), Client(capacity)]
        nursery.start_soon(both[0].run, working(1))
        await wait_all_tasks_blocked()
        nursery.start_soon(both[1].run, working(5))
        await trio.sleep(10)
        assert {client.connection for client in both} == {"a", "b"}
        third = Client(capacity)
        await third.run(working(1))
        assert third.connection == both[1].connection


async def test_errors_of_the_work_come_out_at_its_job(autojump_clock: MockClock) -> None:
    """And the slot is free again."""

    async def fail(exchange: Exchange) -> str:
        raise AlgorithmFailed("no water")

    async with open_capacity(["a"], limits()) as capacity:
        with pytest.raises(AlgorithmFailed, match="no water"):
            await Client(capacity).run(fail)
        assert is_idle(capacity, 1)


async def test_a_permit_is_good_for_one_visit(autojump_clock: MockClock) -> None:
    """A second one would use a slot that is another job's by then."""
    async with open_capacity(["a"], limits()) as capacity, capacity.dispatch("http") as dispatch:

        async def work(connection: str, exchange: Exchange) -> None:
            return None

        await dispatch.at_algorithm(work, lambda _: None)
        with pytest.raises(RuntimeError, match="one visit"):
            await dispatch.at_algorithm(work, lambda _: None)


async def test_a_permit_that_is_not_used_gives_its_slot_back(autojump_clock: MockClock) -> None:
    """A job that ends between dispatch and its visit holds nothing."""
    async with open_capacity(["a"], limits()) as capacity:
        async with capacity.dispatch("http"):
            assert capacity.figures().in_use == 1
        assert is_idle(capacity, 1)


# --- Cancellation -------------------------------------------------------------------------------------------------


async def test_a_cancelled_waiter_gives_its_place_up(autojump_clock: MockClock) -> None:
    """Those behind it move up."""
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        nursery.start_soon(Client(capacity).run, working(10))
        await wait_all_tasks_blocked()
        waiting, behind = Client(capacity), Client(capacity)
        nursery.start_soon(waiting.run, working(1))
        await wait_all_tasks_blocked()
        nursery.start_soon(behind.run, working(1))
        await wait_all_tasks_blocked()
        waiting.scope.cancel()
        await wait_all_tasks_blocked()
        assert capacity.figures().waiting["http"] == 1
    assert (waiting.result, behind.result) == (None, "done")
    assert is_idle(capacity, 1)


@pytest.mark.parametrize("cancels_first", [True, False])
async def test_a_waiter_that_is_granted_and_cancelled_in_one_moment_holds_nothing(
    autojump_clock: MockClock, cancels_first: bool
) -> None:
    """Whichever comes first, the slot and the permit are free in the end, and the next one gets them."""
    async with open_capacity(["a"], limits(unfinished=1)) as capacity, trio.open_nursery() as nursery:
        held = AsyncExitStack()
        await held.enter_async_context(capacity.dispatch("http"))
        waiting, behind = Client(capacity), Client(capacity)
        nursery.start_soon(waiting.run, working(1))
        await wait_all_tasks_blocked()
        nursery.start_soon(behind.run, working(1))
        await wait_all_tasks_blocked()
        if cancels_first:
            waiting.scope.cancel()
        await held.aclose()  # no step of another task comes in between
        if not cancels_first:
            waiting.scope.cancel()
        await trio.sleep(5)
        assert (waiting.result, behind.result) == (None, "done")
    assert is_idle(capacity, 1)


async def test_work_that_can_be_cancelled_frees_its_slot_at_once(autojump_clock: MockClock) -> None:
    """The job leaves, the work ends, and nothing has to be disposed of."""
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        client = Client(capacity)
        nursery.start_soon(client.run, working(1_000))
        await wait_all_tasks_blocked()
        client.scope.cancel()
        await wait_all_tasks_blocked()
        assert is_idle(capacity, 1)
    assert client.disposed == []


async def test_work_that_can_not_be_cancelled_keeps_its_slot(autojump_clock: MockClock) -> None:
    """The job is gone at once; the slot is free when the algorithm is, and what came late is disposed of."""
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        client = Client(capacity)
        nursery.start_soon(client.run, stubborn(20))
        await trio.sleep(5)
        client.scope.cancel()
        await wait_all_tasks_blocked()
        assert (capacity.figures().in_use, capacity.figures().unfinished) == (1, 0)
        await trio.sleep(14)
        assert capacity.figures().in_use == 1
        await trio.sleep(2)
        assert is_idle(capacity, 1)
    assert client.disposed == ["done"]


async def test_work_that_its_job_has_left_does_not_linger_for_ever(autojump_clock: MockClock) -> None:
    """An algorithm that never answers gets its slot taken back after a bounded time."""
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        client = Client(capacity)
        nursery.start_soon(client.run, stubborn(1e6))
        await trio.sleep(5)
        client.scope.cancel()
        await trio.sleep(LINGER_SECONDS - 1)
        assert capacity.figures().in_use == 1
        await trio.sleep(2)
        assert is_idle(capacity, 1)
    assert client.disposed == []


async def test_a_job_that_is_cancelled_before_its_visit_never_visits(autojump_clock: MockClock) -> None:
    """The algorithm is not asked for what nobody wants any more, and the slot is free."""
    began: list[str] = []

    async def visit(connection: str, exchange: Exchange) -> str:
        began.append(connection)
        return await stubborn(100)(exchange)

    async with open_capacity(["a"], limits()) as capacity:
        with trio.CancelScope() as scope:
            async with capacity.dispatch("http") as dispatch:
                scope.cancel()
                await dispatch.at_algorithm(visit, lambda _: None)
        await wait_all_tasks_blocked()
        assert began == []
        assert is_idle(capacity, 1)


async def test_a_result_that_comes_as_its_job_leaves_is_disposed_of(autojump_clock: MockClock) -> None:
    """The work had just ended when the job was cancelled: nobody takes the result, so it is given back."""
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        client = Client(capacity)

        async def work(exchange: Exchange) -> str:
            await trio.sleep(1)
            client.scope.cancel()
            return "done"

        nursery.start_soon(client.run, work)
        await trio.sleep(2)
        assert is_idle(capacity, 1)
    assert (client.result, client.disposed) == (None, ["done"])


async def test_an_error_of_work_that_was_left_ends_nothing_else(autojump_clock: MockClock) -> None:
    """Nobody is there to be told; the slot is free and the daemon goes on."""

    async def work(exchange: Exchange) -> str:
        await stubborn(10)(exchange)
        raise ValueError("nobody thought of it")

    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        client = Client(capacity)
        nursery.start_soon(client.run, work)
        await trio.sleep(1)
        client.scope.cancel()
        await trio.sleep(20)
        assert is_idle(capacity, 1)


async def test_the_end_of_the_daemon_drops_what_lingers(autojump_clock: MockClock) -> None:
    """Leaving the block does not wait for an algorithm that never answers."""
    async with open_capacity(["a"], limits()) as capacity:
        async with trio.open_nursery() as nursery:
            client = Client(capacity)
            nursery.start_soon(client.run, stubborn(1e6))
            await wait_all_tasks_blocked()
            client.scope.cancel()
        before = trio.current_time()
    assert trio.current_time() == before
    assert is_idle(capacity, 1)


async def test_the_end_of_the_daemon_reaches_work_that_is_just_beginning(autojump_clock: MockClock) -> None:
    """Work that was arranged in the same step must not slip through and hold the exit."""

    async def visit(connection: str, exchange: Exchange) -> str:
        return await stubborn(1e6)(exchange)

    async def arrange(capacity: Capacity[str]) -> None:
        async with capacity.dispatch("http") as dispatch:
            await dispatch.at_algorithm(visit, lambda _: None)

    before = trio.current_time()
    with trio.CancelScope() as outside:
        async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
            nursery.start_soon(arrange, capacity)
            await trio.lowlevel.checkpoint()
            outside.cancel()
    assert trio.current_time() == before


async def test_last_words_are_allowed_when_the_daemon_stops(autojump_clock: MockClock) -> None:
    """What tells the algorithm to stop gets its seconds, and no more."""
    said: list[str] = []

    async def say(seconds: float) -> None:
        await trio.sleep(seconds)
        said.append("stop")

    async def visit(exchange: Exchange, seconds: float) -> str:
        try:
            return await trio.sleep_forever()
        except trio.Cancelled:
            await exchange.masked(partial(say, seconds), last_words=2)  # noqa: ASYNC102 - `masked` is the shield
            raise

    for seconds in (1.0, 3.0):
        before = trio.current_time()
        async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
            client = Client(capacity)
            nursery.start_soon(client.run, lambda exchange, seconds=seconds: visit(exchange, seconds))
            await wait_all_tasks_blocked()
            client.scope.cancel()
        assert trio.current_time() == before + min(seconds, 2)
    assert said == ["stop"]


# --- Waiting places and bytes -------------------------------------------------------------------------------------


async def test_places_are_counted_from_admission(autojump_clock: MockClock) -> None:
    """One job for the free slot and two that wait: the fourth is told to come back, though none has started yet."""
    async with open_capacity(["a"], limits(waiting=2)) as capacity:
        places = [capacity.reserve_bytes() for _ in range(4)]
        for place in places[:3]:
            place.take_place()
        with pytest.raises(NotNow, match="all processing slots are taken") as refused:
            places[3].take_place()
        assert refused.value.hint == "0 running, 3 waiting"
        assert refused.value.http_status == 503
        places[0].release()
        places[0].release()  # harmless
        places[3].take_place()
        with pytest.raises(NotNow):
            places[0].take_place()


async def test_a_taken_slot_is_no_place(autojump_clock: MockClock) -> None:
    """While the slot is taken only the waiting places count; with none allowed, a newcomer is refused."""
    async with open_capacity(["a"], limits(waiting=0)) as capacity:
        first, second = capacity.reserve_bytes(), capacity.reserve_bytes()
        first.take_place()
        async with capacity.dispatch("http"):
            first.release()
            with pytest.raises(NotNow):
                second.take_place()
        second.take_place()


async def test_a_slot_is_no_place_while_too_many_are_unfinished(autojump_clock: MockClock) -> None:
    """Slots that can't be used are not offered."""
    async with open_capacity(["a", "b"], limits(unfinished=1, waiting=0)) as capacity, capacity.dispatch("http"):
        with pytest.raises(NotNow):
            capacity.reserve_bytes().take_place()


async def test_bytes_are_counted_as_they_come_and_given_back_once(autojump_clock: MockClock) -> None:
    """Up to the limit exactly; one byte more is refused, with what is taken and the limit; a release frees all."""
    async with open_capacity(["a"], limits(waiting_bytes=10)) as capacity:
        first, second = capacity.reserve_bytes(), capacity.reserve_bytes()
        first.grow(6)
        second.grow(4)
        assert capacity.figures().waiting_bytes == 10
        with pytest.raises(NotNow) as refused:
            second.grow(1)
        assert "10 bytes of CADOR_MAX_WAITING_BYTES=10" in refused.value.hint
        first.release()
        first.release()
        assert capacity.figures().waiting_bytes == 4
        second.grow(6)
        second.release()
        assert capacity.figures().waiting_bytes == 0


# --- Retry-After --------------------------------------------------------------------------------------------------


async def test_retry_after_is_a_guess_before_anything_has_run(autojump_clock: MockClock) -> None:
    """Nobody knows yet."""
    async with open_capacity(["a"], limits()) as capacity:
        assert capacity.retry_after() == FIRST_GUESS_SECONDS


@pytest.mark.parametrize(
    ("slots", "seconds", "waiting", "expected"),
    [(1, 30, 0, 30), (1, 30, 2, 90), (2, 30, 2, 45), (4, 30, 0, 7.5), (1, 0.1, 0, 1)],
)
async def test_retry_after_is_worked_out_from_recent_durations(
    autojump_clock: MockClock, slots: int, seconds: float, waiting: int, expected: float
) -> None:
    """Mean duration, times those ahead and oneself, over the slots; at least a second."""
    async with open_capacity([str(number) for number in range(slots)], limits(waiting=9)) as capacity:
        await Client(capacity).run(working(seconds))
        for _ in range(waiting):
            capacity.reserve_bytes().take_place()
        assert capacity.retry_after() == pytest.approx(expected)


async def test_retry_after_forgets_old_durations(autojump_clock: MockClock) -> None:
    """A slow start does not spoil the estimate for ever."""
    async with open_capacity(["a"], limits()) as capacity:
        await Client(capacity).run(working(1_000))
        for _ in range(RECENT_DURATIONS):
            await Client(capacity).run(working(3))
        assert capacity.retry_after() == pytest.approx(3)


async def test_retry_after_counts_jobs_from_every_door(autojump_clock: MockClock) -> None:
    """Kafka's waiters are ahead as well."""
    async with open_capacity(["a"], limits()) as capacity, trio.open_nursery() as nursery:
        await Client(capacity).run(working(10))
        for _ in range(3):
            nursery.start_soon(Client(capacity, "kafka").run, working(10))
        await wait_all_tasks_blocked()
        assert capacity.retry_after() == pytest.approx(30)


# --- All together -------------------------------------------------------------------------------------------------

clients: Any = st.lists(
    st.tuples(
        st.sampled_from(["http", "kafka"]),
        st.integers(0, 20),  # arrives
        st.integers(0, 20),  # works
        st.integers(0, 20),  # settles
        st.booleans(),  # can be cancelled at the algorithm
        st.one_of(st.none(), st.integers(0, 40)),  # is cancelled
    ),
    max_size=12,
)


@given(clients, st.integers(1, 3), st.integers(1, 4))
def test_whatever_happens_no_slot_and_no_permit_is_lost(plan: list[Any], slots: int, unfinished: int) -> None:
    """Any mix of jobs that come, work, settle and are cancelled: limits hold throughout, all is free in the end."""
    trio.run(_live_through, plan, slots, unfinished, clock=MockClock(autojump_threshold=0))


async def _live_through(plan: list[Any], slots: int, unfinished: int) -> None:
    at_work = 0

    def counted(work: Callable[[Exchange], Awaitable[str]]) -> Callable[[Exchange], Awaitable[str]]:
        async def count(exchange: Exchange) -> str:
            nonlocal at_work
            at_work += 1
            assert at_work <= slots
            assert capacity.figures().unfinished <= unfinished
            try:
                return await work(exchange)
            finally:
                at_work -= 1

        return count

    async def live(door: Door, arrives: float, work: Any, settles: float, cancelled: float | None) -> None:
        client = Client(capacity, door)
        await trio.sleep(arrives)
        if cancelled is not None:
            client.scope.deadline = trio.current_time() + cancelled
        await client.run(counted(work), settles)
        is_done = client.result is not None or client.scope.cancelled_caught
        assert is_done
        assert not (client.result and client.disposed)

    connections = [str(number) for number in range(slots)]
    async with open_capacity(connections, limits(unfinished=unfinished)) as capacity:
        async with trio.open_nursery() as nursery:
            for door, arrives, works, settles, can_cancel, cancelled in plan:
                work = working(works) if can_cancel else stubborn(works)
                nursery.start_soon(live, door, arrives, work, settles, cancelled)
        await trio.sleep(LINGER_SECONDS)
        assert is_idle(capacity, slots)
        assert sorted(slot.connection for slot in capacity._free) == connections
