"""The daemon's start and end: probes, signals, exit codes, and what is left of it afterwards."""

from __future__ import annotations

import signal
import socket
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio

from tests.daemon.process import CAP_SECONDS, IMAGE, client_of, open_daemon, running_daemon, wait_answer
from tests.peers.fake_algorithm import Answer, AnswerImage, Hold, open_fake_algorithm

SLOW_ENDS = """
import os, time
from pathlib import Path
from cador_trio import cli, spool
claim, release, folder = spool._claim_folder, spool._release_folder, Path(os.environ["CADOR_SPOOL_DIR"])

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)

def slow_claim(parent):
    wait_for("begin")
    return claim(parent)

def slow_release(*arguments):
    wait_for("end")
    release(*arguments)

spool._claim_folder, spool._release_folder = slow_claim, slow_release
cli.main(["serve"])
"""
LARGE = 1_000_000  # bytes: a result of this size is a file in the spool


async def test_it_is_alive_at_once_and_ready_when_the_algorithm_is(tmp_path: Path) -> None:
    """Until the algorithm answers `/readyz` says 503 and why; `/livez` says 200 from the start."""
    async with open_fake_algorithm() as fake:
        await fake.refuse_connections()
        async with open_daemon(tmp_path, fake.url) as daemon:
            daemon.url = (await daemon.wait_event("serving"))["url"]
            async with client_of(daemon) as client:
                assert (await client.get("/livez")).status_code == 200
                unready = await client.get("/readyz")
                assert unready.status_code == 503
                assert "algorithm" in unready.json()["reasons"][0]
                assert (await client.post("/api/v1/jobs", json=IMAGE)).status_code == 503

                await fake.accept_again()

                await wait_answer(client, "/readyz", 200)
                assert (await client.get("/livez")).status_code == 200
                assert (await client.post("/api/v1/jobs", json=IMAGE)).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end an idle daemon with exit code 0, and its spool folder goes with it."""
    async with open_fake_algorithm() as fake, running_daemon(tmp_path, fake.url) as daemon:
        assert list(daemon.spool.iterdir())

        assert await daemon.stop(number) == 0

        assert daemon.lines[-1]["event"] == "stopped"
        assert list(daemon.spool.iterdir()) == []


async def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    """While a job has its grace, a second signal ends the process with 128 + its number."""
    async with (
        open_fake_algorithm([Hold(Answer({"count": 1}))]) as fake,
        running_daemon(tmp_path, fake.url) as daemon,
        client_of(daemon) as client,
    ):
        await client.post("/api/v1/jobs", json=IMAGE, headers={"Prefer": "respond-async"})
        await fake.wait_for_request(1, "POST")
        daemon.process.send_signal(signal.SIGTERM)
        await daemon.wait_event("stopping: jobs have their grace")

        assert await daemon.stop(signal.SIGINT) == 128 + signal.SIGINT


async def test_a_killed_daemon_leaves_nothing_to_the_next_one(tmp_path: Path) -> None:
    """After SIGKILL the spool of the past is still there; the next start sweeps it, and only it."""
    neighbour = tmp_path / "spool" / "somebody-else"
    neighbour.mkdir(parents=True)
    async with open_fake_algorithm(default=AnswerImage(LARGE)) as fake:
        async with running_daemon(tmp_path, fake.url) as daemon, client_of(daemon) as client:
            await client.post("/api/v1/jobs", json=IMAGE)
            assert await daemon.stop(signal.SIGKILL) == -signal.SIGKILL
            (left,) = daemon.spooled()
        async with running_daemon(tmp_path, fake.url) as daemon:
            assert not left.parent.exists()
            assert neighbour.exists()
            assert daemon.spooled() == []
            assert await daemon.stop() == 0


async def test_two_daemons_share_a_spool_folder(tmp_path: Path) -> None:
    """A starting daemon sweeps no folder that a living one owns."""
    async with (
        open_fake_algorithm(default=AnswerImage(LARGE)) as fake,
        running_daemon(tmp_path, fake.url) as first,
        client_of(first) as client,
    ):
        await client.post("/api/v1/jobs", json=IMAGE)
        (kept,) = first.spooled()
        async with running_daemon(tmp_path, fake.url) as second:
            assert await second.stop() == 0
        assert kept.exists()


@pytest.mark.parametrize("variable", ["CADOR_PORT", "CADOR_METRICS_PORT"])
async def test_a_taken_port_is_one_line_and_exit_code_1(tmp_path: Path, variable: str) -> None:
    """A port that somebody listens on, or is about to, stops the start with one line that says which."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        async with open_daemon(tmp_path, "http://127.0.0.1:1", **{variable: port}) as daemon:
            assert await daemon.wait_exit() == 1
        (line,) = daemon.output
        assert port in line
        assert variable in line


async def test_wrong_settings_are_a_line_each_and_exit_code_2(tmp_path: Path) -> None:
    """Every wrong setting is named before anything starts."""
    wrong = {"CADOR_PORT": "none", "CADOR_MAX_CONCURRENT_JOBS": "0"}
    async with open_daemon(tmp_path, "http://127.0.0.1:1", **wrong) as daemon:
        assert await daemon.wait_exit() == 2
    assert [line.split(":")[1].strip() for line in daemon.output] == ["CADOR_PORT", "CADOR_MAX_CONCURRENT_JOBS"]


async def test_a_job_that_runs_at_sigterm_ends_and_its_caller_is_answered(tmp_path: Path) -> None:
    """Within the grace probes answer, readiness is 503, new jobs are refused, and the running one ends as usual."""
    answers = []
    async with (
        open_fake_algorithm([Hold(Answer({"count": 7}))]) as fake,
        running_daemon(tmp_path, fake.url) as daemon,
        client_of(daemon) as client,
    ):

        async def call() -> None:
            answers.append(await client.post("/api/v1/jobs", json=IMAGE))

        async with trio.open_nursery() as callers:
            callers.start_soon(call)
            await fake.wait_for_request(1, "POST")
            daemon.process.send_signal(signal.SIGTERM)
            await daemon.wait_event("stopping: jobs have their grace")
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/readyz")).json()["reasons"] == ["the daemon is stopping"]
            refused = await client.post("/api/v1/jobs", json=IMAGE)
            assert (refused.status_code, refused.json()["message"]) == (503, "the daemon is stopping")
            assert int(refused.headers["Retry-After"]) >= 1
            fake.release()
        assert await daemon.wait_exit() == 0
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"count": 7})]


async def test_a_job_that_outlives_the_grace_is_cancelled(tmp_path: Path) -> None:
    """When the grace is over the job ends as CANCELLED, its caller gets 503, and the exit code is 0."""
    answers = []
    async with (
        open_fake_algorithm([Hold(Answer({"count": 7}))]) as fake,
        running_daemon(tmp_path, fake.url, CADOR_SHUTDOWN_GRACE_SECONDS="0.2") as daemon,
        client_of(daemon) as client,
    ):

        async def call() -> None:
            answers.append(await client.post("/api/v1/jobs", json=IMAGE))

        async with trio.open_nursery() as callers:
            callers.start_soon(call)
            await fake.wait_for_request(1, "POST")
            assert await daemon.stop() == 0
        assert (await daemon.wait_event("job ended early"))["reason"] == "the daemon is stopping"
    ((answer,)) = answers
    assert answer.status_code == 503
    assert "the daemon is stopping" in answer.json()["message"]
    assert "Retry-After" in answer.headers


async def wait_refusal(client: httpx.AsyncClient) -> None:
    """Until nobody listens any more."""
    with trio.fail_after(CAP_SECONDS), suppress(httpx.TransportError):
        while True:
            await client.get("/livez")


async def test_probes_on_their_own_port_come_first_and_go_last(tmp_path: Path) -> None:
    """They answer before the daemon serves, and still when its port is closed, until there is nothing left to do."""
    async with (
        open_fake_algorithm() as fake,
        open_daemon(tmp_path, fake.url, command=["-c", SLOW_ENDS], CADOR_METRICS_PORT="0") as daemon,
    ):
        url = (await daemon.wait_event("serving probes and metrics"))["url"]
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=CAP_SECONDS) as probes:
            starting = await probes.get("/readyz")
            assert (starting.status_code, starting.json()["reasons"]) == (503, ["the daemon is starting"])
            assert (await probes.get("/livez")).status_code == 200
            (daemon.spool / "begin").touch()
            daemon.url = (await daemon.wait_event("serving"))["url"]
            await wait_answer(probes, "/readyz", 200)
            async with client_of(daemon) as client:
                assert (await client.get("/livez")).status_code == 200
                daemon.process.send_signal(signal.SIGTERM)
                await wait_refusal(client)
            assert (await probes.get("/livez")).status_code == 200
            assert (await probes.get("/readyz")).json()["reasons"] == ["the daemon is stopping"]
            (daemon.spool / "end").touch()
        assert await daemon.wait_exit() == 0
