"""HTTP/1.1 on one accepted stream: whole requests in, replies out, lies included. What they mean is not known here."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, cast

import h11
import trio

from tests.peers.fake_algorithm.script import Reply, SeenRequest

MAX_KEPT_BODY: Final = 1_048_576  # bytes; of a larger request body only the size is remembered


class Connection:
    """One connection. Cancelling `scope` ends it and whatever is being done for it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.scope = trio.CancelScope()
        self.is_idle = True
        self.is_open = True
        self._stream = stream
        self._http = h11.Connection(h11.SERVER)

    async def receive(self, idle_seconds: float) -> SeenRequest | None:
        """The next request, or None if the peer has left or was idle for so long.

        Raises:
            h11.RemoteProtocolError: it is no HTTP, or the peer left in the middle of a request.
            trio.BrokenResourceError: the connection was reset.
        """
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

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return cast("h11.Event | type[h11.PAUSED]", event)  # mypy can't tell sentinels apart
            self._http.receive_data(await self._stream.receive_some())

    async def send(self, reply: Reply) -> bool:
        """Whether the connection can take another request after this reply.

        Raises:
            trio.BrokenResourceError: the peer left.
            trio.ClosedResourceError: it had left before.
        """
        out = self._encode(reply.head)
        if reply.is_whole and isinstance(reply.body, bytes) and not reply.every:
            out += self._encode(h11.Data(reply.body))  # an instant answer costs one system call
        else:
            await self._stream.send_all(out)
            await self._send_pieces(reply)
            out = b""
        if not reply.is_whole:
            return False
        await self._stream.send_all(out + self._encode(h11.EndOfMessage()))
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def _send_pieces(self, reply: Reply) -> None:
        for piece in reply.pieces():
            # h11 would refuse to send more than was announced.
            await self._stream.send_all(piece if reply.announced is not None else self._encode(h11.Data(bytes(piece))))
            if reply.every:
                await trio.sleep(reply.every)

    def _encode(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""

    async def wait_left(self) -> None:
        """Wait until the peer leaves, and close our side. What it sends meanwhile is kept for `receive`."""
        with suppress(trio.BrokenResourceError):
            while data := await self._stream.receive_some():
                self._http.receive_data(data)
        await self._stream.aclose()
        self.is_open = False
