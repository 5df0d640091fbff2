"""An algorithm that answers at once, so that what a request costs is what stands before it; or after so many seconds.

Just enough HTTP for well-behaved clients: whole requests with a Content-Length, one after the other. A process of its
own: `python -m benchmarks.instant_algorithm [SECONDS]`; its URL is the first line on stdout. `GET /visits` tells when
each job came and went, in seconds of its own clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import Final, cast

DESCRIBE: Final = {
    "name": "instant",
    "title": "Instant",
    "family": "benchmark",
    "version": "1.0.0",
    "description": "Answers at once.",
    "organization": "Example Organisation",
    "email": "nobody@example.org",
    "keywords": [],
    "resources": {"cpu": 1, "gpu": 0, "ram": 1},
    "asynchronous": False,
    "input": {
        "$schema": "http://json-schema.org/draft-06/schema#",
        "type": "object",
        "properties": {"image": {"type": "string", "format": "base64"}, "threshold": {"type": "number"}},
        "required": ["image"],
    },
    "output": {
        "description": "Outputs by name",
        "content": {"application/json": {"type": "object", "properties": {"count": {"type": "integer"}}}},
    },
}


def _answer(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_DESCRIBED: Final = _answer(json.dumps(DESCRIBE).encode())
_DONE: Final = _answer(b'{"count":3}')


class _Connection(asyncio.Protocol):
    def __init__(self, seconds: float, visits: list[tuple[float, float]]) -> None:
        self._received = b""
        self._seconds = seconds
        self._visits = visits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) >= 4:
            head = self._received[:end].lower()
            _, _, length = head.partition(b"\r\ncontent-length:")
            whole = end + (int(length.partition(b"\r\n")[0]) if length else 0)
            if len(self._received) < whole:
                break
            self._received = self._received[whole:]
            if head.startswith(b"post") and self._seconds:
                loop = asyncio.get_running_loop()
                loop.call_later(self._seconds, self._finish, loop.time())
            elif head.startswith(b"post"):
                self._transport.write(_DONE)
            elif head.startswith(b"get /visits "):
                self._transport.write(_answer(json.dumps(self._visits).encode()))
            else:
                self._transport.write(_DESCRIBED)

    def _finish(self, came: float) -> None:
        self._visits.append((came, asyncio.get_running_loop().time()))
        self._transport.write(_DONE)


async def _serve(seconds: float) -> None:
    visits: list[tuple[float, float]] = []
    make = partial(_Connection, seconds, visits)
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0))
