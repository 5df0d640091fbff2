"""No client holds the daemon: whatever its peers do or leave undone, SIGTERM ends it with exit code 0."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from cador_trio.intake.http.server import cut_connections
from tests.daemon.certificates import Authority
from tests.daemon.clients import BODY, TINY_BUFFER, connect, head, post, read_all, read_until, stop_reading
from tests.daemon.process import CAP_SECONDS, IMAGE, Daemon, client_of, running_daemon
from tests.descriptors import open_descriptors, ports_of
from tests.peers.fake_algorithm import AnswerImage, Hang, open_fake_algorithm

# More than all buffers between the daemon and a client hold, so that the daemon must wait for its reader.
LARGE = 30_000_000  # bytes


async def send_no_body(daemon: Daemon, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """A caller that announces a body and sends a part of it."""
    stream = await connect(daemon, tls)
    await stream.send_all(post()[:-1])
    return stream


async def send_half_a_head(daemon: Daemon, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """A caller that never gets to the end of its head."""
    stream = await connect(daemon, tls)
    await stream.send_all(head("/api/v1/jobs")[:-2])
    return stream


async def stop_reading_a_result(daemon: Daemon, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """A caller that fetches a result that is there, and does not read it."""
    async with client_of(daemon, tls or True) as client:
        answer = await client.post("/api/v1/jobs", json=IMAGE, headers={"Prefer": "respond-async"})
        path = answer.json()["href"].removeprefix(daemon.url).removesuffix("/status")
        async with client.stream("GET", f"{path}/events") as events:
            async for _ in events.aiter_bytes():
                pass  # until the job's end
    stream = await connect(daemon, tls, buffer=TINY_BUFFER)
    await stream.send_all(head(f"{path}/results/output", method="GET"))
    await read_until(stream, b"\r\n\r\n")
    return stream


async def idle(daemon: Daemon, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """A connection that waits for its next request."""
    stream = await connect(daemon, tls)
    await stream.send_all(head("/livez", method="GET"))
    await read_until(stream, b"}")
    return stream


STUCK = (send_no_body, send_half_a_head, stop_reading, stop_reading_a_result, idle)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
async def test_sigterm_ends_it_in_spite_of_every_stuck_client(tmp_path: Path, host: str, is_secure: bool) -> None:
    """The two that read nothing are cut once the time for last answers is over, the others before; exit code 0."""
    settings = {"CADOR_HOST": host}
    tls = None
    if is_secure:
        authority = Authority.in_folder(tmp_path / "tls")
        authority.issue()
        tls = authority.client_context()
        settings |= authority.settings()
    async with (
        open_fake_algorithm(default=AnswerImage(LARGE)) as fake,
        running_daemon(tmp_path, fake.url, **settings) as daemon,
        AsyncExitStack() as clients,
    ):
        for become_stuck in STUCK:
            clients.push_async_callback(trio.aclose_forcefully, await become_stuck(daemon, tls))

        assert await daemon.stop() == 0

        assert (await daemon.wait_event("connections that did not end were cut"))["connections"] == 2
        assert daemon.lines[-1]["event"] == "stopped"
        assert daemon.spooled() == []


async def test_an_open_event_stream_is_told_the_end(tmp_path: Path) -> None:
    """Who watches a job that outlives the grace sees it cancelled, then the stream ends and so does the daemon."""
    async with (
        open_fake_algorithm([Hang()]) as fake,
        running_daemon(tmp_path, fake.url, CADOR_SHUTDOWN_GRACE_SECONDS="0.2") as daemon,
        client_of(daemon) as client,
    ):
        answer = await client.post("/api/v1/jobs", json=IMAGE, headers={"Prefer": "respond-async"})
        async with client.stream("GET", answer.json()["href"].replace("/status", "/events")) as events:
            lines = events.aiter_lines()
            assert await anext(lines) == "event: status"
            await fake.wait_for_request(1, "POST")
            exit_codes = []
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    exit_codes.append(await daemon.stop())

                nursery.start_soon(stop)
                rest = "\n".join([line async for line in lines])
        assert '"status":"CANCELLED"' in rest
        assert exit_codes == [0]


async def test_a_client_that_goes_on_reading_slowly_is_served(tmp_path: Path) -> None:
    """Being slow is no offence: a large answer arrives whole though its reader's buffer is tiny."""
    async with (
        open_fake_algorithm(default=AnswerImage(LARGE)) as fake,
        running_daemon(tmp_path, fake.url) as daemon,
        await connect(daemon, buffer=TINY_BUFFER) as stream,
    ):
        await stream.send_all(post(BODY, "Connection: close"))
        _, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
        assert len(body) == LARGE


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    yield opened
    for one in opened:
        one.close()


def test_only_connections_of_the_own_listener_are_cut(listeners: list[socket.socket]) -> None:
    """Other servers' connections, clients' ends, listeners, pipes and UDP stay as they are; no descriptor is lost."""
    ours, theirs = listeners
    address = ours.getsockname()
    with (
        socket.create_connection(address) as caller,
        ours.accept()[0] as cut,
        socket.create_connection(theirs.getsockname()) as other_caller,
        theirs.accept()[0] as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(address)
        caller.settimeout(CAP_SECONDS)
        reading, writing = os.pipe()
        ports = address[1], theirs.getsockname()[1]
        before = descriptors_at(*ports)

        assert cut_connections(address) == 1

        assert descriptors_at(*ports) == before
        assert caller.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            cut.send(b"x")
        other.send(b"x")
        assert other_caller.recv(1) == b"x"
        with socket.create_connection(address), ours.accept()[0]:
            pass
        os.close(reading)
        os.close(writing)


def descriptors_at(*ports: int) -> int:
    """How many descriptors there are for sockets with these ports, on either side."""
    return sum(not ports_of(descriptor, kind).isdisjoint(ports) for descriptor, kind in open_descriptors())
