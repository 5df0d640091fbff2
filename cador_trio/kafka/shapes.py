"""What the JSON of every message looks like, as types (wire contract, 3 and 4); schemas and documents are made of them.

Pure: types alone. What a class or a field means stands below it, for the readers of the schemas. Objects are open, as
far as nothing else is said: fields may be added to messages, and a reader has to pass over what it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic takes none of Python's own before 3.12

OPEN: Final = ConfigDict(use_attribute_docstrings=True, extra="allow")
CLOSED: Final = ConfigDict(use_attribute_docstrings=True, extra="forbid")
CONTAINER: Final = ConfigDict(
    use_attribute_docstrings=True,
    extra="allow",
    json_schema_extra={"anyOf": [{"required": ["containerPath"]}, {"required": ["container_path"]}]},
)

Milliseconds = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Step = Annotated[float, Field(json_schema_extra={"not": {"const": 0}})]
Text = Annotated[str, Field(min_length=1)]


# --- Requests ----------------------------------------------------------------------------------------------------


@with_config(CONTAINER)
class S3Settings(TypedDict):
    """A place in an S3 store, and who may write there."""

    url: Text
    """The endpoint; its scheme wins over `ssl`."""
    containerPath: NotRequired[Text]
    """The bucket, then folders if any."""
    container_path: NotRequired[Text]
    """Another spelling of `containerPath`."""
    key: str
    """The access key's id."""
    secret: str
    """The access key's secret."""
    token: NotRequired[str]
    """A session token."""
    ssl: NotRequired[bool]
    """TLS or not, where `url` has no scheme."""
    region: NotRequired[str | None]
    """The region that requests are signed for."""


@with_config(CONTAINER)
class GcsSettings(TypedDict):
    """A place in Google Cloud Storage, and who may write there."""

    containerPath: NotRequired[Text]
    """The bucket, then folders if any."""
    container_path: NotRequired[Text]
    """Another spelling of `containerPath`."""
    key: str
    """The HMAC key's id."""
    secret: str
    """The HMAC key's secret."""


@with_config(OPEN)
class PosixSettings(TypedDict):
    """A folder."""

    folder: Annotated[str, Field(pattern="^/")]
    """An absolute path inside a folder that the operator allows."""


@with_config(CLOSED)
class S3Storage(TypedDict):
    """Images go to an S3 store."""

    S3: S3Settings


@with_config(CLOSED)
class GcsStorage(TypedDict):
    """Images go to Google Cloud Storage."""

    GCS: GcsSettings


@with_config(CLOSED)
class PosixStorage(TypedDict):
    """Images go to a folder."""

    POSIX: PosixSettings


@with_config(CLOSED)
class ProfileStorage(TypedDict):
    """Images go where the operator's storage profile says."""

    profile: Text
    """The profile's name."""
    containerPath: NotRequired[str]
    """A path below the profile's own."""
    container_path: NotRequired[str]
    """Another spelling of `containerPath`."""
    folder: NotRequired[str]
    """The same for a folder."""


@with_config(CLOSED)
class NoStorage(TypedDict):
    """Images are stored nowhere."""


OutputStorage = S3Storage | GcsStorage | PosixStorage | ProfileStorage | NoStorage


@with_config(OPEN)
class UpperLeft(TypedDict):
    """Where pixel (0, 0) lies."""

    lat: Annotated[float, Field(ge=-90, le=90)]
    """Degrees."""
    lon: float
    """Degrees."""


@with_config(OPEN)
class ReferentialSettings(TypedDict):
    """How pixels become degrees: `lon = upperLeft.lon + x * lonStep`, `lat = upperLeft.lat + y * latStep`."""

    upperLeft: UpperLeft
    lonStep: Step
    """Degrees a pixel, signed."""
    latStep: Step
    """Degrees a pixel, signed; negative if north is up."""


@with_config(OPEN)
class PostProcessing(TypedDict):
    """What is made of the results besides the output."""

    tags: NotRequired[bool]
    """One tag message a feature; default false."""


@with_config(OPEN)
class TechnicalMetadata(TypedDict):
    """What CADoR is to do; other keys are kept and echoed in the output."""

    taskId: NotRequired[str | float | None]
    """The caller's id of the task, in all messages as it was sent; default the job's id. With `outputStorage` it is 1
    to 200 letters, digits or `._:-`, without a leading dot."""
    inputTimestamp: NotRequired[Any]
    """Any JSON, milliseconds by custom: each tag's `tag.timestamp`; default when the job was accepted."""
    outputStorage: NotRequired[OutputStorage | None]
    """Where images go."""
    postProcessing: NotRequired[PostProcessing]
    referential: NotRequired[ReferentialSettings | None]
    """If it is there, GeoJSON in pixels is converted to degrees."""


@with_config(OPEN)
class Request(TypedDict):
    """A job: the algorithm's inputs at top level, beside two reserved keys. UTF-8, no key twice, 100 levels at most."""

    technicalMetadata: NotRequired[TechnicalMetadata]
    userMetadata: NotRequired[Any]
    """Any JSON; handed back in the output, and never looked at."""


# --- Outputs -----------------------------------------------------------------------------------------------------


@with_config(OPEN)
class StoredFile(TypedDict):
    """A result that was stored in a folder."""

    profile: NotRequired[str]
    """The storage profile, if the request named one."""
    folder: str
    """As the request has it."""
    objectId: str
    """The file's name: `<taskId>_<output>`, and `_<index>` in a list."""
    path: str
    """The whole path."""
    uri: Annotated[str, Field(pattern="^file://")]
    """The path as a URI."""
    mediaType: str
    """Of the bytes."""
    size: Bytes
    """Bytes."""
    sha256: Sha256
    """Of the bytes, hexadecimal."""


@with_config(OPEN)
class StoredObject(TypedDict):
    """A result that was stored in a bucket."""

    profile: NotRequired[str]
    """The storage profile, if the request named one."""
    containerPath: str
    """As the request has it."""
    objectId: str
    """The last part of the key: `<taskId>_<output>`, and `_<index>` in a list."""
    bucket: str
    """The bucket."""
    key: str
    """The whole key in the bucket."""
    uri: Annotated[str, Field(pattern="^(s3|gs)://")]
    """Bucket and key, not percent-encoded."""
    mediaType: str
    """Of the bytes."""
    size: Bytes
    """Bytes."""
    sha256: Sha256
    """Of the bytes, hexadecimal."""


Reference = StoredFile | StoredObject


@with_config(OPEN)
class EchoedMetadata(TypedDict):
    """The request's technical metadata; without what in `outputStorage` could be a credential, unless the operator has
    CADOR_ECHO_CREDENTIALS on."""

    taskId: str | float
    """As sent, else the job's id."""


@with_config(OPEN)
class Output(TypedDict):
    """The results of a successful job by the algorithm's names at top level, converted to degrees if asked for.

    A result that is in a store is its reference. An answer without names is called `output`, but for a GeoJSON object,
    whose members are at top level.
    """

    technicalMetadata: EchoedMetadata
    userMetadata: Any
    """As sent, `{}` if absent."""


# --- Statuses ----------------------------------------------------------------------------------------------------


@with_config(OPEN)
class Node(TypedDict):
    """Who works on it."""

    containerId: str
    """The container's host name."""


@with_config(OPEN)
class Stats(TypedDict):
    """Figures."""

    duration: Milliseconds
    """Milliseconds from RUNNING to now; 0 before."""


@with_config(OPEN)
class MessageCoordinates(TypedDict):
    """Where a message lies."""

    topic: str
    partition: Annotated[int, Field(ge=0)]
    offset: Annotated[int, Field(ge=0)]


@with_config(OPEN)
class Status(TypedDict):
    """The state of a job: ACCEPTED, RUNNING, then one terminal status. A refused request has only FAILED.

    The terminal status is written once, and final, for `read_committed` readers of a status topic on the request
    cluster; elsewhere at least once. ACCEPTED and RUNNING may repeat, and after a change of owner follow a terminal
    one: the header `cador-attempt` tells.
    """

    taskId: str | float
    """As sent, else the job's id."""
    status: Literal["ACCEPTED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]
    errMsg: Annotated[str, Field(max_length=2_000)]
    """Why it failed or was cancelled; empty otherwise."""
    node: Node
    stats: Stats
    modifiedAt: Milliseconds
    """Epoch milliseconds; never decreasing within one owner."""
    progress: Annotated[int, Field(ge=0, le=100)]
    """Percent, as the algorithm tells; 100 with SUCCEEDED."""
    producedKafkaMessages: NotRequired[
        Annotated[list[Reference | MessageCoordinates], Field(min_length=1, max_length=1_000)]
    ]
    """With SUCCEEDED: stored results, then the tags' places, then the output's; absent when empty."""
    producedKafkaMessagesOmitted: NotRequired[Annotated[int, Field(ge=1)]]
    """How many entries are left out of `producedKafkaMessages`: tags first."""


# --- Tags --------------------------------------------------------------------------------------------------------


@with_config(OPEN)
class ImageReference(TypedDict):
    """An image that the job was given: where it is, or what it was if it came inside the request."""

    uri: str | None
    """Without user name, password and signature; null for an image inside the request."""
    name: NotRequired[str]
    """The input's name, for an image inside the request."""
    size: NotRequired[Bytes]
    """Bytes, for an image inside the request."""
    sha256: NotRequired[Sha256]
    """For an image inside the request."""


@with_config(OPEN)
class Geometry(TypedDict):
    """A GeoJSON geometry (RFC 7946)."""

    type: Literal[
        "Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection"
    ]
    coordinates: NotRequired[list[Any]]
    """Longitude and latitude in degrees; pixels if the request has no `referential`."""
    geometries: NotRequired[list[Geometry]]
    """Of a GeometryCollection."""


@with_config(OPEN)
class Point(TypedDict):
    """A GeoJSON Point."""

    type: Literal["Point"]
    coordinates: Annotated[list[float], Field(min_length=2)]


@with_config(OPEN)
class Detection(TypedDict):
    """What was detected."""

    linkedId: Annotated[int, Field(ge=0)]
    """The feature's place in its collection, from 0."""
    family: Literal["detection"]
    geometry: Geometry
    value: Any
    """The feature's property of that name."""
    name: Any
    """The feature's property of that name, else its `category`, several joined by commas."""
    timestamp: Any
    """The request's `inputTimestamp`, else when the job was accepted."""
    area: Annotated[float, Field(ge=0)]
    """In square units of the coordinates."""
    centroid: Point
    """In the plane of the coordinates."""
    areaM2: NotRequired[Annotated[float, Field(ge=0)]]
    """Square metres on WGS 84, if the coordinates are degrees."""
    bbox: Annotated[list[float], Field(min_length=4, max_length=4)]
    """Least x, least y, greatest x, greatest y."""
    output: str | None
    """The output that the feature is in; null if it is the whole answer."""


@with_config(OPEN)
class Tag(TypedDict):
    """A feature that the algorithm detected: one message each, if the request asks for tags."""

    inputs: list[ImageReference]
    """The job's input images."""
    outputs: list[Reference]
    """The job's results that are in a store."""
    confidence: float
    """The feature's property of that name; default 1."""
    tag: Detection
    timestamp: Milliseconds
    """When the tag was made, epoch milliseconds."""
    tagger: str
    """`organization.name.version` of the algorithm."""
    taskId: str | float
    """As sent, else the job's id."""


# --- Headers -----------------------------------------------------------------------------------------------------


RequestHeaders = TypedDict(
    "RequestHeaders",
    {
        "x-correlation-id": NotRequired[
            Annotated[str, Field(description="Passed on to the algorithm and to all messages; made if absent.")]
        ],
        "traceparent": NotRequired[Annotated[str, Field(description="The W3C trace context that the job belongs to.")]],
        "tracestate": NotRequired[Annotated[str, Field(description="What vendors add to `traceparent`.")]],
        "cador-kind": NotRequired[
            Annotated[str, Field(description="A record of kind `status` or `tag` is no request: it is passed over.")]
        ],
    },
)

TaskIdHeader = Annotated[str, Field(description="The task id as text; it is the message's key, too.")]
CorrelationHeader = Annotated[str, Field(description="The request's own, else one that was made for the job.")]
TraceHeader = Annotated[str, Field(description="The W3C trace context, if there is one.")]
TraceStateHeader = Annotated[str, Field(description="What vendors add to `traceparent`, if they do.")]

MessageHeaders = TypedDict(
    "MessageHeaders",
    {
        "cador-kind": Annotated[Literal["output", "status", "tag"], Field(description="What the message is.")],
        "cador-task-id": TaskIdHeader,
        "content-type": Literal["application/json"],
        "x-correlation-id": CorrelationHeader,
        "traceparent": NotRequired[TraceHeader],
        "tracestate": NotRequired[TraceStateHeader],
        "cador-attempt": NotRequired[
            Annotated[
                str,
                Field(
                    pattern="^[1-9][0-9]*$",
                    description="On statuses: which delivery of the request this is; more than 1 after a process died.",
                ),
            ]
        ],
    },
)

DeadLetterHeaders = TypedDict(
    "DeadLetterHeaders",
    {
        "cador-error-class": Annotated[str, Field(description="The kind of error, such as `RequestRefused`.")],
        "cador-error": Annotated[str, Field(description="What went wrong, and in parentheses what to change.")],
        "cador-attempts": Annotated[
            str, Field(description='JSON: `[{"at": epoch milliseconds, "error": text}]`, the tries that failed before.')
        ],
        "cador-origin": Annotated[str, Field(pattern="^.+/[0-9]+/[0-9]+$", description="`topic/partition/offset`.")],
        "cador-job-id": Annotated[str, Field(description="The job's id in URLs and logs.")],
        "cador-task-id": Annotated[str, Field(description="The task id as text, else the job's id.")],
        "cador-algorithm": Annotated[str, Field(description="`name/version` of the algorithm.")],
        "cador-failed-at": Annotated[str, Field(pattern="^[0-9]+$", description="Epoch milliseconds.")],
        "traceparent": NotRequired[TraceHeader],
        "cador-replaced": NotRequired[
            Annotated[
                str,
                Field(
                    description="There if the record was too large: the value is JSON with its topic, partition, "
                    "offset, size in bytes and sha256 instead."
                ),
            ]
        ],
    },
)
