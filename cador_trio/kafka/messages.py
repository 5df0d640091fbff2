"""Messages as they come and as they go: the request topic's records; outputs, tags and statuses (wire contract, 3).

Pure, but for bodies that may be read from the disk. Nothing here knows a client; what is built is ready to be produced,
in ASCII JSON, under the task id as its key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NoReturn

from cador_trio.document import Piece, pieces, size_of
from cador_trio.errors import ResultRefused
from cador_trio.job import RESERVED_NAMES, WHOLE_ANSWER, Job, JobState, Json, JsonObject, Product, Result
from cador_trio.json_text import read_answer, write

Kind = Literal["output", "status", "tag"]

KIND_HEADER: Final = "cador-kind"
TASK_ID_HEADER: Final = "cador-task-id"
CONTENT_TYPE_HEADER: Final = "content-type"
CORRELATION_HEADER: Final = "x-correlation-id"
TRACE_HEADER: Final = "traceparent"
TRACE_STATE_HEADER: Final = "tracestate"
ATTEMPT_HEADER: Final = "cador-attempt"

Headers = tuple[tuple[str, bytes | None], ...]

# What a status tells of a job with 200,000 tags must fit into a message: past this many, tags are only counted.
MAX_PRODUCED: Final = 1_000

# Kafka's record batch header, then the widest that its own fields of one record can be; and two lengths a header.
_RECORD_OVERHEAD: Final = 61 + 36
_HEADER_OVERHEAD: Final = 10

_WHOLE_OPENING: Final = b"{" + write(WHOLE_ANSWER) + b":"

# Members of `outputStorage` that are credentials, whatever their spelling: key, secret, token, accessKeyId, password …
_CREDENTIAL: Final = re.compile(r"(?i)key|secret|token|passw|credential|signature")


@dataclass(frozen=True, slots=True)
class Record:
    """A message of the request topic, as it came. `timestamp` is epoch milliseconds; `repr` shows no content."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int

    def __repr__(self) -> str:
        return f"Record({self.topic}/{self.partition}/{self.offset})"

    @property
    def place(self) -> tuple[str, int, int]:
        """Its topic, partition and offset."""
        return self.topic, self.partition, self.offset

    def header(self, name: str) -> bytes | None:
        """The last one of that name."""
        return next((value for found, value in reversed(self.headers) if found == name), None)


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a message is about: what all messages of a job share. `task_id` as in `Job`."""

    task_id: str | int | float
    correlation_id: str
    traceparent: str | None
    attempt: int
    tracestate: str | None = None

    @classmethod
    def of(cls, job: Job) -> Subject:
        """A job's."""
        return cls(job.task_id, job.correlation_id, job.traceparent, job.attempt, job.tracestate)

    def within(self, trace: Mapping[str, str]) -> Subject:
        """The same as part of this trace (`traceparent`, `tracestate`), if there is one."""
        if not trace:
            return self
        return replace(self, traceparent=trace.get(TRACE_HEADER), tracestate=trace.get(TRACE_STATE_HEADER))

    @property
    def task_name(self) -> str:
        """The task id as text."""
        return str(self.task_id)


@dataclass(frozen=True, slots=True)
class Message:
    """Ready to be produced."""

    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Bytes as client and broker count them against their limits, uncompressed; never less than they do."""
        content = len(self.key or b"") + len(self.value or b"")
        names = sum(len(name.encode()) + len(value or b"") + _HEADER_OVERHEAD for name, value in self.headers)
        return _RECORD_OVERHEAD + content + names


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where a message lies."""

    topic: str
    partition: int
    offset: int

    def as_json(self) -> JsonObject:
        """As `producedKafkaMessages` holds it."""
        return {"topic": self.topic, "partition": self.partition, "offset": self.offset}


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """What a status says of its job. `duration` is milliseconds from RUNNING on, `modified_at` epoch milliseconds;
    `error` is public text, empty unless it failed or was cancelled."""

    state: JobState
    progress: int
    error: str
    duration: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class Produced:
    """What a successful job has left: its objects in stores, and where its messages lie; `tags` has at least the first
    `MAX_PRODUCED` of `tag_count`."""

    references: Sequence[JsonObject]
    tags: Sequence[Coordinates]
    output: Coordinates | None
    tag_count: int = 0  # if it is more than there are in `tags`


# --- Output ------------------------------------------------------------------------------------------------------


def output_message(job: Job, product: Product, *, echo_credentials: bool) -> Message:
    """The one output of a successful job. Reads bodies: may block on the disk.

    A whole answer that is a JSON object has its members beside the metadata; any other goes by the name `output`.

    Raises:
        ResultRefused: an image that is in no store, or a whole answer with a member called as the envelope is.
    """
    document = b"".join(part if isinstance(part, bytes) else part.read_all() for part in _parts(product))
    if product.whole and not document.startswith(b"{"):
        document = _WHOLE_OPENING + document + b"}"
    elif product.whole:
        _check_members(document)
    separator = b"" if document == b"{}" else b","
    value = document[:-1] + separator + _envelope(job, echo_credentials=echo_credentials)
    return _message(Subject.of(job), "output", value)


def output_size(job: Job, product: Product, *, echo_credentials: bool) -> int:
    """An upper bound of the output message's size, without reading a body.

    Raises:
        ResultRefused: an image that is in no store.
    """
    envelope = _message(Subject.of(job), "output", _envelope(job, echo_credentials=echo_credentials))
    return size_of(_parts(product)) + len(_WHOLE_OPENING) + len(b"},") + envelope.size


def without_credentials(technical_metadata: JsonObject) -> JsonObject:
    """Technical metadata as others may read it: nothing in `outputStorage` that could be a credential."""
    if "outputStorage" not in technical_metadata:
        return technical_metadata
    return {**technical_metadata, "outputStorage": _redacted(technical_metadata["outputStorage"])}


def _redacted(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _redacted(member) for name, member in value.items() if not _CREDENTIAL.search(name)}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return value


def _envelope(job: Job, *, echo_credentials: bool) -> bytes:
    """The metadata's members and the closing brace. A task id of ours is told where the caller's would stand."""
    request = job.request
    technical = request.technical_metadata if echo_credentials else without_credentials(request.technical_metadata)
    return write({"technicalMetadata": {**technical, "taskId": job.task_id}, "userMetadata": request.user_metadata})[1:]


def _parts(product: Product) -> list[Piece]:
    return list(pieces(product, _refuse_image))


def _refuse_image(result: Result) -> NoReturn:
    raise ResultRefused(
        f"{result.result_id} is an image of {0 if result.body is None else result.body.size} bytes, "
        "and an output message holds only references to images",
        hint="ask for outputStorage in technicalMetadata",
    )


def _check_members(document: bytes) -> None:
    """As a cheap look first: our own writer spells names in one way only."""
    for name in RESERVED_NAMES:
        if write(name) in document and name in read_answer(document):
            raise ResultRefused(
                f"the algorithm's answer has a member called {name}, which is the envelope's", hint="rename the member"
            )


# --- Tags and statuses -------------------------------------------------------------------------------------------


def tag_message(subject: Subject, tag: JsonObject) -> Message:
    """One tag, as `results/tags.py` made it."""
    return _message(subject, "tag", write(tag))


def status_message(subject: Subject, facts: StatusFacts, *, node: str, produced: Produced | None = None) -> Message:
    """A status of a job. `node` is the container's name."""
    body: JsonObject = {
        "taskId": subject.task_id,
        "status": str(facts.state),
        "errMsg": facts.error,
        "node": {"containerId": node},
        "stats": {"duration": facts.duration},
        "modifiedAt": facts.modified_at,
        "progress": 100 if facts.state is JobState.SUCCEEDED else facts.progress,
    }
    if produced is not None:
        body |= _produced(produced)
    attempt = (ATTEMPT_HEADER, str(subject.attempt).encode())
    return _message(subject, "status", write(body), attempt)


def _produced(produced: Produced) -> JsonObject:
    """References, tags, the output; past the limit tags are left out, then references from the end."""
    output = [] if produced.output is None else [produced.output.as_json()]
    total = len(produced.references) + max(produced.tag_count, len(produced.tags)) + len(output)
    if total <= MAX_PRODUCED:
        entries = [*produced.references, *(tag.as_json() for tag in produced.tags), *output]
        return {"producedKafkaMessages": entries} if entries else {}
    entries = [*produced.references[: MAX_PRODUCED - len(output)], *output]
    return {"producedKafkaMessages": entries, "producedKafkaMessagesOmitted": total - len(entries)}


# --- All of them -------------------------------------------------------------------------------------------------


def header_bytes(text: str) -> bytes:
    """UTF-8; half of a surrogate pair, which JSON can spell and UTF-8 can't, is escaped."""
    return text.encode("utf-8", "backslashreplace")


def _message(subject: Subject, kind: Kind, value: bytes, *more: tuple[str, bytes]) -> Message:
    name = header_bytes(subject.task_name)
    headers = [
        (KIND_HEADER, kind.encode()),
        (TASK_ID_HEADER, name),
        (CONTENT_TYPE_HEADER, b"application/json"),
        (CORRELATION_HEADER, header_bytes(subject.correlation_id)),
        *more,
    ]
    if subject.traceparent is not None:
        headers.append((TRACE_HEADER, header_bytes(subject.traceparent)))
        if subject.tracestate is not None:
            headers.append((TRACE_STATE_HEADER, header_bytes(subject.tracestate)))
    return Message(name, value, tuple(headers))
