"""The stages of a job by name: where its time goes, for metrics and traces alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from cador_trio.observe.metrics import STAGES, Stage


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """In this block the job is in that stage; however the block ends, so does the stage."""
    seconds, jobs = STAGES[name]
    began = trio.current_time()
    jobs.inc()
    try:
        yield
    finally:
        jobs.dec()
        seconds.observe(trio.current_time() - began)
