"""The frozen values that travel between the rooms, and the one table of job states.

Values only: nothing here does I/O, knows a clock or an edge library. What a door decoded is not checked again further
in. Times are integer epoch milliseconds, sizes are bytes, longitudes and latitudes are degrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Literal, Protocol
from uuid import UUID

from cador_trio.errors import CadorError

# What json.loads gives. Not a recursive alias: mypy would want a cast at every step into it.
Json = Any
JsonObject = dict[str, Any]

Door = Literal["http", "kafka"]

# An answer that is one value without names (a bare image, an array, a text) goes by this name (wire contract, 3.2).
WHOLE_ANSWER: Final = "output"
# Keys of the envelope; no output may have these names (wire contract, 3.1).
RESERVED_NAMES: Final = ("technicalMetadata", "userMetadata")


# --- What is asked for -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Referential:
    """Where pixel (0, 0) lies and how far one pixel goes.

    `lon = upper_left_lon + x * lon_step`, `lat = upper_left_lat + y * lat_step`: degrees, signed steps, finite, steps
    not zero.
    """

    upper_left_lon: float
    upper_left_lat: float
    lon_step: float
    lat_step: float


@dataclass(frozen=True, slots=True)
class StorageRequest:
    """Where the request wants its images: the settings as written, the variant already checked.

    With `profile` the operator has named the destination. `destinations.py` decides whether and where exactly; `repr`
    shows no credentials.
    """

    variant: Literal["S3", "GCS", "POSIX", "profile"]
    settings: Mapping[str, Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A request, decoded and checked, the same from every door.

    Attributes:
        inputs: the algorithm's payload, reserved keys taken out.
        technical_metadata: the object as sent (`{}` if absent), for the echo.
        user_metadata: any JSON as sent (`{}` if absent), for the echo.
        task_id: `technicalMetadata.taskId` as sent, text or number; None if absent.
        size: bytes of the request as it came; large ones are worked on in a thread.
    """

    inputs: JsonObject
    technical_metadata: JsonObject
    user_metadata: Json
    task_id: str | int | float | None
    input_timestamp: Json
    storage: StorageRequest | None
    wants_tags: bool
    referential: Referential | None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was taken in, with its identity and what its caller wants passed along.

    `job_id` is ours (in URLs); `task_name` is what messages and object names use: the request's task id, else the job
    id. `received_at` is epoch milliseconds. `forwarded` are headers for every call of this job to the algorithm. A job
    `is_patient` unless somebody holds a connection open for it: it waits while the algorithm is unreachable.
    `traceparent` and `tracestate` are the W3C trace context that it is part of. `origin` is topic, partition and offset
    of the record that it came in. `attempt` counts its deliveries: 1, or more after a process that had begun it died.
    """

    job_id: UUID
    door: Door
    request: JobRequest
    correlation_id: str
    received_at: int
    forwarded: Mapping[str, str] = field(default_factory=dict)
    is_patient: bool = True
    traceparent: str | None = None
    attempt: int = 1
    tracestate: str | None = None
    origin: tuple[str, int, int] | None = None

    @property
    def task_id(self) -> str | int | float:
        """The task id as sent, else the job id as text: what `taskId` in messages holds."""
        return str(self.job_id) if self.request.task_id is None else self.request.task_id

    @property
    def task_name(self) -> str:
        """The task id as text: for object names, keys and logs."""
        return str(self.task_id)

    def within(self, trace: Mapping[str, str]) -> Job:
        """The same as part of this trace (`traceparent`, `tracestate`): for the algorithm, and for its messages."""
        return replace(
            self,
            forwarded={**self.forwarded, **trace},
            traceparent=trace.get("traceparent"),
            tracestate=trace.get("tracestate"),
        )

    def without_payload(self) -> Job:
        """What history keeps of it: who and when, but no pixels, no metadata, no credentials."""
        bare = replace(self.request, inputs={}, technical_metadata={}, user_metadata=None, storage=None)
        return replace(self, request=bare)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A try at the algorithm that failed: when (epoch milliseconds), and how."""

    at: int
    error: str


# --- What comes back ---------------------------------------------------------------------------------------------


class Body(Protocol):
    """Bytes of one result, in the spool (memory while small, a file past that).

    Owned by one holder at a time, who must `close` it; closing twice is fine. `open` gives an independent reader that
    stays good after `close`.
    """

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes."""

    @property
    def in_memory(self) -> bool:
        """Reading it doesn't touch the disk."""

    def read_all(self) -> bytes:
        """All bytes; for small or limited bodies only. May block on the disk."""

    def open(self) -> BodyReader:
        """A reader from the first byte. May block on the disk."""

    def close(self) -> None:
        """Give the bytes back to the spool. Does not wait."""


class BodyReader(Protocol):
    """A blocking reader over a Body, to be used in a worker thread."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, empty at the end."""

    def seek(self, offset: int, /) -> int:
        """Go to that many bytes from the first; the new place."""

    def close(self) -> None:
        """Release it; closing twice is fine."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image (or any other bytes that are no JSON) in the spool. `index` is its place in a list of images."""

    output: str
    index: int | None
    media_type: str
    body: Body

    @property
    def result_id(self) -> str:
        """`<output>`, or `<output>_<index>` in a list: the id in our URLs and the end of the object's name."""
        return self.output if self.index is None else f"{self.output}_{self.index}"


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON output, as the algorithm gave it or as we converted it; `encoding` and `media_type` as in Result."""

    json: Json
    media_type: str = "application/json"
    encoding: Literal["json", "text", "base64"] = "json"


Output = Value | Image | Sequence[Image]


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything the algorithm answered, by output name, in the algorithm's order.

    Attributes:
        whole: the answer had no names: one bare image, an array, a text, a GeoJSON object; its single output is
            `WHOLE_ANSWER`.
        size: bytes of the JSON in it; large ones are worked on in a thread.
        leftovers: what the algorithm still holds: links to delete, in this order, once everything is safe with us.
    """

    outputs: Mapping[str, Output]
    whole: bool = False
    size: int = 0
    leftovers: Sequence[str] = ()

    def images(self) -> list[Image]:
        """Every image, lists flattened, in order."""
        found: list[Image] = []
        for output in self.outputs.values():
            if isinstance(output, Image):
                found.append(output)
            elif not isinstance(output, Value):
                found.extend(output)
        return found

    def close(self) -> None:
        """Give the images' bytes back to the spool."""
        for image in self.images():
            image.body.close()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An image that is safe in a store: `image_id` is its result id, `reference` what messages hold (section 4)."""

    image_id: str
    reference: JsonObject


class JobState(StrEnum):
    """States of a job, by the words of the Geo Process API's Status."""

    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """No move leads out of it."""
        return not LEGAL_MOVES[self]


# The whole life of a job. A job that is given back (shutdown, revocation) has no move here: it is forgotten, and its
# next owner starts with ACCEPTED.
LEGAL_MOVES: Final[Mapping[JobState, frozenset[JobState]]] = {
    JobState.ACCEPTED: frozenset({JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class EndReason(StrEnum):
    """Why a job ended before its end: the five ends (and each one's outcome in `run_job`)."""

    CALLER_CANCELLED = "cancelled by the client"
    DEADLINE = "deadline passed"
    CALLER_LEFT = "the caller left"
    SHUTDOWN = "the daemon is stopping"
    REVOKED = "the partition was taken away"


@dataclass(frozen=True, slots=True)
class Result:
    """One result as it is handed out: JSON, an image that we hold, or the reference of an image in a store.

    Attributes:
        result_id: its id in our URLs: the output's name, in a list of images `<output>_<index>`.
        output, index: which output it is (part of).
        media_type: of the bytes themselves; an inline base64 image has the image's.
        body: the bytes; JSON text for JSON outputs. None if it is in a store.
        encoding: `json` (the body is JSON), `text` (the body is a JSON text, handed out bare), `base64` (the body is a
            JSON text that holds an image), `none` (the body is the image itself).
        reference: where the store has it (wire contract, section 4).
    """

    result_id: str
    output: str
    index: int | None
    media_type: str
    body: Body | None
    encoding: Literal["json", "text", "base64", "none"] = "json"
    reference: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Product:
    """What is handed out for a successful job: by output name, in the algorithm's order; a list of images is a tuple.

    `whole` as in Answer: the one output is the whole answer.
    """

    outputs: Mapping[str, Result | tuple[Result, ...]]
    whole: bool = False

    @property
    def results(self) -> list[Result]:
        """Every result, lists flattened, in order."""
        found: list[Result] = []
        for output in self.outputs.values():
            found.extend(output if isinstance(output, tuple) else (output,))
        return found

    @property
    def size(self) -> int:
        """Bytes in the spool."""
        return sum(result.body.size for result in self.results if result.body is not None)

    def stored(self, result: Result, reference: JsonObject) -> Product:
        """The same with this result in a store."""
        moved = replace(result, body=None, reference=reference)
        outputs = {
            name: tuple(moved if item is result else item for item in output)
            if isinstance(output, tuple)
            else (moved if output is result else output)
            for name, output in self.outputs.items()
        }
        return Product(outputs, self.whole)

    def without(self, gone: Result) -> Product:
        """The same without one result."""
        outputs: dict[str, Result | tuple[Result, ...]] = {}
        for name, output in self.outputs.items():
            if isinstance(output, tuple):
                outputs[name] = tuple(item for item in output if item is not gone)
            elif output is not gone:
                outputs[name] = output
        return Product(outputs, self.whole and bool(outputs))

    def close(self) -> None:
        """Give all bytes back to the spool."""
        for result in self.results:
            if result.body is not None:
                result.body.close()


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The job is done; its product is safe."""

    product: Product
    state: Literal[JobState.SUCCEEDED] = JobState.SUCCEEDED


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended badly; the error says who must act."""

    error: CadorError
    state: Literal[JobState.FAILED] = JobState.FAILED


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody ended the job; that is no failure."""

    reason: EndReason
    state: Literal[JobState.CANCELLED] = JobState.CANCELLED


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A Kafka job that stops without a terminal status: its next owner runs it."""

    reason: EndReason


Outcome = Succeeded | Failed | Cancelled | GivenBack
