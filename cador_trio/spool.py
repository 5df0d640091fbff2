"""The spool: where results wait between the algorithm and their destination, so that none sits in memory.

A body is written as it arrives, counted and hashed on the way. Small ones stay in memory, others become files in a
folder that belongs to this process alone: its lock dies with the process, and the next start sweeps what a killed one
left. What the spool may hold is bounded in bytes; history gives way to running jobs before anything fails.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import structlog
import trio

from cador_trio.errors import ResultTooLarge, SettingsError, SpoolFull
from cador_trio.job import BodyReader

log = structlog.get_logger(__name__)

IN_MEMORY_BYTES = 64 * 1024  # a body up to this never touches the disk
REMOVE_SECONDS = 10.0  # for the folder, at the end of the process; what is left is swept by the next one
WRITE_BYTES = 1024 * 1024  # what is gathered before a worker thread writes it: a hop costs 0.1 ms
_FOLDER_PREFIX = "cador-trio-spool-"
_LOCK = "lock"


class SpooledBody:
    """Finished bytes in the spool; the `Body` of job.py."""

    def __init__(self, spool: Spool, place: bytes | Path, size: int, sha256: str) -> None:
        self._spool = spool
        self._place = place
        self._size = size
        self._sha256 = sha256
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes."""
        return self._sha256

    @property
    def in_memory(self) -> bool:
        """Reading it doesn't touch the disk."""
        return isinstance(self._place, bytes)

    def read_all(self) -> bytes:
        """All bytes."""
        if isinstance(self._place, bytes):
            return self._place
        return self._place.read_bytes()

    def open(self) -> BodyReader:
        """A reader of its own, good even after `close`."""
        if isinstance(self._place, bytes):
            return io.BytesIO(self._place)
        return self._place.open("rb", buffering=0)

    def close(self) -> None:
        """Give the room back; the file goes soon, in a worker thread."""
        if not self._closed:
            self._closed = True
            self._spool._forget(self._size, self._place)  # noqa: SLF001 - the two halves of one thing


class SpoolWriter:
    """One body in the making. Its holder calls `abandon` in the end; after `finish` that is harmless."""

    def __init__(self, spool: Spool, limit: int, what: str, variable: str) -> None:
        self._spool = spool
        self._limit = limit
        self._what = what
        self._variable = variable
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._size = 0
        self._file: IO[bytes] | None = None

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    def announce(self, size: int) -> None:
        """Refuse early what is announced larger than its limit.

        Raises:
            ResultTooLarge: with both sizes.
        """
        if size > self._limit:
            raise self._too_large(f"{size} bytes")

    async def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            ResultTooLarge: over the limit of this body.
            SpoolFull: no room, in the budget or on the disk.
        """
        if self._size + len(data) > self._limit:
            raise self._too_large(f"at least {self._size + len(data)} bytes")
        self._spool._take(len(data))  # noqa: SLF001
        self._size += len(data)
        self._buffer += data
        if len(self._buffer) >= WRITE_BYTES:
            await trio.to_thread.run_sync(self._write_out)

    async def finish(self) -> SpooledBody:
        """The body, complete; the caller owns it from now on."""
        if self._file is None and self._size <= IN_MEMORY_BYTES:
            self._hash.update(self._buffer)
            place: bytes | Path = bytes(self._buffer)
        else:
            place = await trio.to_thread.run_sync(self._write_out)
            self._close_file()  # a kept body holds no descriptor
        body = SpooledBody(self._spool, place, self._size, self._hash.hexdigest())
        self._size = 0  # handed over: `abandon` has nothing left to give back
        return body

    def abandon(self) -> None:
        """Drop what was written; harmless after `finish`."""
        self._close_file()
        if self._size:
            self._spool._forget(self._size, b"" if self._file is None else Path(self._file.name))  # noqa: SLF001
            self._size = 0
        self._buffer = bytearray()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write_out(self) -> Path:
        try:
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed by finish or abandon
                    dir=self._spool.folder, delete=False, buffering=0
                )
            view = memoryview(self._buffer)
            self._hash.update(view)
            while view:
                view = view[self._file.write(view) :]
            self._buffer = (
                bytearray()
            )  # not cleared: it can't be while there is a view, and an error's traceback has one
            return Path(self._file.name)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise SpoolFull(
                    f"the disk of the spool is full: {error.strerror}",
                    hint="give CADOR_SPOOL_DIR more room, or lower CADOR_SPOOL_BYTES to what it has",
                ) from error
            raise SpoolFull(
                f"the spool can't be written: {error.strerror}", hint="look at the folder of CADOR_SPOOL_DIR"
            ) from error

    def _too_large(self, size: str) -> ResultTooLarge:
        return ResultTooLarge(
            f"{self._what} has {size}, more than the limit of {self._limit} bytes",
            hint=f"{self._variable} sets the limit",
        )


class Spool:
    """The bytes that wait here, and their bound. Made by `open_spool`."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self.budget = budget
        self.used = 0
        # Asked to free this many bytes when the budget is short: the registry lets go of finished jobs.
        self.make_room: Callable[[int], None] = lambda _: None
        self._doomed: deque[Path] = deque()
        self._wake = trio.Event()

    def writer(self, limit: int, what: str, variable: str) -> SpoolWriter:
        """A new body of at most `limit` bytes; `what` and the setting's name go into the error if it gets larger."""
        return SpoolWriter(self, limit, what, variable)

    async def keep(self, data: bytes) -> SpooledBody:
        """Bytes at hand as a body."""
        writer = self.writer(self.budget, "the result", "CADOR_SPOOL_BYTES")
        try:
            await writer.write(data)
            return await writer.finish()
        finally:
            writer.abandon()

    @property
    def is_full(self) -> bool:
        """No byte is left, even after history gave way."""
        if self.used >= self.budget:
            self.make_room(1)
        return self.used >= self.budget

    def _take(self, size: int) -> None:
        if self.used + size > self.budget:
            self.make_room(self.used + size - self.budget)
        if self.used + size > self.budget:
            raise SpoolFull(
                f"the spool is full: {self.used} of {self.budget} bytes are taken, {size} more are needed",
                hint="wait for running jobs, or raise CADOR_SPOOL_BYTES",
            )
        self.used += size

    def _forget(self, size: int, place: bytes | Path) -> None:
        self.used -= size
        if isinstance(place, Path):
            self._doomed.append(place)
            self._wake.set()

    async def _remove_doomed(self) -> None:
        """Unlinking gigabytes takes long enough to be felt: a thread does it."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._doomed:
                await trio.to_thread.run_sync(_unlink_all, [self._doomed.popleft() for _ in range(len(self._doomed))])


@asynccontextmanager
async def open_spool(parent: Path | None, budget: int) -> AsyncIterator[Spool]:
    """The spool of this process, in a folder of its own below `parent`; swept before, removed after.

    Raises:
        SettingsError: the folder can't be made.
    """
    try:
        folder, lock = await trio.to_thread.run_sync(_claim_folder, parent)
    except OSError as error:
        where = parent or "the system's temporary folder"
        raise SettingsError([f"CADOR_SPOOL_DIR: {where}: can't be used: {error.strerror or error}"]) from error
    try:
        spool = Spool(folder, budget)
        async with trio.open_nursery() as remover_nursery:
            remover_nursery.start_soon(spool._remove_doomed)  # noqa: SLF001
            yield spool
            remover_nursery.cancel_scope.cancel("the spool closes")
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REMOVE_SECONDS):
            await trio.to_thread.run_sync(_release_folder, folder, lock)


def _claim_folder(parent: Path | None) -> tuple[Path, int]:
    parent = parent or Path(tempfile.gettempdir())
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent))
    # Locked first and named second: a sweeper that starts just now never finds it unlocked.
    lock = os.open(folder / f"{_LOCK}.new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / f"{_LOCK}.new").rename(folder / _LOCK)
    return folder, lock


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that are gone: their lock can be taken."""
    for folder in parent.glob(f"{_FOLDER_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # not ours to judge: another user's, or a start at this very moment
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _remove_folder(folder)
        finally:
            os.close(lock)


def _release_folder(folder: Path, lock: int) -> None:
    _remove_folder(folder)
    os.close(lock)


def _remove_folder(folder: Path) -> None:
    """The lock goes last: whoever is killed halfway leaves a folder that the next start sweeps."""
    with suppress(OSError):
        _unlink_all([path for path in folder.iterdir() if path.name != _LOCK])
    shutil.rmtree(folder, ignore_errors=True)


def _unlink_all(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # its bytes are lost to the disk, not to the daemon
            log.warning("a spool file can't be removed", path=str(path), reason=error.strerror)
