"""Bytes on their way from the spool to a store: hashed as they are read, and stopped when their job is.

For worker threads that trio has started. No store is known here; that what arrived is what was sent is for each store
to find out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

import trio

from cador_trio.errors import StoreFailed
from cador_trio.job import Body

CHUNK_BYTES: Final = 1024 * 1024  # one read, one write, and how far an upload goes on after its cancellation


class Outgoing:
    """A body, or a part of one, as a reader. Closes what it opened; good for one pass.

    `sha256` goes on from the parts before, so that the last part can check the whole. It is checked before the last
    bytes are handed out: a store that was promised more never takes what the spool has garbled.

    Attributes:
        left: bytes not yet read.
    """

    def __init__(
        self, body: Body, *, offset: int = 0, size: int | None = None, sha256: hashlib._Hash | None = None, md5: bool
    ) -> None:
        self.left = body.size - offset if size is None else size
        self._body = body
        self._offset = offset
        self._is_last = offset + self.left == body.size
        self._sha256 = hashlib.sha256() if sha256 is None else sha256.copy()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None

    @property
    def sha256(self) -> hashlib._Hash:
        """The state after the bytes so far, those of the parts before included."""
        return self._sha256

    @property
    def md5(self) -> str | None:
        """Hex digest of the bytes so far of this part; None if nobody asked for it."""
        return None if self._md5 is None else self._md5.hexdigest()

    def __enter__(self) -> Self:
        with reading_the_spool():
            self._reader = self._body.open()
            if self._offset:
                self._reader.seek(self._offset)
        if self.left == 0:
            self._check_end()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end.

        Raises trio's Cancelled if the job is cancelled, StoreFailed if the spool fails or gives other bytes.
        """
        trio.from_thread.check_cancelled()
        if self.left == 0:
            return b""
        with reading_the_spool():
            chunk = self._reader.read(min(size, self.left))
        if not chunk:
            raise _other_bytes()
        self.left -= len(chunk)
        self._sha256.update(chunk)
        if self._md5 is not None:
            self._md5.update(chunk)
        if self.left == 0:
            self._check_end()
        return chunk

    def _check_end(self) -> None:
        if not self._is_last:
            return
        with reading_the_spool():
            too_much = self._reader.read(1)
        if too_much or self._sha256.hexdigest() != self._body.sha256:
            raise _other_bytes()


def _other_bytes() -> StoreFailed:
    return StoreFailed(
        "the spool gave back other bytes than it took", hint="Look at the disk under the folder of CADOR_SPOOL_DIR."
    )


@contextmanager
def reading_the_spool() -> Iterator[None]:
    """Keep errors of the spool apart from those of the destination."""
    try:
        yield
    except OSError as error:
        raise StoreFailed(
            f"the result can't be read back from the spool: {error.strerror or error}",
            hint="Look at the folder of CADOR_SPOOL_DIR.",
        ) from error
