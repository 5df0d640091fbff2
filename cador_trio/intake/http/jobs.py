"""Jobs over HTTP: posted, listed, watched, cancelled. What they made is handed out by `results.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from quart import Response, request

from cador_trio.errors import CadorError, Conflict, RequestRefused
from cador_trio.intake.http.context import forwarded_headers, links, query
from cador_trio.intake.http.door import (
    Door,
    Submission,
    decoded,
    product_of,
    read_body,
    submit,
    wait_end,
    wait_or_cancel,
)
from cador_trio.intake.http.events import events_response
from cador_trio.intake.http.links import Links
from cador_trio.intake.http.negotiation import (
    MAX_PAGE,
    Preference,
    check_content_type,
    page_number,
    plain_header,
    read_prefer,
)
from cador_trio.intake.http.respond import json_response, no_content, product_response
from cador_trio.job import EndReason, Failed, JobState, JsonObject
from cador_trio.observe.metrics import count_end
from cador_trio.registry import JobRecord

DEFAULT_PAGE: Final = 100


class Jobs:
    """The handlers."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._settings = door.settings
        self._registry = door.house.registry

    async def post(self) -> Response:
        """Take a job in, and answer with what it made, or with the link to its status."""
        with _refusals_counted():
            check_content_type(request.headers.get("Content-Type"))
            prefer = read_prefer(request.headers.getlist("Prefer"))
            key = request.headers.get("Idempotency-Key")
            if key is not None:
                plain_header("Idempotency-Key", key)
            answers_link = prefer.wait is None and (prefer.respond_async or self._answers_link_unasked())
            # Only a caller that will wait for the very end is told at once that nobody can work on its job.
            record = await self._job(key, is_patient=answers_link or prefer.wait is not None)
        if answers_link:
            return self._accepted(record, prefer)
        with self._registry.held(record):
            if prefer.wait is not None:
                return await self._within(record, prefer, min(prefer.wait, self._settings.job_timeout_seconds))
            # With a key the caller may come back for the job, so it outlives the connection.
            await (wait_or_cancel(record) if key is None else record.ended.wait())
            return await self._answer(record)

    async def page(self) -> Response:
        """Our jobs, the newest first."""
        limit = page_number(query("limit"), "limit", DEFAULT_PAGE, least=1, most=MAX_PAGE)
        offset = page_number(query("offset"), "offset", 0, least=0)
        state = _state(query("status"))
        records = self._registry.newest_first(state)
        ours = links(self._settings)
        response = json_response(
            {str(record.job.job_id): _listed(record, ours) for record in records[offset : offset + limit]}
        )
        if offset + limit < len(records):
            response.headers["Link"] = f'<{ours.page(limit, offset + limit, state)}>; rel="next"'
        return response

    async def status(self, job_id: str) -> Response:
        """How far it is, and why it ended."""
        return json_response(_status(self._registry.get(job_id), links(self._settings)))

    async def events(self, job_id: str) -> Response:
        """Its status now and at every change, until the end."""
        ours = links(self._settings)
        return events_response(self._registry.get(job_id), lambda record: _status(record, ours))

    async def delete(self, job_id: str) -> Response:
        """Cancel it if it runs; forget it if it has ended."""
        record = self._registry.get(job_id)
        if record.ended.is_set():
            self._registry.remove(record)
            return no_content()
        record.cancel(EndReason.CALLER_CANCELLED)
        await record.ended.wait()
        if record.state is not JobState.CANCELLED:
            raise Conflict(f"the job ended before it could be cancelled: {record.state}", hint="read its results")
        return no_content()

    def _answers_link_unasked(self) -> bool:
        return self._settings.rest_stateful == "link" and self._door.documents.is_stateful

    async def _job(self, key: str | None, *, is_patient: bool) -> JobRecord:
        """A new job, or the one that was posted with this key before; the body is let go of at the end."""
        with ExitStack() as waiting:
            reservation = self._door.house.capacity.reserve_bytes()
            waiting.callback(reservation.release)
            wanted = await decoded(await read_body(request, self._settings, reservation), self._door)
            if key is not None and (known := self._registry.by_idempotency_key(key)) is not None:
                return known
            record = submit(Submission(wanted, forwarded_headers(), key, is_patient), self._door, reservation)
            waiting.pop_all()
            return record

    async def _within(self, record: JobRecord, prefer: Preference, seconds: float) -> Response:
        """`Prefer: wait=N`: the answer if it is there in time, else the link."""
        if not await wait_end(record, seconds):
            return self._accepted(record, prefer)
        response = await self._answer(record)
        response.headers["Preference-Applied"] = f"wait={prefer.wait:g}"
        return response

    def _accepted(self, record: JobRecord, prefer: Preference) -> Response:
        reference = links(self._settings).status_reference(record)
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
        ours = links(self._settings)
        return await product_response(product_of(record), lambda result: ours.result_reference(record, result))


@contextmanager
def _refusals_counted() -> Iterator[None]:
    """What is refused in this block never becomes a job."""
    try:
        yield
    except CadorError as error:
        count_end("http", "refused", error)
        raise


def _state(text: str | None) -> JobState | None:
    if text is None:
        return None
    try:
        return JobState(text.upper())
    except ValueError:
        raise RequestRefused(f"status must be one of {', '.join(JobState)}") from None


def _listed(record: JobRecord, ours: Links) -> JsonObject:
    url = ours.status(record)
    return {"link": url, "href": url, "status": record.state, "taskId": record.job.task_id, "door": record.job.door}


def _status(record: JobRecord, ours: Links) -> JsonObject:
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
    elif record.state is JobState.SUCCEEDED:
        status["link"] = status["href"] = ours.results(record)
    return status
