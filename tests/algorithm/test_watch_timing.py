"""The clocks of jobs that wait for a slot: they stand still whenever the algorithm is away."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from cador_trio.algorithm.dialect import Origin
from cador_trio.algorithm.transport import Connection, tls_context
from cador_trio.algorithm.watch import Described, Watch
from cador_trio.errors import AlgorithmUnreachable
from cador_trio.order import Deadline
from tests.peers.fake_algorithm import minimal_describe


class Moving:
    """A watch whose algorithm comes and goes as the test says."""

    def __init__(self) -> None:
        self.watch = Watch(Origin.from_url("http://127.0.0.1:1"), [Connection(tls_context(None))])
        self._described: Described = self.watch._read(minimal_describe())

    def come(self) -> None:
        self.watch._set_reachable(self._described)

    def go(self) -> None:
        self.watch.suspect(AlgorithmUnreachable("gone"))


@pytest.fixture
def moving() -> Moving:
    return Moving()


def left(deadline: Deadline) -> float:
    return deadline.scope.deadline - trio.current_time()


async def test_a_clock_runs_only_while_the_algorithm_is_there(moving: Moving, autojump_clock: MockClock) -> None:
    """Away at first, there for three seconds, away again, there again: only its presence counts."""
    deadline = Deadline(trio.current_time() + 10)
    with moving.watch.timing(deadline):
        await trio.sleep(100)
        moving.come()
        await trio.sleep(3)
        moving.go()
        moving.go()  # found gone by two jobs
        await trio.sleep(100)
        moving.come()
        moving.come()
        await trio.sleep(2)
        assert left(deadline) == pytest.approx(5)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_clock_runs_on_after_the_wait(moving: Moving, autojump_clock: MockClock, is_there: bool) -> None:
    """With its slot the job minds its own clock; the watch has let go of it."""
    if is_there:
        moving.come()
    deadline = Deadline(trio.current_time() + 10)
    with moving.watch.timing(deadline):
        await trio.sleep(4)
    assert left(deadline) == pytest.approx(6 if is_there else 10)
    moving.go()
    await trio.sleep(1)
    assert left(deadline) == pytest.approx(5 if is_there else 9)
