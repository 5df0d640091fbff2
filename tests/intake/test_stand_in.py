"""Who answers while the event loop hangs: every client in its turn, nobody for long, and only then."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio

from cador_trio.intake.http import stand_in
from cador_trio.intake.http.server import HEAD_BYTES, Certificate, Endpoint, open_listener, server_tls
from cador_trio.intake.http.stand_in import StandIn
from tests.daemon.certificates import Authority

CAP_SECONDS: Final = 30.0
REASON: Final = "the event loop is stuck: no sign of life for 16 s"


class Loop:
    """An event loop that hangs if the test says so: first as `looks` has it, then as `reason` has it."""

    def __init__(self, *looks: str | None, then: str | None) -> None:
        self.reason = then
        self._looks = list(looks)
        self._looked = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def hang(self) -> str | None:
        self._token.run_sync_soon(self._tell)
        return self._looks.pop(0) if self._looks else self.reason

    async def wait_looks(self, number: int) -> None:
        """Until it was looked at so many times more."""
        for _ in range(number):
            await self._looked.wait()

    def _tell(self) -> None:
        self._looked.set()
        self._looked = trio.Event()


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is looked at again and again; clients that ask have all the time they need."""
    monkeypatch.setattr(stand_in, "CLIENT_SECONDS", CAP_SECONDS)
    for name in ("LOOK_SECONDS", "SECOND_LOOK_SECONDS", "MOVES_SECONDS"):
        monkeypatch.setattr(stand_in, name, 0.01)


@asynccontextmanager
async def standing_in(loop: Loop, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, int]]:
    """A stand-in at a listener that nobody else accepts from; its address."""
    with open_listener("127.0.0.1", 0) as listener:
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(StandIn(Endpoint(listener, tls, 10), loop.hang).work, shutdown)
            with trio.fail_after(CAP_SECONDS):  # noqa: ASYNC100 - the block's are inside
                yield listener.getsockname()
            shutdown.set()


async def ask(address: tuple[str, int], method: str = "GET", path: str = "/livez", **headers: str) -> httpx.Response:
    """One request on a connection of its own."""
    async with httpx.AsyncClient(trust_env=False, timeout=CAP_SECONDS) as client:
        return await client.request(method, f"http://{address[0]}:{address[1]}{path}", headers=headers)


async def send(address: tuple[str, int], data: bytes) -> trio.SocketStream:
    """A connection on which this was sent."""
    stream = await trio.open_tcp_stream(*address)
    await stream.send_all(data)
    return stream


def is_answered(stream: trio.SocketStream) -> bool:
    """Whether there is something to read now."""
    return select.select([stream.socket.fileno()], [], [], 0)[0] != []


async def is_hung_up(stream: trio.SocketStream) -> bool:
    """Whether the next thing that comes is the end."""
    try:
        return not await stream.receive_some()
    except trio.BrokenResourceError:  # it left with something of ours unread
        return True


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/livez?verbose", "/readyz/"])
async def test_probes_hear_the_reason(path: str) -> None:
    """In the words and the shape that they know."""
    async with standing_in(Loop(then=REASON)) as address:
        answer = await ask(address, path=path)
    assert answer.status_code == 503
    assert answer.json() == {"status": "unavailable", "reasons": [REASON]}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("POST", "/api/v1/jobs"), ("OPTIONS", "*"), ("PUT", "/livezz")]
)
async def test_everybody_else_gets_an_error_object(method: str, path: str) -> None:
    """With the caller's correlation id, and when to come back."""
    async with standing_in(Loop(then=REASON)) as address:
        answer = await ask(address, method, f"/{path}" if path == "*" else path, **{"X-Correlation-ID": "mine"})
    assert answer.status_code == 503
    assert (answer.json()["message"], answer.json()["correlationId"]) == (REASON, "mine")
    assert (answer.headers["X-Correlation-ID"], answer.headers["Retry-After"]) == ("mine", "10")


async def test_head_gets_the_head_alone() -> None:
    """The length is that of what GET would get."""
    async with standing_in(Loop(then=REASON)) as address:
        answers = [await ask(address, method) for method in ("HEAD", "GET")]
    assert [len(answer.content) for answer in answers] == [0, int(answers[0].headers["Content-Length"])]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET /livez HTTP/1.1\r\n",
        b"\x16\x03\x01 no HTTP\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nX: " + b"x" * 2 * HEAD_BYTES,
    ],
)
async def test_a_client_that_never_asks_keeps_nobody_waiting(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is hung up on, and the next one is answered."""
    monkeypatch.setattr(stand_in, "CLIENT_SECONDS", 0.1)
    async with standing_in(Loop(then=REASON)) as address, await send(address, data) as stream:
        assert await is_hung_up(stream)
        monkeypatch.setattr(stand_in, "CLIENT_SECONDS", CAP_SECONDS)
        assert (await ask(address)).status_code == 503


async def test_a_client_that_never_ends_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is hung up on though it always has something to say."""
    monkeypatch.setattr(stand_in, "CLIENT_SECONDS", 0.1)
    async with standing_in(Loop(then=REASON)) as address:
        stream = await send(address, b"POST /jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        async with stream:
            with suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"100000\r\n" + bytes(0x100000) + b"\r\n")
        monkeypatch.setattr(stand_in, "CLIENT_SECONDS", CAP_SECONDS)
        assert (await ask(address)).status_code == 503


async def test_a_client_that_does_not_shake_hands_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with TLS; whoever does is answered."""
    monkeypatch.setattr(stand_in, "CLIENT_SECONDS", 0.1)
    authority = Authority.in_folder(tmp_path / "authority")
    authority.issue()
    tls = server_tls(Certificate(authority.chain, authority.key), None)
    async with standing_in(Loop(then=REASON), tls) as (host, port), await send((host, port), b"") as stream:
        assert await is_hung_up(stream)
        monkeypatch.setattr(stand_in, "CLIENT_SECONDS", CAP_SECONDS)
        async with httpx.AsyncClient(verify=authority.client_context(), trust_env=False, timeout=CAP_SECONDS) as client:
            assert (await client.get(f"https://{host}:{port}/livez")).json()["reasons"] == [REASON]


@pytest.mark.parametrize("has_tls", [False, True])
async def test_a_large_body_does_not_hide_the_answer(tmp_path: Path, has_tls: bool) -> None:
    """What is sent beyond the head is taken in, so that the sender reads the answer instead of a broken connection."""
    authority = Authority.in_folder(tmp_path / "authority")
    authority.issue()
    tls = server_tls(Certificate(authority.chain, authority.key), None) if has_tls else None
    received = b""
    async with standing_in(Loop(then=REASON), tls) as (host, port):
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
        if has_tls:
            stream = trio.SSLStream(stream, authority.client_context(), server_hostname=host)
        async with stream:
            await stream.send_all(
                b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
            )
            while b"correlationId" not in received:
                received += await stream.receive_some()
    assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


async def test_a_loop_that_moves_answers_itself() -> None:
    """Nobody stands in: a connection stays in the backlog until the loop hangs again."""
    loop = Loop(then=None)
    async with standing_in(loop) as address, await send(address, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
        await loop.wait_looks(3)
        assert not is_answered(stream)
        loop.reason = REASON
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 503")


async def test_a_process_that_was_stopped_gets_a_second_look() -> None:
    """Stopped and continued, it is late at the first look; at the second one the loop has moved."""
    loop = Loop(REASON, then=None)
    async with standing_in(loop) as address, await send(address, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") as stream:
        await loop.wait_looks(4)
        assert not is_answered(stream)


async def test_at_the_end_the_port_is_free() -> None:
    """Whether somebody was answered or not."""
    async with standing_in(Loop(then=REASON)) as address:
        await ask(address)
    with socket.socket() as connection:
        assert connection.connect_ex(address) != 0
