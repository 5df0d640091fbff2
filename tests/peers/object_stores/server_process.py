"""The life of a store's process: free ports, a log, a start that is waited for, an end that is seen to.

Knows processes and ports; which program runs and what it serves is the launchers' affair.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

HOST: Final = "127.0.0.1"

_SUPERVISE: Final = Path(__file__).with_name("supervise.py")
_LIFE_SECONDS: Final = 3_600  # longer than any run of the tests
_START_SECONDS: Final = 30
_GRACE_SECONDS: Final = 10  # SeaweedFS takes 2 to 4 to put its things away
_LOG_TAIL_BYTES: Final = 20_000


class StoreDidNotStart(Exception):
    """A store ended or was not ready in time; the text holds the end of its log."""


@contextmanager
def running(
    command: Sequence[str | Path], log_path: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[ServerProcess]:
    """Run a program from here to the end of the block, an hour at most, also if this process is killed.

    Args:
        command: the program and its arguments.
        log_path: gets what it prints.
        environment: variables beside those of this process.

    """
    words = [os.fspath(word) for word in command]
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-I", _SUPERVISE, str(_LIFE_SECONDS), str(_GRACE_SECONDS), *words],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        ) as supervisor,
    ):
        # Leaving Popen's block closes standard input, which ends the command, and waits.
        yield ServerProcess(supervisor, log_path)


class ServerProcess:
    """A store's process, while it starts."""

    def __init__(self, supervisor: subprocess.Popen[bytes], log_path: Path) -> None:
        self._supervisor = supervisor
        self._log_path = log_path

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Ask again and again. Raises StoreDidNotStart if the process ended first, or after half a minute."""
        give_up_at = time.monotonic() + _START_SECONDS
        while not is_ready():
            if self._supervisor.poll() is not None:
                raise StoreDidNotStart(f"ended with code {self._supervisor.returncode}\n{log_tail(self._log_path)}")
            if time.monotonic() > give_up_at:
                raise StoreDidNotStart(f"not ready after {_START_SECONDS} s\n{log_tail(self._log_path)}")
            time.sleep(0.02)


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Free ports that stay free, for a program that sets SO_REUSEADDR as all of Go's do.

    They are bound and never listened on: connections are refused until the program itself listens.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for keeper in sockets:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeper.bind((HOST, 0))
        yield [keeper.getsockname()[1] for keeper in sockets]


def is_open(port: int) -> bool:
    """Whether someone listens there."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def log_tail(log_path: Path) -> str:
    """The end of what a program has printed."""
    return log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
