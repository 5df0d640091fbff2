"""Bad requests and bad callers: the documented answer, nothing left behind, and the next job is served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.daemon.clients import BODY, connect, head, post, read_all, read_until, stop_reading
from tests.daemon.process import IMAGE, JSON, Daemon, client_of, connections, eventually, running_daemon
from tests.daemon.unharmed import assert_error, assert_unharmed, job_states
from tests.peers.fake_algorithm import Answer, AnswerImage, FakeAlgorithm, Hold, open_fake_algorithm

MAX_BODY = 20_000  # bytes
LARGE = 30_000_000  # bytes: more than all buffers between the daemon and a client hold


def technical(**members: Any) -> bytes:
    return json.dumps({**IMAGE, "technicalMetadata": members}).encode()


HALF_A_REFERENTIAL = {"upperLeft": {"lat": 43.0, "lon": 5.0}, "latStep": -0.001}

# name: body, status, words of the answer
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "not JSON"),
    "not JSON": (b'{"image": ', 400, "line 1"),
    "not UTF-8": (b'{"image": "\xff"}', 400, "not UTF-8"),
    "NaN": (b'{"image": NaN}', 400, "NaN"),
    "not an object": (b"[1, 2]", 400, "an array"),
    "technicalMetadata is no object": (b'{"image": "aW1hZ2U=", "technicalMetadata": 3}', 400, "technicalMetadata"),
    "tags is a text": (technical(postProcessing={"tags": "false"}), 400, "postProcessing.tags"),
    "half a referential": (technical(referential=HALF_A_REFERENTIAL), 400, "lonStep"),
    "an input is missing": (b"{}", 400, "image"),
    "an input of another type": (b'{"image": 5}', 400, "image"),
    "unknown storage": (technical(outputStorage={"FTP": {"url": "ftp://store"}}), 400, "FTP"),
    "a folder outside the roots": (technical(outputStorage={"POSIX": {"folder": "/etc"}}), 400, "folder"),
    "over the limit, announced": (b'{"image": "' + b"a" * MAX_BODY + b'"}', 413, "CADOR_MAX_BODY_BYTES"),
}


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[tuple[FakeAlgorithm, Daemon, httpx.AsyncClient]]:
    """A fake algorithm, a daemon in front of it, and a client of that."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(folder, fake.url, CADOR_MAX_BODY_BYTES=str(MAX_BODY)) as daemon,
        client_of(daemon) as client,
    ):
        yield fake, daemon, client


async def test_every_wrong_request_is_refused_before_anything_is_done(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """The status and the words say what to mend; the algorithm is not asked, and no job is known."""
    async with bench(tmp_path) as (fake, daemon, client):
        for name, (body, status, says) in REFUSED.items():
            with subtests.test(name):
                fake.requests.clear()
                assert_error(await client.post("/api/v1/jobs", content=body, headers=JSON), status, says)
                assert fake.seen("POST") == []
                assert await assert_unharmed(daemon, client, fake) == []


async def test_a_task_id_that_climbs_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    """A task id is part of an object's name, so it may hold no path."""
    async with bench(tmp_path) as (fake, daemon, client):
        body = technical(taskId="../../elsewhere", outputStorage={"POSIX": {"folder": str(daemon.store)}})
        assert_error(await client.post("/api/v1/jobs", content=body, headers=JSON), 400, "taskId")
        assert fake.seen("POST") == []
        assert await assert_unharmed(daemon, client, fake) == []


async def test_a_body_that_is_no_json_by_its_type_is_refused(tmp_path: Path) -> None:
    """Another Content-Type is 415, and the hint says what to send."""
    async with bench(tmp_path) as (fake, daemon, client):
        answer = await client.post("/api/v1/jobs", content=BODY, headers={"Content-Type": "text/csv"})
        assert_error(answer, 415, "application/json")
        assert await assert_unharmed(daemon, client, fake) == []


async def test_an_unannounced_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    """A chunked body is cut off where it passes the limit, however much more there would be."""

    chunk = b"1000\r\n" + b"a" * 0x1000 + b"\r\n"
    async with bench(tmp_path) as (fake, daemon, client):
        async with await connect(daemon) as stream:
            await stream.send_all(head("/api/v1/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked"))
            await stream.send_all(chunk * (MAX_BODY // 0x1000 + 1))
            answer = await read_until(stream, b"CADOR_MAX_BODY_BYTES")
        assert answer.startswith(b"HTTP/1.1 413")
        assert await assert_unharmed(daemon, client, fake) == []


async def test_what_is_no_http_is_answered_400_and_hung_up_on(tmp_path: Path) -> None:
    """Bytes that are no request cost a connection and nothing else."""
    async with bench(tmp_path) as (fake, daemon, client), await connect(daemon) as stream:
        await stream.send_all(b"\x16\x03\x01 not a request\r\n\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400")
        assert await assert_unharmed(daemon, client, fake) == []


async def test_a_caller_that_leaves_in_mid_body_leaves_nothing(tmp_path: Path) -> None:
    """Half a body never becomes a job."""
    async with bench(tmp_path) as (fake, daemon, client):
        await client.get("/livez")
        before = connections(daemon)
        stream = await connect(daemon)
        await stream.send_all(post()[:-5])
        await eventually(client, lambda: connections(daemon) > before)
        await stream.aclose()
        await eventually(client, lambda: connections(daemon) <= before)
        assert fake.seen("POST") == []
        assert await assert_unharmed(daemon, client, fake) == []


@pytest.mark.parametrize("way", ["leaves", "half-closes"])
async def test_a_caller_that_leaves_ends_its_job(tmp_path: Path, way: str) -> None:
    """Nobody waits any more, so the job is CANCELLED and says why; half-closing means leaving."""
    async with bench(tmp_path) as (fake, daemon, client):
        fake.script.append(Hold(Answer({"count": 1})))
        stream = await connect(daemon)
        await stream.send_all(post())
        await fake.wait_for_request(1, "POST")

        if way == "leaves":
            await stream.aclose()
        else:
            assert isinstance(stream, trio.SocketStream)
            await stream.send_eof()

        assert (await daemon.wait_event("job ended early"))["reason"] == "the caller left"
        fake.release()  # an algorithm that can't cancel keeps its slot until it is done
        assert await assert_unharmed(daemon, client, fake) == ["CANCELLED"]
        await stream.aclose()


async def test_a_caller_with_a_key_may_leave_and_come_back(tmp_path: Path) -> None:
    """With an Idempotency-Key the job outlives its connection, and the same POST finds it again."""
    key = {"Idempotency-Key": "once"}
    async with bench(tmp_path) as (fake, daemon, client):
        fake.script.append(Hold(Answer({"count": 1})))
        stream = await connect(daemon)
        await stream.send_all(post(BODY, "Idempotency-Key: once"))
        await fake.wait_for_request(1, "POST")
        await stream.aclose()
        await eventually(client, lambda: fake.held == 1)
        fake.release()
        answer = await client.post("/api/v1/jobs", content=BODY, headers=JSON | key)
        assert (answer.status_code, answer.json()) == (200, {"count": 1})
        assert len(fake.seen("POST")) == 1
        assert await assert_unharmed(daemon, client, fake) == ["SUCCEEDED"]


async def test_a_caller_that_stops_reading_holds_up_nobody(tmp_path: Path) -> None:
    """The job has succeeded, others are served meanwhile, and what it held is freed when the caller is gone."""
    async with bench(tmp_path) as (fake, daemon, client):
        fake.script.append(AnswerImage(LARGE))
        await client.get("/livez")
        before = connections(daemon)
        stream = await stop_reading(daemon)
        assert await assert_unharmed(daemon, client, fake) == ["SUCCEEDED"]
        await trio.aclose_forcefully(stream)
        await eventually(client, lambda: connections(daemon) <= before)


async def test_a_connection_that_is_to_be_closed_is_closed(tmp_path: Path) -> None:
    """`Connection: close` and HTTP/1.0 get their answer and then the end of the connection, each time."""
    async with bench(tmp_path) as (_, daemon, client):
        for request in (
            post(BODY, "Connection: close"),
            post(BODY, "Connection: close"),
            head("/livez", "Connection: close", method="GET"),
            b"GET /livez HTTP/1.0\r\n\r\n",
        ):
            async with await connect(daemon) as stream:
                await stream.send_all(request)
                assert (await read_all(stream)).startswith(b"HTTP/1.1 200")
        assert await job_states(client) == ["SUCCEEDED", "SUCCEEDED"]


async def test_a_stuck_sender_does_not_keep_others_out(tmp_path: Path) -> None:
    """Announcing a large body counts as nothing until its bytes are here."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, CADOR_MAX_WAITING_BYTES="1000") as daemon,
        client_of(daemon) as client,
        await connect(daemon) as stream,
    ):
        await stream.send_all(head("/api/v1/jobs", "Content-Type: application/json", "Content-Length: 999"))
        answer = await client.post("/api/v1/jobs", json=IMAGE)
        assert answer.status_code == 200
