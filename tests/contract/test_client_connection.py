"""Connections to the algorithm: how many, how long they are kept, when they are not used again, and TLS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest
import trio
import trustme

from cador_trio.algorithm.transport import KEEP_ALIVE_SECONDS, Connection, tls_context
from cador_trio.errors import AlgorithmBroken, AlgorithmDied, AlgorithmUnreachable
from tests.contract.algorithm_peers import values_of
from tests.contract.algorithm_room import BACKSTOP, Seen, open_room, until
from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    FakeAlgorithm,
    Hold,
    Html,
    Status,
    minimal_describe,
    open_fake_algorithm,
)
from tests.peers.fake_algorithm.connection import Connection as PeerConnection
from tests.peers.pesto.launcher import PestoPeer

INPUTS = {"image": "aW1hZ2U="}
COUNT = Answer({"count": 3})


def connections_of(fake: FakeAlgorithm) -> set[PeerConnection]:
    return set(fake._connections)


# --- Kept ------------------------------------------------------------------------------------------------------------


async def test_a_slot_keeps_its_connection_from_job_to_job() -> None:
    """Three jobs and the watcher take two connections."""
    async with open_fake_algorithm(default=COUNT) as fake, open_room(fake.url) as room:
        await room.call(INPUTS)
        first = connections_of(fake)
        await room.call(INPUTS)
        await room.call(INPUTS)
        assert connections_of(fake) == first
        assert len(first) == 2


async def test_every_slot_has_a_connection_of_its_own() -> None:
    """Three jobs at once take three, and none waits for another's."""
    async with (
        open_fake_algorithm(default=Hold(COUNT)) as fake,
        open_room(fake.url, max_concurrent_jobs=3) as room,
        trio.open_nursery() as jobs,
    ):
        for _ in range(3):
            jobs.start_soon(room.call, INPUTS)
        await fake.wait_for_request(3, "POST")
        assert fake.open_connections == 4
        for _ in range(3):
            fake.release()


def test_an_idle_connection_is_given_up_before_pesto_closes_it() -> None:
    """PESTO waits five seconds; a post into a connection that it has just closed would cost an attempt."""
    pool = Connection(tls_context(None))._transport._pool
    assert pool._keepalive_expiry == KEEP_ALIVE_SECONDS < 5.0
    assert pool._max_connections == 1


async def test_a_connection_that_the_algorithm_has_closed_is_not_used_again() -> None:
    """The next job finds a fresh one, and no attempt is lost."""
    async with open_fake_algorithm(default=COUNT) as fake, open_room(fake.url, max_attempts=1) as room:
        await room.call(INPUTS)
        await fake.drop_connections()
        seen = Seen()
        await room.call(INPUTS, seen=seen)
        assert seen.dispatches == 1


# --- Not kept --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [Status(500, text="Internal Server Error"), Html(503)])
async def test_after_a_5xx_the_next_request_takes_a_fresh_connection(reply: Status) -> None:
    """PESTO hangs up after some of them, and doesn't say so."""
    async with open_fake_algorithm([COUNT, reply, COUNT], default=COUNT) as fake, open_room(fake.url) as room:
        await room.call(INPUTS)
        before = connections_of(fake)
        if reply.status == 500:
            with pytest.raises(Exception, match="500"):
                await room.call(INPUTS)
        await room.call(INPUTS)
        assert len(before & connections_of(fake)) == 1  # the watcher's


async def test_a_real_pesto_that_hung_up_after_its_500_costs_no_attempt(pesto_stateful: PestoPeer) -> None:
    """An unknown job is one of the questions after which it closes without a word."""
    url = f"{pesto_stateful.url}/api/v1"
    async with open_room(url, max_attempts=1) as room:
        (connection,) = room.connections
        for _ in range(3):
            async with connection.send("GET", f"{url}/jobs/1/status", {}) as response:
                assert response.status == 500
            answer = await room.call({"image": f"file://{pesto_stateful.image_path}"})
            await room.forget(answer)
            answer.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_left_half_way_closes_its_connection(chunked: bool) -> None:
    """What nobody reads must not stand before the next answer."""
    async with (
        open_fake_algorithm(
            [AnswerImage(20_000_000, chunked=chunked), COUNT], describe=minimal_describe(whole="image/png")
        ) as fake,
        open_room(fake.url, max_result_bytes=1_000_000) as room,
    ):
        with pytest.raises(Exception, match="1000000 bytes"):
            await room.call(INPUTS)
        await fake.wait_until(lambda: fake.open_connections == 1)
        assert values_of(await room.call(INPUTS)) == {"count": 3}


async def test_more_bytes_than_announced_do_not_reach_the_next_job() -> None:
    """Whoever lies about the length has broken that answer; the next one comes by a fresh connection."""
    lie = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n" + b'{"count": 1}'
    described = json.dumps(minimal_describe()).encode()
    posts: list[trio.SocketStream] = []

    async def lie_and_keep_the_line(stream: trio.SocketStream) -> None:
        async for data in stream:
            if data.startswith(b"GET"):
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(described) + described)
            elif data.startswith(b"POST"):
                posts.append(stream)
                await stream.send_all(lie if len(posts) == 1 else lie.replace(b"h: 5", b"h: 12"))

    async with trio.open_nursery() as nursery:
        (listener,) = listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, lie_and_keep_the_line, listeners)
        async with open_room(f"http://127.0.0.1:{listener.socket.getsockname()[1]}", max_attempts=1) as room:
            with pytest.raises(AlgorithmBroken):
                await room.call(INPUTS)
            assert values_of(await room.call(INPUTS)) == {"count": 1}
        assert posts[0] is not posts[1]
        nursery.cancel_scope.cancel()


async def test_what_is_no_http_is_a_death() -> None:
    """Some other server listens there: the connection made no sense after the request was sent."""

    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220 mail.example ESMTP\r\n")
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        (listener,) = listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, greet, listeners)
        connection = Connection(tls_context(None))
        port = listener.socket.getsockname()[1]
        with trio.fail_after(BACKSTOP), pytest.raises(AlgorithmDied):
            async with connection.send("POST", f"http://127.0.0.1:{port}/", {}, b"{}"):
                pass
        nursery.cancel_scope.cancel()


async def test_what_can_not_be_sent_is_said() -> None:
    """A header that is none never leaves the house."""
    async with open_fake_algorithm() as fake:
        with pytest.raises(AlgorithmBroken, match="no HTTP exchange"):
            async with Connection(tls_context(None)).send("GET", fake.url, {"X-Correlation-ID": "a\r\nb"}):
                pass
        assert fake.requests == []


# --- TLS -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_tls(fake: FakeAlgorithm, certificate: trustme.LeafCert) -> AsyncIterator[str]:
    """The fake's API over TLS; the URL of its origin."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)

    async def pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, done: trio.CancelScope) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        done.cancel()

    async def forward(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            return
        async with await trio.open_tcp_stream("127.0.0.1", fake.port) as plain, trio.open_nursery() as pumps:
            pumps.start_soon(pump, tls, plain, pumps.cancel_scope)
            pumps.start_soon(pump, plain, tls, pumps.cancel_scope)

    async with trio.open_nursery() as nursery:
        (listener,) = listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, forward, listeners)  # noqa: ASYNC113 - it listens already
        yield f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_an_algorithm_behind_tls_is_verified_by_the_operators_ca(tmp_path: Path) -> None:
    """With `CADOR_ALGORITHM_CA` a private certificate is as good as any."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with (
        open_fake_algorithm(default=COUNT) as fake,
        behind_tls(fake, ca.issue_cert("127.0.0.1")) as url,
        open_room(url, algorithm_ca=tmp_path / "ca.pem") as room,
    ):
        assert values_of(await room.call(INPUTS)) == {"count": 3}


@pytest.mark.parametrize("wrong", ["no CA", "another CA", "another name"])
async def test_a_certificate_that_can_not_be_verified_is_refused_with_a_hint(tmp_path: Path, wrong: str) -> None:
    """Nothing is sent, and the operator is told which setting to look at."""
    ca = trustme.CA()
    other = trustme.CA()
    (other if wrong == "another CA" else ca).cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = ca.issue_cert("algorithm.example" if wrong == "another name" else "127.0.0.1")
    options: dict[str, Any] = {} if wrong == "no CA" else {"algorithm_ca": tmp_path / "ca.pem"}
    async with (
        open_fake_algorithm(default=COUNT) as fake,
        behind_tls(fake, certificate) as url,
        open_room(url, is_awaited=False, **options) as room,
    ):
        await until(lambda: room.watch.trouble is not None and "CADOR_ALGORITHM_CA" in room.watch.trouble.hint)
        assert isinstance(room.watch.trouble, AlgorithmUnreachable)
        assert "certificate verify failed" in room.watch.trouble.message
        assert fake.requests == []
