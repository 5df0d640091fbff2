"""Where a command's results go, standard output or a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cador_trio.commands.endings import CommandFailed, UsageWrong
from cador_trio.job import Json


def give_json(value: Json, output: Path | None) -> None:
    """Write JSON: to a terminal indented, else in one line. Raises CommandFailed if the file can't be written."""
    text = json.dumps(value, indent=2 if output is None and sys.stdout.isatty() else None) + "\n"
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        give_bytes(text.encode(), output)


def give_bytes(content: bytes, output: Path | None) -> None:
    """Write bytes as they are. Raises CommandFailed if the file can't be written."""
    if output is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    try:
        output.write_bytes(content)
    except OSError as error:
        raise unwritable(output, error) from error


def unwritable(output: Path, error: OSError) -> CommandFailed:
    """What the file system said, as an error of ours."""
    return CommandFailed(f"{output} can't be written: {error.strerror}", hint="name another file with --output")


def check_writable(output: Path | None) -> None:
    """Find out before a job runs, not after. Raises UsageWrong if there can't be such a file."""
    if output is None:
        return
    if output.is_dir():
        raise UsageWrong(f"--output {output} is a folder", hint="name a file in it")
    if not output.parent.is_dir():
        raise UsageWrong(f"--output {output}: there is no folder {output.parent}", hint="make it first")
