"""The processes that a measurement needs: started, found by the URL that they print, ended by their own pid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

PATIENCE_SECONDS: Final = 30.0  # for a start and for an end
LOOK_SECONDS: Final = 0.02  # between looks at a log file


@dataclass(frozen=True)
class Running:
    """A process that serves at this URL."""

    url: str
    pid: int


@contextmanager
def running(module: str, *arguments: str) -> Iterator[Running]:
    """`python -m module`, which prints its URL as the first line on stdout, until the block ends."""
    with (
        subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True) as process,
        _ending(process),
    ):
        url = process.stdout.readline().strip() if process.stdout else ""
        if not url:
            raise RuntimeError(f"{module} did not start")
        yield Running(url, process.pid)


@contextmanager
def running_daemon(algorithm: str, **settings: str) -> Iterator[Running]:
    """The daemon in front of this algorithm, its log in a file, until the block ends. Returns when it is ready."""
    with TemporaryDirectory(prefix="cador-trio-bench-") as folder:
        log = Path(folder, "log")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CADOR_")},
            "PROCESSING_SERVER": algorithm,
            "CADOR_HOST": "127.0.0.1",
            "CADOR_PORT": "0",
            "CADOR_SPOOL_DIR": folder,
            **settings,
        }
        with (
            log.open("wb") as stderr,
            subprocess.Popen([sys.executable, "-m", "cador_trio"], env=environment, stderr=stderr) as process,
            _ending(process),
        ):
            _wait_event(log, process, "the algorithm is reachable")
            yield Running(_wait_event(log, process, "serving")["url"], process.pid)


@contextmanager
def _ending(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_event(log: Path, process: subprocess.Popen[bytes], event: str) -> dict[str, str]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("}\n") and (found := json.loads(line))["event"] == event:
                return dict(found)
        time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"the daemon did not say {event!r}:\n{log.read_text()}")
