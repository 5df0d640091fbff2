"""Traces: one span a job, a child a stage, and the W3C trace context that comes in and goes out.

The only module that imports opentelemetry. Its API does nothing without an SDK; then what came in goes on untouched.
Nothing here waits: spans are exported by a thread of the SDK's, and one that does not keep up loses spans, not time.
Every text that gets onto a span passes the redaction of errors.py.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cador_trio import __version__
from cador_trio.errors import public_text
from cador_trio.job import Cancelled, Door, Failed, GivenBack, Job, Outcome

if TYPE_CHECKING:  # an extra
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger(__name__)

SHUTDOWN_SECONDS: Final = 3.0  # for spans that are still here when the process ends
SERVICE_NAME: Final = "cador-trio"

SpanLink = SpanContext  # what another span needs to know of one

_tracer = trace.get_tracer("cador_trio", __version__)
_NO_SPAN: Final = nullcontext()
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a job's span says of it. `origin` is topic, partition and offset of the record that it came in."""

    door: Door
    job_id: UUID
    task_name: str
    correlation_id: str
    attempt: int = 1
    origin: tuple[str, int, int] | None = None
    traceparent: str | None = None
    tracestate: str | None = None

    @classmethod
    def of(cls, job: Job) -> Identity:
        """A job's."""
        return cls(
            job.door,
            job.job_id,
            job.task_name,
            job.correlation_id,
            job.attempt,
            job.origin,
            job.traceparent,
            job.tracestate,
        )

    def attributes(self) -> dict[str, str | int]:
        """By the semantic conventions where they have a name for it."""
        found: dict[str, str | int] = {
            "cador.door": self.door,
            "cador.job.id": str(self.job_id),
            "cador.task.id": public_text(self.task_name),
            "cador.correlation.id": public_text(self.correlation_id),
            "cador.job.attempt": self.attempt,
        }
        if self.origin is not None:
            topic, partition, offset = self.origin
            found |= {
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
            }
        return found


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a job is part of.

    Attributes:
        trace_id: 32 hex digits; None if it is part of none.
        headers: `traceparent` and `tracestate` of a span of ours; empty if there is none, so that what came in holds.
    """

    trace_id: str | None
    headers: Mapping[str, str]


@contextmanager
def job_span(identity: Identity) -> Iterator[Trace]:
    """The span of one job around this block; it continues the trace that the job came with."""
    span = _tracer.start_span(
        "cador.job",
        _remote(identity.traceparent, identity.tracestate),
        SpanKind.CONSUMER if identity.door == "kafka" else SpanKind.SERVER,
        identity.attributes(),
    )
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        yield Trace(_trace_id(span.get_span_context()), _headers(span))


def stage_span(name: str, links: Sequence[SpanContext] = ()) -> AbstractContextManager[None]:
    """A child of the span that this is in, if that is recorded; or one of its own that links to those."""
    if not links and not trace.get_current_span().is_recording():
        return _NO_SPAN
    return _recorded_stage(name, links)


@contextmanager
def _recorded_stage(name: str, links: Sequence[SpanContext]) -> Iterator[None]:
    with _tracer.start_as_current_span(
        f"cador.{name}",
        kind=SpanKind.CLIENT if name == "algorithm" else SpanKind.INTERNAL,
        links=[Link(context) for context in links],
        record_exception=False,  # its text and its traceback may hold secrets
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except Exception as error:
            _note(span, error)
            raise


def note_outcome(outcome: Outcome) -> None:
    """The job whose span this is in ended like that."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    match outcome:
        case Failed(error=error):
            span.set_attribute("cador.job.outcome", "failed")
            _note(span, error)
        case Cancelled(reason=reason):
            span.set_attributes({"cador.job.outcome": "cancelled", "cador.job.reason": str(reason)})
        case GivenBack(reason=reason):
            span.set_attributes({"cador.job.outcome": "given_back", "cador.job.reason": str(reason)})
        case _:
            span.set_attribute("cador.job.outcome", "succeeded")


def note_refusal(error: Exception) -> None:
    """What this span is about never became a job."""
    span = trace.get_current_span()
    span.set_attribute("cador.job.outcome", "refused")
    _note(span, error)


def current_headers() -> Mapping[str, str]:
    """`traceparent` and `tracestate` of the span that this is in; empty if it is none of ours."""
    return _headers(trace.get_current_span())


def current_link() -> SpanContext | None:
    """The span that this is in, to be linked to; None if it is not recorded."""
    span = trace.get_current_span()
    return span.get_span_context() if span.is_recording() else None


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id in a W3C trace context; None if it can't be read."""
    if traceparent is None:
        return None
    return _trace_id(trace.get_current_span(_remote(traceparent, None)).get_span_context())


def _remote(traceparent: str | None, tracestate: str | None) -> Context:
    """The span that others have begun; nothing if that can't be read."""
    if traceparent is None:
        return Context()
    carrier = {"traceparent": traceparent} | ({"tracestate": tracestate} if tracestate else {})
    return _propagator.extract(carrier, Context())


def _headers(span: Span) -> Mapping[str, str]:
    context = span.get_span_context()
    if not context.is_valid or context.is_remote:  # without an SDK a span is a copy of what came in
        return {}
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier


def _trace_id(context: SpanContext) -> str | None:
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def _note(span: Span, error: Exception) -> None:
    """That it failed, in public words: no traceback, since that has everybody's words in it."""
    name, text = type(error).__name__, public_text(str(error))
    span.set_status(StatusCode.ERROR, text)
    span.set_attribute("error.type", name)
    span.add_event("exception", {"exception.type": name, "exception.message": text})


# --- Where they go -----------------------------------------------------------------------------------------------


@contextmanager
def open_traces(variables: Mapping[str, str], instance_id: str) -> Iterator[None]:
    """Send spans, in this block, where OpenTelemetry's standard variables say; nowhere if they name no exporter.

    At the end what is left has `SHUTDOWN_SECONDS`. Whatever is wrong with it is logged, never raised: a process that
    can't be watched works on.
    """
    exporters = _exporters_asked_for(variables)
    provider = _provider(exporters, variables, instance_id) if exporters else None
    if provider is None:
        yield
        return
    trace.set_tracer_provider(provider)
    log.info("traces are sent", exporter=",".join(exporters), sampler=provider.sampler.get_description())
    try:
        yield
    finally:
        _shut_down(provider)


def _exporters_asked_for(variables: Mapping[str, str]) -> list[str]:
    """Their names; unlike the specification's, our default without any variable is none."""
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    has_endpoint = any(
        variables.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    names = variables.get("OTEL_TRACES_EXPORTER") or ("otlp" if has_endpoint else "none")
    return [name for part in names.split(",") if (name := part.strip().lower()) not in {"", "none"}]


def _provider(exporters: Sequence[str], variables: Mapping[str, str], instance_id: str) -> TracerProvider | None:
    try:
        return _made_provider(exporters, variables, instance_id)
    except ImportError as error:
        log.warning(
            "traces are asked for, but what sends them is not installed",
            reason=str(error),
            hint="pip install 'cador-trio[otel]', or OTEL_SDK_DISABLED=true",
        )
    except Exception as error:
        log.warning(
            "traces are asked for, but can't be sent", reason=str(error), hint="OTEL_… variables say where they go"
        )
    return None


def _made_provider(exporters: Sequence[str], variables: Mapping[str, str], instance_id: str) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - an extra

    for name, value in variables.items():
        if name.startswith("OTEL_"):  # from the env file, perhaps; the SDK reads the process environment
            os.environ.setdefault(name, value)
    attributes = {"service.version": __version__, "service.instance.id": instance_id}
    if "service.name=" not in variables.get("OTEL_RESOURCE_ATTRIBUTES", "") and not variables.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = SERVICE_NAME
    kinds = [_exporter(name, variables) for name in exporters]
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    for kind in kinds:
        provider.add_span_processor(BatchSpanProcessor(kind()))
    return provider


def _exporter(name: str, variables: Mapping[str, str]) -> Any:
    """The class of an exporter, by the name under which its package announces it.

    Raises:
        ImportError: no installed package does.
    """
    if name == "otlp":
        protocol = variables.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or variables.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        name = {None: "otlp_proto_http", "": "otlp_proto_http", "http/protobuf": "otlp_proto_http"}.get(
            protocol, f"otlp_proto_{protocol}"
        )
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise ImportError(f"no package has the exporter {name}")
    return found[0].load()


def _shut_down(provider: TracerProvider) -> None:
    """Send what is left. The SDK would wait half a minute for a collector that is away, and can't be told otherwise."""
    last_words = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    last_words.start()
    last_words.join(SHUTDOWN_SECONDS)
    if last_words.is_alive():
        log.warning("the last spans were not sent in time", seconds=SHUTDOWN_SECONDS)
