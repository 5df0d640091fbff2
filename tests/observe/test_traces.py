"""Spans of jobs among doubles: what there is of them, what they say, and how they hang together."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind, StatusCode
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.errors import AlgorithmFailed
from cador_trio.job import EndReason, Job, Referential
from cador_trio.kafka.committer import Claims
from cador_trio.kafka.effects import Effects
from cador_trio.observe import traces
from cador_trio.observe.metrics import Stage
from cador_trio.observe.traces import Identity, current_headers, job_span, note_refusal, stage_span, trace_id_of
from tests.doubles import Street, make_job, open_street
from tests.kafka.doubles import InlineCommitter, ScriptedWriter, StillPolling
from tests.secrets import PASSWORD

ROOT = Path(__file__).parents[2]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
NORTH_UP = Referential(upper_left_lon=10.0, upper_left_lat=50.0, lon_step=0.5, lat_step=-0.5)

Spans = Callable[[], Sequence[ReadableSpan]]


def record_spans(monkeypatch: pytest.MonkeyPatch, sampler: Sampler = ALWAYS_ON) -> Spans:
    """An SDK for this test; what gives its finished spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("cador_trio"))
    return exporter.get_finished_spans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """All spans are recorded; what gives the finished ones."""
    return record_spans(monkeypatch)


@pytest.fixture
async def street(tmp_path: Path, autojump_clock: MockClock) -> AsyncIterator[Street]:
    async with open_street(tmp_path) as opened:
        yield opened


def traced_job(traceparent: str = TRACEPARENT, tracestate: str | None = None, **more: Any) -> Job:
    """A job that came as part of a trace."""
    trace = {"traceparent": traceparent} | ({"tracestate": tracestate} if tracestate else {})
    job = make_job(**more)
    return replace(
        job, traceparent=traceparent, tracestate=tracestate, forwarded={**job.forwarded, **trace}, origin=("asks", 2, 7)
    )


def by_name(found: Sequence[ReadableSpan]) -> dict[str, ReadableSpan]:
    assert len({span.name for span in found}) == len(found), [span.name for span in found]
    return {span.name: span for span in found}


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    """Trace id and span id in hex digits."""
    assert span.context is not None
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


def texts_of(span: ReadableSpan) -> str:
    """Everything that it says."""
    return str(span.to_json())


def attributes_of(span: ReadableSpan) -> Mapping[str, object]:
    return dict(span.attributes or {})


# --- One span a job, a child a stage ------------------------------------------------------------------------------


async def test_a_job_is_a_span_and_its_stages_are_its_children(street: Street, spans: Spans) -> None:
    """All in the trace that the job came with; the algorithm's own spans will be children of its stage."""
    street.algorithm.images = [("mask", None, b"pixels")]
    job = traced_job(stores=True, referential=NORTH_UP, task_id="t-1", door="kafka")
    await street.run(job)
    found = by_name(spans())
    stages = ["queued", "algorithm", "georeference", "store", "publish"]
    assert list(found) == [*(f"cador.{stage}" for stage in stages), "cador.job"]
    whole = found["cador.job"]
    assert {ids_of(span)[0] for span in found.values()} == {TRACE_ID}
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT_ID
    for stage in stages:
        parent = found[f"cador.{stage}"].parent
        assert parent is not None
        assert f"{parent.span_id:016x}" == ids_of(whole)[1]
    assert (whole.kind, found["cador.algorithm"].kind) == (SpanKind.CONSUMER, SpanKind.CLIENT)
    assert attributes_of(whole) == {
        "cador.door": "kafka",
        "cador.job.id": str(job.job_id),
        "cador.task.id": "t-1",
        "cador.correlation.id": "correlation",
        "cador.job.attempt": 1,
        "cador.job.outcome": "succeeded",
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "asks",
        "messaging.destination.partition.id": "2",
        "messaging.kafka.offset": 7,
    }
    (order,) = street.algorithm.orders
    assert order.headers["traceparent"] == f"00-{TRACE_ID}-{ids_of(found['cador.algorithm'])[1]}-01"


async def test_messages_belong_to_the_jobs_span(street: Street, spans: Spans) -> None:
    """What vendors have added to the trace goes along."""
    await street.run(traced_job(tracestate="vendor=x"))
    ((told, _),) = street.publisher.told
    assert told.traceparent == f"00-{TRACE_ID}-{ids_of(by_name(spans())['cador.job'])[1]}-01"
    assert told.tracestate == "vendor=x"
    (order,) = street.algorithm.orders
    assert order.headers["tracestate"] == "vendor=x"


async def test_a_job_without_a_trace_begins_one(street: Street, spans: Spans) -> None:
    """A second job begins another; a trace context that can't be read is none."""
    await street.run(make_job())
    await street.run(traced_job("00-nonsense"))
    whole = [span for span in spans() if span.name == "cador.job"]
    assert [span.parent for span in whole] == [None, None]
    assert len({ids_of(span)[0] for span in whole}) == 2
    assert [order.headers["traceparent"][3:35] for order in street.algorithm.orders] == [
        ids_of(span)[0] for span in whole
    ]


@pytest.mark.parametrize("traceparent", [TRACEPARENT, "00-nonsense", f"cc-{TRACE_ID}-{PARENT_ID}-01-and-more"])
async def test_without_an_sdk_what_came_in_goes_on_untouched(street: Street, traceparent: str) -> None:
    """To the algorithm and to the messages, whatever it is."""
    await street.run(traced_job(traceparent, "vendor=x"))
    ((told, _),) = street.publisher.told
    assert (told.traceparent, told.tracestate) == (traceparent, "vendor=x")
    (order,) = street.algorithm.orders
    assert (order.headers["traceparent"], order.headers["tracestate"]) == (traceparent, "vendor=x")


async def test_without_an_sdk_nothing_is_added(street: Street) -> None:
    """No trace came in, none goes out."""
    await street.run(make_job())
    assert street.publisher.told[0][0].traceparent is None
    assert street.algorithm.orders[0].headers == {"X-Correlation-ID": "correlation"}


async def test_what_is_not_sampled_says_so_to_those_behind(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """No span is recorded, and the flag that goes on is off."""
    spans = record_spans(monkeypatch, ALWAYS_OFF)
    await street.run(traced_job())
    assert spans() == ()
    traceparent = street.algorithm.orders[0].headers["traceparent"]
    assert (traceparent[:36], traceparent[-3:]) == (f"00-{TRACE_ID}-", "-00")
    assert PARENT_ID not in traceparent


# --- How it ended -------------------------------------------------------------------------------------------------


async def test_a_failure_is_on_the_span_in_public_words(street: Street, spans: Spans) -> None:
    """The kind of error and its redacted text, on the job and on the stage where it happened; no traceback."""
    street.algorithm.error = AlgorithmFailed(f"no http://user:{PASSWORD}@host")
    await street.run(traced_job())
    found = by_name(spans())
    for name in ("cador.job", "cador.algorithm"):
        span = found[name]
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "no http://***@host"
        assert attributes_of(span)["error.type"] == "AlgorithmFailed"
        (event,) = span.events
        assert dict(event.attributes or {}) == {
            "exception.type": "AlgorithmFailed",
            "exception.message": "no http://***@host",
        }
    assert attributes_of(found["cador.job"])["cador.job.outcome"] == "failed"
    assert found["cador.queued"].status.status_code is StatusCode.UNSET


async def test_an_unexpected_error_shows_no_secret_either(street: Street, spans: Spans) -> None:
    """Its text is somebody else's: it is redacted on the way to the span."""
    street.algorithm.error = ValueError(f"secret={PASSWORD}")
    await street.run(traced_job())
    assert "ValueError" in texts_of(by_name(spans())["cador.algorithm"])
    assert PASSWORD not in "".join(map(texts_of, spans()))


@pytest.mark.parametrize(
    ("door", "reason", "outcome"),
    [
        ("http", EndReason.CALLER_CANCELLED, "cancelled"),
        ("kafka", EndReason.REVOKED, "given_back"),
        ("kafka", EndReason.CALLER_CANCELLED, "cancelled"),
    ],
)
async def test_an_early_end_is_no_error(
    street: Street, spans: Spans, door: str, reason: EndReason, outcome: str
) -> None:
    """The span says why; its stage ended with it."""
    street.algorithm.halt.close()
    record = street.submit(traced_job(door=door))
    await street.algorithm.halt.reached.wait()
    record.cancel(reason)
    await record.ended.wait()
    found = by_name(spans())
    assert attributes_of(found["cador.job"])["cador.job.outcome"] == outcome
    assert attributes_of(found["cador.job"])["cador.job.reason"] == str(reason)
    assert {span.status.status_code for span in found.values()} == {StatusCode.UNSET}


def test_a_refused_request_is_a_span_too(spans: Spans) -> None:
    """It never became a job, and its trace tells."""
    with job_span(Identity("kafka", uuid4(), "t-1", "c-1", traceparent=TRACEPARENT)) as trace:
        note_refusal(AlgorithmFailed("no"))
    (span,) = spans()
    assert trace.trace_id == TRACE_ID
    assert attributes_of(span)["cador.job.outcome"] == "refused"


# --- What serves many at once -------------------------------------------------------------------------------------


async def test_a_transaction_links_to_the_jobs_in_it(autojump_clock: MockClock, spans: Spans) -> None:
    """It is no child of any of them, since it serves them all; without recorded jobs there is no span of it."""
    committer, writer = InlineCommitter(StillPolling(), Claims()), ScriptedWriter()
    writer.halt.close()

    async def one(number: int) -> None:
        with job_span(Identity("http", uuid4(), f"t-{number}", "c")), stage_span("publish"):
            await committer.commit(Effects(None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run, writer)
        async with trio.open_nursery() as jobs_nursery:
            for number in range(2):
                jobs_nursery.start_soon(one, number)
            await wait_all_tasks_blocked()
            writer.halt.open()
        await committer.commit(Effects(None))
        nursery.cancel_scope.cancel("the test is done")
    (commit,) = [span for span in spans() if span.name == "cador.commit"]
    assert commit.parent is None
    linked = {f"{link.context.span_id:016x}" for link in commit.links}
    assert linked == {ids_of(span)[1] for span in spans() if span.name == "cador.publish"}
    assert len(linked) == 2


# --- Contexts -----------------------------------------------------------------------------------------------------


def test_trace_ids_for_the_log() -> None:
    """The one that came in, if it can be read; there is none outside a trace."""
    assert trace_id_of(TRACEPARENT) == TRACE_ID
    assert trace_id_of("nonsense") is None
    assert trace_id_of(None) is None
    assert current_headers() == {}


@given(st.text(), st.text())
def test_any_trace_context_is_harmless(traceparent: str, tracestate: str) -> None:
    """No text in it is an error."""
    identity = Identity("http", uuid4(), "t", "c", traceparent=traceparent, tracestate=tracestate)
    with job_span(identity) as trace:
        assert trace.headers == {}


@given(st.sampled_from(["http://user:{}@h", "secret={}", "Bearer {}{}", '{{"password": "{}"}}']), st.booleans())
def test_no_text_on_a_span_is_a_secret(form: str, is_task_id: bool) -> None:
    """Task ids and correlation ids are their senders' words."""
    text = form.format(PASSWORD, PASSWORD)
    identity = Identity("kafka", uuid4(), text if is_task_id else "t", "c" if is_task_id else text)
    assert PASSWORD not in str(identity.attributes())


# --- Where they go ------------------------------------------------------------------------------------------------

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("variables", "exporters"),
    [
        ({}, []),
        (ENDPOINT, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, []),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": " OTLP , console"}, ["otlp", "console"]),
        ({"OTEL_TRACES_EXPORTER": "none", **ENDPOINT}, []),
        ({"OTEL_TRACES_EXPORTER": "", **ENDPOINT}, ["otlp"]),
        ({"OTEL_SDK_DISABLED": "true", **ENDPOINT}, []),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_TRACES_EXPORTER": "otlp"}, []),
        ({"OTEL_SDK_DISABLED": "false", **ENDPOINT}, ["otlp"]),
    ],
)
def test_which_exporters_are_asked_for(variables: dict[str, str], exporters: list[str]) -> None:
    """By the standard variables; nothing is sent unless they say where."""
    assert traces._exporters_asked_for(variables) == exporters


@pytest.mark.parametrize(
    ("name", "protocol", "found"),
    [
        ("otlp", None, "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
        ("otlp", "http/protobuf", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
        ("otlp", "grpc", None),
        ("otlp", "http/json", None),
        ("zipkin", None, None),
        ("console", None, "opentelemetry.sdk.trace.export"),
    ],
)
def test_exporters_are_those_that_are_installed(name: str, protocol: str | None, found: str | None) -> None:
    """The extra has OTLP by http/protobuf; others count once their package is there."""
    variables = {} if protocol is None else {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    if found is None:
        with pytest.raises(ImportError, match=r"no package has the exporter"):
            traces._exporter(name, variables)
    else:
        assert traces._exporter(name, variables).__module__ == found


def test_a_stage_that_nobody_records_is_nothing() -> None:
    """Outside a recorded job not even a context manager is made."""
    assert stage_span("queued") is stage_span("store")


def test_the_page_names_every_span_and_attribute() -> None:
    """And none that there isn't."""
    rows = re.findall(r"(?m)^\| (`.*?) \|", (ROOT / "docs/traces-and-logs.md").read_text())
    named = {name for row in rows for name in re.findall(r"`([a-z._]+\.[a-z._]+)`", row)}
    spans = {"cador.job", *(f"cador.{stage}" for stage in get_args(Stage))}
    attributes = set(Identity("kafka", uuid4(), "t", "c", 1, ("t", 0, 0)).attributes())
    assert named == spans | attributes | {"cador.job.outcome", "cador.job.reason", "error.type"}
