"""The spool on a real disk: memory and files, limits, a full disk, and what is left of a process that was killed."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import ResultTooLarge, SettingsError, SpoolFull
from cador_trio.spool import IN_MEMORY_BYTES, WRITE_BYTES, Spool, SpooledBody, open_spool
from tests.descriptors import open_descriptors

BUDGET: Final = 50 * 1024 * 1024


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    async with open_spool(tmp_path, BUDGET) as opened:
        yield opened


def files(spool: Spool) -> list[Path]:
    """What lies in the folder of the spool besides its lock."""
    return [path for path in spool.folder.iterdir() if path.name != "lock"]


async def until_removed(spool: Spool, *, but: Sequence[Path] = ()) -> None:
    """The files of closed bodies go in a worker thread; nothing tells when."""
    with trio.fail_after(30):
        await trio.lowlevel.checkpoint()
        while spool._doomed or files(spool) != list(but):  # noqa: ASYNC110 - there is no event
            await trio.lowlevel.checkpoint()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def locked_folder(parent: Path) -> Path:
    """The one spool folder in there."""
    (lock,) = parent.glob("*/lock")
    return lock.parent


async def write(spool: Spool, *chunks: bytes, limit: int = BUDGET) -> SpooledBody:
    writer = spool.writer(limit, "the mask", "CADOR_MAX_RESULT_BYTES")
    try:
        for chunk in chunks:
            await writer.write(chunk)
        return await writer.finish()
    finally:
        writer.abandon()


# --- Bytes in, bytes out ------------------------------------------------------------------------------------------

SIZES: Final = (0, 1, IN_MEMORY_BYTES, IN_MEMORY_BYTES + 1, WRITE_BYTES - 1, WRITE_BYTES, WRITE_BYTES + 1)


@pytest.mark.parametrize("size", SIZES)
async def test_what_comes_in_comes_out(spool: Spool, size: int) -> None:
    """Size, digest and bytes are those that were written; small bodies never touch the disk, others are files."""
    data = os.urandom(size)
    body = await write(spool, *(data[start : start + 100_000] for start in range(0, size, 100_000)))
    assert (body.size, body.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert body.read_all() == data
    assert body.in_memory is (size <= IN_MEMORY_BYTES)
    assert len(files(spool)) == (0 if body.in_memory else 1)
    assert spool.used == size
    body.close()
    assert spool.used == 0
    await until_removed(spool)


@given(st.lists(st.integers(0, 2 * WRITE_BYTES + 7), max_size=6))
def test_chunks_of_any_size_are_put_together_right(sizes: list[int]) -> None:
    """However the bytes arrive, the body is the same as all of them at once."""

    async def live() -> None:
        chunks = [bytes([number % 251]) * size for number, size in enumerate(sizes, 1)]
        async with open_spool(None, BUDGET) as spool:
            body = await write(spool, *chunks)
            assert body.read_all() == b"".join(chunks)
            assert body.sha256 == hashlib.sha256(b"".join(chunks)).hexdigest()
            body.close()

    trio.run(live)


async def test_bytes_at_hand_become_a_body(spool: Spool) -> None:
    """`keep` is `write` for what is there already."""
    body = await spool.keep(b"pixels")
    assert (body.read_all(), spool.used) == (b"pixels", 6)
    body.close()


async def test_closing_twice_gives_the_bytes_back_once(spool: Spool) -> None:
    """The count stays right whoever closes again."""
    first, second = await spool.keep(b"x" * 10), await spool.keep(b"y" * 20)
    first.close()
    first.close()
    assert spool.used == 20
    second.close()


@pytest.mark.parametrize("size", [10, WRITE_BYTES + 10])
async def test_a_reader_stays_good_after_its_body_is_closed(spool: Spool, size: int) -> None:
    """History may let go of a result while it is on its way to somebody."""
    data = os.urandom(size)
    body = await write(spool, data)
    reader, other = body.open(), body.open()
    start = reader.read(5)
    body.close()
    await until_removed(spool)
    rest = b""
    while chunk := reader.read(100_000):
        rest += chunk
    assert start + rest == data
    assert other.read(5) == data[:5]  # each reads on its own
    assert other.seek(0) == 0
    reader.close()
    reader.close()
    other.close()


async def test_kept_bodies_hold_no_descriptors(spool: Spool) -> None:
    """A thousand results of history are a thousand files, not a thousand open files."""
    bodies = [await write(spool, b"x" * (IN_MEMORY_BYTES + 1)) for _ in range(60)]
    assert len(files(spool)) == len(bodies)
    assert {str(path) for path in files(spool)}.isdisjoint(kind for _, kind in open_descriptors())
    for body in bodies:
        body.close()
    await until_removed(spool)


# --- Limits -------------------------------------------------------------------------------------------------------


async def test_a_body_may_be_as_large_as_its_limit(spool: Spool) -> None:
    """The last byte that is allowed is allowed, announced or counted."""
    writer = spool.writer(10, "the mask", "CADOR_MAX_RESULT_BYTES")
    writer.announce(10)
    await writer.write(b"x" * 10)
    assert writer.size == 10
    (await writer.finish()).close()


async def test_an_announced_size_is_refused_before_a_byte_is_taken(spool: Spool) -> None:
    """With both sizes and the setting's name."""
    writer = spool.writer(1_000, "the mask", "CADOR_MAX_RESULT_BYTES")
    with pytest.raises(ResultTooLarge) as refused:
        writer.announce(5_000)
    assert refused.value.message == "the mask has 5000 bytes, more than the limit of 1000 bytes"
    assert "CADOR_MAX_RESULT_BYTES" in refused.value.hint
    assert spool.used == 0


async def test_a_size_that_grows_past_the_limit_is_refused_with_both_sizes(spool: Spool) -> None:
    """Nothing of the body is left."""
    with pytest.raises(ResultTooLarge, match="at least 1100 bytes, more than the limit of 1000 bytes"):
        await write(spool, b"x" * 900, b"x" * 200, limit=1_000)
    assert spool.used == 0


async def test_a_large_body_past_its_limit_leaves_no_file(spool: Spool) -> None:
    """Its file goes as its bytes do."""
    with pytest.raises(ResultTooLarge):
        await write(spool, b"x" * WRITE_BYTES, b"x" * WRITE_BYTES, limit=WRITE_BYTES + 5)
    assert spool.used == 0
    await until_removed(spool)


async def test_a_full_spool_refuses_with_the_figures(tmp_path: Path) -> None:
    """What is taken, what there is, and what is missing; the next small body is welcome."""
    async with open_spool(tmp_path, 100) as spool:
        kept = await spool.keep(b"x" * 80)
        with pytest.raises(SpoolFull, match=r"80 of 100 bytes are taken, 30 more are needed") as refused:
            await write(spool, b"x" * 30)
        assert refused.value.http_status == 503
        assert spool.used == 80
        was_full = spool.is_full
        last = await spool.keep(b"x" * 20)
        assert (was_full, spool.is_full) == (False, True)
        kept.close()
        last.close()


async def test_history_is_asked_to_give_way_before_anything_fails(tmp_path: Path) -> None:
    """Exactly what is missing is asked for; only if that is not enough does the write fail."""
    async with open_spool(tmp_path, 100) as spool:
        history = [await spool.keep(b"x" * 40), await spool.keep(b"x" * 40)]
        asked: list[int] = []

        def make_room(size: int) -> None:
            asked.append(size)
            if history:
                history.pop().close()

        spool.make_room = make_room
        body = await write(spool, b"x" * 50)
        assert asked == [30]
        with pytest.raises(SpoolFull):
            await write(spool, b"x" * 100)
        assert asked == [30, 90]
        assert history == []
        body.close()


async def test_a_spool_that_looks_full_lets_history_give_way(tmp_path: Path) -> None:
    """It is only full when nothing of the past is left."""
    async with open_spool(tmp_path, 100) as spool:
        body = await spool.keep(b"x" * 100)
        was_full = spool.is_full
        spool.make_room = lambda _: body.close()
        assert (was_full, spool.is_full) == (True, False)


# --- The disk -----------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_a_full_spool(spool: Spool) -> None:
    """The kernel's refusal becomes a sentence and a hint; nothing of the body is left, and a small one gets through."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (WRITE_BYTES + 1_000, hard))
    try:
        with pytest.raises(SpoolFull, match="the disk of the spool is full: File too large") as refused:
            await write(spool, b"x" * WRITE_BYTES, b"y" * WRITE_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "CADOR_SPOOL_DIR" in refused.value.hint
    assert spool.used == 0
    await until_removed(spool)
    (await spool.keep(b"x")).close()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk of the spool is full"),
        (errno.EDQUOT, "the disk of the spool is full"),
        (errno.EIO, "the spool can't be written"),
    ],
)
async def test_every_refusal_of_the_disk_is_in_plain_words(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """No space, no quota, a broken disk: the caller reads which, at the first byte or at the last."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cador_trio.spool.tempfile.NamedTemporaryFile", refuse)
    for size in (WRITE_BYTES, IN_MEMORY_BYTES + 1):
        with pytest.raises(SpoolFull, match=message):
            await write(spool, b"x" * size)
        assert spool.used == 0


async def test_short_writes_are_continued(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take fewer bytes than it was given."""
    import tempfile  # noqa: PLC0415 - to wrap what the module under test uses

    make = tempfile.NamedTemporaryFile

    def make_short(**options: object) -> object:
        file = make(**options)  # type: ignore[call-overload] # passed through
        write_all = file.write
        file.write = lambda data: write_all(data[:100_001])
        return file

    monkeypatch.setattr("cador_trio.spool.tempfile.NamedTemporaryFile", make_short)
    data = os.urandom(2 * WRITE_BYTES + 5)
    body = await write(spool, data)
    assert body.read_all() == data
    body.close()


async def test_a_cancelled_write_leaves_nothing(spool: Spool) -> None:
    """Whether it strikes before the file or after, bytes and file are gone."""
    for chunks in (1, 3):
        with trio.CancelScope() as scope:
            writer = spool.writer(BUDGET, "the mask", "CADOR_MAX_RESULT_BYTES")
            try:
                for _ in range(chunks):
                    await writer.write(b"x" * WRITE_BYTES)
                scope.cancel()
                await writer.write(b"x" * WRITE_BYTES)
            finally:
                writer.abandon()
        assert scope.cancelled_caught
        assert spool.used == 0
        await until_removed(spool)


async def test_a_file_that_can_not_be_removed_ends_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are lost to the disk; the spool goes on."""
    unlink = Path.unlink
    refused: list[Path] = []

    def refuse_once(path: Path, missing_ok: bool = False) -> None:
        if not refused:
            refused.append(path)
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, missing_ok=missing_ok)

    first = await write(spool, b"x" * WRITE_BYTES)
    second = await write(spool, b"x" * WRITE_BYTES)
    monkeypatch.setattr(Path, "unlink", refuse_once)
    first.close()
    second.close()
    await until_removed(spool, but=refused)
    assert spool.used == 0


# --- Folders ------------------------------------------------------------------------------------------------------


async def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    """Neither bodies that nobody closed, nor the folder."""
    async with open_spool(tmp_path, BUDGET) as spool:
        await write(spool, b"x" * WRITE_BYTES)
        assert names(tmp_path) == [spool.folder.name]
        assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == []


async def test_nothing_is_left_after_a_bad_end(tmp_path: Path) -> None:
    """Cancelled in the middle."""
    with trio.CancelScope() as scope:
        async with open_spool(tmp_path, BUDGET) as spool:
            await write(spool, b"x" * WRITE_BYTES)
            scope.cancel()
            await trio.sleep_forever()
    assert names(tmp_path) == []


async def test_two_living_spools_leave_each_other_alone(tmp_path: Path) -> None:
    """A second daemon on the same folder sweeps nothing of the first."""
    async with open_spool(tmp_path, BUDGET) as first:
        body = await write(first, b"x" * WRITE_BYTES)
        async with open_spool(tmp_path, BUDGET) as second:
            assert first.folder != second.folder
            assert body.read_all() == b"x" * WRITE_BYTES
        assert body.read_all() == b"x" * WRITE_BYTES


_HOLDER = """
import sys, pathlib, trio
from cador_trio.spool import open_spool, WRITE_BYTES
async def main():
    async with open_spool(pathlib.Path(sys.argv[1]), 10**8) as spool:
        writer = spool.writer(10**8, "", "")
        await writer.write(b"x" * WRITE_BYTES)
        print("holding", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def hold_a_spool(folder: Path) -> subprocess.Popen[bytes]:
    """A process that has a file in its spool, and stays."""
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"holding\n"
    return process


async def test_the_next_start_sweeps_what_a_killed_process_left(tmp_path: Path) -> None:
    """Its folder stays while it lives, and goes with the first start after its death; foreign things stay."""
    (tmp_path / "cador-trio-spool-of-nobody").mkdir()  # no lock: not ours to judge
    (tmp_path / "other").write_text("someone else's")
    process = await trio.to_thread.run_sync(hold_a_spool, tmp_path)
    with process:
        killed = locked_folder(tmp_path)
        assert len(names(killed)) == 2
        async with open_spool(tmp_path, BUDGET):
            assert len(names(killed)) == 2
        process.send_signal(signal.SIGKILL)
        await trio.to_thread.run_sync(process.wait)
    assert len(names(killed)) == 2
    async with open_spool(tmp_path, BUDGET):
        assert not killed.exists()
    assert names(tmp_path) == ["cador-trio-spool-of-nobody", "other"]


async def test_a_sweep_that_is_cut_short_can_be_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock goes last, so that a folder with files in it always has one."""
    process = await trio.to_thread.run_sync(hold_a_spool, tmp_path)
    with process:
        process.kill()
    killed = locked_folder(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("cador_trio.spool.shutil.rmtree", lambda *_arguments, **_options: None)
        async with open_spool(tmp_path, BUDGET):
            assert names(killed) == ["lock"]
    async with open_spool(tmp_path, BUDGET):
        assert not killed.exists()


async def test_a_folder_that_can_not_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    """The operator reads which folder, and which variable names it."""
    missing = tmp_path / "missing"
    with pytest.raises(SettingsError) as wrong:
        async with open_spool(missing, BUDGET):
            pass
    assert wrong.value.findings == [f"CADOR_SPOOL_DIR: {missing}: can't be used: No such file or directory"]
