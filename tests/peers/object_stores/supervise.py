"""Run one command and see to it that it ends: with its launcher, however that dies, and after a while in any case.

    python -I supervise.py SECONDS GRACE COMMAND...

The command is ended when this process' standard input is closed, or after SECONDS: asked first, and made to after GRACE
seconds more. The exit code is the command's. Nothing but the standard library is there.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys


def main(seconds: float, grace: float, command: list[str]) -> int:
    # A session of its own: Ctrl-C in the terminal is for the launcher alone.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        ended = os.pidfd_open(process.pid)
        select.select([sys.stdin, ended], [], [], seconds)
        os.close(ended)
        process.terminate()
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
