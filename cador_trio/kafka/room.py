"""The Kafka room as the daemon sees it: what starts when, and what ends when.

    committer, statuses      die last
      polling thread         the membership in the group
        door                 dies first

Brokers that are away at start are waited for: that is never a reason to promise less.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
import trio
from confluent_kafka import Producer

from cador_trio.errors import KafkaUnavailable
from cador_trio.job import JobRequest
from cador_trio.kafka.clients import make_consumer, make_producer
from cador_trio.kafka.cluster import (
    Guarantee,
    Survey,
    Watermarks,
    guarantee,
    look_closely,
    places,
    survey,
    verify_properties,
)
from cador_trio.kafka.committer import Claims, Committer
from cador_trio.kafka.consumer import PollingThread
from cador_trio.kafka.delivery import Desk, RestDelivery
from cador_trio.kafka.door import KafkaDoor
from cador_trio.kafka.effects import Role
from cador_trio.kafka.lag import Lag
from cador_trio.kafka.lookup import is_visible
from cador_trio.kafka.properties import (
    LARGEST_MESSAGE,
    Properties,
    consumer_properties,
    delivery_properties,
    largest_message,
    status_properties,
    transactional_properties,
)
from cador_trio.kafka.statuses import Statuses
from cador_trio.kafka.writer import AtLeastOnce, ExactlyOnce, Writer
from cador_trio.observe import metrics
from cador_trio.observe.health import Health
from cador_trio.observe.metrics import Sample
from cador_trio.run_job import House, Publisher
from cador_trio.settings import Settings

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5.0  # one look at the brokers, and the pause between two
DOUBT_SECONDS: Final = 2.0  # one look at brokers that the consumer has lost
AGAIN_SECONDS: Final = 1.0  # between two looks while something is wrong
WELL_SECONDS: Final = 1.0  # between two looks at the polling thread
LAST_COMMITS_SECONDS: Final = 10.0  # for outcomes past the point of no return, once the jobs' grace is over

POLLING_THREAD: Final = "the Kafka polling thread"


class KafkaRoom:
    """Everything Kafka, for the daemon's whole life."""

    def __init__(self, settings: Settings, health: Health, now_ms: Callable[[], int]) -> None:
        """Clients are made here, brokers are not asked yet.

        Raises:
            SettingsError: the operator's librdkafka properties can't be used.
        """
        verify_properties(settings)
        self._settings = settings
        self._health = health
        self._now_ms = now_ms
        self._trouble: str | None = "Kafka: no broker has answered yet"
        health.add_check(lambda: self._trouble)
        self._places = places(settings)
        self._topics = {place.role: place.topic for place in self._places if place.role is not None}
        self._polling = PollingThread(
            partial(make_consumer, consumer_properties(settings), self._outage), settings.job_request_topic or ""
        )
        self._token: trio.lowlevel.TrioToken
        self._doubt = trio.Event()
        self._claims = Claims()
        self._committer = Committer(
            self._polling,
            self._claims,
            partial(is_visible, consumer_properties(settings)),
            frozenset(self._topics),
        )
        self._lag = Lag(settings.job_request_topic or "", self._claims, Watermarks(settings).read)
        self._statuses = Statuses(self._status_producer(), self._topics.get(Role.STATUS))
        self._survey: Survey
        self._met = trio.Event()
        self._guarantee: Guarantee | None = None
        self._intake = trio.CancelScope()
        self._has_door = trio.Event()
        self._door: KafkaDoor | None = None

    @property
    def guarantee(self) -> str:
        """The delivery guarantee that holds, for people."""
        return "not known before the brokers answer" if self._guarantee is None else self._guarantee.sentence

    def readings(self) -> Iterator[Sample]:
        """For a scrape; asks nobody."""
        turned_at = self._polling.turned_at
        yield metrics.KAFKA_UP.at(self._trouble is None)
        yield metrics.ASSIGNED_PARTITIONS.at(len(self._claims.all()))
        yield metrics.PAUSED_PARTITIONS.at(self._polling.paused)
        yield metrics.WAITING_RECORDS.at(0 if self._door is None else self._door.waiting)
        yield metrics.UNCOMMITTED_JOBS.at(self._committer.waiting)
        if turned_at is not None:
            yield metrics.POLL_AGE.at(time.monotonic() - turned_at)
        yield from self._lag.readings()

    async def run(self) -> None:
        """Committer, statuses and the watch over the brokers, until cancelled.

        Raises:
            SettingsError: the delivery that is asked for can't be held.
            InstanceFenced: another instance uses our id.
        """
        self._token = trio.lowlevel.current_trio_token()
        await self._meet_brokers()
        self._batch_bytes = await trio.to_thread.run_sync(self._largest_batch, abandon_on_cancel=True)
        async with trio.open_nursery() as services:
            services.start_soon(self._statuses.run)
            services.start_soon(self._committer.run, self._writer())
            services.start_soon(self._watch_brokers)
            services.start_soon(self._lag.run)
            self._met.set()

    async def take_on(self, house: House, decode: Callable[[bytes], JobRequest], jobs_nursery: trio.Nursery) -> None:
        """Take jobs on and run them in this nursery, until `close_intake`."""
        with self._intake:
            await self._met.wait()
            self._door = self._made_door(house, decode)
            self._has_door.set()
            await self._door.take_on(jobs_nursery)

    async def stay_in_group(self) -> None:
        """Be a member of the group, once jobs can be taken on; returns when it has been left.

        Raises:
            CadorError: librdkafka gave up for good.
        """
        await self._has_door.wait()
        if self._door is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_thread)
            await self._polling.run(self._door)
            nursery.cancel_scope.cancel("the group has been left")

    def close_intake(self) -> None:
        """No new jobs from now on; the membership stays."""
        if self._door is not None:
            self._door.close()
        self._intake.cancel("the daemon is stopping")

    async def bound_commits(self) -> None:
        """To be started when the jobs' grace is over: what can't be committed soon is given back."""
        await trio.sleep(LAST_COMMITS_SECONDS)
        log.warning("the last outcomes can't be committed, so their jobs are given back")
        self._committer.give_up()

    async def leave(self) -> None:
        """Leave the group, with everything committed that is known."""
        if self._door is not None:
            await self._polling.leave()

    def rest_publisher(self) -> Publisher:
        """For jobs from HTTP."""
        return RestDelivery(self._desk(lambda: ""), tells_all=self._settings.publish_rest_jobs)

    def _made_door(self, house: House, decode: Callable[[bytes], JobRequest]) -> KafkaDoor:
        settings = self._settings
        return KafkaDoor(
            house=house,
            desk=self._desk(lambda: house.algorithm.name),
            claims=self._claims,
            polling=self._polling,
            decode=decode,
            cluster_id=self._survey.cluster_ids[settings.kafka_brokers_request or ""],
            slots=settings.max_concurrent_jobs,
            max_deliveries=settings.max_deliveries,
            revoke_grace_seconds=settings.revoke_grace_seconds,
            order_by_key=settings.order_by_key,
        )

    def _desk(self, algorithm: Callable[[], str]) -> Desk:
        settings = self._settings
        return Desk(
            committer=self._committer,
            statuses=self._statuses,
            topics=frozenset(self._topics),
            inline_limit=int(settings.inline_result_limit),
            largest_message=largest_message(settings),
            echo_credentials=settings.echo_credentials,
            node=socket.gethostname(),
            algorithm=algorithm,
            now_ms=self._now_ms,
        )

    def _status_producer(self) -> Producer | None:
        if Role.STATUS not in self._topics:
            return None
        return make_producer(status_properties(self._settings, self._settings.status_brokers))

    def _writer(self) -> Writer:
        settings, topics = self._settings, self._topics
        brokers = {place.role: place.brokers for place in self._places if place.role is not None}
        if self._guarantee is None or not self._guarantee.has_transactions:
            return AtLeastOnce(producers=self._plain_producers(brokers), topics=topics, polling=self._polling)
        properties = self._batched(transactional_properties(settings))
        elsewhere = {role: brokers[role] for role in self._guarantee.elsewhere}
        return ExactlyOnce(
            producer=partial(make_producer, properties),
            elsewhere=self._plain_producers(elsewhere),
            topics=topics,
            request_topic=settings.job_request_topic or "",
            polling=self._polling,
            transaction_seconds=float(properties["transaction.timeout.ms"]) / 1_000,
        )

    def _plain_producers(self, brokers: dict[Role, str]) -> dict[Role, Producer]:
        """One producer a cluster."""
        made = {
            one: make_producer(self._batched(delivery_properties(self._settings, one))) for one in set(brokers.values())
        }
        return {role: made[one] for role, one in brokers.items()}

    def _batched(self, properties: Properties) -> Properties:
        wanted = int(properties.get("batch.size", LARGEST_MESSAGE))
        return {**properties, "batch.size": min(wanted, self._batch_bytes)}

    # --- what is known of the brokers

    def _largest_batch(self) -> int:
        """Bytes: what the strictest topic takes, since a batch is held against its limit as one message would be."""
        sizes = [LARGEST_MESSAGE]
        for brokers in {place.brokers for place in self._places if place.role is not None}:
            topics = {place.topic for place in self._places if place.role is not None and place.brokers == brokers}
            with suppress(KafkaUnavailable):
                found = look_closely(self._settings, brokers, topics, seconds=LOOK_SECONDS).topics.values()
                sizes += [topic.largest_message for topic in found if topic.largest_message is not None]
        return min(sizes)

    async def _meet_brokers(self) -> None:
        """Wait until every cluster has said who it is."""
        waited_from = trio.current_time()
        has_complained = False
        while True:
            await self._look()
            if self._guarantee is not None:
                log.info("Kafka is there", delivery=self._guarantee.sentence)
                return
            if not has_complained and trio.current_time() - waited_from >= self._settings.kafka_timeout_seconds:
                has_complained = True
                log.warning("Kafka has not answered yet; waiting", reason=self._trouble)
            await trio.sleep(AGAIN_SECONDS)

    def _outage(self) -> None:
        """Called by the polling thread: the consumer has lost all brokers, so do not wait for the next look."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._suspect)

    def _suspect(self) -> None:
        self._doubt.set()

    async def _watch_brokers(self) -> None:
        """What `/readyz` says of Kafka; the clients mend themselves."""
        while True:
            with trio.move_on_after(LOOK_SECONDS if self._trouble is None else AGAIN_SECONDS):
                await self._doubt.wait()
            has_doubt, self._doubt = self._doubt.is_set(), trio.Event()
            before = self._trouble
            await self._look(DOUBT_SECONDS if has_doubt else LOOK_SECONDS)
            if self._trouble != before:
                log.warning("Kafka has changed its mind", now=self._trouble or "all is well", before=before)

    async def _look(self, seconds: float = LOOK_SECONDS) -> None:
        try:
            found = await trio.to_thread.run_sync(
                partial(survey, self._settings, seconds=seconds), abandon_on_cancel=True
            )
        except KafkaUnavailable as error:
            self._trouble = error.message
            return
        self._survey = found
        if self._guarantee is None:
            self._guarantee = guarantee(self._settings, found.cluster_ids)
        self._trouble = "; ".join(found.problems) or None

    async def _watch_thread(self) -> None:
        """The polling thread is alive as long as its turns go on."""
        seen = -1
        try:
            while True:
                if self._polling.turns != seen:
                    seen = self._polling.turns
                    self._health.beat(POLLING_THREAD)
                await trio.sleep(WELL_SECONDS)
        finally:
            self._health.retire(POLLING_THREAD)
