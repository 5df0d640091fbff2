"""The bar that a terminal shows while a job goes on. Needs rich (the extra `demo`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cador_trio.commands.following import ENDS


class Bar:
    """A Display of one line; it pulses until there is progress to measure."""

    def __init__(self, progress: Progress, task: TaskID, label: str) -> None:
        self._progress = progress
        self._task = task
        self._label = label

    def show(self, state: str, progress: int) -> None:
        """The job is here now; `progress` in percent."""
        total = 100 if progress or state in ENDS else None
        text = escape(f"{self._label}: {state}")
        self._progress.update(self._task, description=text, total=total, completed=progress)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(escape(f"{self._label}: {text}"), soft_wrap=True)


@contextmanager
def open_bar(label: str) -> Iterator[Bar]:
    """A bar on standard error for the length of a block; its last state stays to be read."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        yield Bar(progress, progress.add_task(escape(label), total=None), label)
