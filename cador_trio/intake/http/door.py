"""The HTTP door itself: what it needs, how a request body becomes a running job, and who waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import uuid4

import trio
from quart import Request

from cador_trio.capacity import BytesReservation
from cador_trio.errors import BodyTooLarge, CadorError, Conflict, NotFound, NotNow, RequestTimedOut
from cador_trio.intake.request import ReadStorage, decode_request
from cador_trio.job import Cancelled, EndReason, Failed, Job, JobRequest, JsonObject, Product, Succeeded
from cador_trio.json_text import THREAD_BYTES
from cador_trio.observe.health import Health, Phase
from cador_trio.observe.metrics import Registry
from cador_trio.registry import JobRecord
from cador_trio.run_job import House, Publisher, admit, run_job
from cador_trio.settings import Settings

BODY_IDLE_SECONDS: Final = 60.0  # between two pieces of a request body


class PassedOn(Protocol):
    """A small answer of the algorithm, passed on as it is."""

    @property
    def status(self) -> int:
        """Its HTTP status."""

    @property
    def media_type(self) -> str:
        """Its Content-Type."""

    @property
    def body(self) -> bytes:
        """Its bytes."""


class AlgorithmDocuments(Protocol):
    """The algorithm's small documents, for passing on. All raise CadorError."""

    async def describe(self, headers: Mapping[str, str]) -> JsonObject:
        """Its describe document."""

    async def version(self, headers: Mapping[str, str]) -> PassedOn:
        """Its version."""

    async def openapi(self, headers: Mapping[str, str]) -> PassedOn:
        """Its own OpenAPI document."""

    async def metrics(self, headers: Mapping[str, str]) -> PassedOn:
        """Its own metrics."""

    async def config(self, method: str, headers: Mapping[str, str], content: bytes) -> PassedOn:
        """Its configuration, read or written."""

    @property
    def is_stateful(self) -> bool:
        """Does describe say `asynchronous`? False while it never answered."""


@dataclass(frozen=True)
class MessageFacts:
    """What this door tells about Kafka's messages, without knowing Kafka.

    Attributes:
        documents: the AsyncAPI document and the JSON Schemas, by the paths that they are served under.
        delivery: the guarantee that holds for jobs from Kafka, as a sentence; None without Kafka.
    """

    documents: Mapping[str, JsonObject]
    delivery: Callable[[], str | None]


@dataclass(frozen=True)
class Door:
    """What the HTTP door is given by the daemon. `now_ms` is epoch milliseconds."""

    settings: Settings
    house: House
    publisher: Publisher
    documents: AlgorithmDocuments
    read_storage: ReadStorage
    health: Health
    jobs_nursery: trio.Nursery
    now_ms: Callable[[], int]
    messages: MessageFacts
    metrics: Registry


async def read_body(request: Request, settings: Settings, reservation: BytesReservation) -> bytes:
    """The request's body, counted as waiting while it comes in.

    Raises:
        BodyTooLarge: over `CADOR_MAX_BODY_BYTES`, announced or real.
        NotNow: too many bodies wait.
        RequestTimedOut: its sender has gone quiet.
    """
    limit = int(settings.max_body_bytes)
    if (announced := request.content_length or 0) > limit:
        raise _too_large(announced, limit)
    gathered = bytearray()
    with trio.move_on_after(BODY_IDLE_SECONDS) as idle:
        async for chunk in request.body:
            idle.deadline = trio.current_time() + BODY_IDLE_SECONDS
            # What is announced is not counted before it is here: a sender that never sends would block the others.
            reservation.grow(len(chunk))
            gathered += chunk
            if len(gathered) > limit:
                raise _too_large(len(gathered), limit)
    if idle.cancelled_caught:
        raise RequestTimedOut(f"the request body stopped coming: nothing for {BODY_IDLE_SECONDS:g} s")
    return bytes(gathered)


@dataclass(frozen=True)
class Submission:
    """A job as its caller sent it. `headers` go along to the algorithm; `X-Correlation-ID` is one of them."""

    request: JobRequest
    headers: Mapping[str, str]
    idempotency_key: str | None
    is_patient: bool


async def decoded(body: bytes, door: Door) -> JobRequest:
    """The request in a body; a large one is read in a thread.

    Raises:
        RequestRefused: not JSON, not the envelope, not a storage that can be.
    """
    if len(body) <= THREAD_BYTES:
        return decode_request(body, door.read_storage)
    return await trio.to_thread.run_sync(decode_request, body, door.read_storage)


def submit(submission: Submission, door: Door, reservation: BytesReservation) -> JobRecord:
    """Take a job in and start it; the order of the checks is the wire contract's (section 2.2).

    From here on the reservation is the job's, and released when the job no longer waits.

    Raises:
        RequestRefused: one of the 400s.
        NotNow: draining, or no place to wait.
        AlgorithmUnreachable: nobody to work on it.
    """
    request = submission.request
    job = Job(
        job_id=uuid4(),
        door="http",
        request=request,
        correlation_id=submission.headers["X-Correlation-ID"],
        received_at=door.now_ms(),
        forwarded=submission.headers,
        is_patient=submission.is_patient,
        traceparent=submission.headers.get("traceparent"),
        tracestate=submission.headers.get("tracestate"),
    )
    plan = admit(request, job.task_name, door.house)
    if door.health.phase is not Phase.SERVING:
        raise NotNow(str(door.health.phase), hint="send it to another instance, or again in a while", retry_after=5)
    reservation.take_place()
    record = door.house.registry.add(job, submission.idempotency_key)
    record.leave_queue = reservation.release
    door.jobs_nursery.start_soon(run_job, record, plan, door.house, door.publisher)
    return record


async def wait_end(record: JobRecord, seconds: float = math.inf) -> bool:
    """Has the job ended, within this time?"""
    with trio.move_on_after(seconds):
        await record.ended.wait()
    return record.ended.is_set()


async def wait_or_cancel(record: JobRecord) -> None:
    """Wait for a job on behalf of the one caller it is for: if that caller leaves, the job is cancelled."""
    try:
        await record.ended.wait()
    except trio.Cancelled:
        cancel_quietly(record, EndReason.CALLER_LEFT)
        raise


def cancel_quietly(record: JobRecord, reason: EndReason) -> None:
    """Cancel it if that is still possible."""
    try:
        record.cancel(reason)
    except Conflict:
        return


def product_of(record: JobRecord) -> Product:
    """What an ended job made.

    Raises:
        CadorError: why it made nothing.
    """
    match record.outcome:
        case Succeeded() if record.has_lost_results:
            raise NotFound("results of the job are no longer kept", hint="post it again, under another Idempotency-Key")
        case Succeeded(product=product):
            return product
        case Failed(error=error):
            raise error.again()
        case Cancelled(reason=EndReason.SHUTDOWN):
            raise NotNow(f"the job was cancelled: {EndReason.SHUTDOWN}", hint="send it again", retry_after=5)
        case Cancelled(reason=reason):
            raise Conflict(f"the job was cancelled: {reason}", hint="send it again if it is wanted after all")
        case _:
            raise CadorError("the job has not ended")


def _too_large(size: int, limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the request body has {size} bytes, more than the limit of {limit} bytes",
        hint="CADOR_MAX_BODY_BYTES sets the limit; give large images by URI",
    )
