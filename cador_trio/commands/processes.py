"""The two ends of the demo: the example algorithm in a process of its own, and the daemon in this one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console

from cador_trio import daemon
from cador_trio.commands.demo import DemoFailed
from cador_trio.commands.report import done
from cador_trio.settings import Settings

START_SECONDS: Final = 60.0  # for the algorithm to listen; the first import of its libraries reads 100 MB from disk
JOB_SECONDS: Final = 120.0  # from readiness to the last result; usually less than one
LONGEST_LINE: Final = 1_000  # bytes that the algorithm may write before its first line has to end


def find_algorithm() -> Path:
    """The folder of the example algorithm: beside the installed package, or in a source tree."""
    package = Path(__file__).parents[1]
    for folder in (package / "_water_bodies", package.parent / "containers" / "water-bodies"):
        if (folder / "server.py").is_file():
            return folder
    raise DemoFailed("the example algorithm is not in this installation", "install cador-trio from its wheel or source")


@asynccontextmanager
async def open_algorithm(folder: Path, console: Console) -> AsyncIterator[str]:
    """Run the example algorithm in a process of its own on a free port; gives its base URL, ends it at the exit.

    Raises DemoFailed if it does not start, or ends by itself.
    """
    # A session of its own: Ctrl-C reaches us alone, and we end the two in order.
    command = [sys.executable, str(folder / "server.py"), "--host", "127.0.0.1", "--port", "0"]
    url = ""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, start_new_session=True, check=False)
        )
        with console.status("Starting the example algorithm …"), trio.move_on_after(START_SECONDS):
            url = await _first_line(process)
        if not url:
            code = process.returncode
            why = f"not within {START_SECONDS:.0f} s" if code is None else f"exit code {code}"
            raise DemoFailed(
                f"the example algorithm did not start ({why})",
                f"what it wrote is above; try it alone: {' '.join(command)}",
            )
        done(console, f"The example algorithm, a water-body detector, listens at {url}")
        nursery.start_soon(_watch, process)
        yield url
        nursery.cancel_scope.cancel("the demo is over")


async def _first_line(process: trio.Process) -> str:
    """The first line on its standard output; empty if it ended without one."""
    assert process.stdout is not None  # noqa: S101 - asked for with PIPE
    text = b""
    while b"\n" not in text and len(text) < LONGEST_LINE:
        chunk = await process.stdout.receive_some()
        if not chunk:
            await process.wait()
            return ""
        text += chunk
    return text.partition(b"\n")[0].decode("utf-8", "replace").strip()


async def _watch(process: trio.Process) -> None:
    code = await process.wait()
    raise DemoFailed(
        f"the example algorithm ended by itself, with code {code}", "what it wrote is above; was it killed?"
    )


@asynccontextmanager
async def open_daemon(
    algorithm_url: str, folder: Path, console: Console, more: Mapping[str, Any]
) -> AsyncIterator[str]:
    """Run the daemon on a free port in front of the algorithm; gives its base URL, ends it in order at the exit.

    It may store in `folder`; `more` are further settings by their names. Raises CadorError if it can't start.
    """
    own = {
        "processing_server": algorithm_url,
        "host": "127.0.0.1",
        "port": 0,
        "posix_roots": (folder,),
        "job_timeout_seconds": JOB_SECONDS,
        "shutdown_grace_seconds": 1,
        "log_level": "warning",
    }
    settings = Settings.model_validate({**own, **more})
    async with trio.open_nursery() as nursery:
        serving: daemon.Serving = await nursery.start(daemon.serve, settings)
        done(console, f"The daemon in front of it listens at {serving.url}")
        yield serving.url
        serving.stop()
