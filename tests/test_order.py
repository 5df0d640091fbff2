"""The deadline of the algorithm stage, which can stand still."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from cador_trio.errors import AlgorithmDied
from cador_trio.order import Deadline


async def test_time_in_the_block_does_not_count(autojump_clock: MockClock) -> None:
    """Ten seconds are ten seconds of work, however long the waits between them."""
    deadline = Deadline(trio.current_time() + 10)
    with deadline.scope:
        for _ in range(3):
            await trio.sleep(3)
            with deadline.standing_still():
                await trio.sleep(1_000)
        before = trio.current_time()
        await trio.sleep_forever()
    assert deadline.scope.cancelled_caught
    assert trio.current_time() == pytest.approx(before + 1)


async def test_time_goes_on_after_an_error_in_the_block(autojump_clock: MockClock) -> None:
    """The wait may end badly; the clock must not stand still for ever."""
    deadline = Deadline(trio.current_time() + 10)

    async def fail() -> None:
        with deadline.standing_still():
            await trio.sleep(100)
            raise AlgorithmDied("gone")

    with deadline.scope:
        with pytest.raises(AlgorithmDied):
            await fail()
        await trio.sleep_forever()
    assert deadline.scope.cancelled_caught


async def test_a_deadline_that_has_passed_stays_passed(autojump_clock: MockClock) -> None:
    """Standing still comes too late then."""
    deadline = Deadline(trio.current_time() - 1)
    with deadline.scope:
        with deadline.standing_still():
            pass
        await trio.sleep_forever()
    assert deadline.scope.cancelled_caught


async def test_a_deadline_may_not_have_begun(autojump_clock: MockClock) -> None:
    """A job from Kafka has none before its dispatch: stopping that changes nothing."""
    deadline = Deadline(math.inf)
    with deadline.standing_still():
        await trio.sleep(10)
    assert deadline.scope.deadline == math.inf


steps: Any = st.lists(st.tuples(st.sampled_from(["stop", "go on", "wait"]), st.floats(0, 1_000)), max_size=20)


@given(steps)
def test_only_time_that_runs_counts(plan: list[tuple[str, float]]) -> None:
    """Whoever stops it, however often: what is left is the limit minus the time in which it ran."""

    async def live() -> None:
        limit, used, is_stopped = 1e6, 0.0, False
        deadline = Deadline(trio.current_time() + limit)
        for step, seconds in plan:
            if step == "stop":
                deadline.stop()
                is_stopped = True
            elif step == "go on":
                deadline.go_on()
                is_stopped = False
            else:
                used += 0 if is_stopped else seconds
                await trio.sleep(seconds)
        deadline.go_on()
        assert deadline.scope.deadline - trio.current_time() == pytest.approx(limit - used)

    trio.run(live, clock=MockClock(autojump_threshold=0))
