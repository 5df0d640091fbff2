"""The fake algorithm as a server: its life on a port, the script that it follows, and what tests see and wait for."""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import h11
import trio

from tests.peers.fake_algorithm.connection import Connection
from tests.peers.fake_algorithm.documents import sample_answer, sample_outputs
from tests.peers.fake_algorithm.resources import PREFIX, Dialect, Resources
from tests.peers.fake_algorithm.script import (
    Answer,
    Behaviour,
    CloseBeforeAnswer,
    Hang,
    Hold,
    JsonObject,
    Reply,
    SeenRequest,
    Stateful,
    Step,
)

HOST: Final = "127.0.0.1"
PESTO_IDLE_SECONDS: Final = 5.0  # uvicorn's keep-alive timeout, seen on a PESTO 1.7.2


class FakeAlgorithm(Resources):
    """An algorithm that follows its script.

    Attributes (see also `Resources`):
        script: what each execution request meets, in order of arrival; then `default`.
        slots: so many are worked on at a time, and further ones are told that it is busy. PESTO has one.
        idle_seconds: after so long without a request a connection is closed. PESTO waits five seconds.
        requests: what came in, in order; nothing while `remembers` is false.
    """

    def __init__(
        self,
        script: Iterable[Step] = (),
        *,
        dialect: Dialect = "spec",
        default: Step | None = None,
        describe: JsonObject | Behaviour | None = None,
    ) -> None:
        super().__init__(dialect, describe)
        self.script = deque(script)
        self.default = self._sample_behaviour() if default is None else default
        self.slots: float = 1 if self.is_pesto else math.inf
        self.idle_seconds = PESTO_IDLE_SECONDS if self.is_pesto else math.inf
        self.remembers = True
        self.requests: list[SeenRequest] = []
        self.port = 0
        self._working = 0
        self._held: list[trio.Event] = []
        self._connections: set[Connection] = set()
        self._changed = trio.lowlevel.ParkingLot()

    def _sample_behaviour(self) -> Behaviour:
        if isinstance(self.describe, dict) and self.describe["asynchronous"]:
            return Stateful(sample_outputs())
        return Answer(sample_answer())

    # Life

    async def serve(
        self, port: int = 0, *, task_status: trio.TaskStatus[FakeAlgorithm] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; started when it listens. Port 0 is any free one."""
        with socket.socket() as keeper:
            # Bound and never listening: the port stays ours while connections are refused.
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeper.bind((HOST, port))
            self.port = keeper.getsockname()[1]
            async with trio.open_nursery() as self._connection_nursery:
                await self.accept_again()
                task_status.started(self)
                await trio.sleep_forever()

    async def accept_again(self) -> None:
        """Listen on the same port as before."""
        listeners = await trio.open_tcp_listeners(self.port, host=HOST)
        self._accepting, self._refuses = trio.CancelScope(), trio.Event()
        self._connection_nursery.start_soon(self._accept, listeners)

    async def _accept(self, listeners: list[trio.SocketListener]) -> None:
        with self._accepting:
            await trio.serve_listeners(self._serve_connection, listeners, handler_nursery=self._connection_nursery)
        self._refuses.set()

    async def refuse_connections(self) -> None:
        """Stop listening, as a process that ends: idle connections are closed, the others after their answer."""
        self._accepting.cancel()
        await self._refuses.wait()
        for connection in self._connections:
            if connection.is_idle:
                connection.scope.cancel()
        await self.wait_until(lambda: not any(connection.is_idle for connection in self._connections))

    async def drop_connections(self) -> None:
        """Close every connection in the middle of whatever is done for it, as a process that is killed."""
        dropped = list(self._connections)
        for connection in dropped:
            connection.scope.cancel()
        # Not until there are none: clients come back at once.
        await self.wait_until(lambda: not any(connection in self._connections for connection in dropped))

    # What tests see and wait for

    @property
    def url(self) -> str:
        """The address for `PROCESSING_SERVER`, with `/api/v1`."""
        return f"http://{HOST}:{self.port}{PREFIX}"

    @property
    def open_connections(self) -> int:
        return sum(connection.is_open for connection in self._connections)

    @property
    def held(self) -> int:
        """How many requests wait for `release`."""
        return len(self._held)

    def release(self, index: int = 0) -> None:
        """Let the longest held request go on, or the one so many places after it."""
        self._held.pop(index).set()

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition on this fake: requests, connections, jobs and deletions have it looked at again."""
        while not holds():
            await self._changed.park()

    def seen(self, method: str | None = None, path: str = "") -> list[SeenRequest]:
        """The requests with this method (or any) whose path contains the text."""
        return [one for one in self.requests if method in (None, one.method) and path in one.path]

    async def wait_for_request(self, count: int = 1, method: str | None = None, path: str = "") -> SeenRequest:
        """Wait until so many of these came in; the last of them. If it meets a `Hold`, it can be released at once."""
        await self.wait_until(lambda: len(self.seen(method, path)) >= count)
        return self.seen(method, path)[count - 1]

    # One connection, one request

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        connection = Connection(stream)
        self._connections.add(connection)
        self._changed.unpark_all()
        try:
            with (
                connection.scope,
                suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError),
            ):
                while (request := await connection.receive(self.idle_seconds)) is not None:
                    reply = await self._answer(connection, request)
                    if reply is None or not await connection.send(reply) or self._refuses.is_set():
                        break
        finally:
            self._connections.remove(connection)
            self._changed.unpark_all()

    async def _answer(self, connection: Connection, request: SeenRequest) -> Reply | None:
        """The reply; None closes the connection."""
        if self.remembers:
            self.requests.append(request)
        self._changed.unpark_all()  # who waits is run when this task waits next: a `Hold` is then held
        path = request.path.partition("?")[0].removeprefix(PREFIX + "/")
        if (request.method, path) != ("POST", self.execution):
            return await self._perform(self.resource(request, path), connection, request)
        if self._working >= self.slots:
            return self.error(429 if self.is_pesto else 503, "busy with another job")
        step = self.script.popleft() if self.script else self.default
        self._working += 1
        try:
            return await self._perform(step(request) if callable(step) else step, connection, request)
        finally:
            self._working -= 1

    async def _perform(self, behaviour: Behaviour, connection: Connection, request: SeenRequest) -> Reply | None:
        match behaviour:
            case Reply():
                return behaviour
            case Stateful():
                return self.open_job(request, behaviour)
            case Hold():
                await self._hold(connection)
                return await self._perform(behaviour.then, connection, request)
            case Hang():
                await self._work_until(trio.Event(), connection)
            case CloseBeforeAnswer():
                pass
        return None

    async def _hold(self, connection: Connection) -> None:
        released = trio.Event()
        self._held.append(released)
        try:
            await self._work_until(released, connection)
        finally:
            with suppress(ValueError):  # `release` has taken it out
                self._held.remove(released)

    async def _work_until(self, done: trio.Event, connection: Connection) -> None:
        """Wait for the event, and notice meanwhile if the peer leaves, which changes nothing about the work."""

        async def watch() -> None:
            await connection.wait_left()
            self._changed.unpark_all()

        async with trio.open_nursery() as watchers:
            watchers.start_soon(watch)
            await done.wait()
            watchers.cancel_scope.cancel()


@asynccontextmanager
async def open_fake_algorithm(
    script: Iterable[Step] = (),
    *,
    dialect: Dialect = "spec",
    default: Step | None = None,
    describe: JsonObject | Behaviour | None = None,
) -> AsyncIterator[FakeAlgorithm]:
    """A fake that listens inside the block; at its end it is gone, with every connection."""
    fake = FakeAlgorithm(script, dialect=dialect, default=default, describe=describe)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(fake.serve)
        nursery.cancel_scope.cancel()
