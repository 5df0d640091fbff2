"""Is the algorithm there, and what does it say of itself: the one who knows, and asks again now and then.

Also carries the small requests that belong to no slot: what the HTTP door passes through, and deletions. A document is
read anew whenever the algorithm comes back, so that a new version is seen at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from cador_trio.algorithm import dialect, schema
from cador_trio.algorithm.transport import Connection
from cador_trio.errors import AlgorithmBroken, AlgorithmBusy, AlgorithmDied, AlgorithmUnreachable, CadorError
from cador_trio.json_text import NotJson, read_answer
from cador_trio.order import Deadline

log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 5.0  # between looks at an algorithm that is there
RETRY_SECONDS: Final = 0.5  # between looks at one that isn't
ANSWER_SECONDS: Final = 5.0  # for one small request
MAX_DOCUMENT_BYTES: Final = 16 * 1024 * 1024
PARALLEL_REQUESTS: Final = 4  # small requests at once
BUSY: Final = frozenset({429, 503})


@dataclass(frozen=True)
class Described:
    """The algorithm's describe document, read and compiled."""

    describe: dialect.Describe
    validator: schema.InputValidator


@dataclass(frozen=True)
class Reply:
    """A small answer that is passed on as it is."""

    status: int
    media_type: str
    body: bytes


class Watch:
    """The algorithm as seen from here. `run` keeps it up to date."""

    def __init__(self, origin: dialect.Origin, connections: list[Connection]) -> None:
        self.origin = origin
        self._idle = connections
        self._limiter = trio.CapacityLimiter(len(connections))
        self._described: Described | None = None
        self._trouble: CadorError | None = AlgorithmUnreachable(
            "the algorithm has not answered yet", hint=f"PROCESSING_SERVER is {origin.url}"
        )
        self._reachable = trio.Event()
        self._look = trio.Event()
        self._warned_of_origin = False
        self._clocks: set[Deadline] = set()
        # Asked when it doesn't answer in time: a single-threaded algorithm that works is busy, not gone.
        self.is_working: Callable[[], bool] = lambda: False

    @property
    def trouble(self) -> CadorError | None:
        """Why the algorithm can't be used at the moment; None if it can."""
        return self._trouble

    @property
    def is_described(self) -> bool:
        """It has told what it is, at least once."""
        return self._described is not None

    @property
    def described(self) -> Described:
        """What the algorithm last said of itself.

        Raises:
            AlgorithmUnreachable, AlgorithmBroken: it never said anything that can be understood.
        """
        if self._described is None:
            raise self._trouble or AlgorithmUnreachable("the algorithm has not answered yet")
        return self._described

    def suspect(self, error: CadorError) -> None:
        """Somebody found it gone: look at once, and until then it is."""
        self._set_trouble(error)
        self._look.set()

    async def wait_reachable(self) -> None:
        """Return as soon as it answers (again)."""
        while self._trouble is not None:
            await self._reachable.wait()

    @contextmanager
    def timing(self, deadline: Deadline) -> Iterator[None]:
        """In this block the deadline stands still whenever the algorithm is away."""
        self._clocks.add(deadline)
        if self._trouble is not None:
            deadline.stop()
        try:
            yield
        finally:
            self._clocks.remove(deadline)
            deadline.go_on()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await self._check()
            self._look = trio.Event()
            with trio.move_on_after(CHECK_SECONDS if self._trouble is None else RETRY_SECONDS):
                await self._look.wait()

    async def describe(self, headers: Mapping[str, str]) -> dialect.Describe:
        """The describe document: fresh, or the last one while the algorithm is away or too busy to answer.

        Raises:
            CadorError: it never gave one.
        """
        try:
            return await self._ask_describe(headers)
        except CadorError:
            if self._described is None:
                raise
            return self._described.describe

    async def _ask_describe(self, headers: Mapping[str, str]) -> dialect.Describe:
        reply = await self.ask("GET", f"{self.origin.base}/describe", headers)
        if not 200 <= reply.status < 300:
            text = dialect.error_text(reply.status, reply.media_type, reply.body, "")
            message = f"the algorithm answered {reply.status} when asked to describe itself: {text}"
            raise AlgorithmBusy(message) if reply.status in BUSY else AlgorithmBroken(message)
        try:
            document = read_answer(reply.body)
        except NotJson as error:
            raise AlgorithmBroken(
                f"the algorithm's describe document is not JSON: {error}", hint="is PROCESSING_SERVER the algorithm?"
            ) from error
        described = self._described
        if described is None or described.describe.document != document:
            described = self._read(document)
        self._set_reachable(described)
        return described.describe

    async def ask(self, method: str, url: str, headers: Mapping[str, str], content: bytes = b"") -> Reply:
        """A small request, answered within seconds.

        Raises:
            AlgorithmUnreachable, AlgorithmDied, AlgorithmBroken: no answer.
            ResultTooLarge: one of more than 16 MiB.
        """
        with trio.move_on_after(ANSWER_SECONDS):
            async with self._limiter:
                connection = self._idle.pop()
                try:
                    async with connection.send(method, url, headers, content) as response:
                        body = await response.read(MAX_DOCUMENT_BYTES, "the algorithm's answer")
                        return Reply(response.status, response.media_type, body)
                finally:
                    self._idle.append(connection)
        raise AlgorithmDied(f"the algorithm did not answer {method} {url} within {ANSWER_SECONDS:g} s")

    async def delete(self, url: str, headers: Mapping[str, str]) -> bool:
        """Delete a result or a job; False if the algorithm has no such thing or can't.

        Raises:
            CadorError: no answer.
        """
        reply = await self.ask("DELETE", url, headers)
        return 200 <= reply.status < 300

    async def aclose(self) -> None:
        """Close the connections."""
        for connection in self._idle:
            await connection.aclose()

    async def _check(self) -> None:
        try:
            await self._ask_describe({})
        except AlgorithmBusy as error:  # it is there, and has no time to talk about itself
            self._set_trouble(error) if self._described is None else self._set_reachable(self._described)
        except AlgorithmDied as error:
            if self._described is None or not self.is_working():
                self._set_trouble(AlgorithmUnreachable(error.message, hint="is the algorithm stuck?"))
        except CadorError as error:
            self._set_trouble(error)

    def _read(self, document: object) -> Described:
        describe = dialect.read_describe(document, self.origin)
        validator = schema.compile_inputs(describe.input_schema)
        if validator.problem is not None:
            log.warning("requests can't be checked before they are sent", reason=validator.problem)
        if describe.announces_another_origin and not self._warned_of_origin:
            self._warned_of_origin = True
            log.warning("the algorithm's links name another origin; the configured one is used", origin=self.origin.url)
        log.info("the algorithm describes itself", name=describe.name, version=describe.version)
        return Described(describe, validator)

    def _set_reachable(self, described: Described) -> None:
        if self._trouble is not None:
            log.info("the algorithm is reachable", origin=self.origin.url)
        self._described, self._trouble = described, None
        self._reachable.set()
        for deadline in self._clocks:
            deadline.go_on()

    def _set_trouble(self, error: CadorError) -> None:
        if self._trouble is None or self._trouble.message != error.message:  # not again at every look
            log.warning("the algorithm is not usable", reason=error.message, hint=error.hint)
        if self._trouble is None:
            self._reachable = trio.Event()
            for deadline in self._clocks:
                deadline.stop()
        self._trouble = error
