"""What must hold after anything went wrong: nothing is left behind, and the next job is served."""

from __future__ import annotations

import httpx

from tests.daemon.process import IMAGE, Daemon, eventually
from tests.peers.fake_algorithm import Answer, FakeAlgorithm

TERMINAL = {"SUCCEEDED", "FAILED", "CANCELLED"}


async def job_states(client: httpx.AsyncClient) -> list[str]:
    """The states of all jobs that the daemon knows, the newest first."""
    return [job["status"] for job in (await client.get("/api/v1/jobs")).json().values()]


async def wait_all_ended(client: httpx.AsyncClient) -> list[str]:
    """Their states, once every job has come to its end; asked for again after each answer."""
    while not TERMINAL.issuperset(states := await job_states(client)):
        pass
    return states


async def assert_unharmed(daemon: Daemon, client: httpx.AsyncClient, fake: FakeAlgorithm) -> list[str]:
    """No object, no job without an end, no file in the spool, and the next job succeeds. The states before that one.

    Leaves the daemon without jobs.
    """
    states = await wait_all_ended(client)
    assert list(daemon.store.rglob("*")) == []
    await forget_jobs(client)
    await eventually(client, lambda: daemon.spooled() == [])

    fake.script.append(Answer({"count": 11}))
    served = await client.post("/api/v1/jobs", json=IMAGE)
    assert (served.status_code, served.json()) == (200, {"count": 11})
    await forget_jobs(client)
    return states


async def forget_jobs(client: httpx.AsyncClient) -> None:
    for job_id in (await client.get("/api/v1/jobs")).json():
        assert (await client.delete(f"/api/v1/jobs/{job_id}")).status_code == 204


def assert_error(answer: httpx.Response, status: int, says: str) -> None:
    """An Error object of the Geo Process API under this status, with these words in it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    error = answer.json()
    assert set(error) == {"message", "hint", "correlationId", "timestamp"}
    assert says in f"{error['message']} {error['hint']}"
    assert error["correlationId"] == answer.headers["X-Correlation-ID"]
    assert ("Retry-After" in answer.headers) == (status == 503)
