"""The demo's job by Kafka: produced to the request topic, and everything shown that comes of it.

What is watched are the topics alone, as any consumer would; the API is asked only where the job is to be seen there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import trio
from rich.console import Console
from rich.padding import Padding

from cador_trio.commands.demo import DemoFailed
from cador_trio.commands.demo_brokers import DemoKafka, open_mock_cluster, open_topics
from cador_trio.commands.demo_http import Results, json_of, open_client, wait_ready
from cador_trio.commands.following import ENDS
from cador_trio.commands.report import done
from cador_trio.commands.topics import open_reader, open_writer
from cador_trio.job import JsonObject
from cador_trio.json_text import write
from cador_trio.kafka.dead_letters import ERROR_HEADER
from cador_trio.kafka.messages import CORRELATION_HEADER, Coordinates, Message, Record

WATCHED: Final = ("statuses", "tags", "outputs", "dead-letters")
SHOWN_TAGS: Final = 4  # in a line each; the others are counted
_WIDTH: Final = len("topic/partition/offset")


@asynccontextmanager
async def open_kafka_road(brokers: str | None, keep: bool, console: Console) -> AsyncIterator[KafkaRoad]:
    """By these brokers, or by a mock cluster in this process; for the length of a block.

    Raises:
        DemoFailed, CadorError: the brokers can't be used.
    """
    opened = open_mock_cluster(console) if brokers is None else open_topics(brokers, keep, console)
    async with opened as kafka:
        yield KafkaRoad(kafka, console)


@dataclass(frozen=True)
class KafkaRoad:
    """By Kafka."""

    kafka: DemoKafka
    console: Console

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Road."""
        return self.kafka.daemon_settings

    async def run_job(self, url: str, request: JsonObject, title: str) -> Results:
        """See Road."""
        async with open_client(url) as client:
            with self.console.status("Waiting for the daemon to be ready …"):
                ready = await wait_ready(client)
            self.console.print(Padding(f"Delivery: {ready['delivery']}", (0, 0, 0, 2)))
            seen = await self._exchange(request)
            (job_id,) = json_of(await client.get("/api/v1/jobs"), 200)  # a job by Kafka is a job like any other
            status = json_of(await client.get(f"/api/v1/jobs/{job_id}/status"), 200)
        done(self.console, f"Job {job_id} with {title} succeeded in {status['duration'] / 1000:.2f} s")
        output = seen.of("outputs")[0].value
        return Results(status["href"], output["water"]["features"], output["mask"])

    async def _exchange(self, request: JsonObject) -> _Seen:
        """Produce the request; read what comes until the last status, and all that it names, is there."""
        seen = _Seen()
        self.console.print(f"\n[bold]  {'topic/partition/offset':<{_WIDTH}}  message[/bold]")
        async with trio.open_nursery() as readers:
            send, receive = trio.open_memory_channel[_Told](0)
            for kind in WATCHED:
                readers.start_soon(self._read, kind, send)
            sent = await trio.to_thread.run_sync(self._produce, request)
            self._show(_Told("requests", sent, request))
            with self.console.status("The job …"):
                while not seen.is_whole:
                    told = await receive.receive()
                    seen.add(told)
                    if not told.is_of_the_end:
                        self._show(told)
            readers.cancel_scope.cancel("the job has ended")
        self._show_end(seen)
        if seen.end["status"] != "SUCCEEDED":
            raise DemoFailed(f"the job is {seen.end['status']}: {seen.end['errMsg']}", "the log above may say more")
        return seen

    def _show_end(self, seen: _Seen) -> None:
        """What became visible with the job's end: the topics are read side by side, so it is put in its order again."""
        tags = seen.of("tags")
        for told in tags[:SHOWN_TAGS]:
            self._show(told)
        if len(tags) > SHOWN_TAGS:
            self.console.print(f"  {'':<{_WIDTH}}  and {len(tags) - SHOWN_TAGS} more tags like those")
        for told in (*seen.of("outputs"), *seen.of("dead-letters"), *seen.of("statuses")[-1:]):
            self._show(told)
        self.console.print()

    def _show(self, told: _Told) -> None:
        place = f"{told.kind}/{told.place.partition}/{told.place.offset}"
        self.console.print(f"  {place:<{_WIDTH}}  {told.words}", markup=False, soft_wrap=True)

    def _produce(self, request: JsonObject) -> Coordinates:
        """Blocks until it is acknowledged."""
        key = str(request["technicalMetadata"]["taskId"]).encode()
        headers = ((CORRELATION_HEADER, str(uuid4()).encode()),)
        with open_writer(self.kafka.user, self.kafka.brokers) as writer:
            return writer.send(self.kafka.topic("requests"), Message(key, write(request), headers))

    async def _read(self, kind: str, send: trio.MemorySendChannel[_Told]) -> None:
        """One topic from its beginning, until cancelled."""

        def read() -> None:
            topic = self.kafka.topic(kind)
            with open_reader(self.kafka.user, self.kafka.brokers) as reader:
                begin = {partition: bounds.low for partition, bounds in reader.bounds(topic).items()}
                for record in reader.follow(topic, begin):
                    trio.from_thread.check_cancelled()
                    if record is not None:
                        trio.from_thread.run(send.send, _told(kind, record))

        await trio.to_thread.run_sync(read)


@dataclass(frozen=True)
class _Told:
    """A message: which topic it is from, where it lies there, and what it says; a dead letter says why."""

    kind: str
    place: Coordinates
    value: JsonObject

    @property
    def is_of_the_end(self) -> bool:
        """It tells of the job's end, or of what came of it."""
        return self.kind != "statuses" or self.value["status"] in ENDS

    @property
    def words(self) -> str:
        """It, in a few words."""
        return _WORDS[self.kind](self.value)


def _told(kind: str, record: Record) -> _Told:
    if kind == "dead-letters":
        value = {"error": (record.header(ERROR_HEADER) or b"").decode("utf-8", "replace")}
    else:
        value = json.loads(record.value or b"")
    return _Told(kind, Coordinates(record.topic, record.partition, record.offset), value)


@dataclass
class _Seen:
    """What has come so far; `end` is the last status, empty before."""

    all: list[_Told] = field(default_factory=list)
    end: JsonObject = field(default_factory=dict)

    def add(self, told: _Told) -> None:
        """One more message."""
        self.all.append(told)
        if told.kind == "statuses" and told.is_of_the_end:
            self.end = told.value

    def of(self, kind: str) -> list[_Told]:
        """All of one topic."""
        return [told for told in self.all if told.kind == kind]

    @property
    def is_whole(self) -> bool:
        """The job has ended, and all that its last status names, or its dead letter, has been read."""
        if not self.end:
            return False
        places = {told.place for told in self.all}
        is_told = self.end["status"] != "FAILED" or bool(self.of("dead-letters"))
        return is_told and all(place in places for place in _named(self.end))


def _named(status: JsonObject) -> list[Coordinates]:
    """The messages that a status names; stored objects are named there too."""
    entries = status.get("producedKafkaMessages", [])
    return [Coordinates(one["topic"], one["partition"], one["offset"]) for one in entries if "offset" in one]


# --- A message in a few words ------------------------------------------------------------------------------------


def _words_of_request(request: JsonObject) -> str:
    return f"task {request['technicalMetadata']['taskId']}: find water, tag it, store a mask"


def _words_of_status(status: JsonObject) -> str:
    if status["status"] != "SUCCEEDED":
        return f"{status['status']} {status['errMsg']}".rstrip()
    messages = len(_named(status))
    objects = len(status.get("producedKafkaMessages", [])) - messages
    return f"SUCCEEDED, names {messages} messages and {objects} stored object{'s' if objects != 1 else ''}"


def _words_of_tag(tag: JsonObject) -> str:
    longitude, latitude = tag["tag"]["centroid"]["coordinates"]
    area = tag["tag"]["areaM2"] / 1e6
    return f"{tag['tag']['name']}, centre {longitude:.2f}° E {latitude:.2f}° N, {area:,.0f} km²"


def _words_of_output(output: JsonObject) -> str:
    return f"water: {len(output['water']['features'])} features, mask: stored as {output['mask']['objectId']}"


def _words_of_dead_letter(letter: JsonObject) -> str:
    return str(letter["error"])


_WORDS: Final = {
    "requests": _words_of_request,
    "statuses": _words_of_status,
    "tags": _words_of_tag,
    "outputs": _words_of_output,
    "dead-letters": _words_of_dead_letter,
}
