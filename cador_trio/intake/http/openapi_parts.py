"""The parts of our OpenAPI document that its operations refer to: schemas, headers, parameters and error answers.

Plain data. It keeps to what OpenAPI 3.0 and 3.1 have in common (a value that may be null is `{"enum": [null]}` in an
`anyOf`), so that readers of either version understand all of it.
"""

from __future__ import annotations

from typing import Any, Final

from cador_trio.job import JobState, JsonObject

JSON: Final = "application/json"
TEXT: Final = "text/plain"
# As the daemon serves them; this room does not know what makes them.
MESSAGE_SCHEMAS: Final = [
    "dead-letter-headers",
    "message-headers",
    "output",
    "request",
    "request-headers",
    "status",
    "tag",
]
PAGE_FILES: Final = ["favicon-32x32.png", "page.js", "swagger-ui-bundle.js", "swagger-ui.css"]

_NULL: Final[JsonObject] = {"enum": [None]}
_PLAIN_TEXT: Final[JsonObject] = {
    "type": "string",
    "minLength": 1,
    "maxLength": 200,
    "pattern": "^[!-~]([ -~]{0,198}[!-~])?$",
}
_URL: Final[JsonObject] = {"type": "string", "format": "uri"}
_TASK_ID: Final[JsonObject] = {"anyOf": [{"type": "string"}, {"type": "number"}]}


def ref(kind: str, name: str) -> JsonObject:
    """A reference to a part: its kind is `schemas`, `headers`, `parameters` or `responses`."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> JsonObject:
    """A reference to a schema."""
    return ref("schemas", name)


def _object(required: list[str], description: str = "", **properties: Any) -> JsonObject:
    found: JsonObject = {"type": "object", "properties": properties}
    if required:
        found["required"] = required
    if description:
        found["description"] = description
    return found


# --- Schemas -----------------------------------------------------------------------------------------------------

_LONGITUDE: Final[JsonObject] = {"type": "number", "description": "degrees"}
_STEP: Final[JsonObject] = {
    "type": "number",
    "not": {"enum": [0]},
    "description": "degrees a pixel, signed; an image with north up has a negative latStep",
}
_CONTAINER: Final[JsonObject] = {
    "containerPath": {"type": "string", "minLength": 1, "description": "bucket, then folders"},
    "key": {"type": "string"},
    "secret": {"type": "string"},
}

_STORAGE: Final[JsonObject] = {
    "description": "Where images go; exactly one store, inside what the operator allows. Null or {}: nowhere.",
    "anyOf": [
        _object(
            ["POSIX"],
            POSIX=_object(["folder"], folder={"type": "string", "pattern": "^/", "description": "an absolute path"}),
        ),
        _object(["S3"], S3=_object(["url", "containerPath", "key", "secret"], url={"type": "string"}, **_CONTAINER)),
        _object(["GCS"], GCS=_object(["containerPath", "key", "secret"], **_CONTAINER)),
        _object(
            ["profile"],
            "A destination that the operator has named; a path goes below its own.",
            profile={"type": "string"},
            containerPath={"type": "string"},
            folder={"type": "string"},
        ),
        {"type": "object", "maxProperties": 0},
        _NULL,
    ],
}

_REFERENTIAL: Final[JsonObject] = {
    "description": "Where pixel (0, 0) is and how far one pixel goes: all GeoJSON is converted to degrees with it.",
    "anyOf": [
        _object(
            ["upperLeft", "lonStep", "latStep"],
            upperLeft=_object(
                ["lon", "lat"],
                lon=_LONGITUDE,
                lat={**_LONGITUDE, "minimum": -90, "maximum": 90},
            ),
            lonStep=_STEP,
            latStep=_STEP,
        ),
        _NULL,
    ],
}

SCHEMAS: Final[JsonObject] = {
    "Error": _object(
        ["message", "hint", "correlationId", "timestamp"],
        "What went wrong, and what to change.",
        message={"type": "string"},
        hint={"type": "string", "description": "empty if there is none"},
        correlationId={"type": "string"},
        timestamp={"type": "string", "format": "date-time"},
    ),
    "Reference": _object(
        ["relation", "href", "type", "method"],
        relation={"type": "string"},
        href=_URL,
        type={"type": "string", "description": "media type of what is there"},
        method={"type": "string", "enum": ["GET", "POST", "PUT", "DELETE"]},
    ),
    "StatusReference": {
        "description": "Where the job's status is; `link` says the same to clients of PESTO.",
        "allOf": [schema("Reference"), _object(["link"], link=_URL)],
    },
    "JobRequest": _object(
        [],
        "The algorithm's inputs, as `input` of its describe document has them, at the top level; and beside them:",
        technicalMetadata=_object(
            [],
            "What to do with the results. Other keys are kept and ignored.",
            taskId={
                "description": "the caller's name of the job; in object names, so a plain one if images are stored",
                "anyOf": [*_TASK_ID["anyOf"], _NULL],
            },
            inputTimestamp={"description": "any JSON, by custom epoch milliseconds; copied to every tag"},
            outputStorage=_STORAGE,
            postProcessing=_object([], tags={"type": "boolean", "description": "a tag for each detection"}),
            referential=_REFERENTIAL,
        ),
        userMetadata={"description": "any JSON; kept with the job, not looked at"},
    ),
    "Output": {
        "description": "Outputs by name, or the one value that the algorithm answers: any JSON. GeoJSON is in degrees "
        "if the request has a referential. Stored images are references; results that this process keeps, and that "
        "are no JSON, are a Reference with their address.",
    },
    "JobList": {
        "type": "object",
        "description": "By job id, the newest first.",
        "additionalProperties": _object(
            ["link", "href", "status", "taskId", "door"],
            link=_URL,
            href=_URL,
            status=schema("JobState"),
            taskId=_TASK_ID,
            door={"type": "string", "enum": ["http", "kafka"]},
        ),
    },
    "JobState": {"type": "string", "enum": [str(state) for state in JobState]},
    "Status": _object(
        ["status", "progress", "jobId", "taskId", "modifiedAt", "duration"],
        status=schema("JobState"),
        progress={"type": "integer", "minimum": 0, "maximum": 100, "description": "percent"},
        jobId={"type": "string", "format": "uuid"},
        taskId=_TASK_ID,
        modifiedAt={"type": "integer", "description": "epoch milliseconds of the last change"},
        duration={"type": "integer", "minimum": 0, "description": "milliseconds from RUNNING to the last change"},
        message={"type": "string", "description": "why it failed or was cancelled"},
        hint={"type": "string"},
        href={**_URL, "description": "the results, once it has SUCCEEDED"},
        link={**_URL, "description": "the same, for clients of PESTO"},
    ),
    "StatusEvent": _object(
        ["event", "data"],
        "One event of the stream.",
        event={"type": "string", "enum": ["status"]},
        data={"type": "string", "description": "a Status, as JSON"},
    ),
    "ResultList": {
        "type": "array",
        "items": _object(["id", "_link"], id={"type": "string"}, _link=schema("Reference")),
    },
    "ResultMap": {
        "type": "object",
        "description": "Output name to its address, or to the addresses of its items.",
        "additionalProperties": {"anyOf": [_URL, {"type": "array", "items": _URL}]},
    },
    "Describe": _object(
        ["_links"],
        "The algorithm's own words; only the links are ours.",
        name={"type": "string"},
        version={"type": "string"},
        asynchronous={"type": "boolean"},
        input={"description": "JSON Schema of the inputs"},
        output={"description": "what comes back"},
        _links={"type": "object"},
    ),
    "Probe": _object(
        ["status", "reasons"],
        status={"type": "string", "enum": ["ok", "unavailable"]},
        reasons={"type": "array", "items": {"type": "string"}},
        delivery={"type": "string", "description": "of /readyz, with Kafka: the guarantee that holds for its jobs"},
    ),
}

# --- Headers and parameters --------------------------------------------------------------------------------------


def _header(description: str, **constraints: Any) -> JsonObject:
    return {"description": description, "schema": {"type": "string", **constraints}}


HEADERS: Final[JsonObject] = {
    "X-Correlation-ID": _header("the request's, or one that was made for it"),
    "Retry-After": {"description": "whole seconds", "schema": {"type": "integer", "minimum": 1}},
    "Location": _header("the job's status", format="uri"),
    "Link": _header('the next page, rel="next"; absent on the last one'),
    "Preference-Applied": _header("which preference was followed"),
    "ETag": _header("of results the SHA-256 of their bytes"),
    "Allow": _header("the methods that are possible here"),
    "WWW-Authenticate": _header("Bearer"),
    "Cache-Control": _header("how long it may be kept"),
}


def _parameter(place: str, name: str, description: str, constraints: JsonObject, **more: Any) -> JsonObject:
    return {"name": name, "in": place, "description": description, "schema": constraints, **more}


PARAMETERS: Final[JsonObject] = {
    "job_id": _parameter("path", "job_id", "the job's id, ours", {"type": "string", "format": "uuid"}, required=True),
    "result_id": _parameter(
        "path",
        "result_id",
        "the output's name; of an item of a list of images `<output>_<index>`",
        {"type": "string", "minLength": 1},
        required=True,
    ),
    "schema": _parameter(
        "path", "schema", "what is described", {"type": "string", "enum": MESSAGE_SCHEMAS}, required=True
    ),
    "asset": _parameter("path", "asset", "a file's name", {"type": "string", "enum": PAGE_FILES}, required=True),
    "limit": _parameter(
        "query", "limit", "jobs a page", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    ),
    "offset": _parameter(
        "query", "offset", "jobs to skip", {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0}
    ),
    "status": _parameter("query", "status", "only jobs in this state", schema("JobState")),
    "format": _parameter(
        "query",
        "format",
        "`list` as in the Geo Process API, `map` as PESTO has it",
        {"type": "string", "enum": ["list", "map"], "default": "list"},
    ),
    "Prefer": _parameter(
        "header",
        "Prefer",
        "`respond-async`: the link to the job at once. `wait=N`: the answer if it is there within N seconds, else the "
        "link. Others are ignored (RFC 7240).",
        {
            "anyOf": [
                {"type": "string", "enum": ["respond-async"]},
                {"type": "string", "pattern": "^wait=[0-9]{1,9}$"},
                {"type": "string"},
            ]
        },
        example="wait=30",
    ),
    "Idempotency-Key": _parameter(
        "header",
        "Idempotency-Key",
        "A POST with the key of a job that is known answers with that job. It runs on if its caller leaves.",
        _PLAIN_TEXT,
        example="scene-42/attempt",
    ),
    "X-Correlation-ID": _parameter(
        "header",
        "X-Correlation-ID",
        "goes along to the algorithm, into logs and messages, and comes back; one is made if it is absent or not a "
        "short plain text",
        {"type": "string"},
        example="abc-1",
    ),
    "X-ADS-Debug": _parameter(
        "header", "X-ADS-Debug", "goes along to the algorithm as it is", _PLAIN_TEXT, example="true"
    ),
}

# --- Answers -----------------------------------------------------------------------------------------------------

_EXAMPLES: Final = {
    "400": ("the request does not match the algorithm's input schema", "image: a required property is missing"),
    "401": ("a bearer token is needed", "send Authorization: Bearer with the API token"),
    "404": ("the job has no results yet", "it is RUNNING: watch its status"),
    "408": ("the request body stopped coming: nothing for 60 s", ""),
    "409": ("the job is past the point of no return: RUNNING", "read its status and results"),
    "413": (
        "the request body has 209715200 bytes, more than the limit of 104857600 bytes",
        "CADOR_MAX_BODY_BYTES sets the limit; give large images by URI",
    ),
    "415": ("the Content-Type text/csv is not JSON", "send application/json, or no Content-Type at all"),
    "500": ("the algorithm answered 500: no bands in the image", ""),
    "502": ("the algorithm's answer is not JSON: Expecting value at line 1, column 1", ""),
    "503": ("all processing slots are taken, try again later", "1 running, 8 waiting"),
    "504": (
        "the job's deadline of 1000 s passed while the algorithm worked on it",
        "CADOR_JOB_TIMEOUT_SECONDS sets the deadline",
    ),
}
_MEANINGS: Final = {
    "400": "The request is refused, by us or by the algorithm.",
    "401": "The token is missing or wrong.",
    "404": "There is no such thing here (any more). Jobs are known to the process that runs them.",
    "408": "The request body stopped coming.",
    "409": "The job's state forbids it.",
    "413": "The request body is larger than the operator allows.",
    "415": "The body is not announced as JSON.",
    "500": "The algorithm failed, and said so.",
    "502": "The algorithm's answer is broken, or the store failed.",
    "503": "No capacity, or no algorithm: again later.",
    "504": "The job's deadline has passed.",
}
_MORE_HEADERS: Final = {"401": ["WWW-Authenticate"], "503": ["Retry-After"]}


def headers(*names: str) -> JsonObject:
    """These headers of an answer, and the one that all have."""
    return {name: ref("headers", name) for name in ("X-Correlation-ID", *names)}


def _error(status: str) -> JsonObject:
    message, hint = _EXAMPLES[status]
    example = {
        "message": message,
        "hint": hint,
        "correlationId": "abc-1",
        "timestamp": "2026-11-24T14:11:41.123Z",
    }
    return {
        "description": _MEANINGS[status],
        "headers": headers(*_MORE_HEADERS.get(status, [])),
        "content": {JSON: {"schema": schema("Error"), "example": example}},
    }


RESPONSES: Final[JsonObject] = {status: _error(status) for status in _MEANINGS}
