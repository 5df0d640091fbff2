"""The root nursery: what starts, in what order, and what stops; signals and exit codes.

The one module that knows every room and introduces them to each other. Shutdown order is nesting order: what must die
last is opened first.

    probes           and metrics, if they have a port of their own
      spool          results have a place
        services     HTTP listener, Kafka's committer and membership, watcher of the algorithm, expiry, heartbeat
          capacity   the slots and what still runs in them
            jobs     every job, from every door
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio

from cador_trio import __version__
from cador_trio.algorithm.client import AlgorithmClient
from cador_trio.algorithm.dialect import Origin
from cador_trio.algorithm.documents import Documents
from cador_trio.algorithm.receive import SizeLimits
from cador_trio.algorithm.transport import CLOSE_ALL_SECONDS, Connection, tls_context
from cador_trio.algorithm.visit import Means
from cador_trio.algorithm.watch import PARALLEL_REQUESTS, Watch
from cador_trio.capacity import Capacity, Limits, open_capacity
from cador_trio.errors import CadorError, Conflict, InstanceFenced, SettingsError
from cador_trio.intake.http.app import App, create_app, create_operators_app
from cador_trio.intake.http.door import Door, MessageFacts
from cador_trio.intake.http.server import (
    Certificate,
    Endpoint,
    bounded_connections,
    open_listener,
    renew_certificate,
    serve_http,
    server_tls,
)
from cador_trio.intake.http.stand_in import StandIn
from cador_trio.intake.request import decode_request
from cador_trio.job import Answer, EndReason, Job, JobRequest, Json, JsonObject, Referential
from cador_trio.kafka.asyncapi import asyncapi_document, schemas
from cador_trio.kafka.room import KafkaRoom
from cador_trio.observe.health import EVENT_LOOP, STUCK_SECONDS, Health, Phase
from cador_trio.observe.loop_lag import LoopLag
from cador_trio.observe.metrics import Sample, registry_of
from cador_trio.readings import house_readings
from cador_trio.registry import Registry
from cador_trio.results.georeference import georeference
from cador_trio.results.inputs import input_references
from cador_trio.results.tags import TagContext, build_tags
from cador_trio.run_job import House, Untold
from cador_trio.self_signed import use_self_signed
from cador_trio.settings import Settings
from cador_trio.spool import Spool, open_spool
from cador_trio.storage.destinations import check_storage
from cador_trio.storage.setup import open_store
from cador_trio.storage.store import Store

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS: Final = 1.0
OPERATORS_CONNECTIONS: Final = 100  # kubelets and scrapers: whoever opens more keeps out others of their kind alone
EXIT_OK: Final = 0
EXIT_UNEXPECTED: Final = 1
EXIT_SETTINGS: Final = 2
EXIT_FENCED: Final = 4


@dataclass(frozen=True)
class Serving:
    """A daemon that serves. `stop` begins its orderly end."""

    url: str
    stop: Callable[[], None]


class ServiceFailed(Exception):
    """A service ended that should not have; the jobs had their grace before this was raised."""

    def __init__(self, service: str, exit_code: int) -> None:
        super().__init__(service)
        self.exit_code = exit_code


class _Ending:
    """The wish to end, and the service that failed, if one did."""

    def __init__(self, wanted: trio.Event | None) -> None:
        self.wanted = trio.Event() if wanted is None else wanted
        self.failed: ServiceFailed | None = None

    async def supervise(self, name: str, service: Callable[[], Awaitable[object]]) -> None:
        """Run a service for the daemon's whole life: if it fails, everything ends in order."""
        try:
            await service()
        except Exception as error:
            code = _exit_code(error)
            if code == EXIT_UNEXPECTED:
                log.exception("a service failed, so the daemon ends", service=name)
            else:
                log.error("the daemon ends", service=name, reason=_plain(error), hint=_hint(error))  # noqa: TRY400 - no traceback for that
            self.failed = self.failed or ServiceFailed(name, code)
            self.wanted.set()


async def run_daemon(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code. A second signal leaves at once with 128 + its number.

    Raises:
        ExceptionGroup: of the CadorError that says why it can't start.
    """
    _tame_garbage_collector()
    stop = trio.Event()
    exit_code = EXIT_OK
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as signal_nursery:
                signal_nursery.start_soon(_obey_signals, signals, stop)
                await serve(settings, stop=stop, has_watchdog=True)
                signal_nursery.cancel_scope.cancel("the daemon has ended")
        except* ServiceFailed as group:
            exit_code = max(error.exit_code for error in _leaves(group) if isinstance(error, ServiceFailed))
    return exit_code


async def serve(
    settings: Settings,
    *,
    stop: trio.Event | None = None,
    has_watchdog: bool = False,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The whole daemon, until `stop` is set. Cancelling it drops everything; prefer `Serving.stop`.

    `has_watchdog`: a thread writes all stacks to standard error if the event loop hangs; for one daemon a process.

    Raises:
        CadorError: it can't start.
        ServiceFailed: an unexpected end, after the jobs had their grace.
    """
    ending = _Ending(stop)
    # What can be wrong with files and ports is wrong now, before anything runs.
    tls = _server_tls(settings)
    store = open_store(settings)
    connections, watch = _algorithm_ends(settings)
    listener = _open_listener(settings.host, settings.port, "CADOR_PORT")
    health = Health(time.monotonic)
    insight = _Insight(health, LoopLag(trio.current_time, HEARTBEAT_SECONDS), watch)
    metrics = registry_of(insight.readings)
    with listener:
        async with (
            _open_to_operators(settings, create_operators_app(health, insight.guarantee, metrics), ending, health),
            _closing(connections, watch),
            open_spool(settings.spool_dir, int(settings.spool_bytes)) as spool,
            trio.open_nursery() as services,
        ):
            health.add_check(lambda: None if watch.trouble is None else watch.trouble.message)
            registry = _registry(settings, spool)
            services.start_soon(ending.supervise, "watcher of the algorithm", watch.run)
            services.start_soon(ending.supervise, "history", registry.expire)
            services.start_soon(ending.supervise, "connections to stores", store.run)
            services.start_soon(_heartbeat, health, insight.loop_lag, has_watchdog)
            insight.kafka = kafka = await _kafka_room(settings, health)
            if kafka is not None:
                services.start_soon(ending.supervise, "Kafka", kafka.run)
                services.start_soon(ending.supervise, "Kafka group", kafka.stay_in_group)
            if tls is not None and (certificate := _certificate(settings)) is not None:
                services.start_soon(ending.supervise, "certificate", lambda: renew_certificate(tls, certificate))
            async with open_capacity(connections, _limits(settings)) as capacity, trio.open_nursery() as jobs:
                watch.is_working = lambda: capacity.figures().in_use > 0
                insight.house = house = _house(settings, watch, store, spool, registry, capacity)
                door = Door(
                    settings=settings,
                    house=house,
                    publisher=Untold() if kafka is None else kafka.rest_publisher(),
                    documents=Documents(watch),
                    messages=_message_facts(settings, insight),
                    read_storage=check_storage,
                    health=health,
                    jobs_nursery=jobs,
                    now_ms=_now_ms,
                    metrics=metrics,
                )
                http = _HttpService("HTTP door", create_app(door), _endpoint(settings, listener, tls), ending, health)
                await services.start(http.serve)
                if kafka is not None:
                    jobs.start_soon(kafka.take_on, house, _decode, jobs)
                health.phase = Phase.SERVING
                log.info("serving", url=http.url, version=__version__, algorithm=settings.processing_server)
                task_status.started(Serving(http.url, ending.wanted.set))
                await ending.wanted.wait()
                health.phase = Phase.DRAINING
                log.info("stopping: jobs have their grace", seconds=settings.shutdown_grace_seconds)
                if kafka is not None:
                    kafka.close_intake()
                await _drain(registry, settings.shutdown_grace_seconds)
                if kafka is not None:
                    services.start_soon(kafka.bound_commits)
            if kafka is not None:
                await kafka.leave()
            http.shutdown.set()
            await http.ended.wait()
            services.cancel_scope.cancel("the daemon has ended")
    log.info("stopped")
    if ending.failed is not None:
        raise ending.failed


@dataclass
class _Insight:
    """What probes and scrapes are told, as far as it is there yet."""

    health: Health
    loop_lag: LoopLag
    watch: Watch
    kafka: KafkaRoom | None = None
    house: House | None = None

    def guarantee(self) -> str | None:
        """What holds for jobs from Kafka, for people; None without Kafka."""
        return None if self.kafka is None else self.kafka.guarantee

    def readings(self) -> Iterator[Sample]:
        """The gauges, as of now."""
        if self.house is not None:
            yield from house_readings(self.house, self.health, self.loop_lag, lambda: self.watch.trouble is None)
        if self.kafka is not None:
            yield from self.kafka.readings()


class _HttpService:
    """A listener as a service: its early return is a wish to end (hypercorn swallows KeyboardInterrupt).

    While the event loop hangs, a thread answers in its place.
    """

    def __init__(self, name: str, app: App, endpoint: Endpoint, ending: _Ending, health: Health) -> None:
        self.shutdown = trio.Event()
        self.ended = trio.Event()
        self.url = _url(endpoint)
        self._name = name
        self._app = app
        self._endpoint = endpoint
        self._ending = ending
        self._hang = partial(health.silence, EVENT_LOOP)

    async def serve(self, *, task_status: trio.TaskStatus[list[str]]) -> None:  # noqa: ASYNC128 - hypercorn does
        stand_in = StandIn(self._endpoint, self._hang)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    self._ending.supervise, f"stand-in of {self._name}", partial(stand_in.work, self.shutdown)
                )
                await self._ending.supervise(
                    self._name,
                    lambda: serve_http(self._app, self._endpoint, self.shutdown, task_status=task_status),
                )
                nursery.cancel_scope.cancel("the listener is closed")
        finally:
            self.ended.set()
            self._ending.wanted.set()


@asynccontextmanager
async def _open_to_operators(settings: Settings, app: App, ending: _Ending, health: Health) -> AsyncIterator[None]:
    """Probes and metrics on a port of their own, if they have one: before anything else, and until all else has ended.

    Raises:
        CadorError: the port can't be had.
    """
    if settings.metrics_port is None:
        yield
        return
    with _open_listener(settings.host, settings.metrics_port, "CADOR_METRICS_PORT") as listener:
        endpoint = Endpoint(listener, None, bounded_connections(OPERATORS_CONNECTIONS, share=1 / 8))
        http = _HttpService("probes and metrics", app, endpoint, ending, health)
        async with trio.open_nursery() as nursery:
            await nursery.start(http.serve)
            log.info("serving probes and metrics", url=http.url)
            yield
            http.shutdown.set()


async def _drain(registry: Registry, grace_seconds: float) -> None:
    """Give running jobs their grace, then end them with the reason."""
    with trio.move_on_after(grace_seconds):
        await registry.wait_all_ended()
    for record in registry.unfinished():
        try:
            record.cancel(EndReason.SHUTDOWN)
        except Conflict:  # past the point of no return: its effects are on their way, and it will end
            continue


async def _obey_signals(signals: AsyncIterator[int], stop: trio.Event) -> None:
    async for number in signals:
        if stop.is_set():
            # Somebody is in a hurry: no cleanup, no waiting for threads.
            sys.stderr.flush()
            os._exit(128 + number)
        log.info("told to stop", signal=signal.Signals(number).name)
        stop.set()


def _exit_code(error: Exception) -> int:
    """What the process says of this end."""
    leaves = list(_leaves(error))
    if any(isinstance(leaf, InstanceFenced) for leaf in leaves):
        return EXIT_FENCED
    return EXIT_SETTINGS if any(isinstance(leaf, SettingsError) for leaf in leaves) else EXIT_UNEXPECTED


def _plain(error: Exception) -> str:
    return "; ".join(str(leaf) for leaf in _leaves(error))


def _hint(error: Exception) -> str:
    """What to change, as far as that is known."""
    return "; ".join(leaf.hint for leaf in _leaves(error) if isinstance(leaf, CadorError) and leaf.hint)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _tame_garbage_collector() -> None:
    """An answer of 200,000 features is millions of living objects; to look through them all, again and again while they
    are made, stopped every thread for 0.7 s. What is loaded by now stays for good, and full looks become rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 100)


async def _heartbeat(health: Health, loop_lag: LoopLag, has_watchdog: bool) -> None:
    """The event loop is alive as long as this goes on."""
    try:
        while True:
            health.beat(EVENT_LOOP)
            loop_lag.beat()
            if has_watchdog:
                faulthandler.dump_traceback_later(STUCK_SECONDS)
            await trio.sleep(HEARTBEAT_SECONDS)
    finally:
        faulthandler.cancel_dump_traceback_later()
        health.retire(EVENT_LOOP)


# --- Introductions -----------------------------------------------------------------------------------------------


def _algorithm_ends(settings: Settings) -> tuple[list[Connection], Watch]:
    """A connection a slot, and some more for the watcher's small requests."""
    try:
        tls = tls_context(settings.algorithm_ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"CADOR_ALGORITHM_CA: no usable CA bundle: {error}"]) from error
    slots = [Connection(tls) for _ in range(settings.max_concurrent_jobs)]
    origin = Origin.from_url(settings.processing_server)
    return slots, Watch(origin, [Connection(tls) for _ in range(PARALLEL_REQUESTS)])


@asynccontextmanager
async def _closing(connections: Sequence[Connection], watch: Watch) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_ALL_SECONDS):
            for connection in connections:
                await connection.aclose()
            await watch.aclose()


async def _kafka_room(settings: Settings, health: Health) -> KafkaRoom | None:
    """Kafka, if there is any; making its clients takes a moment, and a thread."""
    if not settings.has_kafka:
        return None
    return await trio.to_thread.run_sync(KafkaRoom, settings, health, _now_ms)


def _message_facts(settings: Settings, insight: _Insight) -> MessageFacts:
    """What the HTTP door tells about messages."""
    documents = {f"/asyncapi/schemas/{name}.json": schema for name, schema in schemas().items()}
    documents["/asyncapi"] = asyncapi_document(settings, __version__)
    return MessageFacts(documents, insight.guarantee)


def _decode(data: bytes) -> JobRequest:
    return decode_request(data, check_storage)


def _registry(settings: Settings, spool: Spool) -> Registry:
    registry = Registry(
        history=settings.job_history,
        history_seconds=settings.job_history_seconds,
        history_bytes=int(settings.job_history_bytes),
        now_ms=_now_ms,
    )
    spool.make_room = registry.make_room
    return registry


def _limits(settings: Settings) -> Limits:
    return Limits(
        unfinished=settings.unfinished_jobs_limit,
        http_share=settings.http_share,
        waiting=settings.max_waiting_jobs,
        waiting_bytes=int(settings.max_waiting_bytes),
        linger_seconds=settings.job_timeout_seconds,
    )


def _house(  # noqa: PLR0913, PLR0917 - an introduction of everybody to each other
    settings: Settings, watch: Watch, store: Store, spool: Spool, registry: Registry, capacity: Capacity[Connection]
) -> House:
    sizes = SizeLimits(answer=int(settings.max_answer_bytes), result=int(settings.max_result_bytes))
    means = Means(watch=watch, spool=spool, limits=sizes, max_attempts=settings.max_attempts)
    return House(
        algorithm=AlgorithmClient(means),
        store=store,
        results=_Results(settings),
        spool=spool,
        registry=registry,
        capacity=capacity,
        job_timeout_seconds=settings.job_timeout_seconds,
        store_timeout_seconds=settings.store_timeout_seconds,
        store_inline_images=settings.store_inline_images,
    )


class _Results:
    """The room `results` with the operator's switches."""

    def __init__(self, settings: Settings) -> None:
        self._lat_step_down = settings.lat_step_down
        self._tagger = settings.tagger

    def georeference(self, value: Json, referential: Referential, output: str | None) -> Json:
        return georeference(value, referential, lat_step_down=self._lat_step_down, output=output)

    def tags(
        self, answer: Answer, job: Job, *, image_inputs: Mapping[str, bool], stored: list[JsonObject], tagger: str
    ) -> Sequence[JsonObject]:
        timestamp = job.request.input_timestamp
        context = TagContext(
            inputs=input_references(job.request.inputs, image_inputs),
            outputs=stored,
            task_id=job.task_id,
            tagger=self._tagger or tagger,
            timestamp=job.received_at if timestamp is None else timestamp,
            now=_now_ms(),
            referenced=job.request.referential is not None,
        )
        return build_tags(answer, context)


def _server_tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.use_ssl:
        return None
    certificate = _certificate(settings)
    try:
        context = server_tls(certificate, settings.ssl_client_ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"CADOR_SSL_CERT, CADOR_SSL_KEY, CADOR_SSL_CLIENT_CA: not usable: {error}"]) from error
    if certificate is None:
        use_self_signed(context)
    return context


def _certificate(settings: Settings) -> Certificate | None:
    if settings.ssl_cert is None or settings.ssl_key is None:
        return None
    return Certificate(settings.ssl_cert, settings.ssl_key)


def _open_listener(host: str, port: int, variable: str) -> socket.socket:
    try:
        return open_listener(host, port)
    except OSError as error:
        raise CadorError(
            f"can't listen on {host}, port {port}: {error.strerror or error}",
            hint=f"CADOR_HOST and {variable} say where; is another process there?",
        ) from error


def _endpoint(settings: Settings, listener: socket.socket, tls: ssl.SSLContext | None) -> Endpoint:
    return Endpoint(listener, tls, bounded_connections(settings.max_connections, share=1 / 2))


def _url(endpoint: Endpoint) -> str:
    host, port = endpoint.listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a URL that can be opened
    return f"{'http' if endpoint.tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
