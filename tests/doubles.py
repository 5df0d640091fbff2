"""In-memory neighbours of `run_job`: an algorithm, a store, a publisher and results that do as they are told.

No threads and no sockets, so that they keep to virtual time. Each has a `halt`: a test can hold a job there, see that
it has come, and let it go on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import trio

from cador_trio.capacity import Capacity, Exchange, Limits, open_capacity
from cador_trio.job import (
    Answer,
    Door,
    Image,
    Job,
    JobRequest,
    JobState,
    Json,
    JsonObject,
    Outcome,
    Output,
    Product,
    Referential,
    StorageRequest,
    StoredObject,
    Succeeded,
    Value,
)
from cador_trio.order import Deadline, Order
from cador_trio.registry import JobRecord, Registry
from cador_trio.run_job import House, admit, run_job
from cador_trio.spool import Spool

EPOCH_MS = 1_700_000_000_000


class Halt:
    """A place on a job's way; it is held there while the halt is closed."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self.passed = 0
        self._open = trio.Event()
        self._open.set()

    def close(self) -> None:
        """Hold whoever comes from now on."""
        self._open = trio.Event()
        self.reached = trio.Event()

    def open(self) -> None:
        """Let all go on."""
        self._open.set()

    async def pass_by(self) -> None:
        """Go through, or wait."""
        self.reached.set()
        await self._open.wait()
        self.passed += 1


class MemoryAlgorithm:
    """Answers every order with what `answer` makes, or raises `error`."""

    tagger = "org.detector.1"
    name = "detector/1"
    gives_bare_images = False

    def __init__(self, spool: Spool) -> None:
        self.image_inputs: Mapping[str, bool] = {}
        self.halt = Halt()
        self.forget_halt = Halt()
        self.error: Exception | None = None
        self.refusal: Exception | None = None
        self.forget_error: Exception | None = None
        self.can_cancel = True
        self.orders: list[Order] = []
        self.forgotten: list[str] = []
        self.clocks: list[Deadline] = []
        self.answer: Callable[[], Answer] = lambda: Answer({"boxes": Value([1, 2])})
        self.images: Sequence[tuple[str, int | None, bytes]] = ()
        self.leftovers: Sequence[str] = ()
        self._spool = spool

    def check_inputs(self, inputs: JsonObject) -> JsonObject:
        if self.refusal is not None:
            raise self.refusal
        return inputs

    @contextmanager
    def timing(self, deadline: Deadline) -> Iterator[None]:
        self.clocks.append(deadline)
        try:
            yield
        finally:
            self.clocks.remove(deadline)
            deadline.go_on()

    async def process(self, order: Order, connection: Any, exchange: Exchange) -> Answer:
        self.orders.append(order)
        order.on_running()
        await (self.halt.pass_by() if self.can_cancel else exchange.masked(self.halt.pass_by))
        if self.error is not None:
            raise self.error
        answer = self.answer()
        outputs: dict[str, Output] = dict(answer.outputs)
        with ExitStack() as kept:
            for name, index, pixels in self.images:
                image = Image(name, index, "image/png", await self._spool.keep(pixels))
                kept.callback(image.body.close)
                outputs[name] = image if index is None else [*_items(outputs.get(name)), image]
            kept.pop_all()
        return replace(answer, outputs=outputs, leftovers=self.leftovers)

    async def forget(self, leftovers: Sequence[str], headers: dict[str, str]) -> None:
        await self.forget_halt.pass_by()
        if self.forget_error is not None:
            raise self.forget_error
        self.forgotten += leftovers


def _items(output: Output | None) -> list[Image]:
    return [] if output is None or isinstance(output, Value | Image) else list(output)


class MemoryStore:
    """Keeps what is put, by `<task>_<result id>`."""

    def __init__(self) -> None:
        self.halt = Halt()
        self.prepare_halt = Halt()
        self.resolve_error: Exception | None = None
        self.prepare_error: Exception | None = None
        self.error: Exception | None = None
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []

    def resolve(self, request: StorageRequest, task_name: str) -> str:
        if self.resolve_error is not None:
            raise self.resolve_error
        return task_name

    async def prepare(self, destination: str) -> None:
        await self.prepare_halt.pass_by()
        if self.prepare_error is not None:
            raise self.prepare_error

    async def put(self, destination: str, image: Image) -> StoredObject:
        await self.halt.pass_by()
        if self.error is not None:
            raise self.error
        name = f"{destination}_{image.result_id}"
        self.puts.append(name)
        self.objects[name] = image.body.read_all()
        return StoredObject(image.result_id, {"objectId": name})


class MemoryResults:
    """Conversion and tags that show that they were asked for."""

    def __init__(self) -> None:
        self.on_georeference: Callable[[], None] = lambda: None
        self.tags_error: Exception | None = None
        self.tagged: list[tuple[Answer, list[JsonObject]]] = []

    def georeference(self, value: Json, referential: Referential, output: str | None) -> Json:
        self.on_georeference()
        return {"of": output, "lon": referential.upper_left_lon, "was": value}

    def tags(
        self,
        answer: Answer,
        job: Job,
        *,
        image_inputs: Mapping[str, bool],
        stored: list[JsonObject],
        tagger: str,
    ) -> Sequence[JsonObject]:
        if self.tags_error is not None:
            raise self.tags_error
        self.tagged.append((answer, stored))
        return [{"tagger": tagger}]


class MemoryPublisher:
    """Remembers what it was told; the halt and the error are for successes."""

    def __init__(self) -> None:
        self.takes_tags = True
        self.message_limit = 10_000_000
        self.halt = Halt()
        self.error: Exception | None = None
        self.verdict: Outcome | None = None
        self.published: list[tuple[Job, Product, Sequence[JsonObject]]] = []
        self.told: list[tuple[Job, Outcome]] = []
        self.accepted_jobs: list[UUID] = []

    def accepted(self, record: JobRecord) -> None:
        self.accepted_jobs.append(record.job.job_id)

    def message_size(self, job: Job, product: Product) -> int:
        return product.size

    async def publish(self, record: JobRecord, outcome: Outcome, tags: Sequence[JsonObject]) -> Outcome:
        self.told.append((record.job, outcome))
        if isinstance(outcome, Succeeded):
            await self.halt.pass_by()
            if self.error is not None:
                raise self.error
            self.published.append((record.job, outcome.product, tags))
        return self.verdict or outcome


@dataclass
class Street:
    """A house with its neighbours, and the nursery that its jobs run in."""

    house: House
    algorithm: MemoryAlgorithm
    store: MemoryStore
    results: MemoryResults
    publisher: MemoryPublisher
    spool: Spool
    registry: Registry
    capacity: Capacity[str]
    jobs_nursery: trio.Nursery
    states: dict[UUID, list[JobState]] = field(default_factory=dict)

    def submit(self, job: Job) -> JobRecord:
        """Admit a job and start it; every state that it goes through is written down."""
        plan = admit(job.request, job.task_name, self.house)
        record = self.registry.add(job)
        self.states[job.job_id] = [record.state]
        self.jobs_nursery.start_soon(self._watch, record)
        self.jobs_nursery.start_soon(run_job, record, plan, self.house, self.publisher)
        return record

    async def run(self, job: Job) -> JobRecord:
        """Submit a job and wait for its end."""
        record = self.submit(job)
        await record.ended.wait()
        return record

    def let_all_go(self) -> None:
        """Open every halt."""
        for neighbour in (self.algorithm, self.store, self.publisher):
            neighbour.halt.open()
        self.algorithm.forget_halt.open()
        self.store.prepare_halt.open()

    async def _watch(self, record: JobRecord) -> None:
        seen = (record.state, record.progress)
        while not record.ended.is_set():
            seen = await record.wait_change(seen)
            self.states[record.job.job_id].append(seen[0])


@asynccontextmanager
async def open_street(  # noqa: PLR0913 - all by name, all with a default
    folder: Path,
    *,
    slots: int = 1,
    job_timeout_seconds: float = 100,
    store_timeout_seconds: float = 1_000,
    spool_bytes: int = 1_000_000,
    limits: Limits | None = None,
) -> AsyncIterator[Street]:
    """A house among doubles. Its spool must stay in memory: bodies up to IN_MEMORY_BYTES."""
    limits = limits or Limits(unfinished=100, http_share=0.25, waiting=100, waiting_bytes=1_000, linger_seconds=50)
    spool = Spool(folder, spool_bytes)
    registry = Registry(
        history=100,
        history_seconds=1e9,
        history_bytes=1_000_000,
        now_ms=lambda: EPOCH_MS + round(trio.current_time() * 1_000),
    )
    spool.make_room = registry.make_room
    algorithm, store = MemoryAlgorithm(spool), MemoryStore()
    results, publisher = MemoryResults(), MemoryPublisher()
    connections = [f"connection {number}" for number in range(slots)]
    async with open_capacity(connections, limits) as capacity, trio.open_nursery() as jobs_nursery:
        house = House(
            algorithm=algorithm,
            store=store,
            results=results,
            spool=spool,
            registry=registry,
            capacity=capacity,
            job_timeout_seconds=job_timeout_seconds,
            store_timeout_seconds=store_timeout_seconds,
            store_inline_images=True,
        )
        street = Street(house, algorithm, store, results, publisher, spool, registry, capacity, jobs_nursery)
        try:
            yield street
        finally:
            street.let_all_go()  # what is shielded would outlast a test that failed


def make_job(  # noqa: PLR0913 - all by name, all with a default
    *,
    task_id: str | None = None,
    door: Door = "http",
    stores: bool = False,
    wants_tags: bool = False,
    referential: Referential | None = None,
    is_patient: bool = True,
) -> Job:
    """A job as a door hands it over."""
    request = JobRequest(
        inputs={"image": "pixels"},
        technical_metadata={},
        user_metadata={},
        task_id=task_id,
        input_timestamp=None,
        storage=StorageRequest("POSIX", {"folder": "/results"}) if stores else None,
        wants_tags=wants_tags,
        referential=referential,
    )
    return Job(
        job_id=uuid4(),
        door=door,
        request=request,
        correlation_id="correlation",
        received_at=EPOCH_MS,
        forwarded={"X-Correlation-ID": "correlation"},
        is_patient=is_patient,
    )
