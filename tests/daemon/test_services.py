"""When something inside goes wrong: a service that fails, an event loop that hangs, a heart that stops."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
import trio

from cador_trio.observe.health import STUCK_SECONDS, Health
from tests.daemon.certificates import Authority
from tests.daemon.process import IMAGE, client_of, running_daemon, wait_answer
from tests.peers.fake_algorithm import Answer, Hold, open_fake_algorithm

SERVE = "from cador_trio import cli; cli.main(['serve'])"

FAILING_SERVICE = f"""
import signal, trio
from cador_trio.registry import Registry

async def expire(self):
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            raise ValueError("nobody thought of this")

Registry.expire = expire
{SERVE}
"""

HANGING_LOOP = f"""
import os, signal, time
from cador_trio import daemon
from cador_trio.intake.http import stand_in
from cador_trio.observe import health
daemon.STUCK_SECONDS = health.STUCK_SECONDS = 2.0
stand_in.CLIENT_SECONDS = 30.0
daemon.HEARTBEAT_SECONDS = stand_in.LOOK_SECONDS = stand_in.SECOND_LOOK_SECONDS = 0.05
go_on = os.path.join(os.environ["CADOR_SPOOL_DIR"], "go-on")

def a_step_that_hangs(number, frame):
    while not os.path.exists(go_on):
        time.sleep(0.01)

signal.signal(signal.SIGUSR1, a_step_that_hangs)
{SERVE}
"""

STOPPED_HEART = f"""
from cador_trio import daemon
from cador_trio.observe import health
health.STUCK_SECONDS, daemon.HEARTBEAT_SECONDS = 0.1, 1_000_000
{SERVE}
"""


async def test_a_service_that_fails_ends_the_daemon_after_the_jobs_grace(tmp_path: Path) -> None:
    """No new jobs, the running one ends as usual and its caller is answered, then exit code 1 with a log line why."""
    answers: list[httpx.Response] = []
    async with (
        open_fake_algorithm([Hold(Answer({"count": 7}))]) as fake,
        running_daemon(tmp_path, fake.url, command=["-c", FAILING_SERVICE]) as daemon,
        client_of(daemon) as client,
    ):

        async def call() -> None:
            answers.append(await client.post("/api/v1/jobs", json=IMAGE))

        async with trio.open_nursery() as callers:
            callers.start_soon(call)
            await fake.wait_for_request(1, "POST")
            daemon.process.send_signal(signal.SIGUSR1)
            failure = await daemon.wait_event("a service failed, so the daemon ends")
            assert failure["service"] == "history"
            assert "nobody thought of this" in failure["exception"]
            await wait_answer(client, "/readyz", 503)
            assert (await client.get("/livez")).status_code == 200
            fake.release()
        assert await daemon.wait_exit() == 1
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"count": 7})]


@pytest.mark.parametrize("has_tls", [False, True])
async def test_a_hanging_event_loop_is_told(tmp_path: Path, has_tls: bool) -> None:
    """Every thread's stack is written, probes hear 503 at both ports, jobs are refused; then the daemon goes on."""
    authority = Authority.in_folder(tmp_path / "authority")
    authority.issue()
    settings = {"CADOR_METRICS_PORT": "0"} | (authority.settings() if has_tls else {})
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, command=["-c", HANGING_LOOP], **settings) as daemon,
        client_of(daemon, authority.client_context()) as client,
    ):
        operators = (await daemon.wait_event("serving probes and metrics"))["url"]
        daemon.process.send_signal(signal.SIGUSR1)
        await daemon.wait_output("a_step_that_hangs")
        for probe in ("/livez", "/readyz", f"{operators}/livez", f"{operators}/readyz"):
            answer = await client.get(probe)
            assert answer.status_code == 503
            (reason,) = answer.json()["reasons"]
            assert reason.startswith("the event loop is stuck")
        refusal = await client.post("/api/v1/jobs", json=IMAGE)
        assert refusal.status_code == 503
        assert refusal.json()["message"].startswith("the event loop is stuck")
        (daemon.spool / "go-on").touch()
        await wait_answer(client, "/livez", 200)
        assert (await client.post("/api/v1/jobs", json=IMAGE)).status_code == 200
        assert [request.method for request in fake.requests].count("POST") == 1
        assert await daemon.stop() == 0


async def test_without_a_heartbeat_it_asks_to_be_restarted(tmp_path: Path) -> None:
    """Both probes say 503, and which service gives no sign of life."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, command=["-c", STOPPED_HEART]) as daemon,
        client_of(daemon) as client,
    ):
        for probe in ("/livez", "/readyz"):
            (reason,) = (await wait_answer(client, probe, 503)).json()["reasons"]
            assert reason.startswith("the event loop is stuck")


def test_health_counts_from_the_last_beat() -> None:
    """A beat is good for so many seconds; a service that has retired owes none."""
    now = 100.0
    health = Health(lambda: now)
    health.beat("a thread")
    now += STUCK_SECONDS
    assert health.stuck() == []
    now += 1
    assert health.stuck() == [f"a thread is stuck: no sign of life for {STUCK_SECONDS + 1:.0f} s"]
    health.beat("a thread")
    assert health.stuck() == []
    now += 10 * STUCK_SECONDS
    health.retire("a thread")
    assert health.stuck() == []
