"""The algorithm's small documents, passed on as they are; where it answers with an error, that is raised as ours."""

from __future__ import annotations

from collections.abc import Mapping

from cador_trio.algorithm.dialect import classify, error_text
from cador_trio.algorithm.watch import Reply, Watch
from cador_trio.errors import NotFound
from cador_trio.job import JsonObject


class Documents:
    """What the HTTP door passes on. Every method raises CadorError if the algorithm gives no answer."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    @property
    def is_stateful(self) -> bool:
        """Does describe say `asynchronous`? False while it never answered."""
        return self._watch.is_described and self._watch.described.describe.asynchronous

    async def describe(self, headers: Mapping[str, str]) -> JsonObject:
        """The describe document: fresh, or the last one while the algorithm is away."""
        return (await self._watch.describe(headers)).document

    async def version(self, headers: Mapping[str, str]) -> Reply:
        """Its version: PESTO's JSON, or the plain API's text."""
        return await self._ask("GET", self._watch.described.describe.version_url, headers)

    async def openapi(self, headers: Mapping[str, str]) -> Reply:
        """Its own OpenAPI document."""
        return await self._ask("GET", self._watch.described.describe.openapi, headers)

    async def metrics(self, headers: Mapping[str, str]) -> Reply:
        """Its own metrics."""
        return await self._ask("GET", self._watch.described.describe.metrics, headers)

    async def config(self, method: str, headers: Mapping[str, str], content: bytes) -> Reply:
        """Its configuration, read (`GET`) or written (`PUT`)."""
        if content:
            headers = {**headers, "Content-Type": "application/json"}
        return await self._ask(method, self._watch.described.describe.config, headers, content)

    async def _ask(self, method: str, url: str, headers: Mapping[str, str], content: bytes = b"") -> Reply:
        reply = await self._watch.ask(method, url, headers, content)
        text = error_text(reply.status, reply.media_type, reply.body, "")
        if reply.status in {404, 405}:  # PESTO announces a config and has none
            raise NotFound(f"the algorithm has nothing there: {text}")
        if (error := classify(reply.status, text)) is not None:
            raise error
        return reply
