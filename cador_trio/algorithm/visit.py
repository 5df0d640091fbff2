"""One attempt at one job: post it, follow it to its end, fetch what came of it, or stop it.

Stateless and stateful execution in both dialects; `dialect.py` knows what an answer means, `transport.py` how bytes
travel. Whether another attempt makes sense is for `client.py` to say.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from cador_trio.algorithm import dialect, sniff
from cador_trio.algorithm.receive import Received, Receiver, SizeLimits, answer_of, json_of, list_output, text_of
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
    ResultTooLarge,
)
from cador_trio.job import WHOLE_ANSWER, Answer, Image, Json, Output, Value
from cador_trio.json_text import NotJson, read_answer, write
from cador_trio.order import Order
from cador_trio.spool import Spool

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

        Raises:
            CadorError: each kind that the algorithm or the way to it can fail with.
        """
        execution = self._describe.execution
        self._order.on_running()
        headers = {"Content-Type": "application/json", **self._order.headers}
        async with self._connection.send("POST", execution, headers, write(self._order.inputs)) as response:
            await _raise_for_status(response, follow_up=False)
            received = await self._receive(
                response, "the answer", is_image=self._describe.whole_answer_is_image, announced=""
            )
        if self._describe.asynchronous and (link := await self._status_link(received, response)) is not None:
            received.body.close()
            return self._pin(link, execution)
        return await self._answer(received)

    async def follow(self, status_url: str) -> Answer:
        """Poll a stateful job to its end and fetch its results. Raises as `post`."""
        status = await self._last_status(status_url)
        if status.state != "done":
            raise AlgorithmFailed(f"the algorithm's job has {status.state}: {status.text}")
        index_url = self._pin(dialect.results_link(status_url, status), status_url)
        refs = dialect.read_index(await self._document(index_url), self._describe)
        links = {ref.id: self._pin(ref.link, index_url) for ref in refs}
        outputs, size = await self._fetch_all(refs, links)
        return Answer(outputs, size=size, leftovers=[*links.values(), dialect.job_link(status_url)])

    async def stop(self, status_url: str) -> None:
        """Nobody wants the job any more: cancel it, or wait until it is done and clear it away."""
        watch = self._means.watch
        try:
            if await watch.delete(dialect.job_link(status_url), self._order.headers):
                log.info("the job is cancelled on the algorithm")
                return
            status = await self._last_status(status_url)
            if status.state == "done":
                index_url = self._pin(dialect.results_link(status_url, status), status_url)
                for ref in dialect.read_index(await self._document(index_url), self._describe):
                    await watch.delete(self._pin(ref.link, index_url), self._order.headers)
        except CadorError as error:
            log.info("nothing is known of the job on the algorithm any more", reason=error.message)

    # --- answers

    async def _status_link(self, received: Received, response: Response) -> str | None:
        is_small_json = received.kind == "json" and received.body.in_memory
        body = read_answer_or_none(received.body.read_all()) if is_small_json else None
        return dialect.status_link(body, response.headers)

    async def _answer(self, received: Received) -> Answer:
        """What a stateless POST brought, whatever it is."""
        match received.kind:
            case "json":
                size = received.body.size
                return await answer_of(
                    await json_of(received.body),
                    size,
                    dict(self._describe.output_images),
                    take_out_into=self._means.spool if self._order.take_out_images else None,
                )
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
            status = dialect.read_status(await self._document(status_url))
            if status.state != "working":
                return status
            self._order.on_progress(status.progress)
            await trio.sleep(pause)
            pause = min(pause * POLL_GROWTH, LAST_POLL_SECONDS)

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
        deaths = 0
        pauses = BackOff()
        while True:
            try:
                return await self._fetch_once(url, ref)
            except AlgorithmUnreachable as error:
                await self._wait_reachable(error)
            except AlgorithmBusy as error:
                await pauses.sleep(error.retry_after)
            except AlgorithmDied as error:
                deaths += 1
                if deaths >= self._means.max_attempts:
                    # The work is done, its result can't be had: no sense in doing all the work again.
                    raise AlgorithmBroken(f"the result {ref.id} can't be fetched: {error.message}") from error
                await pauses.sleep(error.retry_after)

    async def _fetch_once(self, url: str, ref: dialect.ResultRef) -> tuple[Image | Value, int]:
        async with self._connection.send("GET", url, self._order.headers) as response:
            await _raise_for_status(response, follow_up=True)
            received = await self._receive(
                response,
                f"the result {ref.id}",
                is_image=ref.output in self._describe.output_images,
                announced=ref.media_type,
            )
        size = received.body.size
        match received.kind:
            case "json":
                return Value(await json_of(received.body)), size
            case "text" if ref.output in self._describe.output_numbers:
                return Value(sniff.text_value(await text_of(received.body), is_number=True)), size
            case "text":
                return Value(await text_of(received.body), "text/plain; charset=utf-8", "text"), size
            case _:
                return Image(ref.output, ref.index, received.media_type, received.body), 0

    # --- requests

    async def _document(self, url: str) -> Json:
        """A small JSON document about a job; asking again is harmless, so it is asked for until it comes."""
        deaths = 0
        pauses = BackOff()
        while True:
            try:
                async with self._connection.send("GET", url, self._order.headers) as response:
                    await _raise_for_status(response, follow_up=True)
                    return _small_json(await response.read(MAX_DOCUMENT_BYTES))
            except AlgorithmUnreachable as error:
                await self._wait_reachable(error)
            except AlgorithmBusy as error:
                await pauses.sleep(error.retry_after)
            except AlgorithmDied as error:
                deaths += 1
                if deaths >= self._means.max_attempts:
                    raise
                await pauses.sleep(error.retry_after)

    async def _wait_reachable(self, error: AlgorithmUnreachable) -> None:
        self._means.watch.suspect(error)
        if self._exchange.abandoned or not self._order.is_patient:
            raise error
        with self._order.deadline.standing_still():
            await self._means.watch.wait_reachable()

    async def _receive(self, response: Response, what: str, *, is_image: bool, announced: str) -> Received:
        receiver = Receiver(self._means.spool, self._means.limits, what, is_image=is_image)
        return await receiver.receive(response, announced, lambda: not self._exchange.abandoned)

    def _pin(self, link: str, base: str) -> str:
        return self._means.watch.origin.pin(link, base)


def read_answer_or_none(data: bytes) -> Json:
    """A JSON value, or None for what is none."""
    try:
        return read_answer(data)
    except NotJson:
        return None


async def _raise_for_status(response: Response, *, follow_up: bool) -> None:
    if 200 <= response.status < 300:
        return
    body = await response.read(MAX_ERROR_BYTES)
    text = dialect.error_text(response.status, response.media_type, body, response.reason)
    wait = dialect.read_retry_after(response.headers.get("retry-after"), time.time())
    error = dialect.classify(response.status, text, retry_after=wait, follow_up=follow_up)
    if error is not None:
        raise error


def _small_json(data: bytes) -> Json:
    if len(data) >= MAX_DOCUMENT_BYTES:
        raise ResultTooLarge(f"a status or index has at least {len(data)} bytes, more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return read_answer(data)
    except NotJson as error:
        raise AlgorithmBroken(f"the algorithm's answer is not JSON: {error}") from error
