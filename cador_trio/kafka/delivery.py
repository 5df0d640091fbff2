"""How one job's end becomes effects: the publishers that this room gives to `run_job`, one a job.

A job from Kafka ends with its messages, its terminal status and its offset together. A job from HTTP has no offset;
its messages are a courtesy, and its caller is not kept waiting for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import structlog
import trio

from cador_trio.errors import CadorError, ResultTooLarge, unexpected_error
from cador_trio.job import (
    Attempt,
    Cancelled,
    EndReason,
    Failed,
    GivenBack,
    Job,
    JobState,
    JsonObject,
    Outcome,
    Product,
    Succeeded,
)
from cador_trio.json_text import THREAD_BYTES
from cador_trio.kafka.committer import Claim, Committer
from cador_trio.kafka.dead_letters import dead_letter
from cador_trio.kafka.effects import Done, Effects, Refused, Role, Source, Whereabouts, no_tags
from cador_trio.kafka.messages import (
    Message,
    Produced,
    Record,
    StatusFacts,
    Subject,
    output_message,
    output_size,
    status_message,
    tag_message,
)
from cador_trio.kafka.statuses import Statuses, Ticket
from cador_trio.observe.metrics import MESSAGES_LEFT_OUT
from cador_trio.registry import JobRecord

log = structlog.get_logger(__name__)

# How long a REST job waits for its messages; they go on without it.
COURTESY_SECONDS: Final = 10.0
PROGRESS_SECONDS: Final = 1.0  # between two progress statuses of a job
TAG_BYTES: Final = 1_000  # of a tag message, roughly


@dataclass(frozen=True)
class Desk:
    """What every delivery works with.

    `topics` are those that there are; `inline_limit` is what an output message may hold, `largest_message` what any
    message may; both in bytes. `algorithm` gives `name/version`, `now_ms` epoch milliseconds.
    """

    committer: Committer
    statuses: Statuses
    topics: frozenset[Role]
    inline_limit: int
    largest_message: int
    echo_credentials: bool
    node: str
    algorithm: Callable[[], str]
    now_ms: Callable[[], int]

    def output_size(self, job: Job, product: Product) -> int:
        """Bytes of the output message, at most; 0 without a topic for it."""
        if Role.OUTPUT not in self.topics:
            return 0
        return output_size(job, product, echo_credentials=self.echo_credentials)

    async def output(self, job: Job, product: Product) -> Message | None:
        """The output message, if there is a topic for it."""
        if Role.OUTPUT not in self.topics:
            return None

        def make() -> Message:
            return output_message(job, product, echo_credentials=self.echo_credentials)

        is_quick = product.size <= THREAD_BYTES and all(
            one.body is None or one.body.in_memory for one in product.results
        )
        return make() if is_quick else await trio.to_thread.run_sync(make)

    def status(self, subject: Subject, facts: StatusFacts, produced: Produced | None = None) -> Message:
        """A status of ours."""
        return status_message(subject, facts, node=self.node, produced=produced)

    def facts(self, record: JobRecord, state: JobState, error: str = "") -> StatusFacts:
        """What a status says of a job, as of now."""
        return StatusFacts(state, record.progress, error, record.duration, max(record.modified_at, self.now_ms()))


class Teller:
    """Tells of one job's states and progress as they come; its terminal state is told with its effects."""

    def __init__(self, desk: Desk) -> None:
        self.ticket = Ticket()
        self._desk = desk
        self.is_over = False  # nothing more is told
        self._told_at = 0.0  # trio's clock
        self._told: JobState | None = None

    def tell(self, record: JobRecord) -> None:
        """It has a new state, or new progress; the latter is told now and then."""
        if self.is_over or not self._desk.statuses.are_wanted or record.state.is_terminal:
            return
        now = trio.current_time()
        if record.state is not self._told or now - self._told_at >= PROGRESS_SECONDS:
            self._told, self._told_at = record.state, now
            facts = self._desk.facts(record, record.state)
            self._desk.statuses.send(self.ticket, self._desk.status(Subject.of(record.job), facts))


class KafkaDelivery:
    """The publisher of one job from Kafka."""

    def __init__(self, desk: Desk, claim: Claim, record: Record, begun: Callable[[], None]) -> None:
        """`begun` is called when the job reaches the algorithm."""
        self._desk = desk
        self._claim = claim
        self._record = record
        self._begun = begun
        self._teller = Teller(desk)
        self._has_begun = False
        self._letter_limit = desk.largest_message
        self._is_told = True  # by a terminal status

    @property
    def takes_tags(self) -> bool:
        """Is there a topic for them?"""
        return Role.TAG in self._desk.topics

    @property
    def message_limit(self) -> int:
        """See Publisher."""
        return self._desk.inline_limit

    def accepted(self, record: JobRecord) -> None:
        """See Publisher."""
        record.on_change = self._changed
        self._teller.tell(record)

    def message_size(self, job: Job, product: Product) -> int:
        """See Publisher. Raises ResultRefused: an image that is in no store."""
        return self._desk.output_size(job, product)

    async def publish(self, record: JobRecord, outcome: Outcome, tags: Sequence[JsonObject]) -> Outcome:
        """See Publisher."""
        if isinstance(outcome, GivenBack):
            return self._give_back(outcome.reason)
        await self._statuses_there()
        while True:
            made = await self._effects_or_failure(record, outcome, tags)
            if isinstance(made, Failed):
                outcome, tags = made, ()
                continue
            effects = made if self._is_told else replace(made, status=None)
            match await self._desk.committer.commit(effects):
                case Done.COMMITTED:
                    return outcome
                case Done.DROPPED:
                    return self._give_back(EndReason.REVOKED if self._claim.gone.is_set() else EndReason.SHUTDOWN)
                case Refused(role=Role.DEAD_LETTER, size=size):
                    self._letter_limit = size - 1  # a smaller form of it, in the end none
                case Refused(role=Role.STATUS) | Done.BROKEN if not isinstance(outcome, Succeeded):
                    log.error("a terminal status can't be sent in any form", record=repr(self._record))
                    MESSAGES_LEFT_OUT.labels("status").inc()
                    self._is_told = False
                case Done.BROKEN:
                    outcome, tags = Failed(unexpected_error()), ()
                case Refused(role=role, size=size):
                    outcome, tags = _too_large(role, size), ()

    def refused(self, error: CadorError, job_id: UUID, subject: Subject) -> Effects:
        """The effects of a request that never became a job."""
        facts = StatusFacts(JobState.FAILED, 0, self._failure_text(error), 0, self._desk.now_ms())
        letter = self._dead_letter(error, (), job_id, subject)
        return self._told(letter, lambda _: self._desk.status(subject, facts))

    def smaller_letter(self, refused: int, error: CadorError, job_id: UUID, subject: Subject) -> Message | None:
        """The dead letter of such a request in a form below `refused` bytes; None if there is none."""
        self._letter_limit = refused - 1
        return self._dead_letter(error, (), job_id, subject)

    def close(self) -> None:
        """Nothing more will begin: let go of who wanted to know."""
        self._begun = _do_nothing

    def passed_over(self) -> Effects:
        """The effects of a record that is none of our business: its offset is done."""
        return Effects(self._source)

    def _changed(self, record: JobRecord) -> None:
        if record.state is JobState.RUNNING and not self._has_begun:
            self._has_begun = True
            self._claim.ledger.begin(self._record.offset)
            self._desk.committer.note_begun()
            self._begun()
        self._teller.tell(record)

    @property
    def _source(self) -> Source:
        return Source(self._record.partition, self._record.offset, self._claim.number)

    async def _statuses_there(self) -> None:
        """ACCEPTED and RUNNING come before the end; unless nothing will ever be committed here."""
        if self._teller.ticket.is_all_there:
            return
        async with trio.open_nursery() as nursery:

            async def until_gone() -> None:
                await self._claim.gone.wait()
                nursery.cancel_scope.cancel("the partition has gone")

            nursery.start_soon(until_gone)
            await self._teller.ticket.wait_all_there()
            nursery.cancel_scope.cancel("all statuses have arrived")

    async def _effects_or_failure(
        self, record: JobRecord, outcome: Outcome, tags: Sequence[JsonObject]
    ) -> Effects | Failed:
        """The effects; or the failure that takes their place, if no message can hold the result."""
        try:
            return await self._effects(record, outcome, tags)
        except CadorError as refusal:
            return Failed(refusal.again())
        except Exception:
            if not isinstance(outcome, Succeeded):  # to tell of a failure takes nothing that could fail
                raise
            log.exception("a job's messages can't be made for a reason that nobody thought of")
            return Failed(unexpected_error())

    async def _effects(self, record: JobRecord, outcome: Outcome, tags: Sequence[JsonObject]) -> Effects:
        match outcome:
            case Succeeded(product=product):
                return await self._success(record, product, tags)
            case Failed(error=error):
                letter = self._dead_letter(error, record.failed_attempts, record.job.job_id, Subject.of(record.job))
                facts = self._desk.facts(record, JobState.FAILED, self._failure_text(error))
                return self._told(letter, lambda _: self._desk.status(Subject.of(record.job), facts))
            case _:
                reason = outcome.reason if isinstance(outcome, Cancelled) else EndReason.CALLER_CANCELLED
                facts = self._desk.facts(record, JobState.CANCELLED, str(reason))
                return self._told(None, lambda _: self._desk.status(Subject.of(record.job), facts))

    async def _success(self, record: JobRecord, product: Product, tags: Sequence[JsonObject]) -> Effects:
        output = await self._desk.output(record.job, product)
        return Effects(
            self._source,
            tags=_messages_of(record.job, tags),
            tag_count=len(tags),
            output=output,
            status=self._success_status(record, product, len(tags)),
            size=(0 if output is None else output.size) + len(tags) * TAG_BYTES,
        )

    def _success_status(
        self, record: JobRecord, product: Product, tag_count: int
    ) -> Callable[[Whereabouts], Message] | None:
        subject, facts = Subject.of(record.job), self._desk.facts(record, JobState.SUCCEEDED)
        references = _references(product)

        def status(where: Whereabouts) -> Message:
            return self._desk.status(subject, facts, Produced(references, where.tags, where.output, tag_count))

        return status

    def _told(self, letter: Message | None, status: Callable[[Whereabouts], Message]) -> Effects:
        return Effects(self._source, dead_letter=letter, status=status, size=0 if letter is None else letter.size)

    def _dead_letter(
        self, error: CadorError, attempts: Sequence[Attempt], job_id: UUID, subject: Subject
    ) -> Message | None:
        if Role.DEAD_LETTER not in self._desk.topics:
            return None
        now = self._desk.now_ms()
        letter = dead_letter(
            self._record,
            error=error,
            attempts=[*attempts, Attempt(now, error.message)],
            job_id=job_id,
            task_name=subject.task_name,
            algorithm=self._desk.algorithm(),
            failed_at=now,
            traceparent=subject.traceparent,
            limit=self._letter_limit,
        )
        if letter.size > self._letter_limit:
            MESSAGES_LEFT_OUT.labels("dead_letter").inc()
            log.error("a dead letter fits its topic in no form", record=repr(self._record), reason=error.message)
            return None
        return letter

    def _failure_text(self, error: CadorError) -> str:
        """Without a dead letter, the status says where the request lies."""
        if Role.DEAD_LETTER in self._desk.topics:
            return error.message
        return f"{error.message} (request {self._record.topic}/{self._record.partition}/{self._record.offset})"

    def _give_back(self, reason: EndReason) -> GivenBack:
        self._teller.is_over = True
        if not self._claim.gone.is_set():
            self._claim.ledger.give_back(self._record.offset)
            self._desk.committer.note_begun()
        return GivenBack(reason)


class RestDelivery:
    """The publisher of jobs from HTTP: their tags, if asked for; all the rest too, if the operator wants that."""

    def __init__(self, desk: Desk, *, tells_all: bool) -> None:
        """`tells_all`: not only tags."""
        self._desk = desk
        self._tells_all = tells_all
        self._tellers: dict[UUID, Teller] = {}
        self.message_limit = 0  # an answer over HTTP may be of any size

    @property
    def takes_tags(self) -> bool:
        """Is there a topic for them?"""
        return Role.TAG in self._desk.topics

    def accepted(self, record: JobRecord) -> None:
        """See Publisher."""
        if self._tells_all:
            teller = self._tellers[record.job.job_id] = Teller(self._desk)
            record.on_change = teller.tell
            teller.tell(record)

    def message_size(self, _job: Job, _product: Product, /) -> int:
        """Its message must not change what the caller is answered."""
        return 0

    async def publish(self, record: JobRecord, outcome: Outcome, tags: Sequence[JsonObject]) -> Outcome:
        """See Publisher. What can't be told is logged; the job's outcome stands."""
        teller = self._tellers.pop(record.job.job_id, None)
        effects = await self._effects(record, outcome, tags)
        if effects is not None:
            with trio.move_on_after(COURTESY_SECONDS) as patience:
                if teller is not None:
                    await teller.ticket.wait_all_there()
                verdict = await self._desk.committer.commit(effects)
                if verdict is not Done.COMMITTED:
                    log.warning("messages of a REST job were not sent", verdict=str(verdict))
            if patience.cancelled_caught:
                log.warning("messages of a REST job are still on their way", seconds=COURTESY_SECONDS)
        return outcome

    async def _effects(self, record: JobRecord, outcome: Outcome, tags: Sequence[JsonObject]) -> Effects | None:
        tag_messages = _messages_of(record.job, tags)
        if not self._tells_all:
            return Effects(None, tags=tag_messages, tag_count=len(tags), size=len(tags) * TAG_BYTES) if tags else None
        subject = Subject.of(record.job)
        match outcome:
            case Succeeded(product=product):
                output = await self._output(record.job, product)
                facts = self._desk.facts(record, JobState.SUCCEEDED)
                return Effects(
                    None,
                    tags=tag_messages,
                    tag_count=len(tags),
                    output=output,
                    status=lambda where: self._desk.status(
                        subject, facts, Produced(_references(product), where.tags, where.output, len(tags))
                    ),
                    size=(0 if output is None else output.size) + len(tags) * TAG_BYTES,
                )
            case Failed(error=error):
                facts = self._desk.facts(record, JobState.FAILED, error.message)
            case Cancelled(reason=reason) | GivenBack(reason=reason):
                facts = self._desk.facts(record, JobState.CANCELLED, str(reason))
        return Effects(None, status=lambda _: self._desk.status(subject, facts))

    async def _output(self, job: Job, product: Product) -> Message | None:
        try:
            if self._desk.output_size(job, product) > self._desk.inline_limit:
                raise ResultTooLarge("the result is larger than CADOR_INLINE_RESULT_LIMIT")
            return await self._desk.output(job, product)
        except CadorError as error:
            MESSAGES_LEFT_OUT.labels("output").inc()
            log.warning("a REST job has no output message", reason=error.message)
            return None


def _messages_of(job: Job, tags: Sequence[JsonObject]) -> Callable[[], Iterator[Message]]:
    if not tags:
        return no_tags
    subject = Subject.of(job)
    return lambda: (tag_message(subject, tag) for tag in tags)


def _references(product: Product) -> list[JsonObject]:
    return [result.reference for result in product.results if result.reference is not None]


def _do_nothing() -> None:
    """Nobody wants to know."""


def _too_large(role: Role, size: int) -> Failed:
    return Failed(
        ResultTooLarge(
            f"the {role} message has {size} bytes, more than its topic takes",
            hint="raise the topic's max.message.bytes, or lower CADOR_INLINE_RESULT_LIMIT so that results are stored",
        )
    )
