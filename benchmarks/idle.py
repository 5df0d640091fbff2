"""What the daemon costs while nothing happens, and after it has worked: resident memory and CPU time.

`python -m benchmarks.idle`; the bare pass-through of `benchmarks.latency` stands beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.processes import Running, running, running_daemon

IDLE_SECONDS: Final = 20.0
REQUESTS: Final = 2_000
CONNECTIONS: Final = 8
MIB: Final = 1024 * 1024
TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    with (
        running("benchmarks.instant_algorithm") as algorithm,
        running_daemon(algorithm.url, CADOR_MAX_CONCURRENT_JOBS=str(CONNECTIONS)) as daemon,
        running("benchmarks.pass_through", algorithm.url) as bare,
    ):
        peers = {"cador-trio": daemon, "bare pass-through": bare}
        lines = ["                    resident MiB   CPU % idle   wakeups/s   resident MiB after work"]
        started = {name: _resident(peer) for name, peer in peers.items()}
        before = {name: (_cpu_seconds(peer), _wakeups(peer)) for name, peer in peers.items()}
        time.sleep(IDLE_SECONDS)
        for name, peer in peers.items():
            cpu = 100 * (_cpu_seconds(peer) - before[name][0]) / IDLE_SECONDS
            wakeups = (_wakeups(peer) - before[name][1]) / IDLE_SECONDS
            _load(peer)
            lines.append(f"{name:<18}  {started[name]:12.1f}  {cpu:11.2f}  {wakeups:10.1f}  {_resident(peer):24.1f}")
    sys.stdout.write("\n".join([*lines, f"work: {REQUESTS} requests over {CONNECTIONS} connections", ""]))


def _load(peer: Running) -> None:
    command = [sys.executable, "-m", "benchmarks.load", peer.url, str(CONNECTIONS), str(REQUESTS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _resident(peer: Running) -> float:
    """MiB."""
    return int(_status(peer, "VmRSS")) * 1024 / MIB


def _wakeups(peer: Running) -> int:
    return int(_status(peer, "voluntary_ctxt_switches"))


def _status(peer: Running, name: str) -> str:
    lines = Path(f"/proc/{peer.pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def _cpu_seconds(peer: Running) -> float:
    fields = Path(f"/proc/{peer.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


if __name__ == "__main__":
    main()
