"""Drivers that wait for their next upload, connection open: a driver belongs to one thread at a time and one identity.

libcloud's drivers are not thread-safe, and making a new one for each upload would throw its connection away. So they
are lent out, and taken back. What nobody has used for a while is closed, and its credentials are forgotten with it.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cador_trio.errors import StoreFailed
from cador_trio.storage.credentials import Credentials
from cador_trio.storage.endpoints import Endpoint
from cador_trio.storage.failures import S3Refused
from cador_trio.storage.s3 import S3Driver
from cador_trio.storage.wire import Patience, Wire, tls_context

KEPT_DRIVERS: Final = 16  # idle ones, over all stores
KEPT_SECONDS: Final = 30.0  # how long an idle one is kept; servers close idle connections after 5 to 120 s


@dataclass(frozen=True, slots=True)
class Identity:
    """What two uploads must have in common to use the same connection. `ca` is None for the system's."""

    endpoint: Endpoint
    region: str
    credentials: Credentials
    ca: Path | None
    takes_sha256: bool


@dataclass(slots=True)
class _Idle:
    identity: Identity
    driver: S3Driver
    since: float = field(default_factory=time.monotonic)


class Drivers:
    """Lends drivers; safe to call from any thread."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._idle: list[_Idle] = []  # the longest idle first
        self._contexts: dict[tuple[Path | None, int], ssl.SSLContext] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    @contextmanager
    def lend(self, identity: Identity) -> Iterator[S3Driver]:
        """A driver for one thread. What ends the block with an error that broke the connection closes it.

        Raises StoreFailed if the CA bundle can't be read.
        """
        driver = self._take(identity) or self._make(identity)
        is_good = False
        try:
            yield driver
            is_good = True
        except S3Refused:  # an answer like any other
            is_good = True
            raise
        finally:
            if is_good:
                self._give_back(identity, driver)
            else:
                driver.wire.close()

    def expire(self) -> None:
        """Close what has been idle for too long."""
        limit = time.monotonic() - KEPT_SECONDS
        with self._lock:
            old = [idle for idle in self._idle if idle.since < limit]
            self._idle = [idle for idle in self._idle if idle.since >= limit]
        for idle in old:
            idle.driver.wire.close()

    def close(self) -> None:
        """Close all idle drivers now, and those that are out when they come back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for one in idle:
            one.driver.wire.close()

    def _take(self, identity: Identity) -> S3Driver | None:
        with self._lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index].identity == identity:
                    return self._idle.pop(index).driver
        return None

    def _give_back(self, identity: Identity, driver: S3Driver) -> None:
        with self._lock:
            too_many = None
            if self._is_closed:
                too_many = driver
            else:
                self._idle.append(_Idle(identity, driver))
                if len(self._idle) > KEPT_DRIVERS:
                    too_many = self._idle.pop(0).driver
        if too_many is not None:
            too_many.wire.close()

    def _make(self, identity: Identity) -> S3Driver:
        tls = self._context(identity.ca) if identity.endpoint.is_tls else None
        wire = Wire(identity.endpoint, self._patience, tls)
        return S3Driver(
            wire, identity.endpoint, identity.region, identity.credentials, takes_sha256=identity.takes_sha256
        )

    def _context(self, ca: Path | None) -> ssl.SSLContext:
        """Loading a system's bundle takes 20 ms: done once, and again when the file has changed."""
        try:
            key = (ca, 0 if ca is None else ca.stat().st_mtime_ns)
            context = self._contexts.get(key) or tls_context(ca)
        except (OSError, ssl.SSLError) as error:
            raise StoreFailed(
                f"the CA bundle {ca or 'of the system'} can't be read: {error.strerror or error}",
                hint="Look at CADOR_STORAGE_CA, or the profile's caFile.",
            ) from error
        self._contexts = {**{kept: other for kept, other in self._contexts.items() if kept[0] != ca}, key: context}
        return context
