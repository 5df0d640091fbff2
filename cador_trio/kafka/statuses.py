"""ACCEPTED, RUNNING and progress: statuses that are sent at once, through an idempotent producer of their own.

A job's terminal status is no business of this module, but it waits until what was sent here is acknowledged.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import structlog
import trio
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from cador_trio.kafka.messages import Message
from cador_trio.observe.metrics import MESSAGES, MESSAGES_LEFT_OUT

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 0.003  # between two looks for acknowledgements, while they come
LONGEST_LOOK_SECONDS: Final = 0.1  # the same, once none has come for a while
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

    @property
    def is_all_there(self) -> bool:
        """None is on its way."""
        return not self._on_their_way

    async def wait_all_there(self) -> None:
        """Wait until none is."""
        await self._all_there.wait()


class Statuses:
    """Sends statuses while `run` runs; before that they wait in the producer."""

    def __init__(self, producer: Producer | None, topic: str | None) -> None:
        """Without a topic, nothing is sent."""
        self._producer = producer
        self._topic = topic
        self._on_their_way = 0
        self._some = trio.Event()  # are on their way

    @property
    def are_wanted(self) -> bool:
        """Is there a topic for them?"""
        return self._topic is not None

    def send(self, ticket: Ticket, message: Message) -> None:
        """Send one; does not wait, and does not fail: a status that can't go is logged and left out."""
        if self._producer is None or self._topic is None:
            return
        try:
            self._producer.produce(
                self._topic,
                value=message.value,
                key=message.key,
                headers=list(message.headers),
                on_delivery=partial(self._report, ticket, structlog.contextvars.get_contextvars()),
            )
        except (BufferError, KafkaException) as error:
            MESSAGES_LEFT_OUT.labels("status").inc()
            log.warning("a status was left out", reason=str(error))
            return
        ticket.add()
        self._on_their_way += 1
        self._some.set()

    async def run(self) -> None:
        """Hear what became of them, until cancelled; then what is on its way has some seconds more.

        Looking often is quicker than a thread that is woken by each of them.
        """
        if self._producer is None:
            await trio.sleep_forever()
        try:
            while True:
                await self._some.wait()
                self._some = trio.Event()
                await self._look_until_all_there(self._producer)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST_SECONDS):
                await self._look_until_all_there(self._producer)

    async def _look_until_all_there(self, producer: Producer) -> None:
        pause = LOOK_SECONDS
        while self._on_their_way:
            await trio.sleep(pause)
            is_moving = bool(producer.poll(0))
            pause = LOOK_SECONDS if is_moving else min(1.1 * pause, LONGEST_LOOK_SECONDS)

    def _report(self, ticket: Ticket, ids: Mapping[str, Any], error: KafkaError | None, _: KafkaMessage) -> None:
        """Called by `poll`, so in Trio's thread, but in another task than that of the job with these ids."""
        (MESSAGES if error is None else MESSAGES_LEFT_OUT).labels("status").inc()
        if error is not None:
            log.warning("a status was not taken", reason=error.str(), **ids)
        self._on_their_way -= 1
        ticket.done()
