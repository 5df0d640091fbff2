"""How a command for users ends: its exit code, and what standard error says when it is not 0."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Final

from cador_trio.errors import CadorError, SettingsError

EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 3
EXIT_INTERRUPTED: Final = 128 + 2  # SIGINT, as a shell counts it


class UsageWrong(CadorError):
    """The user must act: these options, or this file, can't be meant."""


class CommandFailed(CadorError):
    """Something that the command needs does not work, or is not there; the hint says what to do."""


def told(command: Callable[[], int]) -> int:
    """Run a command; errors that somebody can mend become a line on standard error and the exit code that fits.

    Returns:
        The process's exit code: the command's own, 2 wrong usage or settings, 3 something does not work, 130 Ctrl-C.
    """
    try:
        return command()
    except KeyboardInterrupt:
        return _interrupted()
    except (CadorError, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            return _interrupted()
        ours = [leaf for leaf in leaves if isinstance(leaf, CadorError)]
        if len(ours) != len(leaves):
            raise
        for leaf in ours:
            tell(leaf)
        return EXIT_USAGE if any(isinstance(leaf, SettingsError | UsageWrong) for leaf in ours) else EXIT_FAILED


def say(line: str) -> None:
    """A line on standard error, where everything goes that is no result."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def tell(error: CadorError) -> None:
    """What is wrong and what helps, a line each."""
    for text in error.findings if isinstance(error, SettingsError) else [error.message]:
        say(printable(f"cador-trio: {text}" + (f" ({error.hint})" if error.hint else "")))


def printable(text: str) -> str:
    """Text of others as a terminal may get it: what could move its cursor or change its colours is shown, not done."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _interrupted() -> int:
    say("cador-trio: interrupted")
    return EXIT_INTERRUPTED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
