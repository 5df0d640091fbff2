"""`/asyncapi` and `/asyncapi/schemas/<name>.json`: what the daemon is given about messages, served as it is.

The schemas are there without Kafka too: they are the same for every daemon, and readers of messages need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quart import Blueprint, Response

from cador_trio.errors import NotFound
from cador_trio.intake.http.respond import ASK_AGAIN, cached
from cador_trio.intake.http.routing import add_routes
from cador_trio.job import JsonObject
from cador_trio.json_text import write

ASYNCAPI: Final = "/asyncapi"
SCHEMAS: Final = "/asyncapi/schemas/"


def asyncapi_routes(documents: Mapping[str, JsonObject]) -> Blueprint:
    """Routes for these documents, by their paths; one is at `/asyncapi`, all others are schemas."""
    written = {path: write(document) for path, document in documents.items()}

    def answer(path: str) -> Response:
        return cached(Response(written[path], content_type="application/json"), written[path], ASK_AGAIN)

    async def document() -> Response:
        return answer(ASYNCAPI)

    async def schema(schema: str) -> Response:
        path = f"{SCHEMAS}{schema}.json"
        if path not in written:
            raise NotFound(f"there is no schema called {schema[:80]!r}", hint="/swagger lists what there is")
        return answer(path)

    return add_routes(
        Blueprint("asyncapi", __name__),
        [("GET", ASYNCAPI, document), ("GET", f"{SCHEMAS}<schema>.json", schema)],
    )
