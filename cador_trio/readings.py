"""What a scrape reads from the daemon's own objects; Kafka's room reads its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import trio

from cador_trio.observe import metrics
from cador_trio.observe.health import Health
from cador_trio.observe.loop_lag import LoopLag
from cador_trio.observe.metrics import Sample
from cador_trio.run_job import House


def house_readings(
    house: House, health: Health, loop_lag: LoopLag, is_algorithm_up: Callable[[], bool]
) -> Iterator[Sample]:
    """Capacity, spool, jobs, and how the daemon is."""
    figures = house.capacity.figures()
    oldest = house.registry.oldest_unfinished()
    yield metrics.READY.at(not health.not_ready())
    yield metrics.EVENT_LOOP_LAG.at(loop_lag.worst)
    yield metrics.ALGORITHM_UP.at(is_algorithm_up())
    yield metrics.SLOTS.at(figures.slots)
    yield metrics.SLOTS_IN_USE.at(figures.in_use)
    yield metrics.UNFINISHED_JOBS.at(figures.unfinished)
    yield metrics.UNFINISHED_LIMIT.at(figures.unfinished_limit)
    yield metrics.WAITING_BYTES.at(figures.waiting_bytes)
    for door, waiting in figures.waiting.items():
        yield metrics.WAITING_JOBS.at(waiting, door)
    yield metrics.OLDEST_JOB.at(0.0 if oldest is None else trio.current_time() - oldest.accepted_at)
    yield metrics.SPOOL_BYTES.at(house.spool.used)
    yield metrics.SPOOL_LIMIT.at(house.spool.budget)
