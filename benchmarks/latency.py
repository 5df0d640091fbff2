"""What the daemon adds to a request, beside a bare quart-trio + httpx pass-through in the same run.

Both stand before the same instant algorithm and take turns, round by round, so that whatever else the machine does
falls on both. Figures are ratios of the daemon's time to the bare one's: `python -m benchmarks.latency`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.processes import Running, running, running_daemon

ROUNDS: Final = 16
REQUESTS: Final = {1: 250, 8: 500}  # by connections; fewer than hypercorn's 1,000 for one connection
WARM_UP_REQUESTS: Final = 200
PERCENTILES: Final = (50, 99)
SLOTS: Final = "8"
GOAL: Final = 1.5  # p50, times the bare one's


@dataclass(frozen=True)
class Measured:
    """Seconds of every request, by connections, one list a round."""

    name: str
    rounds: dict[int, list[list[float]]] = field(default_factory=lambda: {connections: [] for connections in REQUESTS})

    def percentile(self, connections: int, percent: int) -> float:
        """Over all rounds, in seconds."""
        return _percentile([taken for one in self.rounds[connections] for taken in one], percent)


def measure(contenders: Sequence[tuple[Measured, Running]]) -> None:
    """All rounds of all contenders, taking turns."""
    for _, peer in contenders:
        for connections in REQUESTS:
            _load(peer.url, connections, WARM_UP_REQUESTS)
    for _ in range(ROUNDS):
        for connections, requests in REQUESTS.items():
            for measured, peer in contenders:
                measured.rounds[connections].append(_load(peer.url, connections, requests))


def table(daemon: Measured, bare: Measured) -> str:
    """The figures: ratios first, with the spread over the rounds, the times that they come from behind."""
    lines = ["connections  percentile  daemon / bare  (rounds: low - high)   daemon ms    bare ms"]
    for connections in REQUESTS:
        for percent in PERCENTILES:
            ratio = daemon.percentile(connections, percent) / bare.percentile(connections, percent)
            by_round = [
                _percentile(ours, percent) / _percentile(theirs, percent)
                for ours, theirs in zip(daemon.rounds[connections], bare.rounds[connections], strict=True)
            ]
            lines.append(
                f"{connections:11}  {f'p{percent}':>10}  {ratio:13.2f}  {min(by_round):13.2f} - {max(by_round):5.2f}"
                f"  {1000 * daemon.percentile(connections, percent):11.2f}"
                f"  {1000 * bare.percentile(connections, percent):9.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    with (
        running("benchmarks.instant_algorithm") as algorithm,
        running_daemon(algorithm.url, CADOR_MAX_CONCURRENT_JOBS=SLOTS) as daemon_process,
        running("benchmarks.pass_through", algorithm.url) as bare_process,
    ):
        daemon, bare = Measured("cador-trio"), Measured("bare pass-through")
        measure([(daemon, daemon_process), (bare, bare_process)])
    sys.stdout.write(f"{table(daemon, bare)}\ngoal: p50 at most {GOAL} times the bare one's\n")


def _load(url: str, connections: int, requests: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(requests)]
    taken: list[float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return taken


def _percentile(taken: Sequence[float], percent: int) -> float:
    return statistics.quantiles(taken, n=100)[percent - 1]


if __name__ == "__main__":
    main()
