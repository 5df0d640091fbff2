"""The kill test: daemons of one group work through jobs while they, the broker and the algorithm die and come back.

    python -m tests.kafka.chaos --seed 7 --jobs 1000 --daemons 3

What is done, to whom, and after how many finished jobs follows from the seed; when that is depends on the machine. At
the end everything is read `read_committed` and held against what each job must have left: one output, its tags, one
SUCCEEDED, one object with the right bytes, and a committed offset.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import trio

from tests.daemon.process import Daemon, open_daemon
from tests.kafka.street import KafkaStreet, value_of
from tests.peers.fake_algorithm import Answer, FakeAlgorithm, Hold, SeenRequest
from tests.peers.fake_algorithm.connection import Connection
from tests.peers.fake_algorithm.documents import minimal_describe
from tests.peers.fake_algorithm.script import SIGNATURES, Behaviour, JsonObject, Reply
from tests.peers.kafka.broker import RealKafka, running_kafka
from tests.peers.kafka.records import TestRecord

QUICK_SESSION: Final = "session.timeout.ms=6000;heartbeat.interval.ms=500"
"""For classic groups; the session of KIP-848 groups is the broker's, and as short on ours."""
MOST_DELIVERIES: Final = "31"  # what a ledger counts to
PARTITIONS: Final = 6
BACKLOG: Final = 40  # jobs that run or wait when a blow falls
STALL_SECONDS: Final = 120.0  # without a job that finishes, while nothing is wrong any more
TAKEN_OVER_SECONDS: Final = 90.0
END_SECONDS: Final = 90.0
TERMINAL: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})


# --- Jobs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One job: what it asks for, and so what it must leave. Everything about it is in its request's image."""

    name: str
    milliseconds: int
    tags: int
    size: int
    """Bytes of the image that it makes."""

    def request(self, folder: Path) -> JsonObject:
        image = json.dumps([self.name, self.milliseconds, self.tags, self.size]).encode()
        technical = {
            "taskId": self.name,
            "postProcessing": {"tags": self.tags > 0},
            "outputStorage": {"POSIX": {"folder": str(folder)}},
        }
        return {"image": base64.b64encode(image).decode(), "technicalMetadata": technical}

    @classmethod
    def of(cls, request: SeenRequest) -> Task:
        """The one that a request at the algorithm is about."""
        return cls(*json.loads(base64.b64decode(request.json()["image"])))

    def mask(self) -> bytes:
        """Its image."""
        signature = SIGNATURES["image/png"]
        return signature + hashlib.shake_128(self.name.encode()).digest(self.size)

    def answer(self) -> JsonObject:
        return {
            "detections": {"type": "FeatureCollection", "features": [self._feature(n) for n in range(self.tags)]},
            "mask": base64.b64encode(self.mask()).decode(),
            "count": self.tags,
            "summary": self.name,
        }

    def _feature(self, number: int) -> JsonObject:
        ring = [[number, 0], [number, 1], [number + 1, 1], [number + 1, 0], [number, 0]]
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"name": f"{self.name}/{number}"},
        }


def some_tasks(count: int, chance: random.Random) -> list[Task]:
    """Most of them short, one in twenty long."""
    return [
        Task(
            name=f"task-{number}",
            milliseconds=chance.randint(1_000, 3_000) if chance.random() < 0.05 else chance.randint(10, 500),
            tags=chance.choice([0, 1, 2, 5, 20]),
            size=chance.randint(100, 40_000),  # a few bytes are taken for a text, not for an image
        )
        for number in range(count)
    ]


# --- The algorithm -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work(Hold):
    """Works for so long, then does the next thing."""

    seconds: float


class Worker(FakeAlgorithm):
    """Works on each request for as long as that says, and answers with what follows from it."""

    def __init__(self) -> None:
        describe = minimal_describe(outputs=("detections", "mask", "count", "summary"))
        super().__init__(default=_worked_on, describe=describe)
        self.remembers = False
        self.runs: Counter[str] = Counter()
        """How often each task was begun."""

    async def _answer(self, connection: Connection, request: SeenRequest) -> Reply | None:
        if request.method == "POST":
            self.runs[Task.of(request).name] += 1
        return await super()._answer(connection, request)

    async def _perform(self, behaviour: Behaviour, connection: Connection, request: SeenRequest) -> Reply | None:
        if isinstance(behaviour, Work):
            await trio.sleep(behaviour.seconds)
            return await self._perform(behaviour.then, connection, request)
        return await super()._perform(behaviour, connection, request)


def _worked_on(request: SeenRequest) -> Behaviour:
    task = Task.of(request)
    return Work(Answer(task.answer()), task.milliseconds / 1_000)


# --- Daemons -----------------------------------------------------------------------------------------------------


class Instance:
    """One instance id over all the lives of its daemon. Its store is that of all instances.

    Attributes:
        surprises: how lives ended that nobody ended.
    """

    def __init__(self, folder: Path, street: KafkaStreet, algorithm: FakeAlgorithm, name: str, **more: str) -> None:
        self.name = name
        self.daemon: Daemon
        self.surprises: list[str] = []
        self._folder = folder
        self._algorithm = algorithm
        self._settings = street.settings(name, **more)
        self._lives = 0
        self._is_ending = False
        self._is_retired = False
        self._next_life = trio.Event()
        self._serves = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC114 - `run` is no name for setup.cfg's list
        """One life after the other; started when the first one serves."""
        await trio.Path(self._folder).mkdir(exist_ok=True)
        while not self._is_retired:
            self._lives += 1
            async with open_daemon(self._folder, self._algorithm.url, **self._settings) as self.daemon:
                self.daemon.url = (await self.daemon.wait_event("serving"))["url"]
                self._is_ending = False
                self._serves.set()
                task_status.started()
                try:
                    await self._live()
                finally:
                    self._write_log()
            task_status = trio.TASK_STATUS_IGNORED

    async def _live(self) -> None:
        code = await self.daemon.process.wait()
        if not self._is_ending:
            self.surprises.append(f"{self.name} ended its life {self._lives} with {code}")
        await self._next_life.wait()
        self._next_life = trio.Event()

    def _write_log(self) -> None:
        text = "\n".join(self.daemon.output)
        (self._folder / f"life-{self._lives}.log").write_text(text, encoding="utf-8")

    async def end(self, number: signal.Signals) -> int:
        """End this life; its exit code. Without a broker that takes the time that the last commits have."""
        self._is_ending = True
        self.daemon.process.send_signal(number)
        with trio.fail_after(END_SECONDS):
            return await self.daemon.process.wait()

    async def retire(self) -> int:
        """End this life as the last one; its exit code."""
        code = await self.end(signal.SIGTERM)
        self._is_retired = True
        self._next_life.set()
        return code

    async def live_again(self) -> None:
        """Begin the next one, and wait until it serves."""
        self._serves = trio.Event()
        self._next_life.set()
        await self._serves.wait()

    def freeze(self) -> None:
        self.daemon.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.daemon.process.send_signal(signal.SIGCONT)

    def count(self, event: str) -> int:
        """Log lines of this event in this life."""
        return sum(line["event"] == event for line in self.daemon.lines)


async def wait_owning(instance: Instance) -> None:
    """Wait until it has got a partition in this life; returns in any case after a while."""
    with trio.move_on_after(TAKEN_OVER_SECONDS):  # noqa: ASYNC912 - it may be there already
        while not instance.count("partition assigned"):  # noqa: ASYNC110 - a log grows
            await trio.sleep(0.1)


async def wait_taken_over(others: Sequence[Instance]) -> None:
    """Wait until one of these gets a partition that it did not have; returns in any case after a while."""
    before = [instance.count("partition assigned") for instance in others]
    give_up_at = trio.current_time() + TAKEN_OVER_SECONDS
    while trio.current_time() < give_up_at:
        await trio.sleep(0.1)  # several processes' logs grow: there is no one event to wait for
        if before != [instance.count("partition assigned") for instance in others]:
            return


# --- What is done to them ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blow:
    """Something bad that happens after so many finished jobs: `deed` is a method of `Chaos`."""

    after: int
    deed: str
    victim: int
    seconds: float
    """How long what is away stays away."""


DEEDS: Final = (
    "kill",
    "freeze_past_session",
    "stop_broker",
    "terminate",
    "kill_broker",
    "drop_algorithm",
    "freeze",
    "kill_without_broker",
    "algorithm_away",
    "terminate_without_broker",
    "kill_two",
)


def some_blows(count: int, jobs: int, daemons: int, chance: random.Random, kinds: Sequence[str] = DEEDS) -> list[Blow]:
    """So many, spread over the jobs: every one of these kinds once, in any order, then again."""
    deeds: list[str] = []
    while len(deeds) < count:
        deeds += chance.sample(kinds, len(kinds))
    step = jobs / (count + 1)
    return [
        Blow(
            after=int(step * (number + 0.5 + chance.random())),
            deed=deed,
            victim=chance.randrange(daemons),
            seconds=chance.choice([0, 1, 2, 8]),
        )
        for number, deed in enumerate(deeds[:count])
    ]


@dataclass
class Report:
    """What was done and what came of it."""

    seed: int
    jobs: int
    counts: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        deeds = ", ".join(f"{count} x {deed}" for deed, count in sorted(self.counts.items()))
        head = f"seed {self.seed}: {self.jobs} jobs in {self.runs} runs; {deeds}"
        return "\n".join([head, *self.problems[:50], f"{len(self.problems)} problems"])


class Chaos:
    """One run, from empty topics to the report."""

    def __init__(  # noqa: PLR0913, PLR0917 - the whole scene
        self,
        street: KafkaStreet,
        kafka: RealKafka,
        worker: Worker,
        instances: Sequence[Instance],
        requests: Mapping[bytes, JsonObject],
        report: Report,
    ) -> None:
        """`requests` are by key."""
        self._street = street
        self._kafka = kafka
        self._worker = worker
        self._instances = instances
        self._requests = deque(requests.items())
        self._report = report
        self._requested = 0
        self._finished = 0

    async def run(self, blows: Sequence[Blow], tell: Callable[[str], None]) -> None:
        """Every blow when its time has come; returns when all jobs have ended."""
        for blow in blows:
            # Enough to do for what follows, and enough left for the blows to come.
            await self._request(blow.after + BACKLOG)
            await self._wait_finished(blow.after)
            tell(f"{self._finished} finished: {blow.deed} {blow.victim} {blow.seconds:g}")
            self._report.counts[blow.deed] += 1
            await getattr(self, blow.deed)(self._instances[blow.victim], blow.seconds)
        tell(f"{self._finished} finished: nothing more is done to them")
        await self._request(self._report.jobs)
        await self._wait_finished(self._report.jobs)

    async def _request(self, count: int) -> None:
        """See to it that so many jobs have been asked for."""
        portion = [self._requests.popleft() for _ in range(min(count - self._requested, len(self._requests)))]
        self._requested += len(portion)
        if portion:
            await self._street.request(*(request for _, request in portion), keys=[key for key, _ in portion])

    async def _wait_finished(self, count: int) -> None:
        """Until so many jobs have ended; it is a stall if none does for long."""
        while self._finished < count:
            self._finished = await self._ended_jobs(min(count, self._finished + 50))

    async def _ended_jobs(self, count: int) -> int:
        """How many there are, once there are so many."""
        ended = Ended()
        await self._street.wait("statuses", holds=lambda found: ended(found) >= count, seconds=STALL_SECONDS)
        return ended.count

    async def kill(self, victim: Instance, _seconds: float) -> None:
        await victim.end(signal.SIGKILL)
        await victim.live_again()

    async def kill_two(self, victim: Instance, _seconds: float) -> None:
        """Nobody is left, if there are two."""
        place = self._instances.index(victim)
        for one in (victim, self._instances[place - 1]):
            await one.end(signal.SIGKILL)
        for one in (victim, self._instances[place - 1]):
            await one.live_again()

    async def terminate(self, victim: Instance, _seconds: float) -> None:
        await self._terminate(victim)
        await victim.live_again()

    async def freeze(self, victim: Instance, seconds: float) -> None:
        victim.freeze()
        await trio.sleep(min(seconds, 2))
        victim.go_on()

    async def freeze_past_session(self, victim: Instance, _seconds: float) -> None:
        await wait_owning(victim)  # who owns nothing has no session that others wait for
        victim.freeze()
        await wait_taken_over([one for one in self._instances if one is not victim])
        victim.go_on()

    async def stop_broker(self, _victim: Instance, seconds: float) -> None:
        await trio.to_thread.run_sync(self._kafka.stop)
        await self._restart_broker(seconds)

    async def kill_broker(self, _victim: Instance, seconds: float) -> None:
        await trio.to_thread.run_sync(self._kafka.kill)
        await self._restart_broker(seconds)

    async def kill_without_broker(self, victim: Instance, seconds: float) -> None:
        """It starts again before the broker does."""
        await trio.to_thread.run_sync(self._kafka.stop)
        await self.kill(victim, 0)
        await self._restart_broker(seconds)

    async def terminate_without_broker(self, victim: Instance, _seconds: float) -> None:
        await trio.to_thread.run_sync(self._kafka.stop)
        await self._terminate(victim)
        await self._restart_broker(0)
        await victim.live_again()

    async def drop_algorithm(self, _victim: Instance, _seconds: float) -> None:
        await self._worker.drop_connections()

    async def algorithm_away(self, _victim: Instance, seconds: float) -> None:
        await self._worker.refuse_connections()
        await self._worker.drop_connections()
        await trio.sleep(seconds)
        await self._worker.accept_again()

    async def _terminate(self, victim: Instance) -> None:
        code = await victim.end(signal.SIGTERM)
        if code != 0:
            self._report.problems.append(f"{victim.name} ended with {code} when asked to")

    async def _restart_broker(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(self._kafka.start)


class Ended:
    """Counts the jobs that have ended among status records that only become more."""

    def __init__(self) -> None:
        self._names: set[Any] = set()
        self._looked_at = 0

    @property
    def count(self) -> int:
        return len(self._names)

    def __call__(self, records: Sequence[TestRecord]) -> int:
        for record in records[self._looked_at :]:
            status = value_of(record)
            if status["status"] in TERMINAL:
                self._names.add(status["taskId"])
        self._looked_at = len(records)
        return self.count


# --- What must have come of it -----------------------------------------------------------------------------------


async def check(street: KafkaStreet, tasks: Sequence[Task], folder: Path) -> list[str]:
    """What is wrong with what these tasks have left, in words."""
    outputs = _by_task(await street.read("outputs"))
    tags = _by_task(await street.read("tags"))
    statuses = _by_task(await street.read("statuses"))
    problems: list[str] = []
    for task in tasks:
        found = _Left(task, outputs[task.name], tags[task.name], statuses[task.name])
        problems += [f"{task.name}: {problem}" for problem in found.problems()]
        problems += [f"{task.name}: {problem}" for problem in _object_problems(task, folder)]
    letters = await street.read("dead")
    problems += [f"a dead letter: {letter.headers}" for letter in letters]
    names = {task.name for task in tasks}
    problems += [f"{stranger}: nobody asked for it" for stranger in (outputs.keys() | statuses.keys()) - names]
    return problems + await _offset_problems(street)


def _by_task(records: Sequence[TestRecord]) -> Mapping[str, list[TestRecord]]:
    found: defaultdict[str, list[TestRecord]] = defaultdict(list)
    for record in records:
        found[(record.key or b"").decode()].append(record)
    return found


@dataclass(frozen=True)
class _Left:
    """What one task has left in the topics."""

    task: Task
    outputs: Sequence[TestRecord]
    tags: Sequence[TestRecord]
    statuses: Sequence[TestRecord]

    def problems(self) -> list[str]:
        ends = [status for status in map(value_of, self.statuses) if status["status"] in TERMINAL]
        found = []
        if [end["status"] for end in ends] != ["SUCCEEDED"]:
            found.append(f"ends are {[(end['status'], end['errMsg']) for end in ends]}")
        if len(self.outputs) != 1:
            found.append(f"{len(self.outputs)} outputs")
        elif (value := value_of(self.outputs[0]))["summary"] != self.task.name or value["count"] != self.task.tags:
            found.append(f"its output is another's: {value}")
        numbers = sorted(value_of(tag)["tag"]["linkedId"] for tag in self.tags)
        if numbers != list(range(self.task.tags)):
            found.append(f"its tags are {numbers} instead of {self.task.tags}")
        if not found and self._produced() != self._told(ends[0]):
            found.append(f"its messages are not where it says: {self._produced()} {ends[0]}")
        return found

    def _produced(self) -> list[JsonObject]:
        return [
            {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            for record in (*self.tags, *self.outputs)
        ]

    @staticmethod
    def _told(end: JsonObject) -> list[JsonObject]:
        return [entry for entry in end["producedKafkaMessages"] if "topic" in entry]


def _object_problems(task: Task, folder: Path) -> list[str]:
    found = [path for path in folder.iterdir() if path.name.startswith(f"{task.name}_") or path.stem == task.name]
    if len(found) != 1:
        return [f"{len(found)} objects {found}"]
    return [] if found[0].read_bytes() == task.mask() else ["its object has other bytes"]


async def _offset_problems(street: KafkaStreet) -> list[str]:
    """Everything is committed, and nothing is left to remember."""
    requests = await street.read("requests")
    ends = Counter(record.partition for record in requests)
    found = await trio.to_thread.run_sync(street.kafka.committed, street.name("group"), street.name("requests"))
    return [
        f"partition {partition} is committed as {found.get(partition)} instead of {end}"
        for partition, end in ends.items()
        if partition not in found or found[partition].offset != end or found[partition].metadata
    ]


# --- All of it ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_worker() -> AsyncIterator[Worker]:
    """The algorithm, which listens inside the block."""
    async with trio.open_nursery() as nursery:
        worker = Worker()
        await nursery.start(worker.serve)
        yield worker
        nursery.cancel_scope.cancel("nobody asks any more")


async def run_chaos(  # noqa: PLR0913 - all by name
    kafka: RealKafka,
    folder: Path,
    *,
    seed: int,
    jobs: int,
    daemons: int,
    blows: int,
    kinds: Sequence[str] = DEEDS,
    name: Callable[[str], str] = str,
    tell: Callable[[str], None] = lambda _: None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    """Run it on this broker, with topics and group that `name` names; what is wrong is in the report.

    `folder` gets the daemons' logs and the store. `settings` go over those that all daemons have.
    """
    chance = random.Random(seed)
    tasks = some_tasks(jobs, chance)
    plan = some_blows(blows, jobs, daemons, chance, kinds)
    store = folder / "store"
    store.mkdir(parents=True)
    street = KafkaStreet(kafka, name)
    await street.create(PARTITIONS)
    requests = {task.name.encode(): task.request(store) for task in tasks}
    report = Report(seed, jobs)
    common = {
        "CADOR_POSIX_ROOTS": str(store),
        "CADOR_MAX_DELIVERIES": MOST_DELIVERIES,
        "CADOR_MAX_ATTEMPTS": "30",  # the algorithm dies, too
        "CADOR_MAX_CONCURRENT_JOBS": "8",
        "CADOR_SHUTDOWN_GRACE_SECONDS": "1",
        "CADOR_REVOKE_GRACE_SECONDS": "2",
        "CADOR_KAFKA_PROPERTIES_CONSUMER": QUICK_SESSION,
    }
    async with open_worker() as worker, trio.open_nursery() as lives:
        instances = [
            Instance(folder / f"daemon-{number}", street, worker, f"daemon-{number}", **{**common, **settings})
            for number in range(daemons)
        ]
        for instance in instances:
            await lives.start(instance.run)
        try:
            await Chaos(street, kafka, worker, instances, requests, report).run(plan, tell)
        except TimeoutError as stall:
            report.problems.append(f"a stall: {str(stall)[:300]}")
        for instance in instances:
            code = await instance.retire()
            report.problems += [f"{instance.name} ended with {code} at last"] if code else []
            report.problems += instance.surprises
        report.runs = worker.runs.total()
    report.problems += await check(street, tasks, store)
    return report


def main(words: Sequence[str] | None = None) -> int:
    """Run it on a broker of its own; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.kafka.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--daemons", type=int, default=3)
    parser.add_argument("--blows", type=int, default=0, help="how many bad things happen; one in 40 jobs if not given")
    parser.add_argument("--protocol", choices=["classic", "consumer"], default="classic")
    given = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="cador-chaos-"))
    tell = partial(print, flush=True)
    tell(f"seed {given.seed}; logs are in {folder}")
    settings = {"CADOR_GROUP_PROTOCOL": given.protocol}
    if given.protocol == "consumer":
        settings["CADOR_KAFKA_PROPERTIES_CONSUMER"] = ""
    (folder / "kafka").mkdir()
    with running_kafka(folder / "kafka") as kafka:
        report = trio.run(
            partial(
                run_chaos,
                kafka,
                folder,
                seed=given.seed,
                jobs=given.jobs,
                daemons=given.daemons,
                blows=given.blows or max(len(DEEDS), given.jobs // 40),
                tell=tell,
                settings=settings,
            )
        )
        if report.problems:
            kafka.stop()
            shutil.copytree(folder / "kafka" / "data", folder / "kafka" / "evidence")  # what is in the logs, for dumps
    tell(str(report))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
