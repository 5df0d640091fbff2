"""How far the group is behind, and whether it gets on: for the partitions that are ours, and no others.

Lag is the high watermark minus the committed offset: what Kafka's own tools say, and what is still to be done, running
jobs included. The Consumer would tell watermarks too, but only of what it fetches: those of a paused partition stand
still just when there is too much to do. So the brokers are asked, by an admin client and beside the polling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from cador_trio.errors import KafkaUnavailable
from cador_trio.kafka.committer import Claim, Claims
from cador_trio.observe import metrics
from cador_trio.observe.metrics import Sample

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5.0  # between two questions to the brokers

Ask = Callable[[Sequence[int]], Mapping[int, int]]
"""The high watermarks of these partitions, as far as they are to be had; blocks, and raises KafkaUnavailable."""


@dataclass(frozen=True, slots=True)
class _Progress:
    """Of one assignment of a partition: what was committed, and since when it has been that (trio's clock)."""

    number: int
    committed: int | None
    since: float


class Lag:
    """Watermarks as of the last look, against what is committed now."""

    def __init__(self, topic: str, claims: Claims, ask: Ask) -> None:
        self._topic = topic
        self._claims = claims
        self._ask = ask
        self._ends: dict[int, int] = {}
        self._progress: dict[int, _Progress] = {}

    async def run(self) -> None:
        """Look now and then, until cancelled. Brokers that don't answer leave the last watermarks standing."""
        while True:
            await self.look()
            await trio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Ask for the watermarks of what is ours, and see what has moved."""
        partitions = [claim.partition for claim in self._claims.all()]
        if partitions:
            try:
                self._ends.update(await trio.to_thread.run_sync(self._ask, partitions, abandon_on_cancel=True))
            except KafkaUnavailable as error:
                log.debug("watermarks are not to be had", reason=error.message)
        self._progress = {claim.partition: self._seen(claim) for claim in self._claims.all()}

    def readings(self) -> Iterator[Sample]:
        """For a scrape."""
        for claim in self._claims.all():
            labels = self._topic, str(claim.partition)
            yield metrics.UNFINISHED_OFFSETS.at(claim.ledger.unfinished, *labels)
            lag = self._lag(claim)
            if lag is not None:
                yield metrics.CONSUMER_LAG.at(lag, *labels)
                yield metrics.PROGRESS_AGE.at(self._age(claim) if lag else 0.0, *labels)

    def _lag(self, claim: Claim) -> int | None:
        """None while either end is unknown: nothing committed yet by this group, or no answer yet."""
        committed, end = claim.ledger.committed, self._ends.get(claim.partition)
        return None if committed is None or end is None else max(0, end - committed)

    def _seen(self, claim: Claim) -> _Progress:
        before = self._progress.get(claim.partition)
        now = _Progress(claim.number, claim.ledger.committed, trio.current_time())
        stands = before is not None and (before.number, before.committed) == (now.number, now.committed)
        return before if before is not None and stands and self._lag(claim) else now

    def _age(self, claim: Claim) -> float:
        seen = self._progress.get(claim.partition)
        is_this = seen is not None and (seen.number, seen.committed) == (claim.number, claim.ledger.committed)
        return trio.current_time() - seen.since if seen is not None and is_this else 0.0
