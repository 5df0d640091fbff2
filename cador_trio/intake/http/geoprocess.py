"""The Geo Process API as we serve it (wire contract, section 2.2), under `/api/v1` and at the root alike."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final, Self

import trio
from quart import Blueprint, Response, g, request
from quart.wrappers.response import ResponseBody

from cador_trio.errors import Conflict, MethodNotAllowed, NotFound, RequestRefused
from cador_trio.intake.http.door import (
    Door,
    PassedOn,
    Submission,
    product_of,
    read_body,
    submit,
    wait_end,
    wait_or_cancel,
)
from cador_trio.intake.http.links import Links
from cador_trio.intake.http.negotiation import (
    MAX_PAGE,
    Preference,
    check_content_type,
    idempotency_key,
    page_number,
    read_prefer,
)
from cador_trio.intake.http.respond import json_response, product_response, result_response
from cador_trio.job import EndReason, Failed, JobState, JsonObject, Product, Result
from cador_trio.json_text import write
from cador_trio.registry import JobRecord

KEEP_ALIVE_SECONDS: Final = 15.0  # between comments on a silent event stream: proxies cut idle ones after 30 to 60 s
DEFAULT_PAGE: Final = 100


def geoprocess_routes(door: Door, name: str) -> Blueprint:
    """All routes of the contract, to be registered under a prefix."""
    routes = Blueprint(name, __name__)
    jobs = _Jobs(door)
    documents = _Documents(door)
    for path, methods, view in (
        ("/describe", ["GET"], documents.describe),
        ("/version", ["GET"], documents.version),
        ("/openapi", ["GET"], documents.openapi),
        ("/config", ["GET", "PUT"], documents.config),
        ("/health", ["GET"], documents.health),
        ("/process", ["POST"], jobs.post),
        ("/jobs", ["POST"], jobs.post),
        ("/jobs", ["GET"], jobs.page),
        ("/jobs/<job_id>", ["DELETE"], jobs.delete),
        ("/jobs/<job_id>/status", ["GET"], jobs.status),
        ("/jobs/<job_id>/events", ["GET"], jobs.events),
        ("/jobs/<job_id>/results", ["GET"], jobs.results),
        ("/jobs/<job_id>/results", ["DELETE"], jobs.delete_results),
        ("/jobs/<job_id>/results/<result_id>", ["GET"], jobs.result),
        ("/jobs/<job_id>/results/<result_id>", ["DELETE"], jobs.delete_result),
    ):
        routes.add_url_rule(
            path,
            endpoint=f"{view.__name__} {methods[0]}",
            view_func=view,
            methods=methods,
            provide_automatic_options=False,
        )
    return routes


def algorithm_metrics(door: Door, name: str) -> Blueprint:
    """The algorithm's own metrics; under `/api/v1` only, since `/metrics` at the root is ours."""
    routes = Blueprint(name, __name__)
    routes.add_url_rule(
        "/metrics", view_func=_Documents(door).metrics, methods=["GET"], provide_automatic_options=False
    )
    return routes


class _Documents:
    """What the algorithm says of itself, passed on."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def describe(self) -> Response:
        document = await self._door.documents.describe(_forwarded())
        claims_synchronous = self._door.settings.rest_stateful == "inline"
        return json_response(_links(self._door).describe(document, claims_synchronous=claims_synchronous))

    async def version(self) -> Response:
        return _passed_on(await self._door.documents.version(_forwarded()))

    async def openapi(self) -> Response:
        return _passed_on(await self._door.documents.openapi(_forwarded()))

    async def metrics(self) -> Response:
        return _passed_on(await self._door.documents.metrics(_forwarded()))

    async def config(self) -> Response:
        if request.method == "PUT" and not self._door.settings.allow_config_put:
            raise MethodNotAllowed(
                "PUT /config is off", allow=("GET", "HEAD"), hint="CADOR_ALLOW_CONFIG_PUT turns it on"
            )
        content = b""
        if request.method == "PUT":
            check_content_type(request.headers.get("Content-Type"))
            with ExitStack() as waiting:
                reservation = self._door.house.capacity.reserve_bytes()
                waiting.callback(reservation.release)
                content = await read_body(request, self._door, reservation)
        method = "PUT" if request.method == "PUT" else "GET"
        return _passed_on(await self._door.documents.config(method, _forwarded(), content))

    async def health(self) -> Response:
        reasons = self._door.health.not_ready()
        text = f"KO : {'; '.join(reasons)}" if reasons else "OK"
        return Response(text, status=503 if reasons else 200, content_type="text/plain; charset=utf-8")


class _Jobs:
    """Jobs: post, list, watch, fetch, delete."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def post(self) -> Response:
        check_content_type(request.headers.get("Content-Type"))
        prefer = read_prefer(request.headers.getlist("Prefer"))
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        answers_link = prefer.respond_async or (
            self._door.documents.is_stateful and self._door.settings.rest_stateful == "link"
        )
        is_attended = not answers_link and prefer.wait is None
        with ExitStack() as waiting:
            reservation = self._door.house.capacity.reserve_bytes()
            waiting.callback(reservation.release)
            body = await read_body(request, self._door, reservation)
            record = None if key is None else self._door.house.registry.by_idempotency_key(key)
            if record is None:
                submission = Submission(body, _forwarded(), key, is_patient=not is_attended)
                record = submit(submission, self._door, reservation)
                waiting.pop_all()
        if prefer.wait is not None:
            return await self._within(record, prefer)
        if answers_link:
            return self._accepted(record, prefer)
        # With a key the caller may come back for the job, so it outlives the connection.
        await (wait_or_cancel(record) if key is None else record.ended.wait())
        return await self._answer(record)

    async def _within(self, record: JobRecord, prefer: Preference) -> Response:
        """`Prefer: wait=N`: the answer if it is there in time, else the link."""
        limit = self._door.settings.job_timeout_seconds
        if not await wait_end(record, min(prefer.wait or 0, limit)):
            return self._accepted(record, prefer)
        response = await self._answer(record)
        response.headers["Preference-Applied"] = f"wait={prefer.wait:g}"
        return response

    def _accepted(self, record: JobRecord, prefer: Preference) -> Response:
        reference = _links(self._door).status_reference(record)
        applied = []
        if prefer.respond_async:
            applied.append("respond-async")
        if prefer.wait is not None:
            applied.append(f"wait={prefer.wait:g}")
        # A client of the plain API expects 200 and a Reference from a stateful algorithm, without having asked.
        response = json_response(reference, 202 if applied else 200)
        response.headers["Location"] = reference["href"]
        if applied:
            response.headers["Preference-Applied"] = ", ".join(applied)
        return response

    async def _answer(self, record: JobRecord) -> Response:
        links = _links(self._door)
        return await product_response(product_of(record), lambda result: links.result_reference(record, result))

    async def page(self) -> Response:
        limit = page_number(request.args.get("limit"), "limit", DEFAULT_PAGE, least=1, most=MAX_PAGE)
        offset = page_number(request.args.get("offset"), "offset", 0, least=0)
        state = _state(request.args.get("status"))
        records = self._door.house.registry.newest_first(state)
        links = _links(self._door)
        response = json_response(
            {str(record.job.job_id): _listed(record, links) for record in records[offset : offset + limit]}
        )
        if offset + limit < len(records):
            query = f"limit={limit}&offset={offset + limit}" + (f"&status={state}" if state is not None else "")
            response.headers["Link"] = f'<{links.base}/api/v1/jobs?{query}>; rel="next"'
        return response

    async def status(self, job_id: str) -> Response:
        return json_response(_status(self._door.house.registry.get(job_id), _links(self._door)))

    async def events(self, job_id: str) -> Response:
        record = self._door.house.registry.get(job_id)
        response = Response(_Events(record, _links(self._door)), content_type="text/event-stream")
        response.headers["Cache-Control"] = "no-store"
        response.timeout = None  # it lasts as long as the job
        return response

    async def results(self, job_id: str) -> Response:
        record = self._door.house.registry.get(job_id)
        product = _finished(record)
        links = _links(self._door)
        match request.args.get("format", "list"):
            case "list":
                return json_response(
                    [
                        {"id": result.result_id, "_link": links.result_reference(record, result)}
                        for result in product.results
                    ]
                )
            case "map":
                return json_response(
                    {
                        name: [links.result(record, item) for item in output]
                        if isinstance(output, tuple)
                        else links.result(record, output)
                        for name, output in product.outputs.items()
                    }
                )
            case _:
                raise RequestRefused("format must be list or map")

    async def result(self, job_id: str, result_id: str) -> Response:
        return await result_response(_result(_finished(self._door.house.registry.get(job_id)), result_id))

    async def delete_result(self, job_id: str, result_id: str) -> Response:
        record = self._door.house.registry.get(job_id)
        self._door.house.registry.drop_result(record, _result(_finished(record), result_id))
        return Response(status=204)

    async def delete_results(self, job_id: str) -> Response:
        record = self._door.house.registry.get(job_id)
        _finished(record)
        self._door.house.registry.drop_results(record)
        return Response(status=204)

    async def delete(self, job_id: str) -> Response:
        """Cancel a running job; forget a finished one."""
        registry = self._door.house.registry
        record = registry.get(job_id)
        if record.ended.is_set():
            registry.remove(record)
            return Response(status=204)
        record.cancel(EndReason.CALLER_CANCELLED)
        await record.ended.wait()
        if record.state is not JobState.CANCELLED:
            raise Conflict(f"the job ended before it could be cancelled: {record.state}", hint="read its results")
        return Response(status=204)


class _Events(ResponseBody):
    """Server-sent events: the job's state and progress now, at every change, until the end."""

    def __init__(self, record: JobRecord, links: Links) -> None:
        self._record = record
        self._links = links
        self._seen: tuple[JobState, int] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        return None

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> bytes:
        if self._seen is not None:
            if self._seen[0].is_terminal:
                raise StopAsyncIteration
            with trio.move_on_after(KEEP_ALIVE_SECONDS) as patience:
                await self._record.wait_change(self._seen)
            if patience.cancelled_caught:
                return b": the job goes on\n\n"
        self._seen = (self._record.state, self._record.progress)
        return b"event: status\ndata: " + write(_status(self._record, self._links)) + b"\n\n"

    async def convert_to_sequence(self) -> bytes:
        return b"".join([event async for event in self])


def _links(door: Door) -> Links:
    return Links(door.settings.public_url or f"{request.scheme}://{request.host}")


def _forwarded() -> Mapping[str, str]:
    """The headers that go along to the algorithm."""
    headers = {"X-Correlation-ID": g.correlation_id}
    if "X-ADS-Debug" in request.headers:
        headers["X-ADS-Debug"] = request.headers["X-ADS-Debug"]
    return headers


def _passed_on(reply: PassedOn) -> Response:
    return Response(reply.body, status=reply.status, content_type=reply.media_type or "application/octet-stream")


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    try:
        return JobState(text.upper())
    except ValueError:
        raise RequestRefused(f"status must be one of {', '.join(JobState)}") from None


def _finished(record: JobRecord) -> Product:
    """The results of a job that succeeded; there are none before, and none after a failure."""
    if not record.ended.is_set():
        raise NotFound("the job has no results yet", hint=f"it is {record.state}: watch its status")
    if record.product is None:
        raise NotFound(f"the job has no results: it is {record.state}", hint="its status says why")
    return record.product


def _result(product: Product, result_id: str) -> Result:
    for result in product.results:
        if result.result_id == result_id:
            return result
    known = ", ".join(result.result_id for result in product.results[:20])
    raise NotFound(f"no result {result_id[:80]!r}", hint=f"there are: {known}" if known else "they are deleted")


def _listed(record: JobRecord, links: Links) -> JsonObject:
    url = links.status(record)
    return {"link": url, "href": url, "status": record.state, "taskId": record.job.task_id, "door": record.job.door}


def _status(record: JobRecord, links: Links) -> JsonObject:
    status: JsonObject = {
        "status": record.state,
        "progress": record.progress,
        "jobId": str(record.job.job_id),
        "taskId": record.job.task_id,
        "modifiedAt": record.modified_at,
        "duration": record.duration,
    }
    if isinstance(record.outcome, Failed):
        status["message"] = record.outcome.error.message
        status["hint"] = record.outcome.error.hint
    elif record.state is JobState.CANCELLED:
        status["message"] = str(record.end_reason or EndReason.SHUTDOWN)
    if record.state is JobState.SUCCEEDED:
        status["link"] = status["href"] = links.results(record)
    return status
