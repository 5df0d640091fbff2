"""The program versitygw, built from its published source on first use and kept until the pinned version changes.

Knows the Go toolchain; knows nothing of what versitygw serves or how it is started.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

VERSION: Final = "v1.8.0"
MODULE: Final = "github.com/versity/versitygw/cmd/versitygw"
BINARIES: Final = Path(__file__).parents[3] / ".cache" / "bin"

_BUILD_SECONDS: Final = 900  # 75 on two cores with nothing cached


class NoGo(Exception):
    """This machine has no Go toolchain, and versitygw is not built yet."""


class VersitygwNotBuilt(Exception):
    """The build failed; the text holds what it printed."""


def versitygw_program() -> Path:
    """Return the program, after building it if it is not there yet.

    Safe against other processes that ask at the same time, who wait, and against a builder that was killed: the
    program gets its name when it is whole.

    Raises:
        NoGo: it would have to be built, and there is no `go` on PATH.
        VersitygwNotBuilt: the build failed or took longer than a quarter of an hour.

    """
    program = BINARIES / f"versitygw-{VERSION}"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise NoGo(f"versitygw {VERSION} is not in {BINARIES}, and building it needs a program `go` on PATH")
    BINARIES.mkdir(parents=True, exist_ok=True)
    with (BINARIES / f"{program.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(go, program, lock.fileno())
    return program


def _build(go: str, program: Path, lock: int) -> None:
    """Build in a folder of its own beside the program; the compiler shares the lock, should it outlive its maker."""
    with tempfile.TemporaryDirectory(dir=BINARIES) as folder:
        try:
            subprocess.run(
                # Two packages at a time: enough for the cores of a small machine, and for its memory.
                [go, "install", "-p=2", f"{MODULE}@{VERSION}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                timeout=_BUILD_SECONDS,
                pass_fds=[lock],
                env={**os.environ, "GOBIN": folder},
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise VersitygwNotBuilt(f"{error}\n{error.output or ''}") from error
        (Path(folder) / "versitygw").replace(program)
