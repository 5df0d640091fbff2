"""Bytes to and from the algorithm; the only importer of httpx in the daemon.

One `Connection` is one TCP connection at most: a slot owns one, since a pool shared by many slots looks through all of
them at every request. Every exception of httpx ends here, as an error of ours that tells unreachable from died.
"""

from __future__ import annotations

import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

import httpx
import trio

from cador_trio.errors import AlgorithmBroken, AlgorithmDied, AlgorithmUnreachable, ResultTooLarge

CONNECT_SECONDS: Final = 5.0  # a container in the same pod answers at once or not at all
CLOSE_SECONDS: Final = 1.0  # for saying goodbye on a TLS connection that is given up
CLOSE_ALL_SECONDS: Final = 2.0  # the same for all connections of a process that ends
KEEP_ALIVE_SECONDS: Final = 4.0  # PESTO (uvicorn) closes an idle connection after 5.0 s
# No read or write limit here: how long the algorithm may take is its job's deadline.
_EXTENSIONS: Final = {"timeout": {"connect": CONNECT_SECONDS, "read": None, "write": None, "pool": CONNECT_SECONDS}}
_OUR_HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "cador-trio"}

UNPACKED_BYTES: Final = 1024 * 1024  # of a compressed answer, at a time
_UNPACKED: Final = "it was asked for no compression at all"

# Parsing costs as much as sending; most requests go to one execution link.
_parsed = lru_cache(maxsize=64)(httpx.URL)


class Response:
    """An answer whose head has arrived."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self._url = url
        self.status = response.status_code
        self.reason = response.reason_phrase
        self.headers: Mapping[str, str] = response.headers
        self.media_type = response.headers.get("content-type", "")
        self._encoding = response.headers.get("content-encoding", "").strip().lower()

    @property
    def announced_size(self) -> int | None:
        """Content-Length, if the answer has one and is not compressed."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and not self._is_compressed else None

    @property
    def _is_compressed(self) -> bool:
        return self._encoding not in {"", "identity"}

    async def pour(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Give the body to `write` as it arrives, decompressed if the algorithm compressed it unasked.

        When `write` raises, or when this is cancelled, the connection is closed: what is left of the body is lost.

        Raises:
            AlgorithmDied: it broke off, or is shorter than its head says.
            AlgorithmBroken: it was compressed in a way that can't be undone.
            Exception: what `write` raises.
        """
        with _mapped(self._url):
            unpack = _Unpacker(self._encoding) if self._is_compressed else None
            pieces = self._pieces()
            try:
                async for piece in pieces:
                    if unpack is None:
                        await write(piece)
                        continue
                    for part in unpack.parts(piece):
                        await write(part)
                if unpack is not None:
                    unpack.check_end()
            except BaseException:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                    await self._give_up(pieces)
                raise

    async def read(self, limit: int, what: str) -> bytes:
        """A small body. `what` names it in the error.

        Raises:
            ResultTooLarge: over `limit` bytes.
            AlgorithmDied, AlgorithmBroken: as `pour`.
        """
        gathered = bytearray()

        async def gather(piece: bytes) -> None:
            gathered.extend(piece)
            if len(gathered) > limit:
                raise ResultTooLarge(f"{what} has at least {len(gathered)} bytes, more than the limit of {limit} bytes")

        await self.pour(gather)
        return bytes(gathered)

    async def read_start(self, limit: int) -> bytes:
        """The body, or as much of it as `limit` bytes hold. Raises as `pour`."""
        gathered = bytearray()

        async def gather(piece: bytes) -> None:
            gathered.extend(piece)
            if len(gathered) >= limit:
                raise _Enough

        with suppress(_Enough):
            await self.pour(gather)
        return bytes(gathered[:limit])

    def _pieces(self) -> AsyncIterator[bytes]:
        """Not through `aiter_bytes` of httpx: fewer layers, and what is left half-way can be ended, see below."""
        stream = self._response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError("an asynchronous transport gives asynchronous streams")
        return aiter(stream)

    async def _give_up(self, pieces: AsyncIterator[bytes]) -> None:
        """Close, then let the iterators of httpx and httpcore run into it: left half-way they warn when collected."""
        await self._response.aclose()
        with suppress(httpx.HTTPError, httpx.StreamError):
            async for _ in pieces:
                pass


class _Enough(Exception):
    """No more of this body is wanted."""


class _Unpacker:
    """Undoes gzip or deflate, in parts of a bounded size whatever the algorithm packed."""

    def __init__(self, encoding: str) -> None:
        if encoding not in {"gzip", "x-gzip", "deflate"}:
            raise AlgorithmBroken(f"the algorithm compressed its answer with {encoding[:40]!r}", hint=_UNPACKED)
        self._zlib = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # 32: by its head, gzip or zlib

    def parts(self, piece: bytes) -> Iterator[bytes]:
        while piece and not self._zlib.eof:
            try:
                part = self._zlib.decompress(piece, UNPACKED_BYTES)
            except zlib.error as error:
                raise AlgorithmBroken(f"the algorithm's compressed answer is damaged: {error}") from error
            piece = self._zlib.unconsumed_tail
            yield part

    def check_end(self) -> None:
        if not self._zlib.eof:
            raise AlgorithmBroken("the algorithm's compressed answer is cut short")


class Connection:
    """One connection to the algorithm, opened when needed and kept while it is fresh. For one task at a time."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls,
            trust_env=False,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE_SECONDS),
        )

    @asynccontextmanager
    async def send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes = b""
    ) -> AsyncIterator[Response]:
        """Send a request; the answer's body is read inside the block, and dropped with it.

        Raises:
            AlgorithmUnreachable: no connection, so nothing was asked.
            AlgorithmDied: it broke after that.
            AlgorithmBroken: this can't be sent, or what came back is not HTTP.
        """
        with _mapped(url):
            request = httpx.Request(
                method, _parsed(url), headers={**_OUR_HEADERS, **headers}, content=content, extensions=_EXTENSIONS
            )
            response = await self._transport.handle_async_request(request)
        response.request = request  # what a client would set; aiter_bytes wants it for its errors
        try:
            yield Response(response, url)
        finally:
            # Closing a half-read body closes its connection. httpcore shields this itself, another scope costs time.
            await response.aclose()  # noqa: ASYNC102
            if response.status_code >= 500:
                # PESTO hangs up after some of these without saying so; the next request would run into it.
                await self._transport.aclose()  # noqa: ASYNC102

    async def aclose(self) -> None:
        """Close the connection; the next request opens another one."""
        await self._transport.aclose()


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Verification of the algorithm's certificate: by this CA bundle, else by the system's. Made once, shared by all.

    Raises:
        OSError, ssl.SSLError: the bundle can't be read.
    """
    return ssl.create_default_context(cafile=None if ca is None else str(ca))


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        hint = "CADOR_ALGORITHM_CA names its CA bundle" if _is_tls(error) else "is PROCESSING_SERVER right, is it up?"
        raise AlgorithmUnreachable(
            f"the algorithm can't be reached at {_origin(url)}: {_text(error)}", hint=hint
        ) from error
    except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise AlgorithmDied(
            f"the algorithm broke off in mid-answer: {_text(error)}", hint="look at the algorithm's own log"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise AlgorithmBroken(f"no HTTP exchange with the algorithm: {_text(error)}") from error


def _is_tls(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLError) for cause in _causes(error))


def _text(error: BaseException) -> str:
    """What the error says, or what caused it: httpx has no words for some, such as a bad certificate."""
    return next((str(cause) for cause in _causes(error) if str(cause)), type(error).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """From the outermost in; a group, as a nursery makes one, says nothing itself."""
    cause: BaseException | None = error
    while cause is not None:
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        yield cause
        cause = cause.__cause__ or cause.__context__


def _origin(url: str) -> str:
    parts = httpx.URL(url)
    return f"{parts.scheme}://{parts.netloc.decode('ascii')}"
