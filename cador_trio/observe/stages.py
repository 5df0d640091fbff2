"""The stages of a job by name: where its time goes, for metrics and traces alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from cador_trio.observe.metrics import STAGES, Stage
from cador_trio.observe.traces import SpanLink, stage_span


@contextmanager
def stage(name: Stage, links: Sequence[SpanLink] = ()) -> Iterator[None]:
    """In this block the job is in that stage; however the block ends, so does the stage.

    A stage that serves many jobs at once has `links` to their spans.
    """
    seconds, jobs = STAGES[name]
    began = trio.current_time()
    jobs.inc()
    try:
        with stage_span(name, links):
            yield
    finally:
        jobs.dec()
        seconds.observe(trio.current_time() - began)
