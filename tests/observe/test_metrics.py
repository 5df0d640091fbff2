"""The registry of one daemon, the formats of a scrape, and the two small gauges that compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from trio.testing import MockClock

from cador_trio import __version__
from cador_trio.errors import CadorError, StoreTimedOut
from cador_trio.observe import metrics
from cador_trio.observe.loop_lag import REMEMBERED_SECONDS, LoopLag
from cador_trio.observe.metrics import (
    ERROR_CLASSES,
    Sample,
    count_end,
    count_request,
    exposition,
    registry_of,
)
from cador_trio.observe.stages import stage
from tests.observe.scraping import Moved, scrape_of


def test_each_daemon_shows_its_own_gauges() -> None:
    """Two daemons in one process share counters, and no gauge."""
    one = registry_of(lambda: [metrics.SLOTS.at(1)])
    two = registry_of(lambda: [metrics.SLOTS.at(2), metrics.WAITING_JOBS.at(3, "http")])
    assert (scrape_of(one)("cador_slots"), scrape_of(two)("cador_slots")) == (1, 2)
    assert scrape_of(two)("cador_waiting_jobs", door="http") == 3
    count_end("http", "succeeded")
    assert scrape_of(one)("cador_jobs_total") == scrape_of(two)("cador_jobs_total")


def test_gauges_are_read_when_asked() -> None:
    """Nothing is kept: the next scrape has the next value."""
    values = iter(range(5))
    registry = registry_of(lambda: [metrics.SLOTS.at(next(values))])
    assert [scrape_of(registry)("cador_slots") for _ in range(3)] == [0, 1, 2]


def test_sources_may_speak_of_one_gauge() -> None:
    """What two of them say of different series is one family: a name may stand there once."""

    def partition(number: int) -> Iterator[Sample]:
        yield metrics.CONSUMER_LAG.at(number, "requests", str(number))

    text, _ = exposition(registry_of(lambda: partition(1), lambda: partition(2)), "")
    assert text.count(b"# TYPE cador_consumer_lag gauge") == 1
    assert text.count(b"cador_consumer_lag{") == 2


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2", "application/openmetrics-text"),
    ],
)
def test_formats(accept: str, media_type: str) -> None:
    """OpenMetrics for who asks for it, the older text for all others."""
    text, found = exposition(registry_of(), accept)
    assert found.startswith(media_type)
    assert text.endswith(b"# EOF\n") == ("openmetrics" in accept)


def test_openmetrics_is_strict() -> None:
    """The stricter format's own parser reads it, and no series is there twice."""
    registry = registry_of(lambda: [metrics.SLOTS.at(1)])
    text = exposition(registry, "application/openmetrics-text")[0].decode()
    families = list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # it has no annotations
    assert len({family.name for family in families}) == len(families)
    (build,) = next(family for family in families if family.name == "cador_build").samples
    assert build.labels["version"] == __version__


def test_rates_have_a_zero_to_begin_with() -> None:
    """What has not happened yet is shown as 0, by every value that its labels may have."""
    found = scrape_of()
    for door in ("http", "kafka"):
        for outcome in ("succeeded", "failed", "cancelled", "given_back", "refused"):
            assert found("cador_jobs_total", door=door, outcome=outcome) >= 0
        for error_class in ERROR_CLASSES:
            assert found("cador_job_errors_total", door=door, error_class=error_class) >= 0
    assert {"CadorError", "StoreTimedOut", "AlgorithmDied"} <= set(ERROR_CLASSES)


def test_ends_and_errors() -> None:
    """One end is one job; what was wrong is counted by its class, never by its words."""
    moved = Moved()
    count_end("kafka", "failed", StoreTimedOut("secret=hush at http://u:p@host"))
    count_end("kafka", "refused", CadorError("no"))
    count_end("http", "given_back")
    assert moved.by("outcome", "cador_jobs_total", door="kafka") == {"failed": 1, "refused": 1}
    assert moved.by("outcome", "cador_jobs_total", door="http") == {"given_back": 1}
    assert moved.by("error_class", "cador_job_errors_total") == {"StoreTimedOut": 1, "CadorError": 1}
    assert "hush" not in scrape_of().text


@given(method=st.text(max_size=10), status=st.integers(200, 599))
def test_requests_make_few_series(method: str, status: int) -> None:
    """Whatever method a caller invents: there are a handful of label values."""
    count_request(None, method, status)
    assert set(scrape_of().by("method", "cador_http_requests_total", route="none")) <= {*metrics._METHODS, "other"}


async def test_a_stage_is_timed_however_it_ends(mock_clock: MockClock) -> None:
    """Inside, the job is in that stage; after its end, by an error say, the time has been taken."""
    moved = Moved()

    def work() -> None:
        assert moved("cador_stage_jobs", stage="store") == 1
        mock_clock.jump(7)
        raise StoreTimedOut("too long")

    with pytest.raises(StoreTimedOut), stage("store"):
        work()
    assert moved("cador_stage_jobs", stage="store") == 0
    assert moved("cador_stage_seconds_count", stage="store") == 1
    assert moved("cador_stage_seconds_sum", stage="store") == 7


# --- The event loop's lag ----------------------------------------------------------------------------------------


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def beat_after(lag: LoopLag, clock: Clock, *pauses: float) -> None:
    for pause in pauses:
        clock.now += pause
        lag.beat()


def test_a_punctual_loop_has_no_lag() -> None:
    """Beats that come when they should, and none at all yet."""
    clock = Clock()
    lag = LoopLag(clock, 1.0)
    assert lag.worst == 0
    beat_after(lag, clock, 0, 1, 1)
    assert lag.worst == 0


def test_a_hitch_is_seen_by_the_next_scrape_and_then_forgotten() -> None:
    """The worst one within a minute."""
    clock = Clock()
    lag = LoopLag(clock, 1.0)
    beat_after(lag, clock, 0, 1, 3.5, 1, 1.25)
    assert lag.worst == 2.5
    beat_after(lag, clock, *[1.0] * round(REMEMBERED_SECONDS))
    assert lag.worst == 0


def test_a_loop_that_hangs_is_late_already() -> None:
    """A beat that has not come counts as soon as it is overdue."""
    clock = Clock()
    lag = LoopLag(clock, 1.0)
    beat_after(lag, clock, 0, 1)
    clock.now += 10
    assert lag.worst == 9
