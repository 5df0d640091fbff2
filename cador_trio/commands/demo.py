"""`cador-trio demo`: the way in and the way out. What it needs, what its exit code is, what it says when it fails.

The demonstration itself is `demonstration.py`; it needs the extra `demo`, so it is imported only once that is there.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cador_trio.commands.endings import UsageWrong
from cador_trio.errors import CadorError, SettingsError

EXIT_OK: Final = 0
EXIT_SETTINGS: Final = 2
EXIT_FAILED: Final = 3
EXIT_INTERRUPTED: Final = 128 + 2  # SIGINT, as a shell counts it

DEFAULT_OUTPUT: Final = Path("demo-output")

# What the demonstration and the example algorithm import beyond the daemon's own dependencies.
_EXTRA: Final = {"PIL": "pillow", "rasterio": "rasterio", "rich": "rich"}


class DemoFailed(Exception):
    """Something does not work as it should; the hint says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class KafkaChoice:
    """The job goes by Kafka: by these brokers (`host:port,...`), or by a mock cluster of the demo's own."""

    brokers: str | None = None


def run_demo(keep: bool, output: Path | None = None, kafka: KafkaChoice | None = None) -> int:
    """Run the example algorithm and a daemon, send one job through both, and show what comes out.

    The job goes by HTTP, or by the Kafka that is chosen.

    Blocks until the end, or with `keep` until Ctrl-C or SIGTERM; belongs to the main thread, for the signals' sake.
    What is stored and drawn goes to the folder `output` (default: `demo-output` in the working directory), which is
    made if need be; files of an earlier demo in it are overwritten.

    Returns:
        The process's exit code: 0 it works, 2 the brokers or their properties can't be meant, 3 something does not work
        (standard error says what), 130 it was interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 gets a question mark for km², no traceback
    missing = [package for module, package in _EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        return _fail(f"the demo needs {', '.join(missing)}", "pip install 'cador-trio[demo]'")
    from cador_trio.commands.demonstration import demonstrate  # noqa: PLC0415 - it needs the extra

    try:
        finished = trio.run(demonstrate, keep, (output or DEFAULT_OUTPUT).absolute(), kafka)
    except KeyboardInterrupt:
        finished = False
    except Exception as error:
        return _explain(error)
    return EXIT_OK if finished else EXIT_INTERRUPTED


def _explain(error: Exception) -> int:
    """Say what went wrong: our own errors in a sentence, anything else with its traceback."""
    failures = [leaf for leaf in _leaves(error) if isinstance(leaf, DemoFailed | CadorError)]
    if not failures:
        traceback.print_exception(error)
        return _fail("an unexpected error, see above", "the traceback belongs into a bug report")
    for failure in failures:
        _fail(failure.message, failure.hint)
    return (
        EXIT_SETTINGS if any(isinstance(failure, SettingsError | UsageWrong) for failure in failures) else EXIT_FAILED
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _fail(message: str, hint: str) -> int:
    sys.stderr.write(f"The demo failed: {message}\n" + (f"What to do: {hint}\n" if hint else ""))
    return EXIT_FAILED
