"""How late the event loop is: the gap between a heartbeat and when it should have come.

Pure but for the clock that it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

REMEMBERED_SECONDS: Final = 60.0  # longer than between two scrapes, so that each hitch is seen by one


class LoopLag:
    """Fed by a task that beats every `period` seconds."""

    def __init__(self, now: Callable[[], float], period: float) -> None:
        self._now = now
        self._period = period
        self._last: float | None = None
        self._late: deque[float] = deque(maxlen=max(1, round(REMEMBERED_SECONDS / period)))

    def beat(self) -> None:
        """The task runs again."""
        if self._last is not None:
            self._late.append(self._overdue(self._last))
        self._last = self._now()

    @property
    def worst(self) -> float:
        """Seconds that the loop was late at most, of late; a beat that is overdue now counts too."""
        overdue = 0.0 if self._last is None else self._overdue(self._last)
        return max(overdue, *self._late, 0.0)

    def _overdue(self, last: float) -> float:
        return max(0.0, self._now() - last - self._period)
