"""The kill test, short; `just chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.kafka.chaos import run_chaos
from tests.peers.kafka_fixtures import OwnKafka


async def test_every_job_leaves_what_it_must_whoever_dies(own_kafka: OwnKafka, tmp_path: Path) -> None:
    """Daemons, broker and algorithm are killed, stopped and frozen; `read_committed` sees each job's effects once."""
    report = await run_chaos(own_kafka(), tmp_path, seed=7, jobs=200, daemons=2, blows=6)
    assert report.problems == []
