"""The stages of a job by name: where its time goes, for metrics and traces alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["queued", "algorithm", "georeference", "store", "publish", "commit"]


@contextmanager
def stage(_name: Stage) -> Iterator[None]:
    """In this block the job is in that stage; however the block ends, so does the stage."""
    yield
