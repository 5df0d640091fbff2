"""One attempt at one job: post it, follow it to its end, fetch what came of it, or stop it.

Stateless and stateful execution in both dialects; `dialect.py` knows what an answer means, `transport.py` how bytes
travel. Whether another attempt makes sense is for `client.py` to say.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
import trio

from cador_trio.algorithm import dialect, sniff
from cador_trio.algorithm.receive import (
    Received,
    Receiver,
    SizeLimits,
    answer_of,
    json_of,
    list_output,
    text_of,
    value_of,
)
from cador_trio.algorithm.transport import Connection, Response
from cador_trio.algorithm.watch import Watch
from cador_trio.capacity import Exchange
from cador_trio.errors import (
    AlgorithmBroken,
    AlgorithmBusy,
    AlgorithmDied,
    AlgorithmFailed,
    AlgorithmUnreachable,
    CadorError,
)
from cador_trio.job import WHOLE_ANSWER, Answer, Image, Json, Output, Value
from cador_trio.json_text import THREAD_BYTES, NotJson, read_answer, write, write_slices
from cador_trio.order import Order
from cador_trio.spool import Spool

T = TypeVar("T")

log = structlog.get_logger(__name__)

FIRST_POLL_SECONDS: Final = 0.1
LAST_POLL_SECONDS: Final = 2.0
POLL_GROWTH: Final = 1.5
FIRST_BACK_OFF_SECONDS: Final = 0.2
LAST_BACK_OFF_SECONDS: Final = 10.0
MAX_ERROR_BYTES: Final = 64 * 1024  # of an error answer that is read for its text
MAX_DOCUMENT_BYTES: Final = 16 * 1024 * 1024  # status, index: small documents by their nature


@dataclass(frozen=True, kw_only=True)
class Means:
    """What every attempt works with."""

    watch: Watch
    spool: Spool
    limits: SizeLimits
    max_attempts: int


class BackOff:
    """Pauses that double, up to a limit; the other side's `Retry-After` wins if it asks for more."""

    def __init__(self) -> None:
        self._next = FIRST_BACK_OFF_SECONDS

    async def sleep(self, wanted: float | None) -> None:
        """One pause, at least `wanted` seconds."""
        pause = max(self._next, wanted or 0.0)
        self._next = min(2 * self._next, LAST_BACK_OFF_SECONDS)
        await trio.sleep(pause)


class JobLost(AlgorithmDied):
    """The algorithm was away and has come back without the job."""


class Visit:
    """What the requests of one attempt have in common."""

    def __init__(self, means: Means, order: Order, connection: Connection, exchange: Exchange) -> None:
        self._means = means
        self._describe = means.watch.described.describe
        self._order = order
        self._connection = connection
        self._exchange = exchange

    async def post(self) -> Answer | str:
        """Hand the job over. Its answer; or, for a stateful one, the URL of its status.

        An answer that nobody waits for any more is read to its end, since the algorithm is busy until then, and
        dropped; only the link of a stateful one is kept.

        Raises:
            CadorError: each kind that the algorithm or the way to it can fail with.
        """
        execution = self._describe.execution
        content = await _payload(self._order)
        self._order.on_running()
        headers = {"Content-Type": "application/json", **self._order.headers}
        async with self._connection.send("POST", execution, headers, content) as response:
            await _raise_for_status(response, follow_up=False)
            received = await self._receiver("the answer", is_image=self._describe.whole_answer_is_image).receive(
                response, "", self._is_answer_wanted
            )
        if received is None:
            return Answer({})
        if self._describe.asynchronous and (link := _status_link(received, response)) is not None:
            received.body.close()
            return self._pin(link, execution)
        return await self._answer(received)

    async def follow(self, status_url: str) -> Answer:
        """Poll a stateful job to its end and fetch its results. Raises as `post`."""
        status = await self._last_status(status_url)
        if status.state != "done":
            raise AlgorithmFailed(status.text)
        refs, links = await self._index(status_url, status)
        outputs, size = await self._fetch_all(refs, links)
        return Answer(outputs, size=size, leftovers=[*links.values(), dialect.job_link(status_url)])

    async def stop(self, status_url: str) -> None:
        """Nobody wants the job any more: cancel it, or wait until it is done and clear it away."""
        try:
            if await self.cancel(status_url):
                return
            status = await self._last_status(status_url)
            if status.state == "done":
                _, links = await self._index(status_url, status)
                for url in (*links.values(), dialect.job_link(status_url)):
                    await self._means.watch.delete(url, self._order.headers)
        except CadorError as error:
            log.info("nothing is known of the job on the algorithm any more", reason=error.message)

    async def cancel(self, status_url: str) -> bool:
        """Ask the algorithm to cancel the job. False if it can't, or does a single thing at a time and is still at it.

        Raises:
            CadorError: there is no algorithm to ask.
        """
        try:
            is_cancelled = await self._means.watch.delete(dialect.job_link(status_url), self._order.headers)
        except AlgorithmDied:
            return False
        if is_cancelled:
            log.info("the job is cancelled on the algorithm")
        return is_cancelled

    def _is_answer_wanted(self) -> bool:
        return self._describe.asynchronous or not self._exchange.abandoned

    # --- answers

    async def _answer(self, received: Received) -> Answer:
        """What a stateless POST brought, whatever it is."""
        match received.kind:
            case "json":
                size = received.body.size
                spool = self._means.spool if self._order.take_out_images else None
                return await answer_of(await json_of(received.body), size, self._describe, take_out_into=spool)
            case "text":
                text = Value(await text_of(received.body), "text/plain; charset=utf-8", "text")
                return Answer({WHOLE_ANSWER: text}, whole=True)
            case _:
                return Answer({WHOLE_ANSWER: Image(WHOLE_ANSWER, None, received.media_type, received.body)}, whole=True)

    # --- results of a stateful job

    async def _last_status(self, status_url: str) -> dialect.AlgorithmStatus:
        """Ask until the job has come to its end."""
        pause = FIRST_POLL_SECONDS
        while True:
            status = dialect.read_status(await self._document(status_url, "the status"))
            if status.state != "working":
                return status
            self._order.on_progress(status.progress)
            await trio.sleep(pause)
            pause = min(pause * POLL_GROWTH, LAST_POLL_SECONDS)

    async def _index(
        self, status_url: str, status: dialect.AlgorithmStatus
    ) -> tuple[list[dialect.ResultRef], dict[str, str]]:
        """The results there are, and their URLs by id."""
        index_url = self._pin(dialect.results_link(status_url, status), status_url)
        refs = dialect.read_index(await self._document(index_url, "the index of results"), self._describe)
        return refs, {ref.id: self._pin(ref.link, index_url) for ref in refs}

    async def _fetch_all(self, refs: list[dialect.ResultRef], links: dict[str, str]) -> tuple[dict[str, Output], int]:
        """The outputs by name, and the bytes of JSON among them."""
        items: dict[str, list[Image | Value]] = {}
        size = 0
        with ExitStack() as fetched:
            for ref in refs:
                item, item_size = await self._fetch(links[ref.id], ref)
                if isinstance(item, Image):
                    fetched.callback(item.body.close)
                items.setdefault(ref.output, []).append(item)
                size += item_size
            lists = {ref.output for ref in refs if ref.index is not None}
            outputs = {name: list_output(name, found) if name in lists else found[0] for name, found in items.items()}
            fetched.pop_all()
        return outputs, size

    async def _fetch(self, url: str, ref: dialect.ResultRef) -> tuple[Image | Value, int]:
        """One result and its bytes of JSON; a connection that breaks costs a retry of this result alone."""
        try:
            received = await self._insist(lambda: self._fetch_once(url, ref))
        except JobLost:
            raise
        except AlgorithmDied as error:
            # The work is done, only its result can't be had: no sense in doing all of it again.
            raise AlgorithmBroken(f"the result {ref.id} can't be fetched: {error.message}", hint=error.hint) from error
        size = received.body.size
        match received.kind:
            case "json":
                return Value(await json_of(received.body)), size
            case "text" | "bytes" if ref.output in self._describe.output_numbers:
                return Value(sniff.text_value(await text_of(received.body), is_number=True)), size
            case "text":
                return Value(await text_of(received.body), "text/plain; charset=utf-8", "text"), size
            case _:
                return Image(ref.output, ref.index, received.media_type, received.body), 0

    async def _fetch_once(self, url: str, ref: dialect.ResultRef) -> Received:
        is_image = ref.output in self._describe.output_images
        async with self._connection.send("GET", url, self._order.headers) as response:
            await _raise_for_status(response, follow_up=True)
            received = await self._receiver(f"the result {ref.id}", is_image=is_image).receive(response, ref.media_type)
        if received is None:
            raise RuntimeError("a result is wanted as long as somebody fetches it")
        return received

    # --- requests

    async def _document(self, url: str, what: str) -> Json:
        """A small JSON document about a job."""
        return await value_of(await self._insist(lambda: self._document_once(url, what)))

    async def _document_once(self, url: str, what: str) -> bytes:
        async with self._connection.send("GET", url, self._order.headers) as response:
            await _raise_for_status(response, follow_up=True)
            return await response.read(MAX_DOCUMENT_BYTES, what)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask about a job that the algorithm has taken until it answers: asking again does no harm.

        Raises:
            AlgorithmDied: it broke off too often.
            JobLost: it was away, and now knows nothing of the job.
            CadorError: its other words on the job.
        """
        deaths = 0
        was_away = False
        pauses = BackOff()
        while True:
            try:
                return await ask()
            except AlgorithmUnreachable as error:
                was_away = True
                await self._wait_reachable(error)
            except AlgorithmBusy as error:
                await pauses.sleep(error.retry_after)
            except AlgorithmDied as error:
                was_away = True
                deaths += 1
                if deaths >= self._means.max_attempts:
                    raise
                await pauses.sleep(error.retry_after)
            except AlgorithmFailed as error:
                if was_away:
                    raise JobLost(f"the algorithm was away and has lost the job: {error.message}") from error
                raise

    async def _wait_reachable(self, error: AlgorithmUnreachable) -> None:
        self._means.watch.suspect(error)
        if self._exchange.abandoned or not self._order.is_patient:
            raise error
        with self._order.deadline.standing_still():
            await self._means.watch.wait_reachable()

    def _receiver(self, what: str, *, is_image: bool) -> Receiver:
        return Receiver(self._means.spool, self._means.limits, what, is_image=is_image)

    def _pin(self, link: str, base: str) -> str:
        return self._means.watch.origin.pin(link, base)


def _status_link(received: Received, response: Response) -> str | None:
    """Where a stateful POST says that the status is; None if the answer is no Reference."""
    body = None
    if received.kind == "json" and received.body.in_memory:
        with suppress(NotJson):
            body = read_answer(received.body.read_all())
    return dialect.status_link(body, response.headers)


async def _payload(order: Order) -> bytes:
    if order.size <= THREAD_BYTES:
        return write(order.inputs)
    return await trio.to_thread.run_sync(b"".join, write_slices(order.inputs))


async def _raise_for_status(response: Response, *, follow_up: bool) -> None:
    if 200 <= response.status < 300:
        return
    body = await response.read_start(MAX_ERROR_BYTES)
    text = dialect.error_text(response.status, response.media_type, body, response.reason)
    wait = dialect.read_retry_after(response.headers.get("retry-after"), time.time())
    error = dialect.classify(response.status, text, retry_after=wait, follow_up=follow_up)
    if error is not None:
        raise error
