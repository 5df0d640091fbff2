"""A thread that answers for an event loop that hangs: 503 to everybody, on the listener's own socket.

A probe is to be told what is wrong, not to run into its timeout, and a job is better refused than left in the backlog.
Nothing here waits for anything that a hanging loop may hold: it logs nothing, since the loop may hang in a log line
(`faulthandler` writes the stacks). A loop that hangs in C code without letting go of the interpreter silences this
thread, too.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Final

import h11
import trio

from cador_trio.intake.http.negotiation import correlation_id
from cador_trio.intake.http.probes import PROBES, verdict
from cador_trio.intake.http.respond import error_body
from cador_trio.intake.http.server import HEAD_BYTES, Endpoint
from cador_trio.job import Json
from cador_trio.json_text import write

LOOK_SECONDS: Final = 5.0  # between two looks at the loop
SECOND_LOOK_SECONDS: Final = 1.0  # a process that was stopped and goes on is late, and does not hang
CLIENT_SECONDS: Final = 1.0  # for one client, since the next one waits: a probe's patience is seldom less
MOVES_SECONDS: Final = 0.2  # between two looks whether the loop moves again
RETRY_SECONDS: Final = 10  # Retry-After: by then orchestrators send to others, or the loop moves again

Hang = Callable[[], str | None]  # how the loop hangs, in words; None: it doesn't. From any thread


class StandIn:
    """Stands in at one listener."""

    def __init__(self, endpoint: Endpoint, hang: Hang) -> None:
        self._listener = endpoint.listener.dup()
        self._listener.setblocking(False)
        self._tls = endpoint.tls
        self._hang = hang
        self._leaving = threading.Event()

    async def work(self, shutdown: trio.Event) -> None:
        """Be there until `shutdown` is set, or until cancelled; the port is free then, as far as it is ours."""
        with self._listener:
            async with trio.open_nursery() as nursery:
                # A limiter of its own: this thread takes no place from those that work.
                nursery.start_soon(partial(trio.to_thread.run_sync, self._watch, limiter=trio.CapacityLimiter(1)))
                try:
                    await shutdown.wait()
                finally:
                    self._leaving.set()

    def _watch(self) -> None:
        while not self._leaving.wait(LOOK_SECONDS):
            if self._hang() is not None and not self._leaving.wait(SECOND_LOOK_SECONDS):
                self._answer_while_it_hangs()

    def _answer_while_it_hangs(self) -> None:
        with selectors.PollSelector() as selector:  # which needs no descriptor; perhaps there is none left
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._leaving.is_set() and (reason := self._hang()) is not None:
                if selector.select(MOVES_SECONDS):
                    self._answer_one(reason)

    def _answer_one(self, reason: str) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # taken by the loop, gone meanwhile, or no descriptor left
            self._leaving.wait(MOVES_SECONDS)
            return
        with (
            suppress(OSError, h11.RemoteProtocolError),
            closing(connection),
            closing(_Client(connection, self._tls)) as client,
        ):
            _refuse(client, reason)


class _Client:
    """Whoever asks, for `CLIENT_SECONDS` at most. Everything raises OSError: TimeoutError when these are over."""

    def __init__(self, connection: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._give_up_at = time.monotonic() + CLIENT_SECONDS
        self._socket = connection
        self._hurry()
        if tls is not None:
            self._socket = tls.wrap_socket(connection, server_side=True)

    def receive(self) -> bytes:
        """What came; nothing at the end."""
        self._hurry()
        return self._socket.recv(65536)

    def send_last(self, data: bytes) -> None:
        """All of it, and then nothing more."""
        self._hurry()
        self._socket.sendall(data)
        socket.socket.shutdown(self._socket, socket.SHUT_WR)  # TLS's own would make the rest unreadable

    def close(self) -> None:
        self._socket.close()

    def _hurry(self) -> None:
        left = self._give_up_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def _refuse(client: _Client, reason: str) -> None:
    """Answer one request.

    Raises:
        OSError: the client is too slow, or gone.
        h11.RemoteProtocolError: it does not speak HTTP.
    """
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    request = _next_event(http, client)
    if isinstance(request, h11.Request):
        client.send_last(_answer(http, request, reason))
        # A client that still sends might find the connection broken before it reads.
        while isinstance(_next_event(http, client), h11.Data):
            pass


def _next_event(http: h11.Connection, client: _Client) -> object:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(client.receive())
    return event


def _answer(http: h11.Connection, request: h11.Request, reason: str) -> bytes:
    """The bytes of our answer: a probe's verdict, or an Error object."""
    sent = {name: value.decode("latin-1") for name, value in request.headers}
    correlation = correlation_id(sent.get(b"x-correlation-id"))
    path = request.target.decode("latin-1").partition("?")[0].rstrip("/")
    value: Json = (
        verdict([reason])
        if path in PROBES
        else error_body(reason, "send it again later: the daemon will be restarted", correlation)
    )
    body = write(value)
    head = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Correlation-ID": correlation,
        "X-Content-Type-Options": "nosniff",
        "Retry-After": str(RETRY_SECONDS),
        "Connection": "close",
    }
    events = [
        h11.Response(status_code=503, reason=b"Service Unavailable", headers=list(head.items())),
        *([] if request.method == b"HEAD" else [h11.Data(data=body)]),
        h11.EndOfMessage(),
    ]
    return b"".join(http.send(event) or b"" for event in events)
