"""Lag and progress, from watermarks as the test says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from trio.testing import MockClock

from cador_trio.errors import KafkaUnavailable
from cador_trio.kafka.committer import Claim, Claims
from cador_trio.kafka.lag import Lag
from cador_trio.kafka.ledger import Ledger
from cador_trio.observe.metrics import registry_of
from tests.kafka.doubles import claim_of
from tests.observe.scraping import Scrape, scrape_of


class Brokers:
    """Watermarks by partition; None: they are away."""

    def __init__(self) -> None:
        self.ends: Mapping[int, int] | None = {}
        self.asked: list[Sequence[int]] = []

    def __call__(self, partitions: Sequence[int]) -> Mapping[int, int]:
        self.asked.append(partitions)
        if self.ends is None:
            raise KafkaUnavailable("away")
        return {partition: self.ends[partition] for partition in partitions}


@pytest.fixture
def claims() -> Claims:
    return Claims()


@pytest.fixture
def brokers() -> Brokers:
    return Brokers()


@pytest.fixture
def lag(claims: Claims, brokers: Brokers, mock_clock: MockClock) -> Lag:
    return Lag("requests", claims, brokers)


def shown(lag: Lag) -> Scrape:
    return scrape_of(registry_of(lag.readings))


def finish(claim: Claim, *offsets: int) -> None:
    """They are delivered, done and committed."""
    for offset in offsets:
        claim.ledger.deliver(offset)
    claim.ledger.finish(offsets)
    point = claim.ledger.commit_point()
    assert point is not None
    claim.ledger.note_committed(point)


async def test_lag_is_what_is_not_committed(lag: Lag, claims: Claims, brokers: Brokers) -> None:
    """High watermark minus committed offset; what is committed counts at once, new records at the next look."""
    claim = claim_of(claims, 3, position=10)
    brokers.ends = {3: 15}
    await lag.look()
    assert shown(lag)("cador_consumer_lag", topic="requests", partition="3") == 5
    finish(claim, 10, 11)
    assert shown(lag)("cador_consumer_lag") == 3
    brokers.ends = {3: 20}
    assert shown(lag)("cador_consumer_lag") == 3
    await lag.look()
    assert shown(lag)("cador_consumer_lag") == 8


async def test_unfinished_offsets(lag: Lag, claims: Claims) -> None:
    """Delivered and not finished; no question to anybody is needed for that."""
    claim = claim_of(claims)
    for offset in range(4):
        claim.ledger.deliver(offset)
    claim.ledger.finish([2])
    assert shown(lag)("cador_kafka_unfinished_offsets", partition="0") == 3


async def test_partitions_of_others_have_no_series(lag: Lag, claims: Claims, brokers: Brokers) -> None:
    """It goes with its partition, and nobody is asked about it any more."""
    claim_of(claims, 0)
    claim_of(claims, 1)
    brokers.ends = {0: 5, 1: 7}
    await lag.look()
    claims.remove(0)
    assert shown(lag).by("partition", "cador_consumer_lag") == {"1": 7}
    await lag.look()
    assert brokers.asked == [[0, 1], [1]]
    claims.remove(1)
    await lag.look()
    assert len(brokers.asked) == 2
    assert "cador_consumer_lag" not in shown(lag).text


async def test_nothing_is_guessed(lag: Lag, claims: Claims, brokers: Brokers) -> None:
    """No lag before the group has committed anything of the partition."""
    claims.add(Claim(0, 1, Ledger(None, None)))
    brokers.ends = {0: 5}
    await lag.look()
    assert "cador_consumer_lag" not in shown(lag).text


async def test_brokers_that_are_away(lag: Lag, claims: Claims, brokers: Brokers) -> None:
    """The last watermarks stand, and progress is still looked at."""
    claim = claim_of(claims)
    brokers.ends = {0: 5}
    await lag.look()
    brokers.ends = None
    await lag.look()
    assert shown(lag)("cador_consumer_lag") == 5
    finish(claim, 0)
    assert shown(lag)("cador_consumer_lag") == 4


async def test_progress(lag: Lag, claims: Claims, brokers: Brokers, mock_clock: MockClock) -> None:
    """The age grows while work is left and the committed offset stands still; it begins anew when that moves."""
    claim = claim_of(claims)
    brokers.ends = {0: 3}
    await lag.look()
    for _ in range(3):
        mock_clock.jump(100)
        await lag.look()
    assert shown(lag)("cador_kafka_progress_age_seconds", topic="requests", partition="0") == 300
    finish(claim, 0)
    assert shown(lag)("cador_kafka_progress_age_seconds") == 0
    await lag.look()
    mock_clock.jump(10)
    assert shown(lag)("cador_kafka_progress_age_seconds") == 10


async def test_an_idle_partition_is_not_stalled(
    lag: Lag, claims: Claims, brokers: Brokers, mock_clock: MockClock
) -> None:
    """With nothing to do there is no age, and it does not count from before the first new record."""
    claim_of(claims, position=5)
    brokers.ends = {0: 5}
    await lag.look()
    mock_clock.jump(1_000)
    await lag.look()
    assert shown(lag)("cador_kafka_progress_age_seconds") == 0
    brokers.ends = {0: 6}
    await lag.look()
    mock_clock.jump(7)
    assert shown(lag)("cador_kafka_progress_age_seconds") == 7


async def test_a_partition_that_comes_back_begins_anew(
    lag: Lag, claims: Claims, brokers: Brokers, mock_clock: MockClock
) -> None:
    """What an earlier assignment waited is not counted against the next."""
    claim_of(claims, number=1)
    brokers.ends = {0: 3}
    await lag.look()
    mock_clock.jump(100)
    claims.remove(0)
    claim_of(claims, number=2)
    assert shown(lag)("cador_kafka_progress_age_seconds") == 0
