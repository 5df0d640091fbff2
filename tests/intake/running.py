"""A whole daemon in front of a fake algorithm, for the length of a block, and what tests ask of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from cador_trio.daemon import serve
from cador_trio.settings import Settings
from tests.leaks import watch_answer
from tests.peers.fake_algorithm import FakeAlgorithm

VECTORS: Final = Path(__file__).with_name("vectors")
HANGS: Final = 30.0  # seconds after which a test has hung

JOB: Final = {"image": "aGVsbG8="}


def vector(name: str) -> Any:
    """A test vector of the wire contract."""
    return json.loads((VECTORS / f"{name}.json").read_text())


class Client(httpx.AsyncClient):
    """A client of the daemon that runs. `stop` begins the daemon's orderly end, as a signal would."""

    stop: Callable[[], None]


@asynccontextmanager
async def open_daemon(
    fake: FakeAlgorithm, *, is_ready: bool = True, hangs: float = HANGS, **settings: Any
) -> AsyncIterator[Client]:
    """A client of a daemon with these settings; jobs that run at the end of the block get no grace."""
    chosen = {"host": "127.0.0.1", "port": 0, "processing_server": fake.url, "shutdown_grace_seconds": 0} | settings
    with trio.fail_after(hangs):
        async with trio.open_nursery() as nursery:
            serving = await nursery.start(serve, Settings.model_validate(chosen))
            async with Client(
                base_url=serving.url, trust_env=False, timeout=HANGS, event_hooks={"response": [watch_answer]}
            ) as client:
                client.stop = serving.stop
                while is_ready and (await client.get("/readyz")).status_code != 200:
                    pass
                yield client
            serving.stop()


async def start_job(client: httpx.AsyncClient, **body: Any) -> str:
    """Post a job and leave it to itself; its id."""
    answer = await client.post("/api/v1/jobs", json=JOB | body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return str(answer.headers["Location"].split("/")[-2])


async def wait_end_of(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The job's last status, by its events."""
    return (await events_of(client, job_id))[-1]


async def events_of(client: httpx.AsyncClient, job_id: str) -> list[dict[str, Any]]:
    """All events of a job, until the stream ends."""
    answer = await client.get(f"/api/v1/jobs/{job_id}/events")
    assert answer.headers["Content-Type"] == "text/event-stream"
    blocks = [block.split("\n") for block in answer.text.split("\n\n") if block]
    assert {block[0] for block in blocks} == {"event: status"}
    return [json.loads(block[1].removeprefix("data: ")) for block in blocks]


async def end_one_job(client: httpx.AsyncClient, **body: Any) -> str:
    """A job that has ended; its id."""
    job_id = await start_job(client, **body)
    await wait_end_of(client, job_id)
    return job_id


def check_error(answer: httpx.Response, status: int) -> dict[str, str]:
    """It is the Error object under this status, signed with the request's correlation id; the object."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    error: dict[str, str] = answer.json()
    assert set(error) == {"message", "hint", "correlationId", "timestamp"}
    assert error["message"]
    assert error["correlationId"] == answer.headers["X-Correlation-ID"]
    return error


async def open_get(client: httpx.AsyncClient, path: str) -> trio.SocketStream:
    """A GET on a connection of its own, of which the answer is still to be read, or not."""
    stream = await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 80)
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: cador\r\n\r\n".encode())
    return stream
