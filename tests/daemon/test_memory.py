"""An image never sits in memory: a gigabyte passes through on its way to a store and to a REST client."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import httpx
import pytest
import trio

from tests.daemon.large import MOST_GROWTH, algorithm_process, done, peak, reset_peak
from tests.daemon.process import IMAGE, client_of, eventually, running_daemon
from tests.daemon.unharmed import assert_error, assert_unharmed, forget_jobs
from tests.peers.fake_algorithm import Answer, Pattern, open_fake_algorithm

GIGABYTE = 1_000_000_000  # bytes
ROOM = 5 * GIGABYTE // 2  # on the disk: the spooled image, the stored one, and some
MANY_SECONDS = 120.0  # a gigabyte takes seconds; on a slow disk more
LIMIT = 100_000  # bytes

IMAGE_SENT = Pattern(GIGABYTE)  # remembers its digest


@pytest.mark.parametrize(("mode", "result"), [("image", "output"), ("stateful", "mask")])
async def test_a_gigabyte_passes_through(tmp_path: Path, mode: str, result: str) -> None:
    """Stored, and kept and fetched: every byte arrives, and resident memory grows by less than 64 MiB at its peak."""
    if shutil.disk_usage(tmp_path).free < ROOM:
        pytest.skip(f"needs {ROOM} free bytes for temporary files")
    expected = IMAGE_SENT.sha256
    async with (
        algorithm_process(mode, GIGABYTE) as url,
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


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
