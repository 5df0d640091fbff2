"""The daemon as a process of its own, and what a test can see of it: its log as it is written, its spool, its end.

Everything that is waited for is an event that the process shows, under one cap; nothing sleeps.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from tests.leaks import watch, watch_answer

CAP_SECONDS: Final = 30.0  # for any one wait: this long only if something is wrong
JSON: Final = {"Content-Type": "application/json"}
IMAGE: Final = {"image": "aW1hZ2U="}  # what the fake algorithm takes
SERVE: Final = ("-m", "cador_trio")
OURS: Final = ("CADOR_", "KAFKA_", "EOPAAS_", "OTEL_")  # variables that a daemon has from its test alone

Line = dict[str, Any]


class Daemon:
    """One process. `folder` holds its spool and, as the one allowed root, its store."""

    def __init__(self, folder: Path) -> None:
        self.spool = folder / "spool"
        self.store = folder / "store"
        self.url = ""
        self.lines: list[Line] = []
        self.output: list[str] = []  # on standard error, as it was written
        self.process: trio.Process
        self._has_ended = False
        self._changed = trio.Event()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    async def wait_event(self, event: str) -> Line:
        """The first log line of this event; fails if the process ends without it."""
        with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
            while True:
                for line in self.lines:
                    if line["event"] == event:
                        return line
                if self._has_ended:
                    raise AssertionError(f"it ended with {self.process.returncode} and never said {event!r}")
                await self._changed.wait()

    async def wait_output(self, text: str) -> None:
        """Until something with this text was written, log line or not."""
        with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
            while not any(text in line for line in self.output):
                await self._changed.wait()

    async def wait_exit(self) -> int:
        """Its exit code, once all that it wrote is here."""
        with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
            while not self._has_ended:
                await self._changed.wait()
        return self.process.returncode or 0

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(number)
        return await self.wait_exit()

    def spooled(self) -> list[Path]:
        """Files of results, of this process and of any before it."""
        return [path for path in self.spool.glob("*/*") if path.name != "lock"]

    async def read_output(self, stream: trio.abc.ReceiveStream) -> None:
        """Take in what it writes until it ends."""
        rest = b""
        async for chunk in stream:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                watch("the log", line)
                self.output.append(line.decode())
                if line.startswith(b"{"):
                    self.lines.append(json.loads(line))
            self._tell()
        await self.process.wait()
        self._has_ended = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def open_daemon(
    folder: Path, algorithm: str, *, command: Sequence[str] = SERVE, **settings: str
) -> AsyncIterator[Daemon]:
    """A daemon that is starting; at the end of the block it is killed if it still runs."""
    daemon = Daemon(folder)
    daemon.spool.mkdir(exist_ok=True)
    daemon.store.mkdir(exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(OURS)},
        "PROCESSING_SERVER": algorithm,
        "CADOR_HOST": "127.0.0.1",
        "CADOR_PORT": "0",
        "CADOR_SPOOL_DIR": str(daemon.spool),
        "CADOR_POSIX_ROOTS": str(daemon.store),
        "CADOR_LOG_FORMAT": "json",
        **settings,
    }
    daemon.process = await trio.lowlevel.open_process(
        [sys.executable, *command], env=environment, stderr=subprocess.PIPE
    )
    stderr = daemon.process.stderr
    assert stderr is not None
    async with stderr, trio.open_nursery() as nursery:
        nursery.start_soon(daemon.read_output, stderr)
        try:
            yield daemon
        except BaseException:
            sys.stdout.write("\n".join([f"--- standard error of the daemon {daemon.pid}", *daemon.output, ""]))
            raise
        finally:
            if daemon.process.returncode is None:
                daemon.process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CAP_SECONDS):
                await daemon.process.wait()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def running_daemon(
    folder: Path, algorithm: str, *, command: Sequence[str] = SERVE, **settings: str
) -> AsyncIterator[Daemon]:
    """A daemon that serves, in front of an algorithm that it has reached."""
    async with open_daemon(folder, algorithm, command=command, **settings) as daemon:
        daemon.url = (await daemon.wait_event("serving"))["url"]
        await daemon.wait_event("the algorithm is reachable")
        yield daemon


def client_of(daemon: Daemon, verify: ssl.SSLContext | bool = True) -> httpx.AsyncClient:
    """A client whose every request is capped."""
    return httpx.AsyncClient(
        base_url=daemon.url,
        timeout=CAP_SECONDS,
        verify=verify,
        trust_env=False,
        event_hooks={"response": [watch_answer]},
    )


def connections(daemon: Daemon) -> int:
    """How many connections at its port the daemon has not let go of (IPv4)."""
    port = f":{daemon.address[1]:04X}"
    rows = [row.split() for row in Path(f"/proc/{daemon.pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(local.endswith(port) and state in {"01", "08"} for _, local, _, state, *_ in rows)  # open, half-closed


async def eventually(client: httpx.AsyncClient, holds: Callable[[], bool]) -> None:
    """Wait for what the daemon does behind its answers; it is looked for after each of its round trips."""
    with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
        while not holds():
            await client.get("/livez")


async def wait_answer(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    """Ask until the answer has this status."""
    with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
        while (answer := await client.get(path)).status_code != status:
            pass
    return answer
