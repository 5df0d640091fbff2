"""One connection to an object store, as blocking calls that never block for long.

Takes the place of libcloud's own connection, which has no timeout on uploads and follows redirects, proxies and
`~/.netrc`. Here each wait is cut into ticks: at each the job's cancellation and the time limit of this wait are looked
at, so that a store that hangs holds a thread no longer than its limit, and a cancelled job no longer than a tick. Only
addresses that somebody has checked are connected to. Nothing here knows S3, buckets or keys.
"""

from __future__ import annotations

import errno
import http.client
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import trio

from cador_trio.storage.endpoints import Endpoint
from cador_trio.storage.failures import TlsFailed

T = TypeVar("T")

TICK_SECONDS: Final = 0.25  # how long a cancellation may go unnoticed in a wait
_HANG_UP_SECONDS: Final = 2 * TICK_SECONDS
BLOCK_BYTES: Final = 1024 * 1024  # one send; http.client's own blocks of 8 or 16 KiB cost a third of the speed


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: to be connected (TLS included), until the store takes more bytes, until it answers (goes on to)."""

    connect: float = 10.0
    send: float = 60.0
    receive: float = 60.0


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a host, as `getaddrinfo` gave it and somebody has checked it."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]


class Source(Protocol):
    """A body that is read while it is sent. `left` is how many bytes have not been read."""

    left: int

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, empty at the end."""


class ConnectionCut(OSError):
    """The store ended the conversation before it had everything."""


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Verification by this CA bundle, else by the system's. Raises OSError or ssl.SSLError if it can't be read."""
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.sslsocket_class = _PatientTlsSocket
    return context


# --- Sockets -----------------------------------------------------------------------------------------------------


class _Patient:
    """What both kinds of socket have in common: each call of the system lasts a tick at most, and is done again."""

    patience = Patience()

    def recv_into(self, *arguments: Any) -> int:
        receive: Callable[..., int] = super().recv_into  # type: ignore[misc]
        return _patiently(lambda: receive(*arguments), self.patience.receive)

    def sendall(self, data: Any, flags: int = 0) -> None:
        send: Callable[..., int] = super().send  # type: ignore[misc]
        left = memoryview(data).cast("B")
        while left:
            left = left[_patiently(partial(send, left, flags), self.patience.send) :]


class _PatientSocket(_Patient, socket.socket):
    """A plain one."""


class _PatientTlsSocket(_Patient, ssl.SSLSocket):
    """One that speaks TLS."""


def _patiently(step: Callable[[], T], seconds: float) -> T:
    """Do a step that raises TimeoutError after a tick again and again, for so many seconds."""
    limit = time.monotonic() + seconds
    while True:
        try:
            return step()
        except TimeoutError:
            trio.from_thread.check_cancelled()
            if time.monotonic() >= limit:
                raise


def _connect(address: Address, seconds: float) -> _PatientSocket:
    plain = _PatientSocket(address.family, socket.SOCK_STREAM)
    try:
        _wait_connected(plain, address, seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(TICK_SECONDS)
    except BaseException:
        plain.close()
        raise
    return plain


def _wait_connected(plain: socket.socket, address: Address, seconds: float) -> None:
    plain.setblocking(False)
    code = plain.connect_ex(address.sockaddr)
    if code == errno.EINPROGRESS:
        _patiently(lambda: _wait_writable(plain), seconds)
        code = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def _wait_writable(waiting: socket.socket) -> None:
    poll = select.poll()
    poll.register(waiting, select.POLLOUT)
    if not poll.poll(TICK_SECONDS * 1000):
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _is_readable(waiting: socket.socket) -> bool:
    poll = select.poll()
    poll.register(waiting, select.POLLIN)
    return bool(poll.poll(0))


# --- The connection ----------------------------------------------------------------------------------------------


class Wire:
    """A connection to one endpoint, opened when it is needed and kept while the store keeps it.

    For one thread at a time. Has the methods that libcloud calls (`prepared_request`, `getresponse`). Set `addresses`
    before each use.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience, tls: ssl.SSLContext | None) -> None:
        self.addresses: Sequence[Address] = ()
        self._endpoint = endpoint
        self._patience = patience
        self._tls = tls
        self._connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
        self._response: http.client.HTTPResponse | None = None

    def prepared_request(  # noqa: PLR0913, PLR0917 - libcloud's signature
        self,
        method: str,
        url: str,
        body: bytes | Source | None = None,
        headers: Mapping[str, str] | None = None,
        raw: bool = False,  # noqa: ARG002
        stream: bool = False,  # noqa: ARG002
    ) -> None:
        """Send a request and wait for the head of its answer.

        Raises OSError (TimeoutError, TlsFailed among them) or http.client.HTTPException; the connection is closed
        then, as it is when anything that the body's reader raises ends the request.
        """
        try:
            connection = self._connected()
            connection.putrequest(method, url, skip_host=True, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders(body if isinstance(body, bytes) else None)
            is_whole = body is None or isinstance(body, bytes) or self._send(body)
            self._response = connection.getresponse()
            if not is_whole:
                self._check_early_answer(self._response)
        except ssl.SSLError as error:
            self.close()
            raise TlsFailed(error) from error
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        except BaseException:  # cancelled, or a body that can't be read
            self._hang_up()
            raise

    def _check_early_answer(self, response: http.client.HTTPResponse) -> None:
        response.will_close = True  # what the store would make of the rest of the body, nobody knows
        if response.status < HTTPStatus.MULTIPLE_CHOICES:
            raise ConnectionCut("an answer came before everything was sent")

    def getresponse(self) -> http.client.HTTPResponse | None:
        """The answer to the last request, its body unread."""
        return self._response

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the last answer; fewer only at its end. Raises as `prepared_request`."""
        assert self._response is not None  # noqa: S101 - called after a request
        try:
            return self._response.read(size)
        except ssl.SSLError as error:
            self.close()
            raise TlsFailed(error) from error
        except BaseException:
            self.close()
            raise

    def finish(self) -> None:
        """Get ready for the next request: a connection with bytes left in it is no use."""
        if self._response is not None and (not self._response.isclosed() or self._response.will_close):
            self.close()
        self._response = None

    def close(self) -> None:
        """Close the connection. Does not wait."""
        if self._response is not None:
            self._response.close()
            self._response = None
        self._connection.close()

    def _hang_up(self) -> None:
        """Break a request off, and wait a moment until the store has seen that.

        What it makes of half a request is over then: nothing of it appears later, when its job has ended, or its
        upload was aborted.
        """
        sock = self._connection.sock
        if sock is not None:
            with suppress(OSError):
                # Below TLS: its own farewell would wait for an answer.
                socket.socket.shutdown(sock, socket.SHUT_WR)
                limit = time.monotonic() + _HANG_UP_SECONDS
                while time.monotonic() < limit and socket.socket.recv(sock, BLOCK_BYTES):
                    pass
        self.close()

    def _connected(self) -> http.client.HTTPConnection:
        sock = self._connection.sock
        # What is readable now is the end of the connection, or junk: a kept connection has nothing to say.
        if sock is not None and _is_readable(sock):
            self._connection.close()
        if self._connection.sock is None:
            self._connection.sock = self._open()
        return self._connection

    def _open(self) -> socket.socket:
        failure: OSError = ConnectionCut("the host has no address")
        for address in self.addresses:
            try:
                return self._secured(_connect(address, self._patience.connect))
            except ssl.SSLError:
                raise
            except OSError as error:
                failure = error
        raise failure

    def _secured(self, plain: _PatientSocket) -> socket.socket:
        if self._tls is None:
            plain.patience = self._patience
            return plain
        try:
            secured = self._tls.wrap_socket(
                plain, server_hostname=self._endpoint.host.partition("%")[0], do_handshake_on_connect=False
            )
        except BaseException:
            plain.close()
            raise
        try:
            _patiently(secured.do_handshake, self._patience.connect)
        except BaseException:
            secured.close()
            raise
        secured.patience = self._patience  # type: ignore[attr-defined]
        return secured

    def _send(self, body: Source) -> bool:
        """Send a body; False if the store has answered or hung up before it had everything."""
        sock = self._connection.sock
        with suppress(BrokenPipeError, ConnectionResetError):
            while chunk := body.read(BLOCK_BYTES):
                # Under TLS what is readable may be the protocol's own: a session ticket.
                if self._tls is None and _is_readable(sock):
                    return False
                sock.sendall(chunk)
            return True
        return False
