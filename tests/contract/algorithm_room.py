"""The algorithm room with slots, spool and watcher, wired as the daemon wires them, in front of one peer.

Sockets and clock are real, pauses between tries are short, and everything stands under one backstop. `Room.call` is a
job's visit at the algorithm, `Room.run` a whole job without a door.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest.mock import patch
from uuid import uuid4

import trio

from cador_trio.algorithm import client, visit, watch
from cador_trio.algorithm.client import AlgorithmClient
from cador_trio.algorithm.dialect import Origin
from cador_trio.algorithm.receive import SizeLimits
from cador_trio.algorithm.transport import Connection, tls_context
from cador_trio.algorithm.visit import Means
from cador_trio.algorithm.watch import PARALLEL_REQUESTS, Watch
from cador_trio.capacity import Capacity, Limits, open_capacity
from cador_trio.intake.request import decode_request
from cador_trio.job import Answer, Job, JsonObject, Outcome
from cador_trio.json_text import write
from cador_trio.order import Deadline, Order
from cador_trio.registry import Registry
from cador_trio.run_job import House, Untold, admit, run_job
from cador_trio.settings import Settings
from cador_trio.spool import Spool, open_spool
from cador_trio.storage.destinations import check_storage

BACKSTOP: Final = 60.0  # seconds; only a test that hangs meets it
HEADERS: Final = {"X-Correlation-ID": "c-42", "X-ADS-Debug": "true"}


@dataclass
class Seen:
    """What a job was told while it was at the algorithm."""

    dispatches: int = 0
    progress: list[int] = field(default_factory=list)
    _dispatched: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def on_running(self) -> None:
        self.dispatches += 1
        self._dispatched.unpark_all()

    async def wait_dispatches(self, count: int) -> None:
        """Wait until the request has gone out so many times."""
        while self.dispatches < count:
            await self._dispatched.park()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that has no event of its own; the backstop ends it."""
    while not holds():  # noqa: ASYNC110 - there is no event to wait for
        await trio.lowlevel.checkpoint()


@dataclass(frozen=True)
class Room:
    """The room under test, and what can be seen of it."""

    house: House
    watch: Watch
    spool: Spool
    capacity: Capacity[Connection]
    connections: list[Connection]

    @property
    def client(self) -> AlgorithmClient:
        assert isinstance(self.house.algorithm, AlgorithmClient)
        return self.house.algorithm

    def order(
        self,
        inputs: JsonObject,
        *,
        take_out: bool = False,
        is_patient: bool = True,
        seen: Seen | None = None,
        deadline: Deadline | None = None,
    ) -> Order:
        """What the algorithm is asked; the deadline, if there is one, is the caller's to apply."""
        seen = seen or Seen()
        size = len(json.dumps(inputs))
        return Order(
            size=size,
            inputs=self.client.check_inputs(inputs),
            headers=dict(HEADERS),
            take_out_images=take_out,
            is_patient=is_patient,
            deadline=deadline or Deadline(math.inf),
            on_running=seen.on_running,
            on_progress=seen.progress.append,
        )

    async def call(self, inputs: JsonObject, **options: Any) -> Answer:
        """One visit, with the options of `order`. The caller closes the answer."""
        order = self.order(inputs, **options)
        async with self.capacity.dispatch("http") as dispatch:
            return await dispatch.at_algorithm(lambda *slot: self.client.process(order, *slot), Answer.close)

    async def run(self, inputs: JsonObject, *, is_patient: bool = True) -> Outcome:
        """A whole job."""
        request = decode_request(write(inputs), check_storage)
        job = Job(uuid4(), "http", request, "c-42", 0, HEADERS, is_patient)
        plan = admit(request, job.task_name, self.house)
        record = self.house.registry.add(job)
        await run_job(record, plan, self.house, Untold())
        assert record.outcome is not None
        return record.outcome

    async def forget(self, answer: Answer) -> None:
        await self.client.forget(answer.leftovers, HEADERS)

    @property
    def slots_in_use(self) -> int:
        return self.capacity.figures().in_use

    async def wait_free(self) -> None:
        """Wait until a slot is free: for the only one, this waits for whoever holds it."""
        async with self.capacity.dispatch("kafka"):
            pass

    async def check_nothing_is_left(self) -> None:
        """The slots get free, no byte is in the spool, and no file once its remover has been round."""
        await self.wait_free()
        assert self.slots_in_use == 0
        assert self.spool.used == 0
        await until(lambda: {entry.name for entry in os.scandir(self.spool.folder)} == {"lock"})


@asynccontextmanager
async def open_room(
    url: str, *, linger_seconds: float = BACKSTOP, is_awaited: bool = True, **options: Any
) -> AsyncIterator[Room]:
    """The room in front of the algorithm at `url`, which it has reached if that `is_awaited`.

    `options` are settings by their field names. `linger_seconds` bounds work that its job has left.
    """
    settings = Settings(processing_server=url, **options)
    limits = Limits(unfinished=8, http_share=0.5, waiting=8, waiting_bytes=10**6, linger_seconds=linger_seconds)
    tls = tls_context(settings.algorithm_ca)
    slots = [Connection(tls) for _ in range(settings.max_concurrent_jobs)]
    asking = [Connection(tls) for _ in range(PARALLEL_REQUESTS)]
    watcher = Watch(Origin.from_url(settings.processing_server), asking)
    with trio.fail_after(BACKSTOP), _short_pauses():
        async with open_spool(None, int(settings.spool_bytes)) as spool, trio.open_nursery() as services:
            services.start_soon(watcher.run)
            if is_awaited:
                await watcher.wait_reachable()
            async with open_capacity(slots, limits) as capacity:
                watcher.is_working = lambda: capacity.figures().in_use > 0
                yield Room(_house(settings, watcher, spool, capacity), watcher, spool, capacity, slots)
            services.cancel_scope.cancel("the test is over")
        for connection in (*slots, *asking):
            await connection.aclose()


def _house(settings: Settings, watcher: Watch, spool: Spool, capacity: Capacity[Connection]) -> House:
    """Nothing is stored, converted or published here."""
    sizes = SizeLimits(answer=int(settings.max_answer_bytes), result=int(settings.max_result_bytes))
    unused: Any = None
    return House(
        algorithm=AlgorithmClient(Means(watch=watcher, spool=spool, limits=sizes, max_attempts=settings.max_attempts)),
        store=unused,
        results=unused,
        spool=spool,
        registry=Registry(history=10, history_seconds=BACKSTOP, history_bytes=0, now_ms=lambda: 0),
        capacity=capacity,
        job_timeout_seconds=settings.job_timeout_seconds,
        store_timeout_seconds=BACKSTOP,
        store_inline_images=True,
    )


@contextmanager
def _short_pauses() -> Iterator[None]:
    with ExitStack() as patches:
        for module, name in (
            (visit, "FIRST_POLL_SECONDS"),
            (visit, "LAST_POLL_SECONDS"),
            (visit, "FIRST_BACK_OFF_SECONDS"),
            (visit, "LAST_BACK_OFF_SECONDS"),
            (client, "AFTERWARDS_SECONDS"),
            (watch, "RETRY_SECONDS"),
        ):
            patches.enter_context(patch.object(module, name, 0.005))
        yield
