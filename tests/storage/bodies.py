"""Bodies in memory that behave, and bodies that don't."""

from __future__ import annotations

import errno
import hashlib
import io
import threading

from cador_trio.job import Image
from cador_trio.storage.outgoing import CHUNK_BYTES


class MemoryBody:
    """A `Body` over bytes at hand; counts the readers that are open."""

    in_memory = True

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.closed = False
        self.open_readers = 0

    def read_all(self) -> bytes:
        return self.data

    def open(self) -> MemoryReader:
        self.open_readers += 1
        return MemoryReader(self)

    def close(self) -> None:
        self.closed = True


class MemoryReader:
    """Reads a MemoryBody; `before_read` is the place to misbehave."""

    def __init__(self, body: MemoryBody) -> None:
        self.body = body
        self.stream = io.BytesIO(body.data)

    def before_read(self) -> None:
        """Nothing."""

    def read(self, size: int, /) -> bytes:
        self.before_read()
        return self.stream.read(size)

    def seek(self, offset: int, /) -> int:
        return self.stream.seek(offset)

    def close(self) -> None:
        if not self.stream.closed:
            self.stream.close()
            self.body.open_readers -= 1


class FailingBody(MemoryBody):
    """Its spool breaks after the first chunk."""

    def open(self) -> MemoryReader:
        self.open_readers += 1
        return FailingReader(self)


class FailingReader(MemoryReader):
    """Fails as a broken disk does, at the second read."""

    def before_read(self) -> None:
        if self.stream.tell():
            raise OSError(errno.EIO, "Input/output error")


class GatedBody(MemoryBody):
    """Stops after its first chunk, until the test opens the gate."""

    def __init__(self, data: bytes) -> None:
        assert len(data) > CHUNK_BYTES
        super().__init__(data)
        self.halfway = threading.Event()
        self.gate = threading.Event()
        self.chunks_read = 0

    def open(self) -> MemoryReader:
        self.open_readers += 1
        return GatedReader(self, self)


class GatedReader(MemoryReader):
    """Says that it is halfway, then waits at the gate."""

    def __init__(self, body: MemoryBody, gated: GatedBody) -> None:
        super().__init__(body)
        self.gated = gated

    def before_read(self) -> None:
        if self.stream.tell():
            self.gated.halfway.set()
            assert self.gated.gate.wait(60), "the test never opened the gate"
        self.gated.chunks_read += 1


def image(body: MemoryBody | bytes, output: str = "mask", index: int | None = None) -> Image:
    """An image of a job, its bytes in memory."""
    return Image(output, index, "image/png", MemoryBody(body) if isinstance(body, bytes) else body)
