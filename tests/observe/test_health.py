"""What the probes say: phases, readiness checks, heartbeats."""

from __future__ import annotations

from typing import Final

import pytest

from cador_trio.observe.health import STUCK_SECONDS, Health, Phase


class Clock:
    """Seconds as the test wants them."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


# phase, the algorithm is unreachable, the event loop is stuck -> alive, ready
TABLE: Final = [
    (Phase.STARTING, False, False, True, False),
    (Phase.STARTING, True, False, True, False),
    (Phase.SERVING, False, False, True, True),
    (Phase.SERVING, True, False, True, False),
    (Phase.SERVING, False, True, False, False),
    (Phase.SERVING, True, True, False, False),
    (Phase.DRAINING, False, False, True, False),
    (Phase.DRAINING, False, True, False, False),
]


@pytest.mark.parametrize(("phase", "is_unreachable", "is_stuck", "alive", "ready"), TABLE)
def test_alive_and_ready(phase: Phase, is_unreachable: bool, is_stuck: bool, alive: bool, ready: bool) -> None:
    """The table of the probes, with a reason for everything that is not well, and none else."""
    clock = Clock()
    health = Health(clock)
    health.phase = phase
    health.add_check(lambda: "nobody listens" if is_unreachable else None)
    health.beat("the event loop")
    clock.now += STUCK_SECONDS + (1 if is_stuck else 0)
    assert (health.stuck() == [], health.not_ready() == []) == (alive, ready)
    reasons = health.not_ready()
    assert (str(phase) in reasons) is (phase is not Phase.SERVING)
    assert ("nobody listens" in reasons) is is_unreachable
    assert any("the event loop is stuck" in reason for reason in reasons) is is_stuck


def test_a_daemon_that_is_made_is_starting() -> None:
    """Alive from the first moment, ready only when it says so."""
    health = Health(Clock())
    assert health.stuck() == []
    assert health.not_ready() == ["the daemon is starting"]


def test_each_service_beats_for_itself() -> None:
    """One that moves does not hide one that doesn't; the reason says for how long."""
    clock = Clock()
    health = Health(clock)
    health.beat("polling")
    health.beat("the event loop")
    clock.now += 40
    health.beat("the event loop")
    assert health.stuck() == ["polling is stuck: no sign of life for 40 s"]
    health.beat("polling")
    assert health.stuck() == []


def test_a_retired_service_is_not_missed() -> None:
    """It ended in order; retiring twice, or without a beat, is fine."""
    clock = Clock()
    health = Health(clock)
    health.beat("polling")
    health.retire("polling")
    health.retire("polling")
    clock.now += 1_000
    assert health.stuck() == []


def test_checks_are_asked_each_time() -> None:
    """A probe sees how it is now; all reasons are told, in the order of the checks."""
    reasons: list[str | None] = [None, None]
    health = Health(Clock())
    health.phase = Phase.SERVING
    health.add_check(lambda: reasons[0])
    health.add_check(lambda: reasons[1])
    assert health.not_ready() == []
    reasons[:] = ["one", "two"]
    assert health.not_ready() == ["one", "two"]
    reasons[0] = None
    assert health.not_ready() == ["two"]
