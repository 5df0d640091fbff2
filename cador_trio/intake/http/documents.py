"""What the algorithm says of itself, passed on: describe with our links, the rest as it is; and health, in one word."""

from __future__ import annotations

from quart import Response, request

from cador_trio.intake.http.context import forwarded_headers, links
from cador_trio.intake.http.door import Door, PassedOn, read_body
from cador_trio.intake.http.negotiation import check_content_type
from cador_trio.intake.http.respond import json_response


class Documents:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._settings = door.settings
        self._algorithm = door.documents
        self._capacity = door.house.capacity
        self._health = door.health

    async def describe(self) -> Response:
        """The describe document; its links lead to us."""
        document = await self._algorithm.describe(forwarded_headers())
        claims_synchronous = self._settings.rest_stateful == "inline"
        return json_response(links(self._settings).describe(document, claims_synchronous=claims_synchronous))

    async def version(self) -> Response:
        """JSON from PESTO, text by the plain API."""
        return _passed_on(await self._algorithm.version(forwarded_headers()))

    async def openapi(self) -> Response:
        """The algorithm's own OpenAPI document."""
        return _passed_on(await self._algorithm.openapi(forwarded_headers()))

    async def metrics(self) -> Response:
        """The algorithm's own metrics."""
        return _passed_on(await self._algorithm.metrics(forwarded_headers()))

    async def config(self) -> Response:
        """The algorithm's configuration."""
        return _passed_on(await self._algorithm.config("GET", forwarded_headers(), b""))

    async def put_config(self) -> Response:
        """Change the algorithm's configuration; a route only if the operator allows it."""
        check_content_type(request.headers.get("Content-Type"))
        reservation = self._capacity.reserve_bytes()
        try:
            content = await read_body(request, self._settings, reservation)
            return _passed_on(await self._algorithm.config("PUT", forwarded_headers(), content))
        finally:
            reservation.release()

    async def health(self) -> Response:
        """`OK`, or `KO : ` and the reasons; for people and for the original's clients."""
        reasons = self._health.not_ready()
        text = f"KO : {'; '.join(reasons)}" if reasons else "OK"
        return Response(text, status=503 if reasons else 200, content_type="text/plain; charset=utf-8")


def _passed_on(reply: PassedOn) -> Response:
    return Response(reply.body, status=reply.status, content_type=reply.media_type or "application/octet-stream")
