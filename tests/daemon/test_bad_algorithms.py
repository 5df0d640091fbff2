"""An algorithm that fails in every way: the documented answer, nothing left behind, and the next job is served."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.daemon.process import IMAGE, Daemon, client_of, running_daemon
from tests.daemon.unharmed import assert_error, assert_unharmed
from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    AnswerText,
    CloseBeforeAnswer,
    CloseMidAnswer,
    FakeAlgorithm,
    Hang,
    Hold,
    Html,
    Status,
    Step,
    WrongLength,
    open_fake_algorithm,
)

ATTEMPTS = 3  # CADOR_MAX_ATTEMPTS by default
LARGE = 1_000_000  # bytes: a result of this size is a file in the spool
SMALL_DISK = 600_000  # bytes

# name: what the algorithm does, as often as it is asked; status, words of the answer
FAILURES: dict[str, tuple[Sequence[Step], int, str]] = {
    "refuses": ([Status(400, {"message": "no such threshold"})], 400, "no such threshold"),
    "fails and says so": ([Status(500, {"detail": "out of memory"})], 500, "out of memory"),
    "answers HTML": ([Html()], 502, "HTML"),
    "answers HTML under an error": ([Html(500)], 500, ""),
    "answers half a JSON": ([AnswerText('{"count": ', media_type="application/json")], 502, "not JSON"),
    "announces less than it sends": ([WrongLength(5, Answer({"count": 3}))], 502, "not JSON"),
    "announces more than it sends": ([WrongLength(LARGE + 1, AnswerImage(LARGE))] * ATTEMPTS, 502, "broke off"),
    "dies in mid-answer": ([CloseMidAnswer(LARGE // 2, AnswerImage(LARGE))] * ATTEMPTS, 502, "broke off"),
    "dies before it answers": ([CloseBeforeAnswer()] * ATTEMPTS, 502, "attempt 3 of 3"),
    "announces more than is allowed": ([WrongLength(3 * LARGE, AnswerImage(1_000))], 502, f"{3 * LARGE} bytes"),
    "sends more than is allowed": ([AnswerImage(3 * LARGE, chunked=True)], 502, f"{2 * LARGE} bytes"),
}


@asynccontextmanager
async def bench(folder: Path, **settings: str) -> AsyncIterator[tuple[FakeAlgorithm, Daemon, httpx.AsyncClient]]:
    """A fake algorithm, a daemon in front of it, and a client of that."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(folder, fake.url, **settings) as daemon,
        client_of(daemon) as client,
    ):
        yield fake, daemon, client


def storing(daemon: Daemon) -> dict[str, object]:
    """A request whose images go to the daemon's store."""
    return {**IMAGE, "technicalMetadata": {"outputStorage": {"POSIX": {"folder": str(daemon.store)}}}}


async def test_every_failure_of_the_algorithm_is_told_and_leaves_nothing(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """The job is FAILED, with the error in the field's terms; no part of a result reaches the store."""
    async with bench(tmp_path, CADOR_MAX_RESULT_BYTES=str(2 * LARGE)) as (fake, daemon, client):
        for name, (steps, status, says) in FAILURES.items():
            with subtests.test(name):
                fake.script.extend(steps)
                assert_error(await client.post("/api/v1/jobs", json=storing(daemon)), status, says)
                assert not fake.script  # as often asked as it may be
                assert await assert_unharmed(daemon, client, fake) == ["FAILED"]


async def test_an_algorithm_that_is_down_costs_a_caller_nothing_but_time(tmp_path: Path) -> None:
    """A caller on the line is told at once, a patient job waits and is done when the algorithm is back."""
    async with bench(tmp_path) as (fake, daemon, client):
        await fake.refuse_connections()
        assert_error(await client.post("/api/v1/jobs", json=IMAGE), 503, "can't be reached")
        accepted = await client.post("/api/v1/jobs", json=IMAGE, headers={"Prefer": "respond-async"})
        assert accepted.status_code == 202

        await fake.accept_again()

        await daemon.wait_event("job succeeded")
        assert await assert_unharmed(daemon, client, fake) == ["SUCCEEDED", "FAILED"]


async def test_an_algorithm_that_hangs_meets_the_deadline(tmp_path: Path) -> None:
    """The caller gets 504; the slot stays taken as long as the algorithm may still be at it, no longer."""
    async with bench(tmp_path, CADOR_JOB_TIMEOUT_SECONDS="2") as (fake, daemon, client):
        fake.script.append(Hang())
        assert_error(await client.post("/api/v1/jobs", json=IMAGE), 504, "CADOR_JOB_TIMEOUT_SECONDS")
        await fake.drop_connections()
        assert await assert_unharmed(daemon, client, fake) == ["FAILED"]


async def test_a_job_that_waits_for_its_slot_meets_the_deadline_too(tmp_path: Path) -> None:
    """Acceptance starts the clock, so a job that never got a slot says that it waited."""
    async with bench(tmp_path, CADOR_JOB_TIMEOUT_SECONDS="2") as (fake, daemon, client):
        fake.script.append(Hold(Answer({"count": 1})))
        await client.post("/api/v1/jobs", json=IMAGE, headers={"Prefer": "respond-async"})
        await fake.wait_for_request(1, "POST")
        assert_error(await client.post("/api/v1/jobs", json=IMAGE), 504, "waited for a slot")
        fake.release()
        assert await assert_unharmed(daemon, client, fake) == ["FAILED", "FAILED"]


async def test_a_result_larger_than_the_spool_fails(tmp_path: Path) -> None:
    """`CADOR_SPOOL_BYTES` bounds what lies on the disk, and the error says so."""
    async with bench(tmp_path, CADOR_SPOOL_BYTES=str(LARGE - 1)) as (fake, daemon, client):
        fake.script.append(AnswerImage(LARGE))
        assert_error(await client.post("/api/v1/jobs", json=storing(daemon)), 503, "CADOR_SPOOL_BYTES")
        assert await assert_unharmed(daemon, client, fake) == ["FAILED"]


async def test_kept_results_make_room_for_new_ones(tmp_path: Path) -> None:
    """History gives way before a job fails for want of room."""
    async with bench(tmp_path, CADOR_SPOOL_BYTES=str(LARGE + LARGE // 2)) as (fake, daemon, client):
        for _ in range(2):
            fake.script.append(AnswerImage(LARGE))
            assert len((await client.post("/api/v1/jobs", json=IMAGE)).content) == LARGE
        assert await assert_unharmed(daemon, client, fake) == ["SUCCEEDED", "SUCCEEDED"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of `SMALL_DISK` bytes."""
    folder = tmp_path / "spool"
    folder.mkdir()
    options = f"size={SMALL_DISK}"
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here; the test with a file size limit covers the rest")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_under_the_spool_fails_the_job(tmp_path: Path, small_disk: Path) -> None:
    """The disk's own words reach the caller, and its room is there for the next job."""
    async with bench(tmp_path) as (fake, daemon, client):
        assert daemon.spool == small_disk
        fake.script.append(AnswerImage(LARGE))
        assert_error(await client.post("/api/v1/jobs", json=storing(daemon)), 503, "disk of the spool is full")
        assert await assert_unharmed(daemon, client, fake) == ["FAILED"]
        assert await daemon.stop() == 0


async def test_a_file_that_may_not_grow_fails_the_job(tmp_path: Path) -> None:
    """A quota on files, as an operator's limits may set it, is a full disk too."""
    async with bench(tmp_path) as (fake, daemon, client):
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (SMALL_DISK, SMALL_DISK))
        fake.script.append(AnswerImage(LARGE))
        assert_error(await client.post("/api/v1/jobs", json=storing(daemon)), 503, "disk of the spool is full")
        assert await assert_unharmed(daemon, client, fake) == ["FAILED"]
