"""Bytes to and from the algorithm; the only importer of httpx in the daemon.

One `Connection` is one TCP connection at most: a slot owns one, since a pool shared by many slots looks through all of
them at every request. Every exception of httpx ends here, as an error of ours that tells unreachable from died.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import httpx
import trio

from cador_trio.errors import AlgorithmBroken, AlgorithmDied, AlgorithmUnreachable

CONNECT_SECONDS: Final = 5.0  # a container in the same pod answers at once or not at all
KEEP_ALIVE_SECONDS: Final = 4.0  # PESTO (uvicorn) closes an idle connection after 5.0 s
# No read or write limit here: how long the algorithm may take is its job's deadline.
_TIMEOUTS: Final = {"connect": CONNECT_SECONDS, "read": None, "write": None, "pool": CONNECT_SECONDS}


class Response:
    """An answer whose head has arrived."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self._url = url
        self.status = response.status_code
        self.reason = response.reason_phrase
        self.headers: Mapping[str, str] = response.headers
        self.media_type = response.headers.get("content-type", "")

    @property
    def announced_size(self) -> int | None:
        """Content-Length, if the answer has one and is not compressed."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and "content-encoding" not in self.headers else None

    async def pour(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Give the body to `write` as it arrives, decompressed if the algorithm compressed it unasked.

        Raises:
            AlgorithmDied: it broke off, or its length is not what the head says.
            Exception: what `write` raises.
        """
        with _mapped(self._url):
            async for chunk in self._response.aiter_bytes():
                await write(chunk)

    async def read(self, limit: int) -> bytes:
        """The body, cut at `limit` bytes. Raises as `pour` does."""
        gathered = bytearray()
        with _mapped(self._url):
            async for chunk in self._response.aiter_bytes():
                gathered += chunk
                if len(gathered) >= limit:
                    break
        return bytes(gathered[:limit])


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
                method,
                url,
                headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "cador-trio", **headers},
                content=content,
                extensions={"timeout": _TIMEOUTS},
            )
            response = await self._transport.handle_async_request(request)
        response.request = request  # what a client would set; aiter_bytes wants it for its errors
        try:
            yield Response(response, url)
        finally:
            # Closing a half-read body closes its connection; it must not wait for more of it.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CONNECT_SECONDS):
                await response.aclose()
                if response.status_code >= 500:
                    # PESTO hangs up after some of these without saying so; the next request would run into it.
                    await self._transport.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
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
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _origin(url: str) -> str:
    parts = httpx.URL(url)
    return f"{parts.scheme}://{parts.netloc.decode('ascii')}"


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
