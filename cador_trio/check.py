"""What `cador-trio check` tries: every neighbour that the settings point at, each with a sentence of what was found."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cador_trio.algorithm.dialect import Origin
from cador_trio.algorithm.transport import Connection, tls_context
from cador_trio.algorithm.watch import Watch
from cador_trio.errors import CadorError, SettingsError
from cador_trio.intake.http.server import Certificate, open_listener, server_tls
from cador_trio.job import StorageRequest
from cador_trio.settings import Settings
from cador_trio.storage.setup import open_store
from cador_trio.storage.store import Store

PROFILE_SECONDS: Final = 15.0  # for one storage profile, retries included


@dataclass(frozen=True)
class Finding:
    """One neighbour, and whether it works."""

    is_good: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.is_good else 'FAILED'}: {self.text}"


async def check_neighbours(settings: Settings, profiles: Sequence[str] = ()) -> list[Finding]:
    """Try the algorithm, the folders, these storage profiles, the certificate and the port; nothing is left behind.

    Raises:
        SettingsError: a file that a setting names is no use.
    """
    return [
        await _algorithm(settings),
        *_folders(settings),
        *await _profiles(settings, profiles),
        *_certificate(settings),
        _port(settings),
    ]


async def _algorithm(settings: Settings) -> Finding:
    try:
        connection = Connection(tls_context(settings.algorithm_ca))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"CADOR_ALGORITHM_CA: no usable CA bundle: {error}"]) from error
    watch = Watch(Origin.from_url(settings.processing_server), [connection])
    try:
        described = await watch.describe({})
    except CadorError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return Finding(is_good=False, text=f"algorithm: {error.message}{hint}")
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            await watch.aclose()
    kind = "stateful" if described.asynchronous else "stateless"
    problem = watch.described.validator.problem
    if problem is not None:
        return Finding(is_good=False, text=f"algorithm: {described.name} {described.version}: {problem}")
    return Finding(
        is_good=True, text=f"algorithm: {described.name} {described.version}, {kind}, at {watch.origin.base}"
    )


def _folders(settings: Settings) -> list[Finding]:
    if not settings.posix_roots:
        return [Finding(is_good=True, text="POSIX storage: off (CADOR_POSIX_ROOTS names no folder)")]
    return [_folder(root) for root in settings.posix_roots]


def _folder(root: Path) -> Finding:
    if not root.is_dir():
        return Finding(is_good=False, text=f"POSIX storage: {root}: no such folder")
    writable = os.access(root, os.W_OK | os.X_OK)
    return Finding(
        is_good=writable, text=f"POSIX storage: {root}: {'writable' if writable else 'not writable by this user'}"
    )


async def _profiles(settings: Settings, names: Sequence[str]) -> list[Finding]:
    with closing(open_store(settings)) as store:
        return [await _profile(store, name) for name in names]


async def _profile(store: Store, name: str) -> Finding:
    """Write a probe object, read it back, delete it."""
    where = f"storage profile {name}"
    request = StorageRequest("profile", {"profile": name, "path": ""})
    try:
        destination = store.resolve(request, f"cador-check-{secrets.token_hex(4)}")
        with trio.fail_after(PROFILE_SECONDS):
            await store.probe(destination)
    except CadorError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return Finding(is_good=False, text=f"{where}: {error.message}{hint}")
    except trio.TooSlowError:
        return Finding(is_good=False, text=f"{where}: no answer within {PROFILE_SECONDS:g} s")
    return Finding(is_good=True, text=f"{where}: an object was written, read back and deleted")


def _certificate(settings: Settings) -> list[Finding]:
    if not settings.use_ssl or settings.ssl_cert is None or settings.ssl_key is None:
        return []
    try:
        server_tls(Certificate(settings.ssl_cert, settings.ssl_key), settings.ssl_client_ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"CADOR_SSL_CERT, CADOR_SSL_KEY, CADOR_SSL_CLIENT_CA: not usable: {error}"]) from error
    return [Finding(is_good=True, text=f"certificate: {settings.ssl_cert}: usable with its key")]


def _port(settings: Settings) -> Finding:
    where = f"{settings.host}, port {settings.port}"
    try:
        open_listener(settings.host, settings.port).close()
    except OSError as error:
        return Finding(is_good=False, text=f"listener: {where}: {error.strerror or error}")
    return Finding(is_good=True, text=f"listener: {where}: free")
