"""The algorithm room with slots, spool and watcher, wired as the daemon wires them, in front of one peer.

Sockets and clock are real, pauses between tries are short, and everything stands under one backstop. `Room.call` is a
job's visit at the algorithm, `Room.run` a whole job without a door.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final
from unittest.mock import patch
from uuid import uuid4

import trio

from cador_trio import daemon
from cador_trio.algorithm import client, visit, watch
from cador_trio.algorithm.client import AlgorithmClient
from cador_trio.algorithm.transport import Connection
from cador_trio.algorithm.watch import Watch
from cador_trio.capacity import Capacity, open_capacity
from cador_trio.intake.request import decode_request
from cador_trio.job import Answer, Job, JsonObject, Outcome
from cador_trio.json_text import write
from cador_trio.order import Deadline, Order
from cador_trio.run_job import House, admit, run_job
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
    while not holds():
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

    async def call(
        self,
        inputs: JsonObject,
        *,
        take_out: bool = False,
        is_patient: bool = True,
        seen: Seen | None = None,
        deadline: Deadline | None = None,
    ) -> Answer:
        """One visit; its deadline, if it has one, is the caller's to apply. The caller closes the answer."""
        seen = seen or Seen()
        order = Order(
            inputs=self.client.check_inputs(inputs),
            headers=dict(HEADERS),
            take_out_images=take_out,
            is_patient=is_patient,
            deadline=deadline or Deadline(math.inf),
            on_running=seen.on_running,
            on_progress=seen.progress.append,
        )
        async with self.capacity.dispatch("http") as dispatch:
            return await dispatch.at_algorithm(lambda *slot: self.client.process(order, *slot), Answer.close)

    async def run(self, inputs: JsonObject, *, is_patient: bool = True) -> Outcome:
        """A whole job."""
        request = decode_request(write(inputs), check_storage)
        job = Job(uuid4(), "http", request, "c-42", 0, HEADERS, is_patient)
        plan = admit(request, job.task_name, self.house)
        record = self.house.registry.add(job)
        await run_job(record, plan, self.house)
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
        while {entry.name for entry in os.scandir(self.spool.folder)} != {"lock"}:
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_room(url: str, *, linger_seconds: float = BACKSTOP, **options: Any) -> AsyncIterator[Room]:
    """The room in front of the algorithm at `url`, which it has reached. `options` are settings by their field names.

    `linger_seconds` bounds work that its job has left.
    """
    settings = Settings(processing_server=url, **options)
    limits = replace(daemon._limits(settings), linger_seconds=linger_seconds)
    with trio.fail_after(BACKSTOP), _short_pauses():
        connections, watcher = daemon._algorithm_ends(settings)
        async with (
            daemon._closing(connections, watcher),
            open_spool(None, int(settings.spool_bytes)) as spool,
            trio.open_nursery() as services,
        ):
            services.start_soon(watcher.run)
            await watcher.wait_reachable()
            async with open_capacity(connections, limits) as capacity:
                watcher.is_working = lambda: capacity.figures().in_use > 0
                registry = daemon._registry(settings, spool)
                house = daemon._house(settings, watcher, spool, registry, capacity)
                yield Room(house, watcher, spool, capacity, connections)
            services.cancel_scope.cancel("the test is over")


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
