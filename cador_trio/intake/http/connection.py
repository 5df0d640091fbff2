"""How a request comes in and how its answer goes out, where the framework's own way would cost memory or descriptors.

Two corrections of quart, and nothing else: a body that no handler reads is not gathered, and what an answer holds open
is closed even if its reader leaves before the first byte.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from hypercorn.typing import ASGISendCallable
from quart.typing import ResponseTypes
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest

from cador_trio.intake.http.stream import Stream

log = structlog.get_logger(__name__)

METHODS_WITH_BODY: Final = frozenset({"POST", "PUT"})


class Request(TrioRequest):
    """A request whose body is kept only if its method has one."""

    def __init__(self, method: str, *arguments: Any, **keywords: Any) -> None:
        super().__init__(method, *arguments, **keywords)
        if method not in METHODS_WITH_BODY:
            # quart would gather up to its limit while the answer, a stream of events say, goes on.
            self.body = self.body_class(None, 0)


class Connection(TrioASGIHTTPConnection):
    """One exchange. A reader that leaves cancels it at any await, the sending of the head included."""

    async def _send_response(self, send: ASGISendCallable, response: ResponseTypes) -> None:
        stream = getattr(response, "response", None)
        try:
            await super()._send_response(send, response)
        except OSError as error:
            # The head is out, so the reader sees a body that ends before its Content-Length.
            log.error("a result could not be read to its end", reason=str(error))  # noqa: TRY400 - says all
        finally:
            if isinstance(stream, Stream):
                stream.close()
