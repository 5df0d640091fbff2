"""Starts one real PESTO with the example algorithm on a free loopback port, and ends it.

Knows processes and ports; what PESTO is asked and what it answers is the tests' affair.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .hold import Hold
from .images import encode_image, sample_image

STATELESS: Final = ""
STATEFUL: Final = "stateful"
"""PESTO profiles of the example algorithm: how it answers."""

_SERVE: Final = Path(__file__).with_name("serve.py")
_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 5
_LOG_TAIL_BYTES: Final = 20_000


class PestoDidNotStart(Exception):
    """PESTO ended or stayed silent while it should have opened its port; the text holds the end of its log."""


@dataclass(frozen=True)
class PestoPeer:
    """A PESTO that runs."""

    url: str
    """Scheme, host and port, without a path."""
    pid: int
    workspace: Path
    """Where PESTO keeps the results of jobs, one folder each; it exists from the first result on."""
    image_path: Path
    """A PNG of `images.sample_image()`, for inputs by `file://`."""
    log_path: Path

    def job_folders(self) -> Mapping[str, tuple[str, ...]]:
        """Return the names of the result files that PESTO still holds, by job; a job without results has none."""
        if not self.workspace.exists():
            return {}
        return {job.name: tuple(sorted(file.name for file in job.iterdir())) for job in self.workspace.iterdir()}

    def hold(self) -> Hold:
        """Return a new rendezvous; its `port` goes into the payload as `hold_port`."""
        return Hold()

    def log_tail(self) -> str:
        """Return the end of what PESTO has printed."""
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


@contextmanager
def running_pesto(python: Path, folder: Path, profile: str) -> Iterator[PestoPeer]:
    """Run a PESTO of its own in `folder`, which must exist and be empty, from its first answer to the end of the block.

    Args:
        python: the interpreter of PESTO's environment.
        folder: gets its descriptors, workspace, log and test image.
        profile: `STATELESS` or `STATEFUL`.

    Raises:
        PestoDidNotStart: it ended early or its port was still closed after a minute.

    """
    image_path = folder / "sample.png"
    image_path.write_bytes(encode_image(sample_image()))
    with _bound_socket() as bound, (folder / "pesto.log").open("wb") as log:
        address: tuple[str, int] = bound.getsockname()
        process = subprocess.Popen(
            # Not the caller's PYTHONPATH, nor the folder of the script; text files are UTF-8 whatever the locale.
            [python, "-I", "-X", "utf8", _SERVE, folder, profile, str(bound.fileno())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[bound.fileno()],
            env={**os.environ, "PESTO_PROFILE": profile, "PESTO_WORKSPACE": str(folder / "build")},
        )
    host, port = address
    peer = PestoPeer(f"http://{host}:{port}", process.pid, folder / "jobs", image_path, folder / "pesto.log")
    with process:
        try:
            _wait_until_open(address, process, peer)
            yield peer
        finally:
            _end(process)


def _bound_socket() -> socket.socket:
    """Take a free port without listening: until PESTO itself listens, connections are refused."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def _wait_until_open(address: tuple[str, int], process: subprocess.Popen[bytes], peer: PestoPeer) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while not _is_open(address):
        if process.poll() is not None:
            raise PestoDidNotStart(f"PESTO ended with code {process.returncode}\n{peer.log_tail()}")
        if time.monotonic() > give_up_at:
            raise PestoDidNotStart(f"the port of PESTO is closed after {_START_SECONDS} s\n{peer.log_tail()}")
        time.sleep(0.02)


def _is_open(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask once, then insist: PESTO finishes the request in hand before it goes."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
