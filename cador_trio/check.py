"""What `cador-trio check` tries: every neighbour that the settings point at, each with a sentence of what was found."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cador_trio.algorithm.dialect import Origin
from cador_trio.algorithm.transport import CLOSE_ALL_SECONDS, Connection, tls_context
from cador_trio.algorithm.watch import Watch
from cador_trio.errors import CadorError, SettingsError
from cador_trio.intake.http.server import Certificate, open_listener, server_tls
from cador_trio.job import StorageRequest
from cador_trio.kafka.cluster import (
    Cluster,
    Place,
    Topic,
    by_client,
    guarantee,
    look_closely,
    may_join_group,
    places,
    try_transactions,
    verify_properties,
)
from cador_trio.kafka.effects import Role
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
    """Try the algorithm, the folders, these storage profiles, Kafka, the certificate and the ports.

    Nothing is left behind, but a transactional id that expires by itself.

    Raises:
        SettingsError: a file that a setting names is no use.
    """
    return [
        await _algorithm(settings),
        *_folders(settings),
        *await _profiles(settings, profiles),
        *await _kafka(settings),
        *_certificate(settings),
        *_ports(settings),
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
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_ALL_SECONDS):
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


async def _kafka(settings: Settings) -> list[Finding]:
    """Every cluster and topic, the group, transactions, and which guarantee follows; each within its time."""
    if not settings.has_kafka:
        return [Finding(is_good=True, text="Kafka: off (KAFKA_BROKERS_REQUEST names no brokers)")]
    verify_properties(settings)
    findings: list[Finding] = []
    cluster_ids: dict[str, str] = {}
    for (brokers, as_consumer), there in by_client(places(settings)).items():
        try:
            cluster = await _look(settings, brokers, there, as_consumer=as_consumer)
        except CadorError as error:
            if _failed(error) not in findings:  # two users, one broker that is away
                findings.append(_failed(error))
            continue
        cluster_ids[brokers] = cluster.cluster_id
        findings += [_topic(place, cluster.topics[place.topic], settings) for place in there]
    if settings.kafka_brokers_request not in cluster_ids:
        return findings
    transactions = await _transactions(settings)
    return [*findings, await _group(settings), *transactions, _delivery(settings, cluster_ids, transactions)]


async def _look(settings: Settings, brokers: str, there: Sequence[Place], *, as_consumer: bool) -> Cluster:
    ask = partial(
        look_closely,
        settings,
        brokers,
        {place.topic for place in there},
        seconds=settings.kafka_timeout_seconds,
        as_consumer=as_consumer,
    )
    return await trio.to_thread.run_sync(ask)


def _topic(place: Place, topic: Topic, settings: Settings) -> Finding:
    where = f"Kafka: {place} at {place.brokers}"
    if topic.problem:
        return Finding(is_good=False, text=f"{where}: {topic.problem} ({place.variable})")
    if topic.rights is not None and place.needed_right not in topic.rights:
        return Finding(is_good=False, text=f"{where}: no right to {place.needed_right} ({place.variable})")
    right = f"{place.needed_right} allowed" if topic.rights is not None else "rights not known"
    limit = topic.largest_message
    size = f"messages up to {limit} bytes" if limit is not None else "largest message not known"
    if place.role is Role.OUTPUT and limit is not None and limit < settings.inline_result_limit:
        text = f"{where}: {size}, fewer than CADOR_INLINE_RESULT_LIMIT ({settings.inline_result_limit})"
        return Finding(is_good=False, text=f"{text}: lower that, or raise max.message.bytes of the topic")
    count = f"{topic.partitions} partition{'' if topic.partitions == 1 else 's'}"
    return Finding(is_good=True, text=f"{where}: {count}, {right}, {size}")


async def _group(settings: Settings) -> Finding:
    where = f"Kafka: consumer group {settings.kafka_consumer_group}"
    ask = partial(may_join_group, settings, seconds=settings.kafka_timeout_seconds)
    match await trio.to_thread.run_sync(ask):
        case None:
            return Finding(is_good=True, text=f"{where}: rights not known")
        case False:
            return Finding(is_good=False, text=f"{where}: no right to READ (KAFKA_CONSUMER_GROUP)")
        case _:
            return Finding(is_good=True, text=f"{where}: READ allowed")


async def _transactions(settings: Settings) -> list[Finding]:
    if settings.delivery == "at-least-once":
        return []
    try:
        await trio.to_thread.run_sync(partial(try_transactions, settings, seconds=settings.kafka_timeout_seconds))
    except CadorError as error:
        return [_failed(error)]
    return [Finding(is_good=True, text="Kafka: transactions: the brokers take our transactional id")]


def _delivery(settings: Settings, cluster_ids: dict[str, str], transactions: Sequence[Finding]) -> Finding:
    if not cluster_ids.keys() >= {place.brokers for place in places(settings)}:
        return Finding(is_good=False, text="Kafka: delivery: not known, since not every cluster has answered")
    if not all(finding.is_good for finding in transactions):
        return Finding(is_good=False, text="Kafka: delivery: none, since there are no transactions (CADOR_DELIVERY)")
    try:
        return Finding(is_good=True, text=f"Kafka: delivery: {guarantee(settings, cluster_ids).sentence}")
    except SettingsError as error:
        return _failed(error)


def _failed(error: CadorError) -> Finding:
    hint = f" ({error.hint})" if error.hint else ""
    return Finding(is_good=False, text=f"{error.message}{hint}")


def _certificate(settings: Settings) -> list[Finding]:
    if not settings.use_ssl or settings.ssl_cert is None or settings.ssl_key is None:
        return []
    try:
        server_tls(Certificate(settings.ssl_cert, settings.ssl_key), settings.ssl_client_ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"CADOR_SSL_CERT, CADOR_SSL_KEY, CADOR_SSL_CLIENT_CA: not usable: {error}"]) from error
    return [Finding(is_good=True, text=f"certificate: {settings.ssl_cert}: usable with its key")]


def _ports(settings: Settings) -> list[Finding]:
    ports = [("listener", settings.port)]
    if settings.metrics_port is not None:
        ports.append(("listener of probes and metrics", settings.metrics_port))
    return [_port(f"{what}: {settings.host}, port {port}", settings.host, port) for what, port in ports]


def _port(where: str, host: str, port: int) -> Finding:
    try:
        open_listener(host, port).close()
    except OSError as error:
        return Finding(is_good=False, text=f"{where}: {error.strerror or error}")
    return Finding(is_good=True, text=f"{where}: free")
