"""Run one command and see to it that it ends: with its launcher, however that dies, and after a while in any case.

    python -I supervise.py SECONDS GRACE REPORT COMMAND...

The command's process id is written to the descriptor REPORT. The command is ended when standard input is closed, when
the process that started this one is gone, or after SECONDS: asked first, and made to after GRACE seconds more. It does
not outlive this process, should that be killed. The exit code is the command's. Nothing but the standard library is
there.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main(seconds: float, grace: float, report: int, command: list[str]) -> int:
    # Signals to the launcher's process group (Ctrl-C, a `kill` of all of it) are for the launcher alone.
    os.setsid()
    launcher = os.pidfd_open(os.getppid())
    libc = ctypes.CDLL(None)
    # The kernel kills the command when the thread that started it dies, which is this process' only one.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - no other thread is there
    ) as process:
        ended = os.pidfd_open(process.pid)
        with os.fdopen(report, "w", encoding="ascii") as pipe:
            pipe.write(f"{process.pid}\n")
        select.select([sys.stdin, launcher, ended], [], [], seconds)
        process.terminate()
        # One that is paused would not notice.
        process.send_signal(signal.SIGCONT)
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
