"""Messages that tests receive, held against the JSON Schemas that the daemon publishes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

import jsonschema_rs

from cador_trio.kafka.asyncapi import schemas
from tests.peers.kafka.records import TestRecord

KINDS: Final = ("output", "status", "tag")


def check_message(record: TestRecord) -> None:
    """An output, status or tag, as its `cador-kind` header says. Raises jsonschema_rs.ValidationError."""
    _check(record, (record.header("cador-kind") or b"").decode())


def check_output(record: TestRecord) -> None:
    """It is an output. Raises jsonschema_rs.ValidationError."""
    _check(record, "output")


def check_status(record: TestRecord) -> None:
    """It is a status. Raises jsonschema_rs.ValidationError."""
    _check(record, "status")


def check_tag(record: TestRecord) -> None:
    """It is a tag. Raises jsonschema_rs.ValidationError."""
    _check(record, "tag")


def check_dead_letter(record: TestRecord) -> None:
    """The headers of a dead letter; its value is whatever somebody sent. Raises jsonschema_rs.ValidationError."""
    validator("dead-letter-headers").validate(headers_of(record))


def headers_of(record: TestRecord) -> dict[str, str]:
    """As an AsyncAPI document means them: the last of each name, as text."""
    return {name: value.decode("utf-8", "replace") for name, value in record.headers if value is not None}


@cache
def validator(name: str) -> Any:
    """For the schema that is served under this name."""
    return jsonschema_rs.Draft202012Validator(schemas()[name], validate_formats=True)


def _check(record: TestRecord, kind: str) -> None:
    assert kind in KINDS, f"cador-kind is {kind!r}"
    assert record.header("cador-kind") == kind.encode()
    assert record.value is not None
    assert record.value.isascii()
    value = json.loads(record.value)
    headers = headers_of(record)
    validator("message-headers").validate(headers)
    validator(kind).validate(value)
    # What no schema can say: key, header and value name one task, and statuses alone count attempts.
    task_id = value["technicalMetadata"]["taskId"] if kind == "output" else value["taskId"]
    assert record.key == headers["cador-task-id"].encode() == str(task_id).encode("utf-8", "backslashreplace")
    assert ("cador-attempt" in headers) is (kind == "status")
