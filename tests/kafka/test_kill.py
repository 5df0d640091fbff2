"""The kill test, short; `just chaos` is the long one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.kafka.chaos import QUICK_SESSION, run_chaos
from tests.peers.kafka_fixtures import OwnKafka


async def test_every_job_leaves_what_it_must_whoever_dies(own_kafka: OwnKafka, tmp_path: Path) -> None:
    """Daemons, broker and algorithm are killed, stopped and frozen; `read_committed` sees each job's effects once."""
    report = await run_chaos(own_kafka(), tmp_path, seed=7, jobs=200, daemons=2, blows=6)
    assert report.problems == []


# The session of KIP-848 groups is the broker's: properties for it are refused.
PROTOCOLS: Final = {"classic": QUICK_SESSION, "consumer": ""}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_zombie_changes_nothing(own_kafka: OwnKafka, tmp_path: Path, protocol: str) -> None:
    """A daemon is stopped past its session with jobs in its hands, others take over, it goes on: nothing is doubled."""
    settings = {
        "CADOR_GROUP_PROTOCOL": protocol,
        "CADOR_KAFKA_PROPERTIES_CONSUMER": PROTOCOLS[protocol],
    }
    report = await run_chaos(
        own_kafka(), tmp_path, seed=1, jobs=120, daemons=2, blows=2, kinds=["freeze_past_session"], settings=settings
    )
    assert report.problems == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_members_that_come_and_go(own_kafka: OwnKafka, tmp_path: Path, protocol: str) -> None:
    """Told to stop, and started again, with jobs in every partition: none is lost, none ends twice."""
    settings = {
        "CADOR_GROUP_PROTOCOL": protocol,
        "CADOR_KAFKA_PROPERTIES_CONSUMER": PROTOCOLS[protocol],
        "CADOR_SHUTDOWN_GRACE_SECONDS": "10",
        "CADOR_REVOKE_GRACE_SECONDS": "10",
    }
    report = await run_chaos(
        own_kafka(), tmp_path, seed=2, jobs=150, daemons=2, blows=3, kinds=["terminate"], settings=settings
    )
    assert report.problems == []
