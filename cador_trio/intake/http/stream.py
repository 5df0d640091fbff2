"""Bytes of any size on their way out: read from the spool piece by piece, never more than one piece in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, Self

import trio
from quart.wrappers.response import ResponseBody

from cador_trio.document import Piece
from cador_trio.errors import NotFound
from cador_trio.job import BodyReader

READ_BYTES: Final = 1024 * 1024  # read by a thread, sent by the event loop


class Stream(ResponseBody):
    """The bytes of several sources in turn. Its owner closes it, however it ends; closing twice is fine."""

    def __init__(self, sources: list[bytes | BodyReader]) -> None:
        self._sources = sources

    def close(self) -> None:
        """Release the sources that are left."""
        while self._sources:
            source = self._sources.pop()
            if not isinstance(source, bytes):
                source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._sources:
            source = self._sources[0]
            if isinstance(source, bytes):
                return self._next_source(source)
            if chunk := await trio.to_thread.run_sync(source.read, READ_BYTES):
                return chunk
            source.close()
            self._next_source(b"")
        raise StopAsyncIteration

    def _next_source(self, last: bytes) -> bytes:
        del self._sources[0]
        return last

    async def convert_to_sequence(self) -> bytes:
        """All of it, for those who need it in one piece (quart's test client)."""
        return b"".join([chunk async for chunk in self])


async def open_stream(parts: Sequence[Piece]) -> Stream:
    """A stream over these parts, all opened now, so that history may let go of them while they are on their way.

    Raises:
        NotFound: history has let go of one already.
    """
    sources: list[bytes | BodyReader] = []
    with ExitStack() as opened:
        for part in parts:
            if isinstance(part, bytes):
                sources.append(part)
            else:
                try:
                    source = await trio.to_thread.run_sync(part.open)
                except FileNotFoundError:
                    raise NotFound("the result is no longer kept", hint="post the job again") from None
                opened.callback(source.close)
                sources.append(source)
        opened.pop_all()
    return Stream(sources)
