"""An S3 server that follows a script of misbehaviour, in the test's own Trio run: `open_misbehaving_s3`.

It checks no signature; the real stores do. What a request that is served well does is `memory_s3`'s affair.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import h11
import trio

from .memory_s3 import MemoryS3, Reply, SeenRequest, error
from .misbehaviour import (
    CloseAfterHead,
    CloseBeforeAnswer,
    CloseBeforeHead,
    ErrorIn200,
    Fine,
    HangBeforeAnswer,
    Operation,
    Refuse,
    ResetInBody,
    Stall,
    Step,
    WrongETag,
)

HOST: Final = "127.0.0.1"
_RECEIVE_BUFFER_BYTES: Final = 65_536  # small, so that a client soon notices when nobody reads
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class MisbehavingS3(MemoryS3):
    """An S3 server with one step of a script for each request.

    Attributes (see also `MemoryS3` for what can be read):
        script: what each request meets, in order of arrival; after its end all is `Fine`. Add to it at any time.
        only: the operations that take a step; others are `Fine`. None: all of them.
        requests: what came in, in order, from when its head was read.
        reached: how many steps other than `Fine` have been carried out, up to where they wait, close or have answered.
    """

    def __init__(self, script: Iterable[Step] = (), only: Iterable[Operation] | None = None) -> None:
        super().__init__()
        self.script = deque(script)
        self.only = None if only is None else frozenset(only)
        self.requests: list[SeenRequest] = []
        self.reached = 0
        self.open_connections = 0
        self.port = 0
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def url(self) -> str:
        """Scheme, host and port, without a path."""
        return f"http://{HOST}:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus[MisbehavingS3] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when it listens."""
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        for listener in listeners:
            # What it accepts inherits this.
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self.port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as connection_nursery:
            task_status.started(self)
            await trio.serve_listeners(self._serve_connection, listeners, handler_nursery=connection_nursery)

    # What tests wait for

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition on this server: requests, steps reached and connections have it looked at again."""
        while not holds():
            await self._changed.park()

    async def wait_reached(self, count: int = 1) -> None:
        """Wait until so many steps other than `Fine` were carried out."""
        await self.wait_until(lambda: self.reached >= count)

    def operations(self) -> list[Operation]:
        """What the requests asked for, in order."""
        return [request.operation for request in self.requests]

    # One connection, one request

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        connection = _Connection(stream)
        self.open_connections += 1
        self._changed.unpark_all()
        try:
            with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                while await self._serve_request(connection):
                    pass
        finally:
            self.open_connections -= 1
            self._changed.unpark_all()

    async def _serve_request(self, connection: _Connection) -> bool:
        """Whether the connection can take another one."""
        if not await connection.wait_begun():
            return False
        if self.only is None and self.script and isinstance(self.script[0], CloseBeforeHead):
            self.script.popleft()
            self._reach()
            return False
        request = await connection.receive_head()
        if request is None:
            return False
        self.requests.append(request)
        self._changed.unpark_all()
        step = self._step_for(request)
        reply = await self._perform(step, connection, request)
        goes_on = reply is not None and await connection.send(reply, with_body=request.method != "HEAD")
        if not isinstance(step, Fine | Stall | HangBeforeAnswer):
            self._reach()
        return goes_on

    def _step_for(self, request: SeenRequest) -> Step:
        if self.script and (self.only is None or request.operation in self.only):
            return self.script.popleft()
        return Fine()

    async def _perform(self, step: Step, connection: _Connection, request: SeenRequest) -> Reply | None:
        """The reply; None closes the connection."""
        match step:
            case CloseBeforeHead() | CloseAfterHead():
                return None
            case Stall(after):
                await connection.receive_body(request, after)
                self._reach()
                await trio.sleep_forever()
            case ResetInBody(after):
                await connection.receive_body(request, after)
                connection.reset_on_close()
                return None
            case Refuse(early=True):
                return error(step.status, step.code, step.headers)
        await connection.receive_body(request)
        if isinstance(step, HangBeforeAnswer):
            self._reach()
            await connection.wait_left()
            return None
        return self._reply(step, request)

    def _reply(self, step: Step, request: SeenRequest) -> Reply | None:
        """What is answered to a whole request."""
        match step:
            case Refuse():
                return error(step.status, step.code, step.headers)
            case ErrorIn200(code):
                return error(200, code)
            case CloseBeforeAnswer(done=False):
                return None
        reply = self.perform(request)
        match step:
            case CloseBeforeAnswer():
                return None
            case WrongETag():
                kept = tuple(header for header in reply.headers if header[0] != "ETag")
                return Reply(reply.status, (*kept, ("ETag", f'"{"0" * 32}"')), reply.body)
        return reply

    def _reach(self) -> None:
        self.reached += 1
        self._changed.unpark_all()


class _Connection:
    """HTTP/1.1 on one accepted stream, read no further than asked."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER)

    async def wait_begun(self) -> bool:
        """Wait for the next request to begin; False if the client leaves instead."""
        return bool(self._http.trailing_data[0]) or bool(await self._stream.socket.recv(1, socket.MSG_PEEK))

    async def receive_head(self) -> SeenRequest | None:
        """The head of a request; None if the client leaves in the middle of nothing."""
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        headers = {name.decode(): value.decode() for name, value in event.headers}
        return SeenRequest(event.method.decode(), event.target.decode(), headers)

    async def receive_body(self, request: SeenRequest, limit: int | None = None) -> None:
        """Read the body, or as much of it as makes `limit` bytes."""
        if self._http.they_are_waiting_for_100_continue and limit != 0:
            await self._stream.send_all(self._encode(h11.InformationalResponse(status_code=100, headers=[])))
        while limit is None or len(request.body) < limit:
            event = await self._next_event()
            if not isinstance(event, h11.Data):
                request.whole = isinstance(event, h11.EndOfMessage)
                return
            request.body += event.data

    async def _next_event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._stream.receive_some(_RECEIVE_BUFFER_BYTES))

    async def send(self, reply: Reply, *, with_body: bool) -> bool:
        """Whether the connection can take another request after this reply.

        A reply before the end of the request ends the connection, and says so, when the client has had the time to read
        it.
        """
        length = [] if reply.status == 204 else [("Content-Length", str(len(reply.body)))]
        end = [] if self._http.their_state is h11.DONE else [("Connection", "close")]
        out = self._encode(h11.Response(status_code=reply.status, headers=[*reply.headers, *length, *end]))
        if with_body:
            out += self._encode(h11.Data(reply.body))
        await self._stream.send_all(out + self._encode(h11.EndOfMessage()))
        if self._http.their_state is not h11.DONE or self._http.our_state is not h11.DONE:
            await self.wait_left()
            return False
        self._http.start_next_cycle()
        return True

    async def wait_left(self) -> None:
        """Read what comes and forget it, until the client leaves."""
        with suppress(trio.BrokenResourceError):
            while await self._stream.receive_some():
                pass

    def reset_on_close(self) -> None:
        """Let the client see "connection reset" when this connection is closed."""
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _encode(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""


@asynccontextmanager
async def open_misbehaving_s3(*script: Step, only: Iterable[Operation] | None = None) -> AsyncIterator[MisbehavingS3]:
    """A server that listens inside the block; at its end it is gone, with every connection."""
    server = MisbehavingS3(script, only)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(server.serve)
        nursery.cancel_scope.cancel("the test is over")
