"""Strangers on raw sockets: what they send gets a plain answer, leads past no check, and has bounds."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio

from cador_trio.intake.http import door, server
from cador_trio.intake.http.server import HEAD_BYTES
from tests.daemon.clients import connect, head, post, read_all
from tests.daemon.process import CAP_SECONDS, IMAGE, Daemon, client_of, connections, eventually, running_daemon
from tests.intake.running import Client
from tests.intake.running import open_daemon as open_daemon_here
from tests.peers.fake_algorithm import FakeAlgorithm, open_fake_algorithm

TOKEN: Final = "open-sesame"
CLOSE: Final = b"\r\nHost: x\r\nConnection: close\r\n\r\n"

# What is sent -> status with a token to be shown, status on the port of the probes.
ODD: Final = {
    b"GET /livez HTTP/1.1" + CLOSE: (200, 200),
    b"GET /nothing HTTP/1.1" + CLOSE: (401, 404),
    b"TRACE /livez HTTP/1.1" + CLOSE: (405, 405),
    b"BREW /livez HTTP/1.1" + CLOSE: (405, 405),
    b"CONNECT store:443 HTTP/1.1" + CLOSE: (401, 404),
    b"OPTIONS * HTTP/1.1" + CLOSE: (401, 404),
    b"GET ? HTTP/1.1" + CLOSE: (401, 404),
    b"GET http://[ HTTP/1.1" + CLOSE: (401, 404),
    b"GET http://x HTTP/1.1" + CLOSE: (401, 404),
    b"GET /livez HTTP/0.9" + CLOSE: (200, 200),
    b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n": (400, 400),  # no Host
    b"GET /livez\r\n\r\n": (400, 400),
    b"GET /\xff HTTP/1.1" + CLOSE: (400, 400),
    b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n": (400, 400),
    b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n": (400, 400),
    b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n": (400, 400),
    b"POST /jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n": (501, 501),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": (400, 400),  # TLS where there is none
}

# Ways that might lead to the jobs of others, if the token's check and the routes read a path differently.
TRICKS: Final = (
    "/jobs",
    "//jobs",
    "/jobs/",
    "/%6a%6f%62%73",
    "/jobs?/livez",
    "/jobs#/livez",
    "/jobs;/livez",
    "/jobs%00/livez",
    "/jobs%2f..%2flivez",
    "/livez/../jobs",
    "/livez%2f..%2fjobs",
    "/livez/..;/jobs",
    "/livez%2f%2e%2e%2fjobs",
    "/swagger/../jobs",
    "/swagger//jobs",
    "/swagger/%2e%2e/jobs",
    "/swagger/..%5cjobs",
    "/asyncapi/schemas/../../jobs",
    "/./jobs",
    "http://x/jobs",
    "http:/jobs",
    "livez:/jobs",
    "jobs",
)
HEADERS: Final = ("X-Original-URL: /livez", "X-Rewrite-URL: /livez", "X-Forwarded-Prefix: /livez")

FEW_FILES: Final = """
import resource
from cador_trio import cli
resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
cli.main(["serve"])
"""
PLACES: Final = 64  # half of those


async def answer_at(url: str, request: bytes) -> bytes:
    """All that comes back before the daemon hangs up."""
    where = httpx.URL(url)
    async with await trio.open_tcp_stream(where.host, where.port or 80) as stream:
        await stream.send_all(request)
        return await read_all(stream)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def probes_of(daemon: Daemon) -> str:
    """Where they have a port of their own."""
    return str(next(line["url"] for line in daemon.lines if line["event"] == "serving probes and metrics"))


async def test_no_answer_tells_who_gives_it(tmp_path: Path) -> None:
    """Odd requests get a status of 4xx or 501, by whomever, without a banner; none of them is an error of ours."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, CADOR_API_TOKEN=TOKEN, CADOR_METRICS_PORT="0") as daemon,
    ):
        for request, statuses in ODD.items():
            answers = [await answer_at(url, request) for url in (daemon.url, probes_of(daemon))]
            assert tuple(map(status_of, answers)) == statuses, request
            for answer in map(bytes.lower, answers):
                assert b"\r\nserver:" not in answer
                assert not any(name in answer for name in (b"hypercorn", b"quart", b"werkzeug", b"python", b"h11"))
        assert await daemon.stop() == 0
        assert [line for line in daemon.lines if line["level"] == "error"] == []


@pytest.fixture
async def fake() -> AsyncIterator[FakeAlgorithm]:
    async with open_fake_algorithm() as fake:
        yield fake


@pytest.fixture
async def guarded(fake: FakeAlgorithm) -> AsyncIterator[Client]:
    async with open_daemon_here(fake, api_token=TOKEN) as client:
        yield client


async def test_no_way_leads_around_the_token(guarded: Client) -> None:
    """However a path is spelt, and whatever headers say of it: without the token there are no jobs to be seen."""
    requests = [head(path, "Connection: close", method="GET") for path in TRICKS]
    requests += [head("/jobs", header, "Connection: close", method="GET") for header in HEADERS]
    requests += [head("/jobs", "X-HTTP-Method-Override: GET", "Connection: close", method="HEAD")]
    for request in requests:
        assert status_of(await answer_at(str(guarded.base_url), request)) in {401, 404}, request


async def test_the_token_is_compared_in_constant_time(guarded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library's own function for that, as bytes, whatever was sent; and not at all where none is needed."""
    compared = []

    def compare(sent: bytes, expected: bytes) -> bool:
        compared.append((sent, expected))
        return sent == expected

    monkeypatch.setattr("cador_trio.intake.http.app.hmac.compare_digest", compare)
    for sent in ("open", TOKEN):
        await guarded.get("/jobs", headers={"Authorization": f"Bearer {sent}"})
        await guarded.get("/livez", headers={"Authorization": f"Bearer {sent}"})
    assert compared == [(b"open", TOKEN.encode()), (TOKEN.encode(), TOKEN.encode())]


# --- Size --------------------------------------------------------------------------------------------------------


async def test_heads_are_bounded(guarded: Client) -> None:
    """A head of nearly 16 KiB is read; one that has not ended by then is 431, be it line, header or headers."""
    url = str(guarded.base_url)
    longest = b"GET /livez HTTP/1.1\r\nA: " + b"a" * (HEAD_BYTES - 200) + CLOSE
    assert status_of(await answer_at(url, longest)) == 200
    for endless in (
        b"GET /".ljust(HEAD_BYTES + 1, b"a"),
        b"GET /livez HTTP/1.1\r\nHost: ".ljust(HEAD_BYTES + 1, b"a"),
        (b"GET /livez HTTP/1.1\r\n" + b"a:\r\n" * HEAD_BYTES)[: HEAD_BYTES + 1],
    ):
        assert status_of(await answer_at(url, endless)) == 431


@pytest.mark.parametrize("rest", [b"".ljust(HEAD_BYTES + 1, b"0"), b"0\r\na:".ljust(HEAD_BYTES + 4, b"a")])
async def test_frames_of_a_body_are_bounded(guarded: Client, rest: bytes) -> None:
    """Neither the line of a chunk nor the trailers may go on for ever; the next caller is served."""
    url = str(guarded.base_url)
    chunked = head("/jobs", f"Authorization: Bearer {TOKEN}", "Transfer-Encoding: chunked")
    assert status_of(await answer_at(url, chunked + rest)) in {400, 431}
    assert (await guarded.get("/livez")).status_code == 200


# --- Time --------------------------------------------------------------------------------------------------------


async def hung_up_on(stream: trio.abc.Stream, trickle: bytes) -> bytes:
    """What came, once the daemon has hung up on somebody who sends this again and again."""

    async def send() -> None:
        with suppress(trio.BrokenResourceError):
            while trickle:
                await stream.send_all(trickle)
                await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        received = await read_all(stream)
        nursery.cancel_scope.cancel()
    return received


@pytest.mark.parametrize(
    ("begin", "trickle"),
    [(b"", b""), (head("/livez")[:-2], b""), (head("/livez")[:-2], b"a: b\r\n"), (b"GET /", b"a")],
    ids=["nothing", "half a head", "a header at a time", "a letter at a time"],
)
async def test_slow_heads_are_hung_up_on(
    fake: FakeAlgorithm, monkeypatch: pytest.MonkeyPatch, begin: bytes, trickle: bytes
) -> None:
    """The time for a head is the time for all of it, however it comes."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
    async with (
        open_daemon_here(fake) as client,
        await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 80) as stream,
    ):
        await stream.send_all(begin)
        assert await hung_up_on(stream, trickle) == b""
        assert (await client.get("/livez")).status_code == 200


async def test_slow_handshakes_are_hung_up_on(fake: FakeAlgorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins no TLS, or does not end its handshake, has no more time for that than for a head."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
    async with open_daemon_here(fake, is_ready=False, use_ssl=True, self_signed=True) as client:
        for begin in (b"", b"\x16\x03\x01\x02\x00\x01"):
            stream = await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 443)
            async with stream:
                await stream.send_all(begin)
                assert await hung_up_on(stream, b"") == b""


async def test_slow_bodies_are_given_up(fake: FakeAlgorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops coming is 408, and the connection ends."""
    monkeypatch.setattr(door, "BODY_IDLE_SECONDS", 0.1)
    monkeypatch.setattr("cador_trio.intake.http.connection.REST_SECONDS", 0.1)
    async with (
        open_daemon_here(fake) as client,
        await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 80) as stream,
    ):
        await stream.send_all(post()[:-1])
        assert status_of(await hung_up_on(stream, b"")) == 408


# --- Number ------------------------------------------------------------------------------------------------------


async def is_open(stream: trio.abc.Stream) -> bool:
    """Whether it is answered."""
    try:
        await stream.send_all(head("/livez", method="GET"))
        return bool(await stream.receive_some(1))
    except trio.BrokenResourceError:
        return False


async def test_connections_are_bounded(tmp_path: Path) -> None:
    """Beyond the bound new ones are closed; those that are there go on, with jobs and probes; then all is as before."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, command=["-c", FEW_FILES], CADOR_METRICS_PORT="0") as daemon,
        client_of(daemon) as client,
        httpx.AsyncClient(base_url=probes_of(daemon), trust_env=False, timeout=CAP_SECONDS) as prober,
    ):
        await client.get("/livez")
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(await connect(daemon)) for _ in range(PLACES + 20)]
            assert [await is_open(stream) for stream in streams] == [True] * (PLACES - 1) + [False] * 21
            assert (await daemon.wait_event("new connections are closed: there are too many"))["connections"] == PLACES
            assert (await client.post("/jobs", json=IMAGE)).status_code == 200
            assert (await prober.get("/livez")).status_code == 200
        await eventually(client, lambda: connections(daemon) == 1)
        async with await connect(daemon) as stream:
            assert await is_open(stream)
        assert await daemon.stop() == 0


async def test_a_place_is_free_when_its_client_has_left(fake: FakeAlgorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the time for its next request is over."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 10_000)
    async with open_daemon_here(fake, max_connections=2) as client:
        await client.get("/livez")
        for _ in range(3):
            await wait_place(client)


async def wait_place(client: Client) -> None:
    """Until a new connection is answered; it is closed again."""
    with trio.fail_after(CAP_SECONDS):
        while True:
            async with await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 80) as stream:
                if await is_open(stream):
                    return


def highest_descriptor(daemon: Daemon) -> int:
    return max(int(path.name) for path in Path(f"/proc/{daemon.pid}/fd").iterdir())


async def test_without_descriptors_it_waits_for_better_times(tmp_path: Path) -> None:
    """When no file can be opened any more callers wait; those that are there are answered, and later all are."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url) as daemon,
        client_of(daemon) as client,
    ):
        await client.get("/livez")
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (highest_descriptor(daemon) + 1, limits[1]))
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(await connect(daemon)) for _ in range(30)]
            await daemon.wait_output("EMFILE")
            assert (await client.get("/livez")).status_code == 200
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
            assert await is_open(streams[-1])
        assert (await client.post("/jobs", json=IMAGE)).status_code == 200
        assert await daemon.stop() == 0
