"""A Kafka for the demo: librdkafka's mock cluster in this process, or topics of the demo's own on real brokers.

The mock cluster needs nothing, is gone with the process, and has no transactions. On real brokers everything that is
made begins with `cador-demo-`, and is deleted at the end unless the user wants to look at it.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic  # the admin package has it too, but not for type checkers
from rich.console import Console

from cador_trio.commands.demo import DemoFailed
from cador_trio.commands.endings import CommandFailed
from cador_trio.commands.report import done
from cador_trio.commands.surroundings import BROKERS, settings_of
from cador_trio.commands.topics import Complaints, open_writer
from cador_trio.kafka.properties import admin_properties
from cador_trio.settings import Settings

KINDS: Final = ("requests", "outputs", "statuses", "tags", "dead-letters")
ANSWER_SECONDS: Final = 10.0  # for brokers to do what they are asked
CLEANUP_SECONDS: Final = 25.0  # for topics and group to be deleted, come what may

_log = logging.getLogger("cador_trio.librdkafka.demo")
_log.addHandler(logging.NullHandler())  # what it has to say is told as an error of ours
_log.propagate = False


@dataclass(frozen=True)
class DemoKafka:
    """Where the demo's job goes; `user` has what a client needs besides (TLS, SASL …)."""

    user: Settings
    brokers: str
    prefix: str
    delivery: str

    def topic(self, kind: str) -> str:
        """The name of one of `KINDS`."""
        return f"{self.prefix}{kind}"

    @property
    def group(self) -> str:
        """The daemon's consumer group."""
        return f"{self.prefix}group"

    @property
    def topics(self) -> list[str]:
        """All of them."""
        return [self.topic(kind) for kind in KINDS]

    @property
    def daemon_settings(self) -> Mapping[str, Any]:
        """What the daemon needs, by the names of `Settings`."""
        return {
            "kafka_brokers_request": self.brokers,
            "job_request_topic": self.topic("requests"),
            "kafka_consumer_group": self.group,
            "job_output_topic": self.topic("outputs"),
            "status_update_topic": self.topic("statuses"),
            "job_tags_topic": self.topic("tags"),
            "dead_letter_topic": self.topic("dead-letters"),
            "delivery": self.delivery,
            "instance_id": f"{self.prefix}daemon",
            "kafka_properties": self.user.kafka_properties,
            "kafka_properties_consumer": self.user.kafka_properties_consumer,
            "kafka_properties_producer": self.user.kafka_properties_producer,
        }


@asynccontextmanager
async def open_mock_cluster(console: Console) -> AsyncIterator[DemoKafka]:
    """A Kafka inside this process, for the length of a block."""
    # It lives as long as this client, which needs a bootstrap server and never asks it.
    owner = Producer({"bootstrap.servers": "127.0.0.1:9", "test.mock.num.brokers": 1}, logger=_log)
    (broker,) = (await trio.to_thread.run_sync(lambda: owner.list_topics(timeout=ANSWER_SECONDS))).brokers.values()
    address = f"{broker.host}:{broker.port}"
    kafka = DemoKafka(settings_of({}, {BROKERS: address}), address, "demo-", "at-least-once")
    for topic in kafka.topics:  # a topic comes to be when a producer asks for it
        await trio.to_thread.run_sync(lambda name: owner.list_topics(name, timeout=ANSWER_SECONDS), topic)
    done(console, f"A Kafka inside this process, librdkafka's mock cluster, listens at {address}")
    console.print(
        "  [yellow]It has no transactions, so the demo runs at least once.[/yellow] Exactly once takes a\n"
        "  real Kafka: --brokers HOST:PORT",
        soft_wrap=True,
    )
    yield kafka


@asynccontextmanager
async def open_topics(brokers: str, keep: bool, console: Console) -> AsyncIterator[DemoKafka]:
    """Topics of the demo's own on these brokers, for the length of a block; with `keep` they stay.

    Credentials come from CADOR_KAFKA_PROPERTIES and its twins. What was made is deleted after an error, too.

    Raises:
        SettingsError, UsageWrong: brokers or properties that can't be meant.
        CommandFailed: the brokers are not reachable.
        DemoFailed: a topic can't be made.
    """
    settings = settings_of(os.environ, {BROKERS: brokers})
    kafka = DemoKafka(settings, brokers, f"cador-demo-{secrets.token_hex(3)}-", "exactly-once")
    admin = _Admin(kafka)
    await trio.to_thread.run_sync(admin.missing, abandon_on_cancel=True)
    try:
        await trio.to_thread.run_sync(admin.create)
        done(console, f"Created {len(KINDS)} topics at {brokers}: {kafka.prefix}{{{','.join(KINDS)}}}")
        await _until_known(admin)
        yield kafka
    finally:
        if keep and admin.has_created:
            console.print(f"The topics {kafka.prefix}… stay at {brokers}, and so does the group {kafka.group}")
        else:
            await _clean_up(admin, console)  # noqa: ASYNC102 - it is shielded there, with a deadline


async def _until_known(admin: _Admin) -> None:
    """The broker that answers need not be the one that has made them."""
    with trio.move_on_after(ANSWER_SECONDS):
        while await trio.to_thread.run_sync(admin.missing, abandon_on_cancel=True):  # noqa: ASYNC110 - nobody else tells
            await trio.sleep(ANSWER_SECONDS / 100)


async def _clean_up(admin: _Admin, console: Console) -> None:
    left = "nobody knows whether it worked"
    with trio.CancelScope(shield=True) as scope:
        scope.deadline = trio.current_time() + CLEANUP_SECONDS
        left = await trio.to_thread.run_sync(admin.delete, abandon_on_cancel=True)
    if left:
        console.print(f"[red]✗[/red] {admin.kafka.prefix}… could not be deleted: {left}", soft_wrap=True)
    elif admin.has_created:
        done(console, f"Deleted the topics {admin.kafka.prefix}… and their group")


class _Admin:
    """Makes and deletes. Its methods block."""

    def __init__(self, kafka: DemoKafka) -> None:
        self.kafka = kafka
        self.has_created = False
        self._complaints = Complaints()
        self._created: list[str] = []
        properties: dict[str, Any] = {**admin_properties(kafka.user, kafka.brokers), "error_cb": self._complaints.note}
        with open_writer(kafka.user, kafka.brokers):  # properties that can't be meant are told of there
            self._client = AdminClient(properties, logger=_log)

    def missing(self) -> Sequence[str]:
        """The topics that are not there. Raises CommandFailed if nobody answers."""
        try:
            known = self._client.list_topics(timeout=ANSWER_SECONDS).topics
        except KafkaException as error:
            self._client.poll(0)  # its complaints are delivered here
            raise CommandFailed(
                f"the brokers at {self.kafka.brokers} can't be reached: {self._complaints.reason(error.args[0])}",
                hint="are address and credentials right? see --brokers and CADOR_KAFKA_PROPERTIES",
            ) from error
        return [name for name in self.kafka.topics if name not in known]

    def create(self) -> None:
        """Make the topics. Raises DemoFailed."""
        asked = self._client.create_topics(
            [NewTopic(name, 1) for name in self.kafka.topics],
            request_timeout=ANSWER_SECONDS,
            operation_timeout=ANSWER_SECONDS,
        )
        failures = []
        for name, future in asked.items():
            try:
                future.result()
            except KafkaException as error:
                failures.append(f"{name}: {self._complaints.reason(error.args[0])}")
            else:
                self._created.append(name)
        self.has_created = bool(self._created)
        if failures:
            raise DemoFailed(
                f"topics can't be created at {self.kafka.brokers}: {'; '.join(failures)}",
                "the demo needs CREATE, READ, WRITE and DELETE on topics that begin with cador-demo-",
            )

    def delete(self) -> str:
        """Delete what was made, and the daemon's group; why that did not work, or nothing."""
        if not self._created:
            return ""
        futures = {
            **self._client.delete_topics(self._created, request_timeout=ANSWER_SECONDS),
            **self._client.delete_consumer_groups([self.kafka.group], request_timeout=ANSWER_SECONDS),
        }
        failures = []
        for name, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    failures.append(f"{name}: {error.args[0].str()}")
        return "; ".join(failures)
