"""The AsyncAPI document and the JSON Schemas of all messages, made from the types in shapes.py.

Pure. Addresses of brokers are not told: whoever may read a topic knows them, and the document is served to anyone
who may read the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from cador_trio.job import JsonObject
from cador_trio.kafka import shapes
from cador_trio.kafka.messages import CORRELATION_HEADER
from cador_trio.settings import Settings

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_SCHEMAS: Final = "#/components/schemas/{model}"
_BINDING_VERSION: Final = "0.5.0"  # of AsyncAPI's Kafka bindings

# The schemas by the names that they are served under.
_NAMED: Final[Mapping[str, Any]] = {
    "request": shapes.Request,
    "output": shapes.Output,
    "status": shapes.Status,
    "tag": shapes.Tag,
    "request-headers": shapes.RequestHeaders,
    "message-headers": shapes.MessageHeaders,
    "dead-letter-headers": shapes.DeadLetterHeaders,
}


@dataclass(frozen=True, slots=True)
class _Channel:
    """One topic: which variable names it, what happens there, and the shapes of its messages (None: any bytes)."""

    variable: str
    action: Literal["receive", "send"]
    summary: str
    headers: Any
    payload: Any = None


_CHANNELS: Final[Mapping[str, _Channel]] = {
    "request": _Channel("EOPAAS_JOB_REQUEST_TOPIC", "receive", "A job to do.", shapes.RequestHeaders, shapes.Request),
    "output": _Channel(
        "EOPAAS_JOB_OUTPUT_TOPIC", "send", "The results of a job that succeeded.", shapes.MessageHeaders, shapes.Output
    ),
    "status": _Channel(
        "EOPAAS_STATUS_UPDATE_TOPIC", "send", "What has become of a job.", shapes.MessageHeaders, shapes.Status
    ),
    "tag": _Channel(
        "EOPAAS_JOB_TAGS_TOPIC",
        "send",
        "One detection; by default in the output topic, where cador-kind tells them apart.",
        shapes.MessageHeaders,
        shapes.Tag,
    ),
    "deadLetter": _Channel(
        "CADOR_DEAD_LETTER_TOPIC",
        "send",
        "A record that failed for good: its own key, value and headers, and what is known of the failure.",
        shapes.DeadLetterHeaders,
    ),
}


class _Schemas(GenerateJsonSchema):
    """Without a title for every field, which only spells its name differently."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - whatever the field is
        return False


@cache
def schemas() -> dict[str, JsonObject]:
    """A JSON Schema (2020-12) for every kind of message, and for headers, by name. Shared: read them only."""
    return {
        name: {"$schema": _DIALECT, **TypeAdapter(shape).json_schema(schema_generator=_Schemas)}
        for name, shape in _NAMED.items()
    }


def asyncapi_document(settings: Settings, version: str) -> JsonObject:
    """The AsyncAPI 3.0 document of a daemon with these settings. A topic that is unset is told by its variable."""
    topics = {
        "request": settings.job_request_topic,
        "output": settings.job_output_topic,
        "status": settings.status_update_topic,
        "tag": settings.tags_topic,
        "deadLetter": settings.dead_letter_topic,
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "CADoR",
            "version": version,
            "description": "Jobs from Kafka: requests in; outputs, tags, statuses and dead letters out. Times are "
            "epoch milliseconds, values are ASCII JSON, the key is the task id.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name, _CHANNELS[name], topic) for name, topic in topics.items()},
        "operations": {
            f"{channel.action}-{name}": {
                "action": channel.action,
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": channel.summary,
                "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
            }
            for name, channel in _CHANNELS.items()
        },
        "components": {
            "messages": {name: _message(name, channel) for name, channel in _CHANNELS.items()},
            "schemas": _components(),
        },
    }


def _channel(name: str, channel: _Channel, topic: str | None) -> JsonObject:
    described: JsonObject = {
        "address": topic or f"{{{channel.variable}}}",
        "description": f"{channel.variable} names it.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
    }
    if topic is None:
        described["parameters"] = {channel.variable: {"description": "A topic; none is set."}}
    return described


def _message(name: str, channel: _Channel) -> JsonObject:
    described: JsonObject = {
        "name": name,
        "summary": channel.summary,
        "headers": {"$ref": _ref_of(channel.headers)},
        "bindings": {"kafka": {"key": {"type": "string"}, "bindingVersion": _BINDING_VERSION}},
    }
    if channel.payload is None:
        anything = {"description": "What the sender wrote, whatever it is."}
        return described | {"contentType": "application/octet-stream", "payload": anything}
    return described | {
        "payload": {"$ref": _ref_of(channel.payload)},
        "correlationId": {"location": f"$message.header#/{CORRELATION_HEADER}"},
    }


def _ref_of(shape: Any) -> str:
    return _SCHEMAS.format(model=shape.__name__)


@cache
def _components() -> JsonObject:
    """Every shape once, by its own name; the named ones themselves, too."""
    found: JsonObject = {}
    for shape in _NAMED.values():
        schema = TypeAdapter(shape).json_schema(schema_generator=_Schemas, ref_template=_SCHEMAS)
        found |= schema.pop("$defs", {})
        found[shape.__name__] = schema
    return found
