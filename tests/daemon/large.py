"""Images larger than a daemon may hold in memory: who sends them, and how much memory they take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import trio

from tests.daemon.process import Daemon

MOST_GROWTH: Final = 64 * 1024 * 1024  # bytes of resident memory


@asynccontextmanager
async def algorithm_process(mode: str, size: int) -> AsyncIterator[str]:
    """A fake algorithm as a process of its own, whose image has so many bytes; its URL.

    `mode`: `image`, a bare one, or `stateful`, a job with one.
    """
    command = [sys.executable, "-m", "tests.peers.fake_algorithm", "--mode", mode, "--size", str(size)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with process.stdout:
            yield (await process.stdout.receive_some()).decode().strip()
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


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
