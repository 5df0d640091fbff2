"""An image never sits in memory: a gigabyte passes through on its way to a store and to a REST client."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.daemon.process import IMAGE, Daemon, client_of, eventually, running_daemon
from tests.daemon.unharmed import assert_error, assert_unharmed, forget_jobs
from tests.peers.fake_algorithm import Answer, Pattern, open_fake_algorithm

GIGABYTE = 1_000_000_000  # bytes
MOST_GROWTH = 64 * 1024 * 1024  # bytes of resident memory
ROOM = 5 * GIGABYTE // 2  # on the disk: the spooled image, the stored one, and some
MANY_SECONDS = 120.0  # a gigabyte takes seconds; on a slow disk more
LIMIT = 100_000  # bytes

IMAGE_SENT = Pattern(GIGABYTE)  # remembers its digest


@asynccontextmanager
async def algorithm_process(mode: str) -> AsyncIterator[str]:
    """A fake algorithm as a process of its own, whose image has a gigabyte; its URL."""
    command = [sys.executable, "-m", "tests.peers.fake_algorithm", "--mode", mode, "--size", str(GIGABYTE)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with process.stdout:
            yield (await process.stdout.receive_some()).decode().strip()
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


@pytest.mark.parametrize(("mode", "result"), [("image", "output"), ("stateful", "mask")])
async def test_a_gigabyte_passes_through(tmp_path: Path, mode: str, result: str) -> None:
    """Stored, and kept and fetched: every byte arrives, and resident memory grows by less than 64 MiB at its peak."""
    if shutil.disk_usage(tmp_path).free < ROOM:
        pytest.skip(f"needs {ROOM} free bytes for temporary files")
    expected = IMAGE_SENT.sha256
    async with (
        algorithm_process(mode) as url,
        running_daemon(tmp_path, url) as daemon,
        client_of(daemon) as client,
    ):
        client.timeout = httpx.Timeout(MANY_SECONDS)
        before = reset_peak(daemon)

        storing = {**IMAGE, "technicalMetadata": {"outputStorage": {"POSIX": {"folder": str(daemon.store)}}}}
        reference = (await client.get(await done(client, storing, result))).json()
        assert (reference["size"], reference["sha256"]) == (GIGABYTE, expected)
        await eventually(client, lambda: daemon.spooled() == [])
        assert (await trio.to_thread.run_sync(digest_of, Path(reference["path"]))) == expected
        await trio.Path(reference["path"]).unlink()

        digest = hashlib.sha256()
        async with client.stream("GET", await done(client, IMAGE, result)) as answer:
            assert answer.headers["Content-Type"] == "image/png"
            assert answer.headers["Content-Length"] == str(GIGABYTE)
            async for chunk in answer.aiter_bytes():
                digest.update(chunk)
        assert digest.hexdigest() == expected

        assert peak(daemon) - before < MOST_GROWTH
        await forget_jobs(client)
        await eventually(client, lambda: daemon.spooled() == [])


async def test_an_answer_over_its_limit_fails_with_both_sizes(tmp_path: Path) -> None:
    """A JSON answer, and a base64 image in one, are held in memory, so there is a limit; the error has both sizes."""
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url, CADOR_MAX_ANSWER_BYTES=str(LIMIT)) as daemon,
        client_of(daemon) as client,
    ):
        for output in ({"count": list(range(LIMIT))}, {"mask": "iVBORw0KGgo" + "A" * LIMIT + "="}):
            answer = Answer(output)
            fake.script.append(answer)
            refused = await client.post("/api/v1/jobs", json=IMAGE)
            assert_error(refused, 502, "CADOR_MAX_ANSWER_BYTES")
            assert f"{len(answer.body)} bytes" in refused.json()["message"]
            assert f"{LIMIT} bytes" in refused.json()["message"]
            assert await assert_unharmed(daemon, client, fake) == ["FAILED"]


async def done(client: httpx.AsyncClient, request: Mapping[str, object], result: str) -> str:
    """Post a job and wait for its end; where its result is."""
    answer = await client.post("/api/v1/jobs", json=request, headers={"Prefer": "respond-async"})
    job = answer.headers["Location"].removesuffix("/status")
    assert "SUCCEEDED" in (await client.get(f"{job}/events")).text
    return f"{job}/results/{result}"


def reset_peak(daemon: Daemon) -> int:
    """Forget the peak of resident memory, so that it counts from now; what it is now, in bytes."""
    Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")
    return peak(daemon)


def peak(daemon: Daemon) -> int:
    """The peak of resident memory, in bytes. Pages of files that the kernel caches are no part of it."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
    (kibibytes,) = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return kibibytes * 1024


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
