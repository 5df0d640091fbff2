"""How a request comes in and its answer goes out, where the framework's way loses memory, descriptors or answers.

Corrections of quart-trio and hypercorn, and nothing else:

- a body that no handler reads is not gathered;
- what an answer holds open is closed, even if its reader leaves before the first byte;
- an answer that is given before the request's body is in leaves the connection either usable or closed;
- a request target that is no path (`*`, `host:port`, nothing at all) leads nowhere, and to no traceback;
- WebSockets are refused.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import urlsplit

import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from quart import Request as QuartRequest
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge

from cador_trio.intake.http.negotiation import correlation_id
from cador_trio.intake.http.respond import error_body
from cador_trio.intake.http.stream import Stream
from cador_trio.json_text import write

log = structlog.get_logger(__name__)

METHODS_WITH_BODY: Final = frozenset({"POST", "PUT"})
REST_SECONDS: Final = 5.0  # for the rest of a refused body; a sender that needs longer finds the connection closed


class Request(TrioRequest):
    """A request whose body is kept only if its method has one."""

    def __init__(self, method: str, *arguments: Any, **keywords: Any) -> None:
        super().__init__(method, *arguments, **keywords)
        if method not in METHODS_WITH_BODY:
            # quart would gather up to its limit while the answer, a stream of events say, goes on.
            self.body = self.body_class(None, 0)


class Connection(TrioASGIHTTPConnection):
    """One exchange. A reader that leaves cancels it, at any await up to the last piece of the answer."""

    def _create_request_from_scope(self, send: ASGISendCallable) -> QuartRequest:
        self.scope["path"] = _path(self.scope["path"])
        return super()._create_request_from_scope(send)

    async def handle_request(  # type: ignore[override]  # quart-trio's own, too, differs from quart's
        self, nursery: trio.Nursery, request: QuartRequest, send: ASGISendCallable
    ) -> None:
        """Answer, and leave the connection in order."""
        response = await self.app.handle_request(request)
        stream = getattr(response, "response", None)

        async def send_piece(message: ASGISendEvent) -> None:
            if message["type"] != "http.response.body" or message["more_body"]:
                await send(message)
                return
            await _receive_rest(request)
            # hypercorn now makes the connection ready for the next request, or closes it, and tells quart of the end,
            # which cancels us: in the middle of that, the connection would stay open, and deaf.
            with trio.CancelScope(shield=True):
                await send(message)

        try:
            await self._send_response(cast("ASGISendCallable", send_piece), response)
        except OSError as error:
            # The head is out: the reader sees a body that ends before its Content-Length.
            log.error("a result could not be read to its end", reason=str(error))  # noqa: TRY400 - that says it
        finally:
            if isinstance(stream, Stream):
                stream.close()
        nursery.cancel_scope.cancel("the request is answered")


def _path(target: str) -> str:
    """The path of a request target; one that has none becomes a path where nothing is."""
    if target.startswith("/"):
        return target
    with suppress(ValueError):  # what only looks like a URL
        target = urlsplit(target).path
    return f"/{target.lstrip('/')}"


class NoWebSocket(TrioASGIWebsocketConnection):
    """The handshake of a WebSocket, which nobody here speaks."""

    async def __call__(self, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer it as any wrong request, and hang up."""
        correlation = correlation_id(None)
        error = write(error_body("there is no WebSocket here", "job states come as server-sent events", correlation))
        head = {
            "Content-Type": "application/json",
            "Content-Length": str(len(error)),
            "X-Correlation-ID": correlation,
            "Connection": "close",
        }
        headers = [(name.encode(), value.encode()) for name, value in head.items()]
        await send({"type": "websocket.http.response.start", "status": 400, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": error, "more_body": False})


async def _receive_rest(request: QuartRequest) -> None:
    """Drop what a body that nobody wanted still has, for a while: many a sender reads the answer only after its end."""
    with (
        suppress(RequestEntityTooLarge),  # quart's limit; the connection will be closed
        trio.move_on_after(REST_SECONDS),  # noqa: ASYNC912 - usually there is nothing to wait for
    ):
        async for _ in request.body:
            pass
