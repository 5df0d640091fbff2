"""A job at the algorithm, as `run_job` asks for it: attempts, and which failure is worth another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import structlog
import trio

from cador_trio.algorithm.transport import Connection
from cador_trio.algorithm.visit import BackOff, Means, Visit
from cador_trio.capacity import Exchange
from cador_trio.errors import (
    AlgorithmBroken,
    AlgorithmBusy,
    AlgorithmDied,
    AlgorithmFailed,
    AlgorithmRefused,
    AlgorithmUnreachable,
    CadorError,
)
from cador_trio.job import Answer, JsonObject
from cador_trio.observe.metrics import ALGORITHM_ATTEMPTS, Attempt
from cador_trio.order import Deadline, Order

log = structlog.get_logger(__name__)

LAST_WORDS_SECONDS: Final = 2.0  # for cancelling a job on the algorithm when the daemon stops
# Between the algorithm's return and the next try: it may be there and refuse this connection alone.
AFTERWARDS_SECONDS: Final = 0.1

_FAILURES: Final[Mapping[type[CadorError], Attempt]] = {
    AlgorithmRefused: "refused",
    AlgorithmFailed: "failed",
    AlgorithmBroken: "broken",
    AlgorithmDied: "died",
    AlgorithmBusy: "busy",
    AlgorithmUnreachable: "unreachable",
}


class AlgorithmClient:
    """The algorithm's end of `run_job`; connections come with the slots."""

    def __init__(self, means: Means) -> None:
        self._means = means

    @property
    def tagger(self) -> str:
        """`organization.name.version` of the describe document."""
        return self._means.watch.described.describe.tagger

    @property
    def name(self) -> str:
        """`name/version` of the describe document."""
        describe = self._means.watch.described.describe
        return f"{describe.name}/{describe.version}"

    @property
    def gives_bare_images(self) -> bool:
        """A stateless answer is one image, or a stateful job has images among its results."""
        describe = self._means.watch.described.describe
        return describe.whole_answer_is_image or (describe.asynchronous and bool(describe.output_images))

    @property
    def image_inputs(self) -> Mapping[str, bool]:
        """The inputs that are images; name -> whether it is a list of them."""
        return self._means.watch.described.describe.input_images

    def check_inputs(self, inputs: JsonObject) -> JsonObject:
        """The payload to send, without optional inputs that are null.

        Raises:
            RequestRefused: it does not match the algorithm's input schema.
            AlgorithmUnreachable: the algorithm never told its schema.
        """
        validator = self._means.watch.described.validator
        wanted = validator.without_null_options(inputs)
        validator.check(wanted)
        return wanted

    def timing(self, deadline: Deadline) -> AbstractContextManager[None]:
        """In this block the deadline stands still whenever the algorithm is away."""
        return self._means.watch.timing(deadline)

    async def process(self, order: Order, connection: Connection, exchange: Exchange) -> Answer:
        """One job, retries included. What fails for want of the algorithm costs no attempt, what fails at it does.

        Cancelled by abandoning the exchange: a job that waits is dropped, one that runs is cancelled on the algorithm,
        or waited for if that can't be.

        Raises:
            CadorError: its last word on the job.
        """
        pauses = BackOff()
        attempts = 0
        while True:
            order.deadline.excuse = None
            try:
                return await self._attempt(order, connection, exchange)
            except AlgorithmUnreachable as error:
                self._means.watch.suspect(error)
                if not order.is_patient:
                    raise
                with order.deadline.standing_still():
                    await self._means.watch.wait_reachable()
                    await trio.sleep(AFTERWARDS_SECONDS)
            except AlgorithmBusy as error:
                order.deadline.excuse = error
                await pauses.sleep(error.retry_after)
            except AlgorithmDied as error:
                attempts += 1
                if attempts >= self._means.max_attempts:
                    message = f"{error.message} (attempt {attempts} of {self._means.max_attempts})"
                    raise AlgorithmDied(message, hint=error.hint) from error
                log.warning(
                    "the algorithm failed in a way that a retry can cure", reason=error.message, attempt=attempts
                )
                order.on_attempt_failed(error)
                await pauses.sleep(error.retry_after)
            except AlgorithmBroken:
                # Whoever lies about its length may have more of it on the line; the next job must not read that.
                await connection.aclose()
                raise

    async def forget(self, leftovers: Sequence[str], headers: Mapping[str, str]) -> None:
        """Delete what the algorithm still holds; what can't be deleted is logged and stays."""
        for url in leftovers:
            try:
                await self._means.watch.delete(url, headers)
            except CadorError as error:
                log.warning("results stay on the algorithm", url=url, reason=error.message)
                return

    async def _attempt(self, order: Order, connection: Connection, exchange: Exchange) -> Answer:
        await trio.lowlevel.checkpoint_if_cancelled()  # a job that has left already is not posted
        with _counted(exchange):
            return await self._visit(order, connection, exchange)

    async def _visit(self, order: Order, connection: Connection, exchange: Exchange) -> Answer:
        visit = Visit(self._means, order, connection, exchange)
        posted = await exchange.masked(visit.post)
        if isinstance(posted, Answer):
            return posted
        try:
            return await visit.follow(posted)
        except AlgorithmDied:
            with suppress(CadorError):  # it may still be at it, and another attempt would find it busy
                await visit.cancel(posted)  # noqa: ASYNC120 - who cancels this asks for no error
            raise
        except trio.Cancelled:
            # `masked` is a shield, and bounded; the checker can't see it.
            await exchange.masked(lambda: visit.stop(posted), last_words=LAST_WORDS_SECONDS)  # noqa: ASYNC102
            raise


@contextmanager
def _counted(exchange: Exchange) -> Iterator[None]:
    """One try at the algorithm, counted by what it comes to; "other" is what we can't take, such as a full spool."""
    result: Attempt = "other"
    try:
        yield
        result = "succeeded"
    except CadorError as error:
        result = next((name for kind, name in _FAILURES.items() if isinstance(error, kind)), "other")
        raise
    except trio.Cancelled:
        result = "cancelled"
        raise
    finally:
        ALGORITHM_ATTEMPTS.labels("cancelled" if exchange.abandoned else result).inc()
