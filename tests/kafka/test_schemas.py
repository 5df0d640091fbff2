"""The check that all Kafka tests put their messages through can fail."""

from __future__ import annotations

import json

import jsonschema_rs
import pytest

from tests.kafka.contract import vector
from tests.kafka.schemas import check_message, check_output, check_status, check_tag
from tests.peers.kafka.records import TestRecord

CHECKS = {"output": check_output, "status": check_status, "tag": check_tag}
EXAMPLES = {"output": "output-s3", "status": "status-accepted", "tag": "tag-0"}


def record(kind: str, **changes: object) -> TestRecord:
    value = {**vector(EXAMPLES[kind]), **changes}
    task_id = (value["technicalMetadata"] if kind == "output" else value)["taskId"].encode()
    headers = [("cador-kind", kind.encode()), ("cador-task-id", task_id), ("content-type", b"application/json")]
    headers += [("x-correlation-id", b"c-1")] + ([("cador-attempt", b"1")] if kind == "status" else [])
    return TestRecord("t", 0, 0, task_id, json.dumps(value).encode(), tuple(headers), 5)


@pytest.mark.parametrize("kind", list(CHECKS))
def test_what_is_right_passes(kind: str) -> None:
    """Under its own name, and under no other."""
    CHECKS[kind](record(kind))
    check_message(record(kind))
    for other in CHECKS.keys() - {kind}:
        with pytest.raises(AssertionError):
            CHECKS[other](record(kind))


@pytest.mark.parametrize(
    ("kind", "change"),
    [("output", {"technicalMetadata": {"taskId": []}}), ("status", {"progress": 101}), ("tag", {"tagger": None})],
)
def test_what_is_wrong_fails(kind: str, change: dict[str, object]) -> None:
    """By its value."""
    good = record(kind)
    value = {**json.loads(good.value or b""), **change}
    with pytest.raises(jsonschema_rs.ValidationError):
        check_message(TestRecord("t", 0, 0, good.key, json.dumps(value).encode(), good.headers, 5))


def test_another_key_fails() -> None:
    """Key, header and value name one task."""
    good = record("status")
    with pytest.raises(AssertionError):
        check_message(TestRecord("t", 0, 0, b"other", good.value, good.headers, 5))
