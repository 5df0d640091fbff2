"""Spans from a daemon process to a receiver of OTLP; and what happens without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from cador_trio import __version__
from tests.daemon.process import IMAGE, SERVE, Daemon, client_of, running_daemon
from tests.peers.fake_algorithm import Answer, FakeAlgorithm, open_fake_algorithm
from tests.peers.otlp import Collector, SeenSpan, open_collector
from tests.secrets import COLLECTOR_TOKEN

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def exporting_to(url: str, **more: str) -> dict[str, str]:
    """The standard variables of a daemon that sends its spans there, soon."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{COLLECTOR_TOKEN}",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        **more,
    }


def told_by_sdk(daemon: Daemon) -> list[str]:
    """Lines about spans that were not sent."""
    return [line["event"] for line in daemon.lines if "span" in line["event"].lower()]


def has_job(spans: Sequence[SeenSpan]) -> bool:
    return any(span.name == "cador.job" for span in spans)


async def post_jobs(daemon: Daemon, count: int, **headers: str) -> None:
    async with client_of(daemon) as client:
        for _ in range(count):
            assert (await client.post("/api/v1/jobs", json=IMAGE, headers=headers)).status_code == 200


async def algorithm_headers(fake: FakeAlgorithm) -> dict[str, str]:
    (request,) = fake.seen("POST")
    return request.headers


async def test_a_job_over_http_is_a_trace(tmp_path: Path) -> None:
    """From the caller's context to the algorithm's, with every stage between them, and the daemon's own name on it."""
    with open_collector() as collector:
        async with (
            open_fake_algorithm(default=Answer({"count": 7})) as fake,
            running_daemon(tmp_path, fake.url, **exporting_to(collector.url), CADOR_INSTANCE_ID="pod-7") as daemon,
        ):
            await post_jobs(daemon, 1, traceparent=TRACEPARENT, tracestate="vendor=x")
            spans = {span.name: span for span in await trio.to_thread.run_sync(collector.wait, has_job)}
            sent = await algorithm_headers(fake)
            (succeeded,) = [line for line in daemon.lines if line["event"] == "job succeeded"]
            assert await daemon.stop() == 0
    assert set(spans) == {"cador.job", "cador.queued", "cador.algorithm", "cador.publish"}
    assert {span.trace_id for span in spans.values()} == {TRACE_ID}
    assert spans["cador.job"].parent_id == TRACEPARENT[36:52]
    assert spans["cador.job"].attributes["cador.door"] == "http"
    assert sent["traceparent"] == f"00-{TRACE_ID}-{spans['cador.algorithm'].span_id}-01"
    assert sent["tracestate"] == "vendor=x"
    assert succeeded["trace_id"] == TRACE_ID
    resource = spans["cador.job"].resource
    assert (resource["service.name"], resource["service.instance.id"]) == ("cador-trio", "pod-7")
    assert resource["service.version"] == __version__


async def test_the_last_spans_are_sent_at_the_end(tmp_path: Path) -> None:
    """Those of a daemon that is stopped before their time has come; variables may stand in an env file, too."""
    with open_collector() as collector:
        variables = exporting_to(collector.url, OTEL_BSP_SCHEDULE_DELAY="600000", OTEL_SERVICE_NAME="water")
        env_file = tmp_path / "variables"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        command = (*SERVE, "serve", "--env-file", str(env_file))
        async with (
            open_fake_algorithm(default=Answer({"count": 7})) as fake,
            running_daemon(tmp_path, fake.url, command=command) as daemon,
        ):
            await post_jobs(daemon, 1)
            assert collector.spans == []
            assert await daemon.stop() == 0
    assert has_job(collector.spans)
    assert {span.resource["service.name"] for span in collector.spans} == {"water"}


async def test_a_collector_that_is_away(tmp_path: Path) -> None:
    """Jobs go on, the log has a line of each kind and no flood, and the end is an orderly one."""
    async with (
        open_fake_algorithm(default=Answer({"count": 7})) as fake,
        running_daemon(
            tmp_path, fake.url, **exporting_to("http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="0.01")
        ) as daemon,
    ):
        while len(told_by_sdk(daemon)) < 1:
            await post_jobs(daemon, 5)
        await post_jobs(daemon, 50)
        assert len(told_by_sdk(daemon)) <= 3
        assert await daemon.stop() == 0


async def test_a_collector_that_never_answers(tmp_path: Path) -> None:
    """Jobs do not wait for it, nor does the end for longer than some seconds; what it would not take is left out."""
    with open_collector(is_slow=True) as collector:
        settings = exporting_to(
            collector.url, OTEL_BSP_MAX_QUEUE_SIZE="16", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4", OTEL_BSP_SCHEDULE_DELAY="1"
        )
        async with (
            open_fake_algorithm(default=Answer({"count": 7})) as fake,
            running_daemon(tmp_path, fake.url, **settings) as daemon,
        ):
            await post_jobs(daemon, 1)
            await trio.to_thread.run_sync(collector.wait_requests, 1)
            await post_jobs(daemon, 20)  # with many more spans than there are places for
            assert [line for line in told_by_sdk(daemon) if "dropping" in line] == ["Queue full, dropping Span."]
            assert await daemon.stop() == 0
            assert daemon.lines[-1]["event"] == "the last spans were not sent in time"


async def test_without_the_extra(tmp_path: Path) -> None:
    """Spans that are asked for are a warning with the way out; the daemon serves, and gives traces on as they came."""
    program = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; sys.argv = ['cador-trio', 'serve'];"
        "from cador_trio.cli import main; main()"
    )
    async with (
        open_fake_algorithm(default=Answer({"count": 7})) as fake,
        running_daemon(tmp_path, fake.url, command=("-c", program), OTEL_TRACES_EXPORTER="otlp") as daemon,
    ):
        await post_jobs(daemon, 1, traceparent=TRACEPARENT)
        assert (await algorithm_headers(fake))["traceparent"] == TRACEPARENT
        (warning,) = [line for line in daemon.lines if line["level"] == "warning"]
        assert warning["event"] == "traces are asked for, but what sends them is not installed"
        assert "cador-trio[otel]" in warning["hint"]


def test_the_collector_of_the_tests_reads_what_it_is_sent() -> None:
    """A body that is no request for it is not taken for one."""
    collector = Collector("", is_slow=False)
    with pytest.raises(Exception, match=r"[Pp]arsing|wire|truncated|Error"):
        collector.take(b"\xff\xff no protobuf")
    assert collector.spans == []
