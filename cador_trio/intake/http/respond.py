"""Answers of the HTTP door: errors in the Geo Process API's words, JSON documents, and results as what they are."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import trio
from quart import Response, g, request

from cador_trio.document import Piece, pieces, size_of
from cador_trio.errors import AlgorithmBroken, CadorError, MethodNotAllowed, NotAuthenticated, NotFound, public_text
from cador_trio.intake.http.negotiation import whole_seconds
from cador_trio.intake.http.stream import Stream, open_stream
from cador_trio.job import Body, Json, JsonObject, Product, Result
from cador_trio.json_text import read_answer, write

AT_ONCE_BYTES: Final = 256 * 1024  # a document up to this that lies in memory goes out in one piece
ASK_AGAIN: Final = "no-cache"  # Cache-Control: may be kept, must be asked for again

LinkOf = Callable[[Result], JsonObject]


def json_response(value: Json, status: int = 200, media_type: str = "application/json") -> Response:
    """A JSON answer."""
    return Response(write(value), status=status, content_type=media_type)


def no_content() -> Response:
    """204, and no media type of nothing."""
    response = Response(b"", status=204)
    del response.headers["Content-Type"], response.headers["Content-Length"]
    return response


def cached(response: Response, data: bytes, caching: str) -> Response:
    """The response, whose body is these bytes; or 304 if the caller has them. `caching` is its Cache-Control."""
    response.set_etag(hashlib.sha256(data).hexdigest()[:32])
    response.headers["Cache-Control"] = caching
    if request.if_none_match.contains(response.get_etag()[0] or ""):
        response.status_code = 304
        response.set_data(b"")
        del response.headers["Content-Length"]
    return response


def without_body(response: Response) -> Response:
    """The answer to HEAD: the same head, Content-Length included, and nothing is read for it."""
    if isinstance(response.response, Stream):
        response.response.close()
    response.response = Response.data_body_class(b"")
    return response


# --- Errors ------------------------------------------------------------------------------------------------------


def error_body(message: str, hint: str, correlation: str | None = None) -> JsonObject:
    """The Error object of the Geo Process API, with the correlation id of the request at hand if none is given."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        "message": public_text(message),
        "hint": public_text(hint),
        "correlationId": g.correlation_id if correlation is None else correlation,
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


# --- Results -----------------------------------------------------------------------------------------------------


async def product_response(product: Product, link_of: LinkOf) -> Response:
    """All results of a job as one answer: JSON, or the one image or text that they are.

    Raises:
        CadorError: as `result_response` does.
    """
    media_type = "application/json"
    if product.whole and (only := product.results[0]).reference is None:
        if only.encoding in {"none", "text"}:
            return await result_response(only)
        if only.encoding == "json":
            media_type = only.media_type
    parts = list(pieces(product, link_of))
    if size_of(parts) <= AT_ONCE_BYTES and all(isinstance(part, bytes) or part.in_memory for part in parts):
        return Response(b"".join(_bytes_of(part) for part in parts), content_type=media_type)
    return await _streamed(parts, media_type)


async def result_response(result: Result) -> Response:
    """One result by itself, as what it is.

    Raises:
        NotFound: its bytes are gone.
        AlgorithmBroken: it was to be a base64 image, and is none.
    """
    if result.reference is not None:
        return json_response(result.reference)
    if result.body is None:
        raise NotFound(f"the result {result.result_id} is no longer kept")
    match result.encoding:
        case "none" | "json":
            return await body_response(result.body, result.media_type)
        case "text":
            text = await _text_of(result.body)
            return Response(text.encode("utf-8"), content_type=result.media_type)
        case "base64":
            pixels = await trio.to_thread.run_sync(_decoded, await _text_of(result.body), result.result_id)
            return Response(pixels, content_type=result.media_type)


async def body_response(body: Body, media_type: str) -> Response:
    """A body of any size, streamed, with its digest as ETag.

    Raises:
        NotFound: history has let go of it.
    """
    response = await _streamed([body], media_type)
    response.headers["ETag"] = f'"{body.sha256}"'
    return response


async def _streamed(parts: list[Piece], media_type: str) -> Response:
    response = Response(await open_stream(parts), content_type=media_type)
    response.headers["Content-Length"] = str(size_of(parts))
    return response


def _bytes_of(part: Piece) -> bytes:
    return part if isinstance(part, bytes) else part.read_all()


async def _text_of(body: Body) -> str:
    """The JSON text that this body is."""

    def read() -> str:
        text: str = read_answer(body.read_all())
        return text

    return read() if body.in_memory else await trio.to_thread.run_sync(read)


def _decoded(text: str, result_id: str) -> bytes:
    try:
        return base64.b64decode(text.partition("base64,")[2] or text)
    except binascii.Error as error:
        raise AlgorithmBroken(f"the result {result_id} was to be a base64 image, and is not base64") from error
