"""The kill test, short; `just chaos` is the long one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.kafka.chaos import run_chaos
from tests.peers.kafka_fixtures import OwnKafka

QUICK: Final = {"CADOR_KAFKA_PROPERTIES_CONSUMER": "session.timeout.ms=4000;heartbeat.interval.ms=500"}
BLOWS: Final = ("kill", "freeze_past_session", "kill_broker", "terminate", "algorithm_away")


async def test_every_job_leaves_what_it_must_whoever_dies(own_kafka: OwnKafka, tmp_path: Path) -> None:
    """Daemons, broker and algorithm are killed, stopped and frozen; `read_committed` sees each job's effects once."""
    report = await run_chaos(
        own_kafka(), tmp_path, seed=7, jobs=250, daemons=2, blows=len(BLOWS), kinds=BLOWS, settings=QUICK
    )
    print(report)  # noqa: T201 - seed and counts, for whoever has to look into a failure
    assert report.problems == []
