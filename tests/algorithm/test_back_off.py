"""Pauses between tries, in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from cador_trio.algorithm.visit import FIRST_BACK_OFF_SECONDS, LAST_BACK_OFF_SECONDS, BackOff


async def test_pauses_double_up_to_a_limit(autojump_clock: MockClock) -> None:
    """A busy algorithm is asked less and less often, but never less than that."""
    pauses = BackOff()
    taken = [await _pause(pauses, None) for _ in range(8)]
    doubling = [FIRST_BACK_OFF_SECONDS * 2**count for count in range(8)]
    assert taken == pytest.approx([min(one, LAST_BACK_OFF_SECONDS) for one in doubling])


async def test_retry_after_wins_if_it_asks_for_more(autojump_clock: MockClock) -> None:
    """Who knows better is believed; who asks for less than our own pause is not."""
    pauses = BackOff()
    assert await _pause(pauses, 60.0) == pytest.approx(60.0)
    assert await _pause(pauses, 0.0) == pytest.approx(2 * FIRST_BACK_OFF_SECONDS)


async def _pause(pauses: BackOff, wanted: float | None) -> float:
    began = trio.current_time()
    await pauses.sleep(wanted)
    return trio.current_time() - began
