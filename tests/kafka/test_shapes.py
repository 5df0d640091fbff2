"""Schemas and the AsyncAPI document: they hold for what is really sent and taken, and they say no to the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import jsonschema_rs
import pytest

from cador_trio.errors import RequestRefused
from cador_trio.intake.request import decode_request
from cador_trio.job import Answer, Attempt, Job, JobState, Product, Value
from cador_trio.kafka.asyncapi import asyncapi_document, schemas
from cador_trio.kafka.dead_letters import dead_letter
from cador_trio.kafka.messages import (
    Coordinates,
    Message,
    Produced,
    Record,
    StatusFacts,
    Subject,
    output_message,
    status_message,
    tag_message,
)
from cador_trio.results.tags import TagContext, build_tags
from cador_trio.settings import Settings
from cador_trio.storage.destinations import check_storage
from tests.kafka.contract import FOLDER, vector

INVALID: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "intake" / "vectors" / "requests-invalid.json").read_text()
)
NAMES: Final = sorted(path.stem for path in FOLDER.glob("*.json") if "original" not in path.stem)


def check(kind: str, value: Any) -> None:
    """Raises jsonschema_rs.ValidationError."""
    jsonschema_rs.Draft202012Validator(schemas()[kind], validate_formats=True).validate(value)


def check_message(kind: str, message: Message) -> None:
    """Value and headers."""
    assert message.value is not None
    check(kind, json.loads(message.value))
    check("message-headers", {name: None if value is None else value.decode() for name, value in message.headers})


@pytest.mark.parametrize("kind", ["request", "output", "status", "tag", "dead-letter-headers"])
def test_schemas_are_schemas(kind: str) -> None:
    """Of the dialect that they say."""
    assert schemas()[kind]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(schemas()[kind])


@pytest.mark.parametrize("name", NAMES)
def test_the_contracts_examples_are_valid(name: str) -> None:
    """Of every kind; their names begin with it."""
    check(name.partition("-")[0], vector(name))


@pytest.mark.parametrize("name", sorted(INVALID))
def test_requests_that_are_refused_are_invalid(name: str) -> None:
    """But for the form of a task id, which matters only beside a storage."""
    if name == "task-id-escapes":
        check("request", INVALID[name])
        return
    with pytest.raises(jsonschema_rs.ValidationError):
        check("request", INVALID[name])


S3: Final = {"url": "https://s3.example.org", "containerPath": "a/b", "key": "", "secret": ""}
ALIAS: Final = {name: value for name, value in S3.items() if name != "containerPath"} | {"container_path": "a"}
UPPER_LEFT: Final = {"lat": 1, "lon": 2}


@pytest.mark.parametrize(
    "technical",
    [
        {"taskId": None},
        {"taskId": 7},
        {"taskId": True},
        {"taskId": []},
        {"outputStorage": None},
        {"outputStorage": {}},
        {"outputStorage": []},
        {"outputStorage": {"S3": S3}},
        {"outputStorage": {"S3": ALIAS}},
        {"outputStorage": {"S3": {**S3, "ssl": "no"}}},
        {"outputStorage": {"S3": {**S3, "region": None, "token": "t"}}},
        {"outputStorage": {"S3": {"url": "https://s3.example.org", "key": "", "secret": ""}}},
        {"outputStorage": {"GCS": {"containerPath": "a"}}},
        {"outputStorage": {"S3": S3, "GCS": S3}},
        {"outputStorage": {"POSIX": {"folder": "relative"}}},
        {"outputStorage": {"POSIX": {"folder": "/data"}}},
        {"outputStorage": {"profile": "archive"}},
        {"outputStorage": {"profile": "archive", "folder": "below"}},
        {"outputStorage": {"profile": "archive", "S3": S3}},
        {"outputStorage": {"profile": ""}},
        {"postProcessing": None},
        {"postProcessing": {}},
        {"postProcessing": {"tags": True, "other": 1}},
        {"referential": None},
        {"referential": {"upperLeft": UPPER_LEFT, "latStep": 1, "lonStep": -1e-5}},
        {"referential": {"upperLeft": UPPER_LEFT, "latStep": 0, "lonStep": 1}},
        {"referential": {"upperLeft": {"lat": 91, "lon": 2}, "latStep": 1, "lonStep": 1}},
        {"referential": {"upperLeft": {"lat": "1", "lon": 2}, "latStep": 1, "lonStep": 1}},
        {"inputTimestamp": {"any": "JSON"}, "anyOtherKey": 1},
    ],
)
def test_schema_and_decoder_agree(technical: Any) -> None:
    """What one refuses the other refuses, too."""
    request = {"image": "x", "technicalMetadata": technical}
    try:
        decode_request(json.dumps(request).encode(), check_storage)
    except RequestRefused:
        with pytest.raises(jsonschema_rs.ValidationError):
            check("request", request)
    else:
        check("request", request)


# --- What is really sent -----------------------------------------------------------------------------------------


JOB_ID: Final = UUID(int=7)
MASK: Final = vector("output-posix-referential")["mask"]
GEOMETRIES: Final = [
    {"type": "Point", "coordinates": [1.0, 2.0]},
    {"type": "LineString", "coordinates": [[1.0, 2.0], [3.0, 4.0]]},
    {"type": "Polygon", "coordinates": [[[0, 0], [0, 4], [4, 4], [0, 0]]]},
    {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1.0, 2.0, 3.0]}]},
]


@pytest.mark.parametrize("task_id", ["t", 7, 1.5])
@pytest.mark.parametrize("referenced", [True, False])
def test_tags_are_valid(task_id: Any, referenced: bool) -> None:
    """As they are really made, of several geometries, with and without what is optional in them."""
    inputs: list[dict[str, Any]] = [
        {"uri": "s3://in/a.tif"},
        {"uri": None, "name": "image", "size": 3, "sha256": "0" * 64},
    ]
    context = TagContext(inputs, [MASK], task_id, "o.n.1", 1, 2, referenced)
    properties = [{"category": ["a", "b"]}, {"name": {"any": 1}, "value": [2], "confidence": 0}, None, {}]
    features = [
        {"type": "Feature", "geometry": geometry, "properties": said}
        for geometry, said in zip(GEOMETRIES, properties, strict=True)
    ]
    collection = {"type": "FeatureCollection", "features": features}
    for answer in (Answer({"d": Value(collection)}), Answer({"output": Value(collection)}, whole=True)):
        tags = build_tags(answer, context)
        assert len(tags) == 4
        for tag in tags:
            check_message("tag", tag_message(Subject(task_id, "c-1", "00-trace", 1), tag))


@pytest.mark.parametrize("state", list(JobState))
def test_statuses_are_valid(state: JobState) -> None:
    """Of every state, with and without what was produced."""
    facts = StatusFacts(state, 40, "", 5, 6)
    place = Coordinates("tags", 0, 5)
    for produced in (
        None,
        Produced((), (), None),
        Produced([MASK], [place], place),
        Produced((), [place] * 2000, place),
    ):
        check_message("status", status_message(Subject(7, "c-1", None, 2), facts, node="n", produced=produced))


@pytest.mark.parametrize("name", ["request-minimal", "request-s3", "request-posix-tags-referential"])
def test_outputs_are_valid(name: str) -> None:
    """With the metadata of every example."""
    request = decode_request(json.dumps(vector(name)).encode(), check_storage)
    job = Job(JOB_ID, "kafka", request, "c-1", 5)
    check_message("output", output_message(job, Product({}), echo_credentials=False))


@pytest.mark.parametrize("limit", [10, 10**6])
def test_dead_letters_headers_are_valid(limit: int) -> None:
    """Whole, and as a stand-in."""
    message = dead_letter(
        Record("requests", 0, 3, b"k", b"v", (("theirs", b"x"),), 5),
        error=RequestRefused("no"),
        attempts=[Attempt(1, "busy")],
        job_id=JOB_ID,
        task_name="t",
        algorithm="a/1",
        failed_at=5,
        traceparent="00-trace",
        limit=limit,
    )
    check("dead-letter-headers", {name: value.decode() for name, value in message.headers if value is not None})


@pytest.mark.parametrize(
    ("ours", "original"), [("status-succeeded", "status-original-succeeded"), ("tag-0", "tag-original-0")]
)
def test_what_the_original_sends_has_our_types(ours: str, original: str) -> None:
    """Its values in the place of ours: a reader of ours can read it, but for what it lacks."""
    check(ours.partition("-")[0], merged(vector(ours), vector(original)))


def merged(ours: Any, theirs: Any) -> Any:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return {**ours, **{name: merged(ours.get(name), value) for name, value in theirs.items()}}
    if isinstance(ours, list) and isinstance(theirs, list) and ours and theirs:
        return [merged(ours[0], theirs[0]), *ours[1:]]
    return theirs


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("status", "status-failed", {"status": "PAUSED"}),
        ("status", "status-failed", {"errMsg": None}),
        ("status", "status-failed", {"stats": {"duration": 1.5}}),
        ("status", "status-succeeded", {"producedKafkaMessages": []}),
        ("status", "status-succeeded", {"producedKafkaMessages": [{"topic": "a"}]}),
        ("tag", "tag-0", {"inputs": [{}]}),
        ("tag", "tag-0", {"confidence": None}),
        ("tag", "tag-0", {"taskId": None}),
        ("output", "output-s3", {"technicalMetadata": {}}),
    ],
)
def test_what_is_never_sent_is_invalid(kind: str, name: str, change: dict[str, Any]) -> None:
    """A schema that takes everything tells nothing."""
    with pytest.raises(jsonschema_rs.ValidationError):
        check(kind, {**vector(name), **change})


# --- Documents ---------------------------------------------------------------------------------------------------


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for member in value.values():
            yield from objects_in(member)
    elif isinstance(value, list):
        for item in value:
            yield from objects_in(item)


@pytest.mark.parametrize("kind", ["request", "output", "status", "tag", "dead-letter-headers"])
def test_every_field_is_described(kind: str) -> None:
    """By a sentence of its own, or by the type that it has, or by its name alone where there is but one value."""
    silent = {
        name
        for part in objects_in(schemas()[kind])
        for name, field in part.get("properties", {}).items()
        if "description" not in field and "$ref" not in field
    }
    assert silent <= {"type", "coordinates", "topic", "partition", "offset", "family", "status", "inputs"}


def test_the_document_is_in_itself_complete() -> None:
    """Every reference leads somewhere in it."""
    document = asyncapi_document(Settings(), "1.2.3")
    references = {part["$ref"] for part in objects_in(document) if "$ref" in part}
    assert len(references) > 30
    for reference in references:
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_channels_are_the_operators_topics() -> None:
    """By the names that are set; tags are in the output topic by default; what is unset is a parameter."""
    settings = Settings.model_validate({"EOPAAS_JOB_REQUEST_TOPIC": "requests", "EOPAAS_JOB_OUTPUT_TOPIC": "outputs"})
    channels = asyncapi_document(settings, "1")["channels"]
    assert {name: channel["address"] for name, channel in channels.items()} == {
        "request": "requests",
        "output": "outputs",
        "status": "{EOPAAS_STATUS_UPDATE_TOPIC}",
        "tag": "outputs",
        "deadLetter": "{CADOR_DEAD_LETTER_TOPIC}",
    }
    for channel in channels.values():
        assert ("parameters" in channel) == channel["address"].startswith("{")


def test_the_document_says_who_reads_and_who_writes() -> None:
    """Requests are received, all else is sent."""
    operations = asyncapi_document(Settings(), "1")["operations"]
    assert {name: operation["action"] for name, operation in operations.items()} == {
        "receive-request": "receive",
        "send-output": "send",
        "send-status": "send",
        "send-tag": "send",
        "send-deadLetter": "send",
    }
