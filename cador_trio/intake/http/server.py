"""The listener: sockets, TLS and hypercorn, made so that a client that stops reading can't hold the daemon for ever.

The only importer of hypercorn. It sends under a shield without a deadline, so the sockets are ours: the kernel drops a
peer that acknowledges nothing for a minute, and at the end of a shutdown whatever is still open is cut.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart_trio import QuartTrio

log = structlog.get_logger(__name__)

IDLE_SECONDS: Final = 30.0  # a connection without a (whole) request head
DEAD_PEER_MILLISECONDS: Final = 60_000  # TCP_USER_TIMEOUT: sent bytes that nobody acknowledges
LAST_ANSWERS_SECONDS: Final = 3.0  # after the last job has ended: time to send what was made
CUT_SECONDS: Final = 1.0  # between cuts of connections that outlive that
CERTIFICATE_CHECK_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Certificate:
    """The operator's files; both are read again when they change."""

    chain: Path
    key: Path

    def read_into(self, context: ssl.SSLContext) -> None:
        """Use them for new connections. Raises OSError or ssl.SSLError."""
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


async def renew_certificate(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Read the certificate again whenever its files change, until cancelled; a broken one is logged, no more."""
    seen = certificate.changed_at()
    while True:
        await trio.sleep(CERTIFICATE_CHECK_SECONDS)
        try:
            now = certificate.changed_at()
            if now != seen:
                seen = now
                certificate.read_into(context)
                log.info("the certificate was read again", chain=str(certificate.chain))
        except (OSError, ssl.SSLError) as error:
            log.warning("the new certificate can't be used, the old one stays", reason=str(error))


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket whose connections do not outlive a dead peer. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MILLISECONDS)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


async def serve_http(  # noqa: ASYNC128 - hypercorn calls started()
    app: QuartTrio,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    shutdown: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set; then let the last answers out, and cut what does not end by itself."""
    port = listener.getsockname()[1]
    config = _Config(tls)
    config.bind = [f"fd://{listener.detach()}"]
    async with trio.open_nursery() as cutter_nursery:
        cutter_nursery.start_soon(_cut_stragglers, shutdown, port)
        await serve(app, config, shutdown_trigger=shutdown.wait, mode="asgi", task_status=task_status)
        cutter_nursery.cancel_scope.cancel("the listener is closed")


class _Config(Config):
    """hypercorn's settings, with a TLS context that stays ours, so that its certificate can be renewed."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self._tls = tls
        self.keep_alive_timeout = IDLE_SECONDS
        self.graceful_timeout = LAST_ANSWERS_SECONDS
        self.include_server_header = False
        self.accesslog = None
        self.errorlog = None
        self.workers = 1

    @property
    def ssl_enabled(self) -> bool:
        return self._tls is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self._tls


async def _cut_stragglers(shutdown: trio.Event, port: int) -> None:
    """Once the time for last answers is over, shut down every connection of this port, until cancelled."""
    await shutdown.wait()
    await trio.sleep(LAST_ANSWERS_SECONDS + CUT_SECONDS)
    while True:
        cut = _cut_connections(port)
        if cut:
            log.warning("connections that did not end were cut", connections=cut)
        await trio.sleep(CUT_SECONDS)


def _cut_connections(port: int) -> int:
    """How many there were. hypercorn keeps its sockets to itself, so the process looks at its own descriptors."""
    cut = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are all we need
        try:
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if copy.family in {socket.AF_INET, socket.AF_INET6} and copy.getsockname()[1] == port:
                    copy.getpeername()  # raises for the listener
                    copy.shutdown(socket.SHUT_RDWR)
                    cut += 1
        except OSError:  # no socket, not connected, or gone meanwhile
            continue
    return cut
