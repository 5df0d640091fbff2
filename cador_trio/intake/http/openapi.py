"""Our own OpenAPI 3.1 document: every route, what it takes, and every answer that it can give.

Plain data in one place; tests compare it with the routes in both directions, and fuzz the daemon by it.
"""

from __future__ import annotations

from typing import Any, Final

from cador_trio import __version__
from cador_trio.intake.http.links import API
from cador_trio.intake.http.openapi_parts import (
    HEADERS,
    JSON,
    PARAMETERS,
    RESPONSES,
    SCHEMAS,
    TEXT,
    headers,
    ref,
    schema,
)
from cador_trio.job import JsonObject
from cador_trio.settings import Settings

_ABOUT: Final = f"""The Geo Process API in front of an algorithm, with jobs, storage and georeferencing added.

- Every path below `{API}`, but for `{API}/metrics`, is also there without `{API}`: `/jobs` is `{API}/jobs`.
- A trailing slash changes nothing. HEAD works wherever GET does. Other methods are answered 405, with `Allow`.
- An error is the Error object, on every path.
- Messages of Kafka are described by the [AsyncAPI document](../asyncapi).
- Jobs and their results are kept for a while by the process that ran them; another replica answers 404.
"""
_TAGS: Final = {
    "algorithm": "what the algorithm says of itself",
    "jobs": "post, watch, cancel",
    "results": "fetch, delete",
    "service": "health, probes, this document and that of messages",
}
_EXAMPLE_REQUEST: Final[JsonObject] = {
    "image": "file:///data/scene.tif",
    "technicalMetadata": {
        "taskId": "scene-42",
        "outputStorage": {"POSIX": {"folder": "/data/results"}},
        "referential": {"upperLeft": {"lon": 2.07, "lat": 41.2}, "lonStep": 1e-05, "latStep": -1e-05},
    },
    "userMetadata": {"order": 7},
}
_EXAMPLE_OUTPUT: Final[JsonObject] = {
    "detections": {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": [2.0712, 41.1983]},
                "properties": {"category": "vessel", "confidence": 0.9},
            }
        ],
    },
    "mask": {
        "folder": "/data/results",
        "objectId": "scene-42_mask",
        "path": "/data/results/scene-42_mask",
        "uri": "file:///data/results/scene-42_mask",
        "mediaType": "image/png",
        "size": 2048,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
}
_JOB: Final = "http://127.0.0.1:9090/api/v1/jobs/0b8f4f0e-8a57-4d0c-9f0c-2f6a3d3f7a51"
_EXAMPLE_REFERENCE: Final[JsonObject] = {
    "relation": "status",
    "href": f"{_JOB}/status",
    "type": JSON,
    "method": "GET",
    "link": f"{_JOB}/status",
}
_EXAMPLE_STATUS: Final[JsonObject] = {
    "status": "SUCCEEDED",
    "progress": 100,
    "jobId": "0b8f4f0e-8a57-4d0c-9f0c-2f6a3d3f7a51",
    "taskId": "scene-42",
    "modifiedAt": 1_795_529_501_123,
    "duration": 2_150,
    "link": f"{_JOB}/results",
    "href": f"{_JOB}/results",
}
# What the algorithm's own documents come as is the algorithm's business; these are usual.
_ANY_TEXT: Final = (JSON, TEXT, "application/yaml", "application/x-yaml", "text/yaml", "application/octet-stream")
_RESULT: Final[JsonObject] = {
    JSON: {"schema": schema("Output"), "example": _EXAMPLE_OUTPUT},
    "application/geo+json": {"schema": {"type": "object"}},
    "image/*": {"schema": {"type": "string", "format": "binary"}},
    TEXT: {"schema": {"type": "string"}},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}


def openapi_document(settings: Settings) -> JsonObject:
    """The document for a daemon with these settings."""
    needs_token = settings.api_token is not None
    paths = {
        **_algorithm(allows_put=settings.allow_config_put),
        **_jobs(),
        **_results(),
        **_service(),
    }
    if settings.metrics_port is not None:  # they are served there
        del paths["/metrics"]
    parts: JsonObject = {
        "schemas": SCHEMAS,
        "headers": HEADERS,
        "parameters": PARAMETERS,
        "responses": RESPONSES,
    }
    document: JsonObject = {
        "openapi": "3.1.0",
        "info": {
            "title": "cador_trio",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": [{"url": settings.public_url or "/"}],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": paths,
        "components": parts,
    }
    if needs_token:
        _ask_for_token(document)
    return document


def _ask_for_token(document: JsonObject) -> None:
    document["components"] = {
        **document["components"],
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "CADOR_API_TOKEN"}},
    }
    document["security"] = [{"token": []}]
    for item in document["paths"].values():
        for one in item.values():
            if one.get("security") != []:
                one["responses"]["401"] = ref("responses", "401")


# --- Operations --------------------------------------------------------------------------------------------------


def _operation(
    tag: str,
    name: str,
    summary: str,
    answers: JsonObject,
    *errors: str,
    parameters: tuple[str, ...] = (),
    **more: Any,
) -> JsonObject:
    """An operation: its answers, and the statuses of its errors."""
    found: JsonObject = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "responses": {**answers, **{status: ref("responses", status) for status in errors}},
        **more,
    }
    taken = (*parameters, "X-Correlation-ID")
    found["parameters"] = [ref("parameters", parameter) for parameter in taken]
    return found


def _answer(description: str, content: JsonObject | None = None, *names: str) -> JsonObject:
    found: JsonObject = {"description": description, "headers": headers(*names)}
    return found if content is None else {**found, "content": content}


def _then(operation: str, **parameters: str) -> JsonObject:
    """What a caller may ask next, and with which values out of this exchange."""
    return {"operationId": operation, "parameters": parameters}


def _json(name: str, **more: Any) -> JsonObject:
    return {JSON: {"schema": schema(name), **more}}


def _algorithm(*, allows_put: bool) -> JsonObject:
    passed_on = {"200": _answer("As the algorithm has it.", {kind: {"schema": {}} for kind in _ANY_TEXT})}

    def document(name: str, summary: str, **more: Any) -> JsonObject:
        errors = ("400", "404", "500", "502", "503")
        return {"get": _operation("algorithm", name, summary, passed_on, *errors, parameters=("X-ADS-Debug",), **more)}

    paths: JsonObject = {
        f"{API}/describe": {
            "get": _operation(
                "algorithm",
                "describe",
                "What the algorithm is, takes and gives",
                {"200": _answer("The describe document.", _json("Describe"))},
                "400",
                "502",
                "503",
                parameters=("X-ADS-Debug",),
            )
        },
        f"{API}/version": document("version", "The algorithm's version"),
        f"{API}/openapi": document("openapi", "The algorithm's own OpenAPI document"),
        f"{API}/metrics": document("metrics", "The algorithm's own metrics"),
        f"{API}/config": document(
            "config",
            "The algorithm's configuration",
            description=f"PUT is {'on' if allows_put else 'off'}: CADOR_ALLOW_CONFIG_PUT decides.",
        ),
    }
    if allows_put:
        paths[f"{API}/config"]["put"] = _operation(
            "algorithm",
            "put_config",
            "Change the algorithm's configuration",
            passed_on,
            *("400", "404", "408", "413", "415", "500", "502", "503"),
            parameters=("X-ADS-Debug",),
            requestBody={"required": True, "content": {JSON: {"schema": {}}}},
        )
    return paths


def _post(name: str, summary: str) -> JsonObject:
    reference = {JSON: {"schema": schema("StatusReference"), "example": _EXAMPLE_REFERENCE}}
    return _operation(
        "jobs",
        name,
        summary,
        {
            "200": _answer(
                "What the job made; or, if the algorithm is stateful and no preference says otherwise, the link to "
                "the job's status, with `Location`.",
                _RESULT,
                "Preference-Applied",
                "Location",
            ),
            "202": _answer(
                "The job was taken in, as a preference asks for.", reference, "Location", "Preference-Applied"
            ),
        },
        *("400", "408", "409", "413", "415", "500", "502", "503", "504"),
        parameters=("Prefer", "Idempotency-Key", "X-ADS-Debug"),
        description="Refused in this order: not JSON, a wrong envelope, a destination that is not allowed, inputs "
        "that the algorithm does not take; then 503 if nobody can work on it. A caller that leaves before the answer "
        "cancels the job, unless it sent an Idempotency-Key or a preference.",
        requestBody={
            "required": True,
            "content": {JSON: {"schema": schema("JobRequest"), "example": _EXAMPLE_REQUEST}},
        },
    )


def _jobs() -> JsonObject:
    job = f"{API}/jobs/{{job_id}}"
    status = _answer("Its status.", _json("Status", example=_EXAMPLE_STATUS))
    status["links"] = {
        operation: _then(operation, job_id="$response.body#/jobId")
        for operation in ("job_events", "list_results", "delete_results", "delete_job")
    }
    return {
        f"{API}/jobs": {
            "post": _post("post_job", "A job for the algorithm"),
            "get": _operation(
                "jobs",
                "list_jobs",
                "Our jobs, the newest first",
                {"200": _answer("One page of them.", _json("JobList"), "Link")},
                "400",
                parameters=("limit", "offset", "status"),
            ),
        },
        f"{API}/process": {"post": _post("process", "The same, at the path of PESTO")},
        job: {
            "delete": _operation(
                "jobs",
                "delete_job",
                "Cancel a running job, forget a finished one",
                {"204": _answer("It is cancelled, or forgotten.")},
                "404",
                "409",
                parameters=("job_id",),
            )
        },
        f"{job}/status": {
            "get": _operation(
                "jobs",
                "job_status",
                "How far a job is",
                {"200": status},
                "404",
                parameters=("job_id",),
            )
        },
        f"{job}/events": {
            "get": _operation(
                "jobs",
                "job_events",
                "A job's status at every change, until its end",
                {
                    "200": _answer(
                        "Server-sent events called `status`, whose data is a Status.",
                        {"text/event-stream": {"schema": schema("StatusEvent")}},
                        "Cache-Control",
                    )
                },
                "404",
                parameters=("job_id",),
            )
        },
    }


def _results() -> JsonObject:
    results = f"{API}/jobs/{{job_id}}/results"
    index = _answer("Where they are.", {JSON: {"schema": {"anyOf": [schema("ResultList"), schema("ResultMap")]}}})
    index["links"] = {
        operation: _then(operation, job_id="$request.path.job_id", result_id="$response.body#/0/id")
        for operation in ("get_result", "delete_result")
    }
    return {
        results: {
            "get": _operation(
                "results",
                "list_results",
                "The results of a job that succeeded",
                {"200": index},
                "400",
                "404",
                parameters=("job_id", "format"),
            ),
            "delete": _operation(
                "results",
                "delete_results",
                "Let go of all results; the status stays",
                {"204": _answer("They are gone from here; stored objects stay where they are.")},
                "404",
                parameters=("job_id",),
            ),
        },
        f"{results}/{{result_id}}": {
            "get": _operation(
                "results",
                "get_result",
                "One result, as what it is",
                {"200": _answer("Its bytes, or the reference of a stored one.", _RESULT, "ETag")},
                "404",
                "502",
                parameters=("job_id", "result_id"),
            ),
            "delete": _operation(
                "results",
                "delete_result",
                "Let go of one result",
                {"204": _answer("It is gone from here.")},
                "404",
                parameters=("job_id", "result_id"),
            ),
        },
    }


def _service() -> JsonObject:
    words: JsonObject = {TEXT: {"schema": {"type": "string"}}}
    unchanged = _answer("The same as the caller has, by `If-None-Match`.", None, "ETag", "Cache-Control")

    def open_to_all(name: str, summary: str, answers: JsonObject, *errors: str, **more: Any) -> JsonObject:
        return {"get": _operation("service", name, summary, answers, *errors, security=[], **more)}

    def probe(name: str, summary: str) -> JsonObject:
        return open_to_all(
            name, summary, {"200": _answer("Yes.", _json("Probe")), "503": _answer("No, and why.", _json("Probe"))}
        )

    return {
        f"{API}/health": open_to_all(
            "health",
            "Is it ready, in words",
            {
                "200": _answer("`OK`", {TEXT: {**words[TEXT], "example": "OK"}}),
                "503": _answer("`KO : ` and the reasons", {TEXT: {**words[TEXT], "example": "KO : it is stopping"}}),
            },
        ),
        "/livez": probe("livez", "Should it be left alone, rather than restarted"),
        "/readyz": probe("readyz", "Should work be sent here"),
        "/metrics": open_to_all(
            "our_metrics",
            "The daemon's own metrics, for Prometheus",
            {"200": _answer("In Prometheus' text format, or OpenMetrics if it is asked for.", words, "Cache-Control")},
        ),
        "/openapi/spec.json": open_to_all(
            "spec",
            "This document",
            {
                "200": _answer("OpenAPI 3.1.", {JSON: {"schema": {"type": "object"}}}, "ETag", "Cache-Control"),
                "304": unchanged,
            },
        ),
        "/asyncapi": {
            "get": _operation(
                "service",
                "asyncapi",
                "The AsyncAPI document of all messages, with this daemon's topics",
                {
                    "200": _answer("AsyncAPI 3.0.", {JSON: {"schema": {"type": "object"}}}, "ETag", "Cache-Control"),
                    "304": unchanged,
                },
            )
        },
        "/asyncapi/schemas/{schema}.json": open_to_all(
            "message_schema",
            "The JSON Schema of one kind of message, or of headers",
            {
                "200": _answer(
                    "A JSON Schema (2020-12).", {JSON: {"schema": {"type": "object"}}}, "ETag", "Cache-Control"
                ),
                "304": unchanged,
            },
            "404",
            parameters=("schema",),
        ),
        "/swagger": open_to_all(
            "swagger", "This document to read and to try", {"200": _answer("A page.", {"text/html": {"schema": {}}})}
        ),
        "/swagger/{asset}": open_to_all(
            "swagger_asset",
            "What the page is made of",
            {
                "200": _answer(
                    "A script, a style sheet or a picture.",
                    {kind: {"schema": {}} for kind in ("text/javascript", "text/css", "image/png")},
                    "ETag",
                    "Cache-Control",
                ),
                "304": unchanged,
            },
            "404",
            parameters=("asset",),
        ),
    }
