"""ACCEPTED, RUNNING and progress: statuses that are sent at once, through an idempotent producer of their own.

A job's terminal status is no business of this module, but it waits until what was sent here is acknowledged.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final

import structlog
import trio
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from cador_trio.kafka.messages import Message

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.1
LAST_SECONDS: Final = 5.0  # for what is still on its way when the daemon ends


class Ticket:
    """How many statuses of one job are on their way."""

    def __init__(self) -> None:
        self._on_their_way = 0
        self._all_there = trio.Event()
        self._all_there.set()

    def add(self) -> None:
        """One more."""
        self._on_their_way += 1
        if self._all_there.is_set():
            self._all_there = trio.Event()

    def done(self) -> None:
        """One has arrived, or never will."""
        self._on_their_way -= 1
        if not self._on_their_way:
            self._all_there.set()

    async def wait_all_there(self) -> None:
        """Wait until none is."""
        await self._all_there.wait()


class Statuses:
    """Sends statuses while `run` runs; before that they wait in the producer."""

    def __init__(self, producer: Producer | None, topic: str | None) -> None:
        """Without a topic, nothing is sent."""
        self._producer = producer
        self._topic = topic
        self._token: trio.lowlevel.TrioToken | None = None
        self._has_ended = threading.Event()

    @property
    def are_wanted(self) -> bool:
        """Is there a topic for them?"""
        return self._topic is not None

    def send(self, ticket: Ticket, message: Message) -> None:
        """Send one; does not wait, and does not fail: a status that can't go is logged and left out."""
        if self._producer is None or self._topic is None or self._has_ended.is_set():
            return
        ticket.add()
        token = trio.lowlevel.current_trio_token()

        def report(error: KafkaError | None, _: KafkaMessage) -> None:
            if error is not None:
                log.warning("a status was not taken", reason=error.str())
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ticket.done)

        try:
            self._producer.produce(
                self._topic, value=message.value, key=message.key, headers=list(message.headers), on_delivery=report
            )
        except (BufferError, KafkaException) as error:
            log.warning("a status was left out", reason=str(error))
            ticket.done()

    async def run(self) -> None:
        """Serve delivery reports, until cancelled; then what is on its way has some seconds more."""
        if self._producer is None:
            await trio.sleep_forever()
        try:
            await trio.to_thread.run_sync(self._poll, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        finally:
            self._has_ended.set()

    def _poll(self) -> None:
        producer = self._producer
        while producer is not None and not self._has_ended.is_set():
            producer.poll(POLL_SECONDS)
        if producer is not None:
            producer.flush(LAST_SECONDS)
