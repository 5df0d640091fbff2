"""Clients that misbehave, on raw sockets: what a well-made HTTP library would never do."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Final

import trio

from tests.daemon.process import CAP_SECONDS, IMAGE, Daemon

TINY_BUFFER: Final = 4_096  # bytes; the kernel doubles it
BODY: Final = json.dumps(IMAGE).encode()


async def connect(daemon: Daemon, tls: ssl.SSLContext | None = None, *, buffer: int | None = None) -> trio.abc.Stream:
    """A connection to the daemon, with a receive buffer of this size if one is given."""
    host, port = daemon.address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    plain = trio.socket.socket(family)
    if buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await plain.connect((host, port))
    stream = trio.SocketStream(plain)
    if tls is None:
        return stream
    secured = trio.SSLStream(stream, tls, server_hostname=host, https_compatible=True)
    await secured.do_handshake()
    return secured


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: daemon", *lines, "", ""]).encode()


def post(body: bytes = BODY, *lines: str) -> bytes:
    """A whole POST of a job."""
    return head("/api/v1/jobs", "Content-Type: application/json", f"Content-Length: {len(body)}", *lines) + body


async def stop_reading(daemon: Daemon, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    """A caller of a job that reads the head of its answer and nothing more."""
    stream = await connect(daemon, tls, buffer=TINY_BUFFER)
    await stream.send_all(post())
    await read_until(stream, b"\r\n\r\n")
    return stream


async def read_until(stream: trio.abc.Stream, mark: bytes) -> bytes:
    """What comes up to this mark, and a little more."""
    received = b""
    with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
        while mark not in received:
            chunk = await stream.receive_some(TINY_BUFFER)
            if not chunk:
                raise AssertionError(f"the daemon hung up after {received!r}")
            received += chunk
    return received


async def read_all(stream: trio.abc.Stream) -> bytes:
    """What comes until the daemon hangs up, in order or not."""
    received = bytearray()
    with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC912 - it may be there already
        try:
            while chunk := await stream.receive_some(65_536):
                received += chunk
        except trio.BrokenResourceError:
            pass
    return bytes(received)
