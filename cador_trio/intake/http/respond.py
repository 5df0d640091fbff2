"""Answers of the HTTP door: errors in the Geo Process API's words, documents and results streamed from the spool."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Self

import trio
from quart import Response, g
from quart.wrappers.response import ResponseBody

from cador_trio.errors import CadorError, MethodNotAllowed, NotAuthenticated, NotFound, public_text
from cador_trio.intake.http.negotiation import whole_seconds
from cador_trio.job import Body, BodyReader, Json, JsonObject, Product, Result
from cador_trio.json_text import read_answer, write
from cador_trio.results.document import Piece, pieces, size_of

READ_BYTES: Final = 1024 * 1024  # a piece of a body: read by a thread, sent by the event loop
AT_ONCE_BYTES: Final = 256 * 1024  # a document up to this that lies in memory goes out in one piece

LinkOf = Callable[[Result], JsonObject]


def json_response(value: Json, status: int = 200, media_type: str = "application/json") -> Response:
    """A JSON answer."""
    return Response(write(value), status=status, content_type=media_type)


def error_body(message: str, hint: str) -> JsonObject:
    """The Error object of the Geo Process API."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "message": public_text(message),
        "hint": public_text(hint),
        "correlationId": g.get("correlation_id", ""),
        "timestamp": now,
    }


def error_response(error: CadorError) -> Response:
    """An error of ours, with the headers that belong to its status."""
    response = json_response(error_body(error.message, error.hint), error.http_status)
    if error.http_status == 503:
        response.headers["Retry-After"] = whole_seconds(error.retry_after)
    if isinstance(error, NotAuthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.allow)
    return response


async def product_response(product: Product, link_of: LinkOf) -> Response:
    """The results of a job as one answer: JSON, or the one image that they are."""
    if product.whole and (only := product.results[0]).encoding == "none" and only.body is not None:
        return await body_response(only.body, only.media_type)
    if product.whole and product.results[0].encoding == "text":
        return await result_response(product.results[0])
    media_type = product.results[0].media_type if product.whole else "application/json"
    parts = list(pieces(product, link_of))
    in_memory = [part if isinstance(part, bytes) else _bytes_at_hand(part) for part in parts]
    if size_of(parts) <= AT_ONCE_BYTES and None not in in_memory:
        return Response(b"".join(part for part in in_memory if part is not None), content_type=media_type)
    return await _streamed(parts, media_type)


async def result_response(result: Result) -> Response:
    """One result by itself, as what it is.

    Raises:
        NotFound: its bytes are gone.
    """
    if result.reference is not None:
        return json_response(result.reference)
    if result.body is None:
        raise NotFound(f"the result {result.result_id} is no longer kept")
    match result.encoding:
        case "none" | "json":
            return await body_response(result.body, result.media_type)
        case "text":
            text = await trio.to_thread.run_sync(lambda body: read_answer(body.read_all()), result.body)
            return Response(text.encode("utf-8"), content_type=result.media_type)
        case "base64":
            pixels = await trio.to_thread.run_sync(_decoded, result.body)
            return Response(pixels, content_type=result.media_type)


async def body_response(body: Body, media_type: str) -> Response:
    """A body of any size, streamed, with its digest as ETag."""
    response = await _streamed([body], media_type)
    response.headers["ETag"] = f'"{body.sha256}"'
    return response


async def _streamed(parts: list[Piece], media_type: str) -> Response:
    # Opened now, so that history may let go of the bodies while they are on their way.
    sources: list[bytes | BodyReader] = [
        part if isinstance(part, bytes) else await trio.to_thread.run_sync(part.open) for part in parts
    ]
    response = Response(_Stream(sources), content_type=media_type)
    response.headers["Content-Length"] = str(size_of(parts))
    response.timeout = None  # how long a download may take is the reader's business
    return response


class _Stream(ResponseBody):
    """The bytes of several sources in turn; closes all of them however it ends."""

    def __init__(self, sources: list[bytes | BodyReader]) -> None:
        self._sources = sources

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for source in self._sources:
            if not isinstance(source, bytes):
                source.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._sources:
            source = self._sources[0]
            if isinstance(source, bytes):
                del self._sources[0]
                return source
            if chunk := await trio.to_thread.run_sync(source.read, READ_BYTES):
                return chunk
            source.close()
            del self._sources[0]
        raise StopAsyncIteration

    async def convert_to_sequence(self) -> bytes:
        """All of it, for those who need it in one piece (quart's test client)."""
        return b"".join([chunk async for chunk in self])


def _bytes_at_hand(body: Body) -> bytes | None:
    return body.read_all() if getattr(body, "in_memory", False) else None


def _decoded(body: Body) -> bytes:
    text = read_answer(body.read_all())
    try:
        return base64.b64decode(text.partition("base64,")[2] or text)
    except binascii.Error as error:
        raise NotFound("the result is not the base64 image that it should be") from error
