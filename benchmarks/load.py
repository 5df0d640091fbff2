"""The load: so many requests over so many connections, each connection sending its next one when it is answered.

A process of its own, so that it does not share an interpreter with what it measures: `python -m benchmarks.load URL
CONNECTIONS REQUESTS`. It prints the seconds that each request took, as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final, cast
from urllib.parse import urlsplit

PATH: Final = "/api/v1/jobs"
BODY: Final = json.dumps({"image": "aW1hZ2U=", "threshold": 128}).encode()
MAX_SECONDS: Final = 60.0  # for one run


class Load:
    """What all connections work off together."""

    def __init__(self, host: str, requests: int) -> None:
        self.request = (
            f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY
        self.requests = requests
        self.left = requests
        self.taken: list[float] = []
        self.done = asyncio.get_running_loop().create_future()


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        load = self._load
        if load.left == 0:
            self._transport.close()
            return
        load.left -= 1
        self._sent_at = time.perf_counter()
        self._transport.write(load.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        load = self._load
        load.taken.append(time.perf_counter() - self._sent_at)
        if not head.startswith(b"HTTP/1.1 200"):
            self._fail(f"the answer is not 200: {head!r} {body!r}")
            return
        self._received = b""
        if len(load.taken) == load.requests:
            load.done.set_result(None)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._load.left or exc is not None:
            self._fail(f"the connection was closed: {exc}")

    def _fail(self, reason: str) -> None:
        if not self._load.done.done():
            self._load.done.set_exception(RuntimeError(reason))


async def run(url: str, connections: int, requests: int) -> list[float]:
    """Seconds for each request, in the order of their answers."""
    parts = urlsplit(url)
    load = Load(parts.netloc, requests)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: _Connection(load), parts.hostname or "", parts.port or 0)
    async with asyncio.timeout(MAX_SECONDS):
        await load.done
    return load.taken


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
