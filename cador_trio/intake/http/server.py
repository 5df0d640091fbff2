"""The listener: sockets, TLS and hypercorn, made so that a client that stops reading can't hold the daemon for ever.

The only importer of hypercorn. It sends under a shield without a deadline, so the sockets are ours: the kernel drops a
peer that acknowledges nothing for a minute, and at the end of a shutdown whatever is still open is cut. Nor does it
bound how many connections there are: that is done here, too.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from h11 import Request as RequestHead
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio import run as hypercorn_run
from hypercorn.trio import serve
from hypercorn.trio.tcp_server import TCPServer
from quart_trio import QuartTrio

log = structlog.get_logger(__name__)

BACKLOG: Final = 1024  # connections that wait to be accepted; the kernel's own limit may be lower
IDLE_SECONDS: Final = 30.0  # a connection without a (whole) request head
DEAD_PEER_MILLISECONDS: Final = 60_000  # TCP_USER_TIMEOUT: sent bytes that nobody acknowledges
LAST_ANSWERS_SECONDS: Final = 3.0  # after the last job has ended: time to send what was made
CUT_SECONDS: Final = 1.0  # between cuts of connections that outlive that
HEAD_BYTES: Final = 16 * 1024  # of a request; up to one read (64 KiB) more may pass, if it is there all at once
FULL_SECONDS: Final = 30.0  # between two complaints that there are too many connections
CERTIFICATE_CHECK_SECONDS: Final = 10.0

# What `getsockname` gives: host and port, and two numbers more for IPv6.
Address = tuple[Any, ...]


@dataclass(frozen=True)
class Certificate:
    """The operator's files; both are read again when they change."""

    chain: Path
    key: Path

    def read_into(self, context: ssl.SSLContext) -> None:
        """Use them for new connections.

        Raises:
            OSError, ssl.SSLError: they can't be used, and the context is as it was.
        """
        # A failed load leaves a context without its old key, so the files are tried on another one first.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key)
        context.load_cert_chain(self.chain, self.key)

    def changed_at(self) -> tuple[int, int]:
        """When the files were last written, in nanoseconds. Raises OSError."""
        return self.chain.stat().st_mtime_ns, self.key.stat().st_mtime_ns


def server_tls(certificate: Certificate | None, client_ca: Path | None) -> ssl.SSLContext:
    """TLS 1.2 and up, with mutual TLS where a client CA is given.

    Raises:
        OSError, ssl.SSLError: a file can't be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        certificate.read_into(context)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def renew_certificate(
    context: ssl.SSLContext, certificate: Certificate, check_seconds: float = CERTIFICATE_CHECK_SECONDS
) -> None:
    """Read the certificate again whenever its files change, until cancelled; a broken one is logged, no more."""
    seen: tuple[int, int] | None = certificate.changed_at()
    while True:
        await trio.sleep(check_seconds)
        try:
            now = certificate.changed_at()
            if now != seen:
                certificate.read_into(context)
                log.info("the certificate was read again", chain=str(certificate.chain))
                seen = now
        except (OSError, ssl.SSLError) as error:
            log.warning("the new certificate can't be used, the old one stays", reason=str(error))
            seen = None


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket whose connections do not outlive a dead peer. Raises OSError, if the port is taken say."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MILLISECONDS)
        listener.bind(address)
        # Two sockets may be bound to one port; listening tells whose it is.
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


@dataclass(frozen=True)
class Endpoint:
    """Where an application is served: the socket, TLS or not, and how many connections it has at once."""

    listener: socket.socket
    tls: ssl.SSLContext | None
    connections: int


def bounded_connections(wanted: int, *, share: float) -> int:
    """So many, or this share of the files that the process may open: jobs, stores and Kafka need descriptors, too."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, int(files * share)))


async def serve_http(  # noqa: ASYNC128 - hypercorn calls started()
    app: QuartTrio,
    endpoint: Endpoint,
    shutdown: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set; then let the last answers out, and cut what does not end by itself."""
    address = endpoint.listener.getsockname()
    config = _Config(endpoint)
    config.bind = [f"fd://{endpoint.listener.detach()}"]
    async with trio.open_nursery() as cutter_nursery:
        cutter_nursery.start_soon(_cut_stragglers, shutdown, address)
        await serve(app, config, shutdown_trigger=shutdown.wait, mode="asgi", task_status=task_status)
        cutter_nursery.cancel_scope.cancel("the listener is closed")


async def _stay_with_http_1(_protocol: H11Protocol, _head: RequestHead) -> None:
    """Ignore the wish for HTTP/2, which a server may (RFC 9110, 7.8).

    Some clients ask for it in every first request (Java's own does), and hypercorn has no setting against it. Its
    HTTP/2 can wait for ever, under a shield, for a client that has left, and the daemon would never end.
    """


H11Protocol._check_protocol = _stay_with_http_1  # type: ignore[method-assign, assignment]  # noqa: SLF001


class _Config(Config):
    """hypercorn's settings, with a TLS context that stays ours, so that its certificate can be renewed."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._tls = endpoint.tls
        self.places = _Places(endpoint.connections)
        self.keep_alive_timeout = IDLE_SECONDS
        self.h11_max_incomplete_size = HEAD_BYTES
        self.graceful_timeout = LAST_ANSWERS_SECONDS
        self.include_server_header = False
        self.backlog = BACKLOG
        self.accesslog = None
        self.errorlog = logging.getLogger("hypercorn.error")
        self.workers = 1

    @property
    def ssl_enabled(self) -> bool:
        return self._tls is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self._tls


class _Places:
    """How many connections there are, and may be."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._complained_at = -FULL_SECONDS

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Whether there is a place for one more; it is free again after the block."""
        if self._taken >= self._limit:
            self._complain(trio.current_time())
            yield False
            return
        self._taken += 1
        try:
            yield True
        finally:
            self._taken -= 1

    def _complain(self, now: float) -> None:
        if now - self._complained_at >= FULL_SECONDS:
            self._complained_at = now
            log.warning("new connections are closed: there are too many", connections=self._limit)


class _Server(TCPServer):
    """One connection: closed at once if there is no place for it, and when its client has closed it."""

    config: _Config
    has_client = True

    async def run(self) -> None:
        with self.config.places.place() as is_there:
            if is_there and await self._shake_hands():
                await super().run()

    async def _shake_hands(self) -> bool:
        """Whether TLS, if any, is agreed upon. If not, the client is told why, which trio would keep to itself."""
        stream: object = self.stream
        if not isinstance(stream, trio.SSLStream):
            return True
        with trio.move_on_after(IDLE_SECONDS), suppress(trio.BrokenResourceError):
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError:
                await stream.transport_stream.send_all(stream._outgoing.read())  # noqa: SLF001 - the alert
            else:
                return True
        return False

    async def _read_data(self) -> None:
        await super()._read_data()
        self.has_client = False
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        # hypercorn would wait for a next request, with the connection half open, though nobody is there to send one.
        if self.has_client:
            await super()._idle_timeout()


hypercorn_run.TCPServer = _Server  # type: ignore[attr-defined]  # a name that it imports


async def _cut_stragglers(shutdown: trio.Event, address: Address) -> None:
    """Once the time for last answers is over, shut down every connection of this listener, until cancelled."""
    await shutdown.wait()
    await trio.sleep(LAST_ANSWERS_SECONDS)  # hypercorn's own, too, so the rest counts from its end
    while True:
        await trio.sleep(CUT_SECONDS)
        try:
            if cut := cut_connections(address):
                log.warning("connections that did not end were cut", connections=cut)
        except OSError as error:  # no descriptor left to look at the others with
            log.warning("connections that do not end can't be cut yet", reason=error.strerror)


def cut_connections(address: Address) -> int:
    """Shut down the TCP connections that were accepted at this address; how many there were. Raises OSError.

    hypercorn keeps its sockets to itself, so the process looks at its own descriptors. Connections that it opened
    itself have other local ports, since the kernel gives out none that somebody is bound to.
    """
    cut = 0
    for descriptor in _open_descriptors():
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with _borrowed(descriptor) as connection:
                if _was_accepted_at(address, connection):
                    connection.shutdown(socket.SHUT_RDWR)
                    cut += 1
        except OSError:  # not connected (any more), or closed by a thread meanwhile
            continue
    return cut


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names are all we need


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket behind a descriptor that somebody else owns, and closes."""
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        yield copy


def _was_accepted_at(address: Address, connection: socket.socket) -> bool:
    if connection.family not in {socket.AF_INET, socket.AF_INET6} or connection.type != socket.SOCK_STREAM:
        return False
    host, port = connection.getsockname()[:2]
    is_ours = port == address[1] and address[0] in {host, "0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return is_ours and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
