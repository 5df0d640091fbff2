"""From the settings to a store: everything that can be wrong with them is wrong here, before anything runs."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable

from cador_trio.errors import SettingsError
from cador_trio.settings import Settings
from cador_trio.storage.destinations import Policy
from cador_trio.storage.endpoints import Endpoint, check_pattern
from cador_trio.storage.profiles import Profile, load_profiles
from cador_trio.storage.store import Store
from cador_trio.storage.wire import Patience, tls_context


def open_store(settings: Settings) -> Store:
    """The store that these settings describe; nothing is connected to.

    Raises:
        SettingsError: with one finding for everything that is wrong with lists, profiles, files.
    """
    findings: list[str] = []
    _gather(findings, "CADOR_STORAGE_ENDPOINTS", settings.storage_endpoints, check_pattern)
    _gather(findings, "CADOR_STORAGE_BUCKETS", settings.storage_buckets, _check_bucket_pattern)
    profiles: dict[str, Profile] = {}
    if settings.storage_profiles is not None:
        try:
            profiles.update(load_profiles(settings.storage_profiles))
        except SettingsError as error:
            findings += error.findings
    try:
        tls_context(settings.storage_ca)
    except (OSError, ssl.SSLError) as error:
        findings.append(f"CADOR_STORAGE_CA: no usable CA bundle: {error}")
    if findings:
        raise SettingsError(findings)
    policy = Policy(
        posix_roots=tuple(str(root) for root in settings.posix_roots),
        endpoints=settings.storage_endpoints,
        buckets=settings.storage_buckets,
        gcs=Endpoint.from_url(settings.gcs_endpoint),
        profiles=profiles,
    )
    patience = Patience(
        settings.store_connect_timeout_seconds,
        settings.store_send_timeout_seconds,
        settings.store_receive_timeout_seconds,
    )
    return Store(policy, patience=patience, ca=settings.storage_ca)


def _gather(findings: list[str], variable: str, patterns: Iterable[str], check: Callable[[str], None]) -> None:
    for pattern in patterns:
        try:
            check(pattern)
        except ValueError as error:
            findings.append(f"{variable}: {pattern} {error}")


def _check_bucket_pattern(pattern: str) -> None:
    if "/" in pattern:
        raise ValueError("must be the name of a bucket, with * for any letters, and no folder")
