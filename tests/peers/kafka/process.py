"""A program that tests may stop, kill, pause and start again, and that ends with the test process however that dies.

Knows processes and signals; which program runs is its starter's affair.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

_SUPERVISE: Final = Path(__file__).with_name("supervise.py")
_GRACE_SECONDS: Final = 20
_PAUSE_SECONDS: Final = 10
_LOG_TAIL_BYTES: Final = 20_000


class DidNotStart(Exception):
    """A program ended or was not ready in time; the text holds the end of its log."""


class SupervisedProcess:
    """One life of a program, from its start to `end`.

    Args:
        command: the program and its arguments.
        log_path: what it prints is added there.
        life_seconds: it is ended after so long in any case.

    """

    def __init__(self, command: Sequence[str | Path], log_path: Path, life_seconds: float) -> None:
        self._log_path = log_path
        # Not PR_SET_PDEATHSIG from here: it fires when the starting thread ends, and tests start programs in threads.
        report, theirs = os.pipe()
        with os.fdopen(report, encoding="ascii") as pipe, log_path.open("ab") as log:
            words = [str(life_seconds), str(_GRACE_SECONDS), str(theirs), *(os.fspath(word) for word in command)]
            try:
                self._supervisor = subprocess.Popen(
                    [sys.executable, "-I", _SUPERVISE, *words],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs],
                )
            finally:
                os.close(theirs)
            line = pipe.readline()
        try:
            self.pid = int(line)
            # Signals go by this descriptor, so that none can hit another process that has got the same number.
            self._pidfd = os.pidfd_open(self.pid)
        except (ValueError, ProcessLookupError) as error:
            self._supervisor.communicate()
            raise DidNotStart(log_tail(log_path)) from error

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; one that is paused runs."""
        return self._supervisor.poll() is None

    def wait_until(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Ask again and again. Raises DidNotStart if it ended first, or when the time is over."""
        give_up_at = time.monotonic() + seconds
        while not is_ready():
            if not self.is_running:
                raise DidNotStart(f"ended with code {self._supervisor.returncode}\n{log_tail(self._log_path)}")
            if time.monotonic() > give_up_at:
                raise DidNotStart(f"not ready after {seconds:.0f} s\n{log_tail(self._log_path)}")
            time.sleep(0.02)

    def pause(self) -> None:
        """Freeze it where it is (SIGSTOP); returns when every thread of it has stopped."""
        self._signal(signal.SIGSTOP)
        give_up_at = time.monotonic() + _PAUSE_SECONDS
        while not all(state == "T" for state in self._thread_states()):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"process {self.pid} has not stopped after {_PAUSE_SECONDS} s")
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on after `pause` (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def end(self, *, kill: bool = False) -> None:
        """End it and wait for that: ask it (SIGTERM), and insist after 20 s; or kill it at once (SIGKILL).

        One that is paused goes on before it ends. To be called once, also when it has ended by itself.
        """
        for number in [signal.SIGKILL] if kill else [signal.SIGTERM, signal.SIGCONT]:
            with suppress(ProcessLookupError):
                self._signal(number)
        with self._supervisor:
            # Leaving the block closes standard input, on which the supervisor asks once more, and insists.
            pass
        os.close(self._pidfd)

    def _thread_states(self) -> list[str]:
        # The state is the first field behind the name, which stands in brackets and may itself hold some.
        states = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
                states.append((task / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0])
        return states

    def _signal(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._pidfd, number)


def log_tail(log_path: Path) -> str:
    """The end of what a program has printed."""
    return log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
