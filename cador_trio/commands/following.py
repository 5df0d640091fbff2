"""How a user is shown that a job goes on: a bar on a terminal, else a line for each change. All on standard error.

rich draws the bar; it is in the extra `demo`, and without it the lines do.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from cador_trio.commands.endings import say
from cador_trio.job import JobState

ENDS: Final = frozenset(str(state) for state in JobState if state.is_terminal)


class Display(Protocol):
    """What a job's states are shown on."""

    def show(self, state: str, progress: int) -> None:
        """The job is here now; `progress` in percent."""

    def note(self, text: str) -> None:
        """Something besides, that stays to be read."""


@contextmanager
def open_display(label: str) -> Iterator[Display]:
    """A display for the length of a block: of its own accord it chooses what standard error can show."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from cador_trio.commands.bar import open_bar  # noqa: PLC0415 - it needs rich

        with open_bar(label) as bar:
            yield bar
    else:
        yield _Lines(label)


class _Lines:
    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = ("", -1)

    def show(self, state: str, progress: int) -> None:
        if (state, progress) != self._shown:
            self._shown = (state, progress)
            is_between = state not in ENDS and progress
            say(f"{self._label}: {state}" + (f", {progress} %" if is_between else ""))

    def note(self, text: str) -> None:
        say(f"{self._label}: {text}")
