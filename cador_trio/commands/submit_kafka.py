"""A job by Kafka, as any client would send it: produced, then followed by its statuses.

The status topic's end is looked up before the request is sent, so that no status is missed and no old one is read.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cador_trio.commands.endings import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    CommandFailed,
    UsageWrong,
    printable,
    say,
)
from cador_trio.commands.following import ENDS, Display, open_display
from cador_trio.commands.output import give_json
from cador_trio.commands.requests import Request
from cador_trio.commands.topics import Reader, open_reader, open_writer
from cador_trio.job import JsonObject
from cador_trio.kafka.messages import CORRELATION_HEADER, KIND_HEADER, Coordinates, Message, Record, header_bytes
from cador_trio.settings import Settings

QUIET_SECONDS: Final = 30.0  # without any status, after which the user is told what may be the matter


@dataclass(frozen=True, slots=True)
class KafkaDoor:
    """Where requests go in, and where statuses come out; without `status_topic` nobody follows."""

    settings: Settings = field(repr=False)
    brokers: str
    request_topic: str
    status_brokers: str
    status_topic: str | None

    @classmethod
    def of(cls, settings: Settings, *, follow: bool) -> KafkaDoor:
        """From the settings. Raises UsageWrong if a topic is missing."""
        brokers = settings.kafka_brokers_request or ""
        if not settings.job_request_topic:
            raise UsageWrong("there is no request topic", hint="name it by --request-topic or EOPAAS_JOB_REQUEST_TOPIC")
        if follow and not settings.status_update_topic:
            raise UsageWrong(
                "there is no status topic to follow the job by",
                hint="name it by --status-topic or EOPAAS_STATUS_UPDATE_TOPIC, or give --no-follow",
            )
        status_topic = settings.status_update_topic if follow else None
        return cls(settings, brokers, settings.job_request_topic, settings.status_brokers, status_topic)


def submit(door: KafkaDoor, request: Request, *, seconds: float | None, output: Path | None) -> int:
    """Send the request and follow its job; its last status goes to standard output or to `output`.

    Ctrl-C ends the following, not the job. `seconds` count from the start.

    Returns:
        The exit code: 0 the job succeeded (or the request is there, if nobody follows), 3 it did not, 130 Ctrl-C.

    Raises:
        CommandFailed: brokers are not reachable, a topic is missing, or time is up.
    """
    until = float("inf") if seconds is None else time.monotonic() + seconds
    if door.status_topic is None:
        sent = _send(door, request)
        give_json({"taskId": request.task_id, **sent.as_json()}, output)
        return EXIT_OK
    with open_reader(door.settings, door.status_brokers) as reader:
        begin = {partition: bounds.high for partition, bounds in reader.bounds(door.status_topic).items()}
        sent = _send(door, request)
        name = f"task {printable(str(request.task_id))}"
        try:
            say(f"{name} is sent: {sent.topic}/{sent.partition}/{sent.offset}")
            with open_display(name) as display:
                status = _Watch(door, request, display).wait_end(reader, begin, until)
        except KeyboardInterrupt:
            say(f"interrupted: {name} goes on; who cancels a job does it over HTTP, DELETE /api/v1/jobs/<id>")
            return EXIT_INTERRUPTED
    if status is None:
        raise CommandFailed(f"{name} has not ended within {seconds:g} s", hint=f"it goes on: see {door.status_topic}")
    return _end(name, status, output)


def _send(door: KafkaDoor, request: Request) -> Coordinates:
    with open_reader(door.settings, door.brokers) as reader:
        reader.bounds(door.request_topic)  # a misspelt topic must not be made by writing to it
    key = None if request.task_id is None else header_bytes(request.task_id)
    headers = tuple((name, header_bytes(value)) for name, value in request.headers.items())
    with open_writer(door.settings, door.brokers) as writer:
        return writer.send(door.request_topic, Message(key, request.body, headers))


def _end(name: str, status: JsonObject, output: Path | None) -> int:
    if status["status"] != "SUCCEEDED":
        say(f"{name}: {status['status']}: {printable(str(status.get('errMsg', '')))}")
        return EXIT_FAILED
    give_json(status, output)
    return EXIT_OK


class _Watch:
    def __init__(self, door: KafkaDoor, request: Request, display: Display) -> None:
        self._door = door
        self._request = request
        self._display = display

    def wait_end(self, reader: Reader, begin: dict[int, int], until: float) -> JsonObject | None:
        """The job's last status; None if time is up before it."""
        told_at = time.monotonic() + QUIET_SECONDS
        for record in reader.follow(str(self._door.status_topic), begin):
            status = None if record is None else self._status(record)
            if status is not None:
                told_at = float("inf")
                self._display.show(str(status["status"]), _percent(status))
                if status["status"] in ENDS:
                    return status
            if time.monotonic() > told_at:
                told_at = float("inf")
                self._display.note(
                    f"no status yet: does a daemon read {self._door.request_topic}, and write to "
                    f"{self._door.status_topic}? It may also be busy with others"
                )
            if time.monotonic() > until:
                return None
        return None

    def _status(self, record: Record) -> JsonObject | None:
        """The status in a message, if it is one of our job's."""
        if record.header(KIND_HEADER) not in {None, b"status"}:
            return None
        try:
            status = json.loads(record.value or b"")
        except ValueError:
            return None
        is_status = isinstance(status, dict) and "status" in status
        return status if is_status and self._is_ours(record, status) else None

    def _is_ours(self, record: Record, status: JsonObject) -> bool:
        # A task id need not be unique; the correlation id of this very request is. CADoR sends no headers.
        correlation_id = record.header(CORRELATION_HEADER)
        if correlation_id is not None:
            return correlation_id == header_bytes(self._request.correlation_id)
        return str(status.get("taskId")) == self._request.task_id


def _percent(status: JsonObject) -> int:
    progress = status.get("progress", 0)
    return progress if isinstance(progress, int) else 0
