"""What the algorithm is asked for one job, and the clock that this runs against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from cador_trio.errors import CadorError
from cador_trio.job import JsonObject


class Deadline:
    """The algorithm stage's deadline: a scope whose time stands still while nobody can work on the job."""

    def __init__(self, at: float) -> None:
        self.scope = trio.CancelScope(deadline=at)
        # Why nobody works on the job at the moment; the better error, should time run out now.
        self.excuse: CadorError | None = None
        self._left: float | None = None  # seconds, while it stands still

    def stop(self) -> None:
        """Stand still; harmless a second time."""
        if self._left is None:
            self._left = self.scope.deadline - trio.current_time()
            self.scope.deadline = math.inf

    def go_on(self) -> None:
        """Run again; harmless if it does."""
        if self._left is not None:
            self.scope.deadline = trio.current_time() + self._left
            self._left = None

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """The time spent in this block doesn't count."""
        self.stop()
        try:
            yield
        finally:
            self.go_on()


@dataclass(frozen=True)
class Order:
    """What the algorithm is asked for one job.

    Attributes:
        inputs: the payload, already checked.
        size: bytes of the request that it came in.
        headers: for every call of this job.
        take_out_images: base64 images of a JSON answer are wanted as images, for a store.
        is_patient: wait while the algorithm is unreachable; else fail at once with AlgorithmUnreachable.
        on_running: called when the request goes out.
        on_progress: called with 0 to 100.
        on_attempt_failed: called with each failure that another attempt follows.
    """

    inputs: JsonObject
    size: int
    headers: dict[str, str]
    take_out_images: bool
    is_patient: bool
    deadline: Deadline
    on_running: Callable[[], None]
    on_progress: Callable[[int], None]
    on_attempt_failed: Callable[[CadorError], None] = lambda _: None
