"""The environment in which PESTO runs, made on first use and kept until its lock file changes.

Knows interpreters, virtual environments and installers; knows nothing of what PESTO serves or how it is started.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SUPPORTED: Final = ("3.11", "3.10")
"""The CPython versions that PESTO's pins are known to work on, best first."""

LOCK: Final = Path(__file__).with_name("requirements.lock")
CACHE: Final = Path(__file__).parents[3] / ".cache"

_INSTALL_SECONDS: Final = 600


class NoPythonForPesto(Exception):
    """This machine has no interpreter that PESTO runs on; the text says what was looked for."""


class EnvironmentNotMade(Exception):
    """A step of making the environment failed; the text holds the step and what it printed."""


def pesto_python() -> Path:
    """Return the interpreter of PESTO's environment, after making that environment if it is not there yet.

    Safe against other processes that ask at the same time, who wait, and against a maker that was killed: a folder
    without its completion mark is thrown away and made anew.

    Raises:
        NoPythonForPesto: neither the running interpreter nor one on PATH has a supported version.
        EnvironmentNotMade: an installer failed or took longer than ten minutes.

    """
    version, base = _supported_interpreter()
    environment = CACHE / f"pesto-{_fingerprint(version)}"
    python = environment / "bin" / "python"
    complete = environment / "complete"
    CACHE.mkdir(exist_ok=True)
    with _only_one(environment.with_suffix(".lock")) as lock:
        if not complete.exists():
            shutil.rmtree(environment, ignore_errors=True)
            for step in _steps(environment, base, python):
                _run(step, lock)
            complete.touch()
    return python


def _supported_interpreter() -> tuple[str, str]:
    candidates = [sys.executable, *(f"python{version}" for version in SUPPORTED)]
    for candidate in candidates:
        version = _version_of(candidate)
        if version in SUPPORTED:
            return version, candidate
    looked_for = ", ".join(candidates)
    raise NoPythonForPesto(f"PESTO needs CPython {' or '.join(SUPPORTED)}; none of these is one: {looked_for}")


def _version_of(interpreter: str) -> str | None:
    """Ask the interpreter itself, since a name on PATH may be a shim with nothing behind it."""
    question = "import sys; print('%d.%d' % sys.version_info[:2] if sys.implementation.name == 'cpython' else '')"
    try:
        answer = subprocess.run([interpreter, "-I", "-c", question], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _fingerprint(version: str) -> str:
    return hashlib.sha256(LOCK.read_bytes() + version.encode()).hexdigest()[:16]


@contextmanager
def _only_one(path: Path) -> Iterator[int]:
    """Hold an advisory lock, given as its descriptor; the kernel releases it when all who share it have ended."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield held.fileno()


def _steps(environment: Path, base: str, python: Path) -> list[list[str | Path]]:
    """Return the commands that make the environment: with uv where the tests' own environment has it, else with pip."""
    uv = shutil.which("uv", path=Path(sys.executable).parent)
    install: list[str | Path] = ["install", "--require-hashes", "--requirement", LOCK]
    if uv is not None:
        return [[uv, "venv", "--python", base, environment], [uv, "pip", *install, "--python", python]]
    return [[base, "-m", "venv", environment], [python, "-m", "pip", *install]]


def _run(step: list[str | Path], lock: int) -> None:
    """Run one step, which shares the lock: an installer that outlives its killed maker keeps the next one waiting."""
    words = [os.fspath(word) for word in step]
    try:
        subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=_INSTALL_SECONDS,
            pass_fds=[lock],
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise EnvironmentNotMade(f"{error}\n{error.output or ''}") from error
