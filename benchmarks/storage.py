"""Uploads to an S3 server, beside plain libcloud and other clients in the same run: `python -m benchmarks.storage`.

The server is a versitygw on a file system in memory. All take turns, in another order each round, so that whatever else
the machine does falls on all; server and clients share its cores, so the ratios say more than the MB/s.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final, cast

from benchmarks.storage_worker import CONTENDERS, Place
from tests.peers.object_stores.store import ObjectStore
from tests.peers.object_stores.versitygw import running_versitygw
from tests.peers.object_stores.versitygw_build import versitygw_program

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a file system in memory is what is meant
ROOM_BYTES: Final = 6 * 10**9
KB, MB, GB = 10**3, 10**6, 10**9
OURS: Final = "cador-trio"
PLAIN: Final = "libcloud upload_object"
BEST_GOAL: Final = 0.95  # times the best, at 5 MB and more
PLAIN_GOALS: Final = {1: 1.1, 8: 1.3}  # times plain libcloud at 10 kB, by uploads at once


@dataclass(frozen=True)
class Case:
    """So many objects of so many bytes, so many at once."""

    size: int
    objects: int
    at_once: int

    @property
    def bytes(self) -> int:
        """Of all objects."""
        return self.size * self.objects

    def __str__(self) -> str:
        size = f"{self.size // MB} MB" if self.size >= MB else f"{self.size // KB} kB"
        return f"{size}, {self.at_once} at once"


CASES: Final = (
    Case(10 * KB, 300, 1),
    Case(10 * KB, 600, 8),
    Case(5 * MB, 30, 1),
    Case(5 * MB, 60, 8),
    Case(200 * MB, 2, 1),
    Case(200 * MB, 8, 8),
)
ROUNDS: Final = 5
FEWEST_ROUNDS: Final = 3
BUDGET_SECONDS: Final = 240  # no round after the third begins later
QUICK_CASES: Final = CASES[:4]
QUICK_ROUNDS: Final = 3


@dataclass
class Contender:
    """A worker, and what it has measured: bytes per second and CPU seconds per byte of each round, by case."""

    name: str
    worker: subprocess.Popen[str]
    speeds: dict[Case, list[float]] = field(default_factory=dict)
    costs: dict[Case, list[float]] = field(default_factory=dict)
    peak: int = 0

    def warm_up(self, case: Case) -> None:
        """As many objects as there are uploads at once, unmeasured."""
        self._order(case.size, case.at_once, case.at_once)

    def measure(self, case: Case) -> None:
        """One round of one case."""
        report = self._order(case.size, case.objects, case.at_once)
        self.speeds.setdefault(case, []).append(case.bytes / report["seconds"])
        self.costs.setdefault(case, []).append(report["cpu"] / case.bytes)
        self.peak = int(report["peak"])

    def speed(self, case: Case) -> float:
        """Bytes per second, the median of all rounds."""
        return statistics.median(self.speeds[case])

    def ratio(self, case: Case, other: Contender) -> float:
        """Times the other's speed, the median of what the rounds say."""
        pairs = zip(self.speeds[case], other.speeds[case], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def _order(self, size: int, objects: int, at_once: int) -> dict[str, float]:
        orders, reports = cast("IO[str]", self.worker.stdin), cast("IO[str]", self.worker.stdout)
        orders.write(f"{size} {objects} {at_once}\n")
        orders.flush()
        line = reports.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended in the middle of its work")
        report: dict[str, float] = json.loads(line)
        return report


def measure(contenders: Sequence[Contender], store: ObjectStore, cases: Sequence[Case], rounds: int) -> None:
    """All rounds of all contenders, taking turns; on a busy machine fewer."""
    began = time.monotonic()
    for case in cases:
        for contender in contenders:
            contender.warm_up(case)
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() > began + BUDGET_SECONDS:
            break
        turn = number % len(contenders)
        for case in cases:
            for contender in (*contenders[turn:], *contenders[:turn]):
                contender.measure(case)
    check_stored(store, cases)


def check_stored(store: ObjectStore, cases: Sequence[Case]) -> None:
    """See that what was measured was storing."""
    for case in cases:
        for key in f"ours/bench_image-{case.size}_0", f"others/image-{case.size}_0":
            size = store.describe_object(key)["ContentLength"]
            if size != case.size:
                raise RuntimeError(f"{key} has {size} bytes, not {case.size}")


def table(contenders: Sequence[Contender], cases: Sequence[Case]) -> Iterator[str]:
    """The figures: a block for each case, then what the goals say of ours."""
    by_name = {contender.name: contender for contender in contenders}
    ours, plain = by_name[OURS], by_name[PLAIN]
    for case in cases:
        yield f"{f'{case}':24}      MB/s  objects/s   x libcloud   (rounds: low - high)   CPU s/GB"
        for one in contenders:
            rounds = [speed / base for speed, base in zip(one.speeds[case], plain.speeds[case], strict=True)]
            speed = one.speed(case)
            yield (
                f"  {one.name:24}{speed / MB:8.1f}  {speed / case.size:9.1f}  {one.ratio(case, plain):11.2f}"
                f"   {min(rounds):14.2f} - {max(rounds):4.2f}  {statistics.median(one.costs[case]) * GB:9.2f}"
            )
        yield f"  {verdict(ours, contenders, plain, case)}"
    yield "peak memory, MB          " + ", ".join(f"{one.name} {one.peak / MB:.0f}" for one in contenders)


def verdict(ours: Contender, contenders: Sequence[Contender], plain: Contender, case: Case) -> str:
    """What the goal for a case is, and whether it was met."""
    if case.size < MB:
        goal, other = PLAIN_GOALS[case.at_once], plain
    else:
        goal, other = BEST_GOAL, max((one for one in contenders if one is not ours), key=lambda one: one.speed(case))
    reached = ours.ratio(case, other)
    return f"goal: {goal} x {other.name}: {reached:.2f}, {'met' if reached >= goal else 'MISSED'}"


@contextmanager
def started(name: str, place: Place) -> Iterator[Contender]:
    """A worker, until the block ends."""
    command = [sys.executable, "-m", "benchmarks.storage_worker", name, json.dumps(asdict(place))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        try:
            yield Contender(name, worker)
        except BaseException:
            worker.kill()
            raise


def main(arguments: Sequence[str]) -> None:
    """Measure and print. With `--quick` a look of half a minute, without large objects."""
    quick = "--quick" in arguments
    cases, rounds = (QUICK_CASES, QUICK_ROUNDS) if quick else (CASES, ROUNDS)
    if shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        raise SystemExit(f"{MEMORY} has not the {ROOM_BYTES / GB:.0f} GB free that this needs")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="cador-trio-bench-", dir=MEMORY)))
        for size in {case.size for case in cases}:
            # Not zeros: nobody may be clever about them.
            (folder / str(size)).write_bytes((bytes(range(251)) * (size // 251 + 1))[:size])
        (folder / "store").mkdir()
        store = stack.enter_context(running_versitygw(versitygw_program(), folder / "store"))
        place = Place(store.url, store.access_key, store.secret_key, store.region, store.bucket, str(folder))
        contenders = [stack.enter_context(started(name, place)) for name in CONTENDERS]
        measure(contenders, store, cases, rounds)
        sys.stdout.write("\n".join(table(contenders, cases)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
