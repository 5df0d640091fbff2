"""One job, from request to settled, in reading order; and what it needs, as Protocols.

    admit → call the algorithm → georeference → store → tags → publish → settle
            └── holds a slot ──┘                          └ point of no return: then settle always runs

Tags come after the store because they name the stored objects. A job that fails or is cancelled is published and
settled too. Knows no edge library. A job's life is one cancel scope
with a reason, so that its five ends need no bookkeeping. What goes wrong ends this job alone, as a `Failed` that says
who must act.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import structlog
import trio

from cador_trio.capacity import Capacity, Exchange
from cador_trio.errors import (
    AlgorithmBroken,
    CadorError,
    DeadlinePassed,
    ResultRefused,
    ResultTooLarge,
    SpoolFull,
    StoreTimedOut,
    unexpected_error,
)
from cador_trio.job import (
    RESERVED_NAMES,
    Answer,
    Body,
    Cancelled,
    EndReason,
    Failed,
    GivenBack,
    Image,
    Job,
    JobRequest,
    Json,
    JsonObject,
    Outcome,
    Output,
    Product,
    Referential,
    Result,
    StorageRequest,
    StoredObject,
    Succeeded,
    Value,
)
from cador_trio.json_text import THREAD_BYTES, NotJson, write, write_slices
from cador_trio.observe.metrics import count_end
from cador_trio.observe.stages import stage
from cador_trio.observe.traces import Identity, current_headers, job_span, note_outcome
from cador_trio.order import Deadline, Order
from cador_trio.registry import JobRecord, Registry
from cador_trio.spool import WRITE_BYTES, Spool, SpooledBody

T = TypeVar("T")

log = structlog.get_logger(__name__)

# What settling may take, once everything is safe with us: a few small requests to the algorithm.
SETTLE_SECONDS: Final = 30.0

# How long a caller who holds a connection open waits for a store that is down, before any work is done.
HURRIED_STORE_SECONDS: Final = 30.0

# A place at a store, as its room resolved it; opaque here.
Destination = Any


class Algorithm(Protocol):
    """The container in the cradle."""

    @property
    def tagger(self) -> str:
        """`organization.name.version` of its describe document."""

    @property
    def name(self) -> str:
        """`name/version` of its describe document."""

    @property
    def gives_bare_images(self) -> bool:
        """Does its describe document say that results are images that no JSON holds?"""

    def check_inputs(self, inputs: JsonObject) -> JsonObject:
        """The payload to send. Raises RequestRefused (not its schema), AlgorithmUnreachable (never described)."""

    @property
    def image_inputs(self) -> Mapping[str, bool]:
        """The inputs that are images; name -> whether it is a list of them."""

    def timing(self, deadline: Deadline) -> AbstractContextManager[None]:
        """In this block the deadline stands still whenever the algorithm is away."""

    async def process(self, order: Order, connection: Any, exchange: Exchange) -> Answer:
        """One job at the algorithm, retries included. Raises CadorError. See Exchange for what cancelling does."""

    async def forget(self, leftovers: Sequence[str], headers: dict[str, str]) -> None:
        """Delete what the algorithm still holds of a job; failures are logged, not raised."""


class Store(Protocol):
    """Where images go."""

    def resolve(self, request: StorageRequest, task_name: str) -> Destination:
        """The place. Raises RequestRefused if the operator doesn't allow it."""

    async def prepare(self, destination: Destination) -> None:
        """Before the algorithm is called: can we write there at all? Raises StoreFailed or RequestRefused."""

    async def put(self, destination: Destination, image: Image) -> StoredObject:
        """Store one image, whole or not at all. Raises StoreFailed. Cancelling leaves nothing readable."""


class Results(Protocol):
    """What is made of an answer."""

    def georeference(self, value: Json, referential: Referential, output: str | None) -> Json:
        """The output (by this name, if it has one) in longitude and latitude. Raises ResultRefused."""

    def tags(
        self, answer: Answer, job: Job, *, image_inputs: Mapping[str, bool], stored: list[JsonObject], tagger: str
    ) -> Sequence[JsonObject]:
        """One tag a detection. Raises ResultRefused."""


class Publisher(Protocol):
    """Who is told how a job ended; its door's."""

    @property
    def takes_tags(self) -> bool:
        """Is there anywhere for tags to go?"""

    @property
    def message_limit(self) -> int:
        """Bytes that the output message may have."""

    def accepted(self, record: JobRecord, /) -> None:
        """The job is taken in; its states and progress can be followed from now on. Does not wait."""

    def message_size(self, job: Job, product: Product, /) -> int:
        """Bytes of the output message for this product; 0 if there is none."""

    async def publish(self, record: JobRecord, outcome: Outcome, tags: Sequence[JsonObject], /) -> Outcome:
        """Make all that a job's end entails visible, all or none; the outcome that stands.

        Another one than given: `GivenBack`, if what ran the job lost it meanwhile, or `Failed`, if the messages can't
        be sent as they are. Past the point of no return: it is not cancelled, retries rather than gives up, and sees to
        its own end.
        """


class Untold:
    """The publisher of jobs that nobody is told of: callers fetch their results themselves."""

    takes_tags = False
    message_limit = 0

    def accepted(self, _record: JobRecord, /) -> None:
        """Nothing to do."""

    def message_size(self, _job: Job, _product: Product, /) -> int:
        """There is no message."""
        return 0

    async def publish(self, _record: JobRecord, outcome: Outcome, _tags: Sequence[JsonObject], /) -> Outcome:
        """Nothing to do."""
        return outcome


@dataclass(frozen=True)
class House:
    """What `run_job` needs, introduced by the daemon."""

    algorithm: Algorithm
    store: Store
    results: Results
    spool: Spool
    registry: Registry
    capacity: Capacity[Any]
    job_timeout_seconds: float
    store_timeout_seconds: float
    store_inline_images: bool


@dataclass(frozen=True)
class Plan:
    """What was decided about a job before it was accepted: its payload, and where its images go."""

    inputs: JsonObject
    destination: Destination | None


def admit(request: JobRequest, task_name: str, house: House) -> Plan:
    """Is this request one that we can serve? Nothing is taken in yet.

    Raises:
        RequestRefused: a destination that isn't allowed, or inputs that the algorithm doesn't take.
        AlgorithmUnreachable: it never told what it takes.
        SpoolFull: no room for results.
    """
    destination = None if request.storage is None else house.store.resolve(request.storage, task_name)
    inputs = house.algorithm.check_inputs(request.inputs)
    if house.spool.is_full:
        raise SpoolFull(
            "no room for results, try again later",
            hint=f"{house.spool.used} of CADOR_SPOOL_BYTES={house.spool.budget} bytes are taken",
            retry_after=house.capacity.retry_after(),
        )
    return Plan(inputs, destination)


@dataclass
class _Trail:
    """What a job leaves with its neighbours, for settling: its answer, and what of it is stored."""

    answer: Answer = field(default_factory=lambda: Answer({}))
    stored: dict[str, StoredObject] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    """What a job came to, before anyone is told."""

    outcome: Outcome
    tags: Sequence[JsonObject] = ()


async def run_job(record: JobRecord, plan: Plan, house: House, publisher: Publisher) -> None:
    """Run an accepted job to its one end, recorded in the registry. Raises nothing but Cancelled."""
    with (
        structlog.contextvars.bound_contextvars(
            job_id=str(record.job.job_id), task_id=record.job.task_name, correlation_id=record.job.correlation_id
        ),
        job_span(Identity.of(record.job)) as trace,
        structlog.contextvars.bound_contextvars(**({"trace_id": trace.trace_id} if trace.trace_id else {})),
    ):
        if trace.headers:
            record.job = record.job.within(trace.headers)
        publisher.accepted(record)
        trail = _Trail()
        async with AsyncExitStack() as held:
            try:
                work = await _worked(record, plan, house, publisher, held, trail)
            except trio.Cancelled:  # from outside: the whole daemon goes down
                _end(record, _cut_short(record), house)
                raise
            outcome = await _published(record, work, publisher)
            await _settle(trail, outcome, record.job, house)
            _end(record, outcome, house)


async def _worked(  # noqa: PLR0913, PLR0917 - the whole house, and what this job holds and leaves
    record: JobRecord, plan: Plan, house: House, publisher: Publisher, held: AsyncExitStack, trail: _Trail
) -> _Work:
    """All up to the point of no return, with that passed."""
    with trio.CancelScope() as life:
        record.attach(life)
        try:
            return await _made(record, plan, house, publisher, held, trail)
        except CadorError as error:
            failure = error.again()  # history is no place for tracebacks and what hangs on them
        except Exception:
            log.exception("a job failed for a reason that nobody thought of")
            failure = unexpected_error()
        await trio.lowlevel.checkpoint_if_cancelled()  # whoever was told that it is cancelled was told the truth
        record.seal()
        return _Work(Failed(failure))
    record.seal()
    return _Work(_cut_short(record))


async def _made(  # noqa: PLR0913, PLR0917 - as above
    record: JobRecord, plan: Plan, house: House, publisher: Publisher, held: AsyncExitStack, trail: _Trail
) -> _Work:
    job = record.job
    answer = await _call(record, plan, house, held)
    trail.answer = answer
    with ExitStack() as bodies:
        bodies.callback(answer.close)
        _check_names(answer)
        answer = await _georeferenced(answer, job.request.referential, house)
        trail.stored = await _stored(answer, plan, house)
        product = await _packed(answer, trail.stored, house.spool)
        bodies.callback(product.close)
        product = await _fitted(product, plan, job, house, publisher)
        tags = await _tags(answer, product, job, house, publisher)
        await trio.lowlevel.checkpoint_if_cancelled()  # see above
        record.seal()
        bodies.pop_all()
        return _Work(Succeeded(product), tags)


async def _published(record: JobRecord, work: _Work, publisher: Publisher) -> Outcome:
    try:
        with stage("publish"), trio.CancelScope(shield=True):
            outcome = await publisher.publish(record, work.outcome, work.tags)
    except Exception:
        log.exception("a job's end can't be told for a reason that nobody thought of")
        outcome = Failed(unexpected_error())
    if isinstance(work.outcome, Succeeded) and not isinstance(outcome, Succeeded):
        work.outcome.product.close()
    return outcome


async def _call(record: JobRecord, plan: Plan, house: House, held: AsyncExitStack) -> Answer:
    """The algorithm stage: wait for the task's turn and for a slot, then work in it, all within the job's deadline."""
    job = record.job
    # A job from Kafka may wait as long as it takes: its clock starts when it is dispatched.
    deadline = Deadline(record.accepted_at + house.job_timeout_seconds if job.door == "http" else math.inf)
    order = Order(
        inputs=plan.inputs,
        size=job.request.size,
        headers=dict(job.forwarded),
        take_out_images=plan.destination is not None and house.store_inline_images,
        is_patient=job.is_patient,
        deadline=deadline,
        on_running=record.run,
        on_progress=record.report_progress,
        on_attempt_failed=record.note_attempt,
    )
    answer = None
    doing = "an earlier job with its task id ran"
    with deadline.scope:
        # Those who wait behind a job that waits for the algorithm must not run out of time meanwhile.
        with stage("queued"), house.algorithm.timing(deadline) if job.is_patient else nullcontext():
            await held.enter_async_context(house.registry.turn(job.task_name))
            if plan.destination is not None:
                doing = "the store was asked whether it takes the results"
                await _prepare(plan.destination, house, is_patient=job.is_patient)
            doing = "it waited for a slot"
            dispatch = await held.enter_async_context(house.capacity.dispatch(job.door))
        doing = "the algorithm worked on it"
        if job.door == "kafka":
            deadline.scope.deadline = trio.current_time() + house.job_timeout_seconds
        with stage("algorithm"):
            order.headers.update(current_headers())
            answer = await dispatch.at_algorithm(
                lambda connection, exchange: house.algorithm.process(order, connection, exchange), Answer.close
            )
    if answer is None:
        raise deadline.excuse or DeadlinePassed(
            f"the job's deadline of {house.job_timeout_seconds:g} s passed while {doing}",
            hint="CADOR_JOB_TIMEOUT_SECONDS sets the deadline",
        )
    return answer


async def _prepare(destination: Destination, house: House, *, is_patient: bool) -> None:
    """Before work begins: can its results be stored? A store that is down is waited for, if anyone can wait."""
    seconds = house.store_timeout_seconds if is_patient else min(house.store_timeout_seconds, HURRIED_STORE_SECONDS)
    try:
        with trio.fail_after(seconds):
            await house.store.prepare(destination)
    except trio.TooSlowError:
        raise StoreTimedOut(
            f"the store did not answer within {seconds:g} s", hint="Is it up, and reachable from here?"
        ) from None


def _check_names(answer: Answer) -> None:
    """Outputs must not be called as the envelope is, nor share a result id: one would overwrite the other."""
    for name in RESERVED_NAMES:
        if name in answer.outputs and not answer.whole:
            raise ResultRefused(
                f"the algorithm has an output called {name}, which is the envelope's", hint="rename the output"
            )
    ids = [image.result_id for image in answer.images()]
    ids += [name for name, output in answer.outputs.items() if isinstance(output, Value)]
    twice = sorted({result_id for result_id in ids if ids.count(result_id) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise ResultRefused(
            f"two results of the algorithm would be called {twice[0]}", hint="items of a list are <output>_<index>"
        )


async def _georeferenced(answer: Answer, referential: Referential | None, house: House) -> Answer:
    if referential is None:
        return answer

    def convert() -> dict[str, Output]:
        return {
            name: Value(
                house.results.georeference(output.json, referential, None if answer.whole else name), output.media_type
            )
            if isinstance(output, Value) and output.encoding == "json"
            else output
            for name, output in answer.outputs.items()
        }

    with stage("georeference"):
        outputs = await _in_thread_if_large(answer.size, convert)
    return Answer(outputs, whole=answer.whole, size=answer.size, leftovers=answer.leftovers)


async def _stored(answer: Answer, plan: Plan, house: House) -> dict[str, StoredObject]:
    """The images' references by result id; empty without storage."""
    stored: dict[str, StoredObject] = {}
    if plan.destination is None:
        return stored
    images = answer.images()
    try:
        with stage("store"), trio.fail_after(house.store_timeout_seconds):
            await _store_all(images, plan.destination, house.store, stored)
    except trio.TooSlowError:
        raise StoreTimedOut(
            f"storing took longer than {house.store_timeout_seconds:g} s: "
            f"{len(stored)} of {len(images)} images are stored",
            hint="CADOR_STORE_TIMEOUT_SECONDS sets the limit",
        ) from None
    return {image.result_id: stored[image.result_id] for image in images}


async def _store_all(
    images: Sequence[Image], destination: Destination, store: Store, stored: dict[str, StoredObject]
) -> None:
    """All images at once, as far as the store lets them; the first that fails ends the others."""
    failures: list[CadorError] = []
    async with trio.open_nursery() as uploads_nursery:

        async def put(image: Image) -> None:
            try:
                stored[image.result_id] = await store.put(destination, image)
            except CadorError as error:
                failures.append(error)
                uploads_nursery.cancel_scope.cancel("another image of the job can't be stored")

        for image in images:
            uploads_nursery.start_soon(put, image)
    if failures:
        raise failures[0]


async def _tags(answer: Answer, product: Product, job: Job, house: House, publisher: Publisher) -> Sequence[JsonObject]:
    if not job.request.wants_tags or not publisher.takes_tags:
        return ()
    algorithm = house.algorithm
    references = [result.reference for result in product.results if result.reference is not None]
    return await _in_thread_if_large(
        answer.size,
        lambda: house.results.tags(
            answer, job, image_inputs=algorithm.image_inputs, stored=references, tagger=algorithm.tagger
        ),
    )


async def _packed(answer: Answer, stored: dict[str, StoredObject], spool: Spool) -> Product:
    """The product; on an error what was written for it is given back."""
    outputs: dict[str, Result | tuple[Result, ...]] = {}
    with ExitStack() as written:
        for name, output in answer.outputs.items():
            if isinstance(output, Value):
                body = await _written(name, output, answer.size, spool)
                written.callback(body.close)
                outputs[name] = Result(name, name, None, output.media_type, body, output.encoding)
            elif isinstance(output, Image):
                outputs[name] = _image_result(output, stored)
            else:
                outputs[name] = tuple(_image_result(image, stored) for image in output)
        written.pop_all()
    return Product(outputs, whole=answer.whole)


async def _fitted(product: Product, plan: Plan, job: Job, house: House, publisher: Publisher) -> Product:
    """JSON results that are too large for the output message go to the store, the largest first."""
    size, limit = publisher.message_size(job, product), publisher.message_limit
    if size <= limit:
        return product
    largest_first = sorted(product.results, key=lambda result: result.body.size if result.body else 0, reverse=True)
    for result in largest_first:
        if plan.destination is None or result.body is None or result.encoding == "none":
            break
        product = product.stored(result, await _put_json(result, result.body, plan.destination, house))
        if publisher.message_size(job, product) <= limit:
            return product
    raise ResultTooLarge(
        f"the output message would have {size} bytes, more than the limit of {limit} bytes",
        hint="ask for outputStorage, so that large results are stored; CADOR_INLINE_RESULT_LIMIT sets the limit",
    )


async def _put_json(result: Result, body: Body, destination: Destination, house: House) -> JsonObject:
    try:
        with trio.fail_after(house.store_timeout_seconds):
            stored = await house.store.put(destination, Image(result.output, result.index, "application/json", body))
    except trio.TooSlowError:
        raise StoreTimedOut(
            f"storing took longer than {house.store_timeout_seconds:g} s",
            hint="CADOR_STORE_TIMEOUT_SECONDS sets the limit",
        ) from None
    body.close()
    return stored.reference


async def _settle(trail: _Trail, outcome: Outcome, job: Job, house: House) -> None:
    """Let go of what is safe elsewhere, or wanted by nobody. The job is done whatever happens here."""
    for image in trail.answer.images():
        if image.result_id in trail.stored:
            image.body.close()
    if trail.answer.leftovers and not isinstance(outcome, Failed):  # what could not be stored is safe with nobody else
        await _forget(trail.answer.leftovers, dict(job.forwarded), house.algorithm)


async def _forget(leftovers: Sequence[str], headers: dict[str, str], algorithm: Algorithm) -> None:
    try:
        with trio.move_on_after(SETTLE_SECONDS, shield=True) as patience:
            await algorithm.forget(leftovers, headers)
        if patience.cancelled_caught:
            log.warning("results may stay on the algorithm: deleting them took too long", seconds=SETTLE_SECONDS)
    except Exception:
        log.exception("results may stay on the algorithm for a reason that nobody thought of")


def _image_result(image: Image, stored: dict[str, StoredObject]) -> Result:
    kept: Body | None = image.body
    reference = None
    if image.result_id in stored:
        kept, reference = None, stored[image.result_id].reference
    return Result(image.result_id, image.output, image.index, image.media_type, kept, "none", reference)


async def _written(name: str, value: Value, size: int, spool: Spool) -> SpooledBody:
    writer = spool.writer(spool.budget, f"the output {name}", "CADOR_SPOOL_BYTES")
    try:
        if size <= THREAD_BYTES:
            await writer.write(write(value.json))
        else:
            slices = write_slices(value.json)
            while chunk := await trio.to_thread.run_sync(_gather, slices):
                await writer.write(chunk)
        return await writer.finish()
    except NotJson as error:
        raise AlgorithmBroken(f"the output {name} is {error}", hint="numbers must be finite") from error
    finally:
        writer.abandon()


def _gather(slices: Iterator[bytes]) -> bytes:
    gathered = bytearray()
    for piece in slices:
        gathered += piece
        if len(gathered) >= WRITE_BYTES:
            break
    return bytes(gathered)


async def _in_thread_if_large(size: int, work: Callable[[], T]) -> T:
    return work() if size <= THREAD_BYTES else await trio.to_thread.run_sync(work)


def _cut_short(record: JobRecord) -> Outcome:
    reason = record.end_reason or EndReason.SHUTDOWN
    if record.job.door == "kafka" and reason in {EndReason.SHUTDOWN, EndReason.REVOKED}:
        return GivenBack(reason)
    return Cancelled(reason)


def _end(record: JobRecord, outcome: Outcome, house: House) -> None:
    house.registry.end(record, outcome)
    note_outcome(outcome)
    match outcome:
        case Failed(error=error):
            count_end(record.job.door, "failed", error)
            log.warning("job failed", error=error.message, hint=error.hint, milliseconds=record.duration)
        case Cancelled(reason=reason) | GivenBack(reason=reason):
            count_end(record.job.door, "given_back" if isinstance(outcome, GivenBack) else "cancelled")
            log.info("job ended early", reason=str(reason), milliseconds=record.duration)
        case _:
            count_end(record.job.door, "succeeded")
            log.info("job succeeded", milliseconds=record.duration)
