"""A scriptable algorithm: the Geo Process API over a real loopback socket, well behaved or not, as its script says.

What an algorithm may do on the wire lives here, in both dialects (as the Geo Process API is written, and as PESTO
speaks it), and nothing of the daemon. It is plain trio and h11, so that it costs little as the peer of a benchmark and
shares no library with the two sides that it stands between. Bodies of any size are generated while they are sent.

    async with open_fake_algorithm([Hold(Answer({"count": 3})), Hang()]) as fake: ...
    python -m tests.peers.fake_algorithm --mode image --size 1000000000
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Final, Literal
from uuid import UUID

import h11
import trio

Json = Any
JsonObject = dict[str, Any]
Dialect = Literal["spec", "pesto"]

HOST: Final = "127.0.0.1"
PREFIX: Final = "/api/v1"
PIECE: Final = 65_536  # bytes that are generated and sent at a time
MAX_KEPT_BODY: Final = 1_048_576  # bytes; of a larger request body only the size is remembered
PESTO_IDLE_SECONDS: Final = 5.0  # uvicorn's keep-alive timeout, seen on a PESTO 1.7.2
PESTO_FIRST_JOB: Final = 2_658_562_856  # PESTO's job ids are decimal 32-bit numbers
ENDS: Final = frozenset({"SUCCEEDED", "DONE", "FAILED", "CANCELLED"})
SIGNATURES: Final = {"image/png": b"\x89PNG\r\n\x1a\n", "image/tiff": b"II*\0", "image/jpeg": b"\xff\xd8\xff"}


# --- What can be sent --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pattern:
    """`size` bytes that nobody holds: one block over and over, which begins like an image of `media_type`."""

    size: int
    media_type: str = "image/png"

    def __len__(self) -> int:
        return self.size

    def pieces(self, piece: int = PIECE) -> Iterator[memoryview]:
        block = memoryview((SIGNATURES.get(self.media_type, b"") + bytes(range(256)) * (PIECE // 256))[:PIECE])
        for start in range(0, self.size, PIECE):
            yield from _slices(block[: self.size - start], piece)

    @cached_property
    def sha256(self) -> str:
        """Hex digest; a second or so for a gigabyte."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()


def _slices(data: memoryview, size: int) -> Iterator[memoryview]:
    return (data[start : start + size] for start in range(0, len(data), size))


@dataclass(frozen=True)
class Reply:
    """One HTTP answer, true or false. The classes below are its usual forms.

    `announced` is a Content-Length that lies. After `cut_after` bytes of the body the connection is closed. `piece` and
    `every` say how many bytes go out at a time and how many seconds later the next ones follow.
    """

    status: int = 200
    body: bytes | Pattern = b""
    media_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False
    announced: int | None = None
    cut_after: int | None = None
    piece: int = PIECE
    every: float = 0.0

    @cached_property
    def head(self) -> h11.Response:
        headers = [("Content-Type", self.media_type), *self.headers] if len(self.body) else [*self.headers]
        if not self.chunked and self.status != 204:
            length = len(self.body) if self.announced is None else self.announced
            headers.append(("Content-Length", str(length)))
        return h11.Response(status_code=self.status, headers=headers)

    @cached_property
    def is_whole(self) -> bool:
        """The peer gets what was announced, so the connection can be used again."""
        return self.announced is None and self.cut_after is None

    def pieces(self) -> Iterator[memoryview]:
        whole = (
            _slices(memoryview(self.body), self.piece)
            if isinstance(self.body, bytes)
            else self.body.pieces(self.piece)
        )
        left = len(self.body) if self.cut_after is None else self.cut_after
        for piece in whole:
            if left <= 0:
                return
            yield piece[:left]
            left -= len(piece)


class Answer(Reply):
    """The JSON value: an object of outputs, a FeatureCollection (`application/geo+json`), an array, a number …"""

    def __init__(self, value: Json, *, media_type: str = "application/json", chunked: bool = False) -> None:
        super().__init__(body=json.dumps(value).encode(), media_type=media_type, chunked=chunked)


class AnswerText(Reply):
    """The text as it is."""

    def __init__(self, text: str, *, media_type: str = "text/plain; charset=utf-8") -> None:
        super().__init__(body=text.encode(), media_type=media_type)


class AnswerImage(Reply):
    """A bare image of `size` bytes; `Pattern(size, media_type).sha256` is its digest."""

    def __init__(self, size: int, media_type: str = "image/png", *, chunked: bool = False) -> None:
        super().__init__(body=Pattern(size, media_type), media_type=media_type, chunked=chunked)


class Status(Reply):
    """Any status code, with a JSON or a text body or neither, and `Retry-After` as given."""

    def __init__(self, code: int, value: Json = None, *, text: str = "", retry_after: int | str | None = None) -> None:
        body = text.encode() if value is None else json.dumps(value).encode()
        media_type = "text/plain; charset=utf-8" if value is None else "application/json"
        headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
        super().__init__(status=code, body=body, media_type=media_type, headers=headers)


class Html(Status):
    """The error page of some proxy, where data was expected."""

    def __init__(self, code: int = 200) -> None:
        super().__init__(code, text="<!DOCTYPE html><html><body><h1>Hello from a proxy</h1></body></html>")
        object.__setattr__(self, "media_type", "text/html; charset=utf-8")


class _Changed(Reply):
    """Another reply with some fields changed."""

    def __init__(self, reply: Reply, **changes: Any) -> None:
        super().__init__(**{one.name: getattr(reply, one.name) for one in fields(reply)} | changes)


class CloseMidAnswer(_Changed):
    """The reply, but after so many bytes of its body the connection is closed."""

    def __init__(self, after: int, reply: Reply) -> None:
        super().__init__(reply, cut_after=after)


class WrongLength(_Changed):
    """The reply under a Content-Length that is too large or too small; closed when all its bytes are sent."""

    def __init__(self, announced: int, reply: Reply) -> None:
        super().__init__(reply, announced=announced)


class SlowTrickle(_Changed):
    """The reply in pieces of so many bytes, one every so many seconds."""

    def __init__(self, reply: Reply, *, piece: int = 1, every: float = 0.05) -> None:
        super().__init__(reply, piece=piece, every=every)


# --- What can happen ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hold:
    """Works until `FakeAlgorithm.release`, then does the next thing. A client that leaves does not stop the work."""

    then: Behaviour


@dataclass(frozen=True)
class Hang:
    """Works for ever."""


@dataclass(frozen=True)
class CloseBeforeAnswer:
    """Closes the connection without a word."""


@dataclass(frozen=True)
class Stateful:
    """Opens a job and answers its Reference, with this code, in a `Location` header instead of a body if asked.

    `states` are given out one a poll, the last one for ever: a state's word, a whole status document or a reply. PESTO
    spells SUCCEEDED as DONE. `outputs` are answered at the result links; a sequence is a list of images. `index`
    replaces the answer at the results link.
    """

    outputs: Mapping[str, Behaviour | Sequence[Behaviour]] = field(default_factory=dict)
    states: Sequence[str | JsonObject | Reply] = ("SUCCEEDED",)
    code: int = 200
    by_location: bool = False
    index: Reply | None = None


Behaviour = Reply | Hold | Hang | CloseBeforeAnswer | Stateful


@dataclass(frozen=True)
class SeenRequest:
    """A request as it came in. `body` is empty if it was larger than `MAX_KEPT_BODY`; `size` is always right."""

    method: str
    path: str
    raw_headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    size: int

    @cached_property
    def headers(self) -> dict[str, str]:
        """By lower-case name."""
        return {name.decode(): value.decode() for name, value in self.raw_headers}

    def json(self) -> Json:
        return json.loads(self.body)


# A script may also choose by looking at the request, as jobs that run side by side arrive in any order.
Step = Behaviour | Callable[[SeenRequest], Behaviour]


@dataclass
class FakeJob:
    """A stateful job, its results by their ids."""

    id: str
    script: Stateful
    states: deque[str | JsonObject | Reply]
    results: dict[str, Behaviour]
    has_ended: bool = False  # as far as its client was told

    def finish(self, state: str = "SUCCEEDED") -> None:
        """From the next poll on, this is its state."""
        self.states = deque([state])


def _results_by_id(outputs: Mapping[str, Behaviour | Sequence[Behaviour]]) -> dict[str, Behaviour]:
    """Items of a list are numbered: chips0, chips1 …"""
    results: dict[str, Behaviour] = {}
    for name, output in outputs.items():
        if isinstance(output, Sequence):
            results |= {f"{name}{index}": item for index, item in enumerate(output)}
        else:
            results[name] = output
    return results


def _folded_index(urls: Mapping[str, str]) -> JsonObject:
    """PESTO's map: sorted as text, and every name that ends in digits is an item of a list."""
    index: JsonObject = {}
    for name in sorted(urls):
        stem = name.rstrip("0123456789")
        if stem == name:
            index[name] = urls[name]
        else:
            index.setdefault(stem, []).append(urls[name])
    return index


# --- The server --------------------------------------------------------------------------------------------------


class _Connection:
    """HTTP/1.1 on one stream: whole requests in, replies out."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.SERVER)
        self.scope = trio.CancelScope()
        self.is_idle = True

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.stream.receive_some())
        assert event is not h11.NEED_DATA
        return event

    async def receive(self, idle_seconds: float) -> SeenRequest | None:
        """The next request, or None if the peer has left or was idle for so long."""
        self.is_idle, head = True, None
        with trio.move_on_after(idle_seconds):
            head = await self._next_event()
        self.is_idle = False
        if not isinstance(head, h11.Request):
            return None
        body, size = bytearray(), 0
        while isinstance(event := await self._next_event(), h11.Data):
            size += len(event.data)
            if size <= MAX_KEPT_BODY:
                body += event.data
        kept = bytes(body) if size <= MAX_KEPT_BODY else b""
        return SeenRequest(head.method.decode(), head.target.decode(), list(head.headers), kept, size)

    async def send(self, reply: Reply) -> bool:
        """Whether the connection can take another request."""
        out = self.http.send(reply.head) or b""
        if reply.is_whole and isinstance(reply.body, bytes) and not reply.every:
            out += self.http.send(h11.Data(reply.body)) or b"" if reply.body else b""
        else:
            for piece in reply.pieces():
                # h11 would not send more than was announced.
                out += bytes(piece) if reply.announced is not None else self.http.send(h11.Data(piece)) or b""
                await self.stream.send_all(out)
                await trio.sleep(reply.every)
                out = b""
        if not reply.is_whole:
            await self.stream.send_all(out)
            return False
        await self.stream.send_all(out + (self.http.send(h11.EndOfMessage()) or b""))
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        return True

    async def wait_peer_left(self) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some():
                self.http.receive_data(data)
        await self.stream.aclose()


class FakeAlgorithm:
    """The algorithm, driven by its script and observed through its attributes.

    Attributes:
        script: what each POST meets, in order of arrival; then `default`.
        describe: the document without `_links` (given for each request, unless there are some), or a behaviour.
        link_origin: what stands before the path in links; by default the request's Host header.
        slots: so many POSTs are worked on at a time, further ones are told that it is busy.
        idle_seconds: after so long without a request a connection is closed.
        requests: what came in, in order. Empty if `remembers` is false.
        jobs: stateful jobs by id.
        cancelled: ids of jobs that were deleted before their end was told.
        deleted: jobs and results that were there and were deleted, as `jobs/…/results/mask`.
    """

    def __init__(
        self,
        script: Iterable[Step] = (),
        *,
        dialect: Dialect = "spec",
        default: Step | None = None,
        describe: JsonObject | Behaviour | None = None,
        slots: float | None = None,
        idle_seconds: float | None = None,
        remembers: bool = True,
    ) -> None:
        self.is_pesto = dialect == "pesto"
        self.script = deque(script)
        self.describe = minimal_describe(pesto=self.is_pesto) if describe is None else describe
        self.default = default or self._sample_behaviour()
        self.link_origin: str | None = None
        self.config: Json = {}
        self.slots = slots or (1 if self.is_pesto else math.inf)
        self.idle_seconds = idle_seconds or (PESTO_IDLE_SECONDS if self.is_pesto else math.inf)
        self.remembers = remembers
        self.requests: list[SeenRequest] = []
        self.jobs: dict[str, FakeJob] = {}
        self.cancelled: list[str] = []
        self.deleted: list[str] = []
        self.port = 0
        self._execution = "process" if self.is_pesto else "jobs"
        self._jobs_opened = 0
        self._working = 0
        self._held: list[trio.Event] = []
        self._connections: set[_Connection] = set()
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
        await self._connection_nursery.start(self._accept)

    async def _accept(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host=HOST)
        self._accepting, self._refuses = trio.CancelScope(), trio.Event()
        with self._accepting:
            await trio.serve_listeners(
                self._serve_connection, listeners, handler_nursery=self._connection_nursery, task_status=task_status
            )
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
        """Close every connection in the middle of whatever happens on it, as a process that is killed."""
        for connection in self._connections:
            connection.scope.cancel()
        await self.wait_until(lambda: not self._connections)

    # What tests do and wait for

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}{PREFIX}"

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def held(self) -> int:
        """How many requests wait for `release`."""
        return len(self._held)

    def release(self, index: int = 0) -> None:
        """Let the oldest held request go on, or the one so many places behind it."""
        self._held.pop(index).set()

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition on this fake: requests, connections, jobs and deletions wake it up."""
        while not holds():
            await self._changed.park()

    def seen(self, method: str | None = None, path: str = "") -> list[SeenRequest]:
        """The requests with this method (or any) whose path contains the text."""
        return [one for one in self.requests if method in (None, one.method) and path in one.path]

    async def wait_for_request(self, count: int = 1, method: str | None = None, path: str = "") -> SeenRequest:
        """Wait until so many of these came in; the last of them. A `Hold` can then be released."""
        await self.wait_until(lambda: len(self.seen(method, path)) >= count)
        return self.seen(method, path)[count - 1]

    # One connection, one request

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        connection = _Connection(stream)
        self._connections.add(connection)
        self._changed.unpark_all()
        gone = (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError)
        try:
            with connection.scope, suppress(*gone):
                while (request := await connection.receive(self.idle_seconds)) is not None:
                    if self.remembers:
                        self.requests.append(request)
                        self._changed.unpark_all()
                    reply = await self._answer(connection, request)
                    if reply is None or not await connection.send(reply) or self._refuses.is_set():
                        break
        finally:
            self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._changed.unpark_all()

    async def _answer(self, connection: _Connection, request: SeenRequest) -> Reply | None:
        """None closes the connection."""
        path = request.path.partition("?")[0].removeprefix(PREFIX + "/")
        if (request.method, path) != ("POST", self._execution):
            reply = await self._perform(connection, self._resource(request, path), request)
            self._changed.unpark_all()
            return reply
        if self._working >= self.slots:
            return self._error(429 if self.is_pesto else 503, "busy with another job")
        step = self.script.popleft() if self.script else self.default
        self._working += 1
        try:
            return await self._perform(connection, step(request) if callable(step) else step, request)
        finally:
            self._working -= 1

    async def _perform(self, connection: _Connection, behaviour: Behaviour, request: SeenRequest) -> Reply | None:
        match behaviour:
            case Reply():
                return behaviour
            case Hold(then):
                await self._hold(connection)
                return await self._perform(connection, then, request)
            case Hang():
                await self._work_until(trio.Event(), connection)
                return None
            case CloseBeforeAnswer():
                return None
            case Stateful():
                return self._open_job(behaviour, request)

    async def _hold(self, connection: _Connection) -> None:
        released = trio.Event()
        self._held.append(released)
        try:
            await self._work_until(released, connection)
        finally:
            with suppress(ValueError):  # taken out by `release`
                self._held.remove(released)

    async def _work_until(self, done: trio.Event, connection: _Connection) -> None:
        async def watch() -> None:
            await connection.wait_peer_left()
            self._forget(connection)

        async with trio.open_nursery() as watchers:
            watchers.start_soon(watch)
            await done.wait()
            watchers.cancel_scope.cancel()

    # The resources besides execution

    def _resource(self, request: SeenRequest, path: str) -> Behaviour:
        match request.method, *path.split("/"):
            case "GET", "describe":
                return self._described(request)
            case "GET", "openapi":
                return AnswerText("openapi: 3.0.0\ninfo: {title: fake, version: '1'}\npaths: {}\n")
            case "GET", "version":
                return Answer({"version": "1.0.0"}) if self.is_pesto else AnswerText("1.0.0")
            case "GET", "health":
                return AnswerText("OK")
            case "GET", "metrics" if not self.is_pesto:
                return Answer({"requests": len(self.requests)})
            case ("GET" | "PUT"), "config" if not self.is_pesto:
                self.config = request.json() if request.method == "PUT" else self.config
                return Answer(self.config)
            case "GET", "jobs" if self.is_pesto:
                return Answer({one: {"link": self._link(request, f"jobs/{one}/status")} for one in self.jobs})
            case "GET", "jobs", job_id, "status":
                return self._status(request, self.jobs.get(job_id))
            case "GET", "jobs", job_id, "results":
                return self._index(request, self.jobs.get(job_id))
            case "GET", "jobs", job_id, "results", result_id:
                return self._result(self.jobs.get(job_id), result_id)
            case "DELETE", "jobs", job_id, *rest:
                return self._deleted(path, self.jobs.get(job_id), rest)
        return self._error(404, "Not Found")

    def _link(self, request: SeenRequest, path: str) -> str:
        if self.link_origin is not None:
            return f"{self.link_origin}{PREFIX}/{path}"
        host = request.headers["host"]
        if self.is_pesto and ":" not in host:
            host += ":None"  # that is how PESTO spells an absent port
        return f"http://{host}{PREFIX}/{path}"

    def _reference(self, request: SeenRequest, path: str, relation: str) -> JsonObject:
        method = "POST" if relation == "execution" else "GET"
        return {
            "relation": relation,
            "href": self._link(request, path),
            "type": "application/json",
            "method": method,
        }

    def _error(self, status: int, text: str) -> Reply:
        return Status(status, {"detail" if self.is_pesto else "message": text})

    def _described(self, request: SeenRequest) -> Behaviour:
        if not isinstance(self.describe, dict):
            return self.describe
        relations = {"self": "describe", "execution": self._execution}
        relations |= {name: name for name in ("config", "version", "health", "metrics")}
        links = {name: self._reference(request, path, name) for name, path in relations.items()}
        return Answer({"_links": links} | self.describe)

    def _open_job(self, script: Stateful, request: SeenRequest) -> Reply:
        self._jobs_opened += 1
        number = self._jobs_opened
        job_id = str(PESTO_FIRST_JOB + number) if self.is_pesto else str(UUID(int=number))
        self.jobs[job_id] = FakeJob(job_id, script, deque(script.states), _results_by_id(script.outputs))
        self._changed.unpark_all()
        reference = self._reference(request, f"jobs/{job_id}/status", "status")
        if script.by_location:
            return Reply(script.code, headers=(("Location", reference["href"]),))
        return Status(script.code, {"link": reference["href"]} if self.is_pesto else reference)

    def _status(self, request: SeenRequest, job: FakeJob | None) -> Reply:
        if job is None:
            return Status(500, text="Internal Server Error") if self.is_pesto else self._error(500, "no such job")
        state = job.states.popleft() if len(job.states) > 1 else job.states[0]
        if isinstance(state, Reply):
            return state
        if isinstance(state, dict):
            job.has_ended = state.get("status") in ENDS
            return Answer(state)
        job.has_ended = state in ENDS
        if state != "SUCCEEDED" or not self.is_pesto:
            return Answer({"status": state, "progress": 100 if state == "SUCCEEDED" else 0})
        if not job.script.outputs:
            return Status(500, text="Internal Server Error")
        if not job.results:  # PESTO looks whether the job's folder holds anything
            return Answer({"status": "RUNNING", "progress": 0})
        return Answer({"status": "DONE", "progress": 100, "link": self._link(request, f"jobs/{job.id}/results")})

    def _index(self, request: SeenRequest, job: FakeJob | None) -> Reply:
        if job is None:
            return Status(500, text="Internal Server Error") if self.is_pesto else self._error(404, "no such job")
        if job.script.index is not None:
            return job.script.index
        urls = {one: self._link(request, f"jobs/{job.id}/results/{one}") for one in job.results}
        if self.is_pesto:
            return Answer(_folded_index(urls))
        return Answer([{"id": one, "_link": {"href": url, "method": "GET"}} for one, url in urls.items()])

    def _result(self, job: FakeJob | None, result_id: str) -> Behaviour:
        if job is None or result_id not in job.results:
            return self._error(500 if self.is_pesto else 404, "no such result")
        return job.results[result_id]

    def _deleted(self, path: str, job: FakeJob | None, rest: list[str]) -> Reply:
        match rest:
            case ["results", result_id]:
                is_there = job is not None and job.results.pop(result_id, None) is not None
                reply = Answer({}) if self.is_pesto else Reply(204)  # PESTO says so whatever was there
            case ["results"] if self.is_pesto:
                return self._error(405, "Method Not Allowed")
            case [] if self.is_pesto:
                return self._error(404, "Not Found")
            case ["results"]:
                is_there, reply = job is not None, Reply(204)
                if job is not None:
                    job.results.clear()
            case []:
                is_there, reply = job is not None, Reply(204)
                if job is not None:
                    self._end(job)
            case _:
                is_there, reply = False, Reply(204)
        if is_there:
            self.deleted.append(path)
        return reply if is_there or self.is_pesto else self._error(404, "Not Found")

    def _end(self, job: FakeJob) -> None:
        if job.has_ended:
            del self.jobs[job.id]
        else:
            self.cancelled.append(job.id)
            job.finish("CANCELLED")


@asynccontextmanager
async def open_fake_algorithm(
    script: Iterable[Step] = (),
    *,
    dialect: Dialect = "spec",
    default: Step | None = None,
    describe: JsonObject | Behaviour | None = None,
    slots: float | None = None,
    idle_seconds: float | None = None,
) -> AsyncIterator[FakeAlgorithm]:
    """A fake that listens inside the block; at its end every connection is closed."""
    fake = FakeAlgorithm(
        script, dialect=dialect, default=default, describe=describe, slots=slots, idle_seconds=idle_seconds
    )
    async with trio.open_nursery() as nursery:
        yield await nursery.start(fake.serve)
        nursery.cancel_scope.cancel()
