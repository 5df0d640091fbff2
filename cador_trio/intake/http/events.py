"""A job's life as server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Self

import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from cador_trio.job import JobState, JsonObject
from cador_trio.json_text import write
from cador_trio.registry import JobRecord

KEEP_ALIVE_SECONDS: Final = 15.0  # between comments on a silent stream: proxies cut idle ones after 30 to 60 s


def events_response(record: JobRecord, status_of: Callable[[JobRecord], JsonObject]) -> Response:
    """A stream that lasts as long as the job, or its reader."""
    response = Response(Events(record, status_of), content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    return response


class Events(ResponseBody):
    """The job's status now, and at every change of state or progress, until the end."""

    def __init__(self, record: JobRecord, status_of: Callable[[JobRecord], JsonObject]) -> None:
        self._record = record
        self._status_of = status_of
        self._told: tuple[JobState, int] | None = None
        self._is_last = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._is_last:
            raise StopAsyncIteration
        if self._told is not None:
            with trio.move_on_after(KEEP_ALIVE_SECONDS) as patience:
                await self._record.wait_change(self._told)
            if patience.cancelled_caught:
                return b": the job goes on\n\n"
        self._told = (self._record.state, self._record.progress)
        self._is_last = self._record.ended.is_set()
        return b"event: status\ndata: " + write(self._status_of(self._record)) + b"\n\n"

    async def convert_to_sequence(self) -> bytes:
        """All of it, for those who need it in one piece (quart's test client)."""
        return b"".join([event async for event in self])
