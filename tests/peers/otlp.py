"""A receiver of traces by OTLP over http/protobuf, as a collector has it: a small HTTP server on a port of loopback.

It decodes what comes by OpenTelemetry's own schema. One that is `slow` takes a request and leaves it unanswered.
"""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.leaks import watch

CAP_SECONDS: Final = 30.0  # for any one wait: this long only if something is wrong


@dataclass(frozen=True)
class SeenSpan:
    """A span as it arrived; ids in hex digits, no parent is an empty one."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    links: Sequence[str]  # span ids
    attributes: dict[str, Any]
    resource: dict[str, Any]
    has_failed: bool
    events: Sequence[tuple[str, dict[str, Any]]]


@dataclass
class Collector:
    """What has arrived. `wait` and `wait_requests` block: call them in a thread."""

    url: str
    is_slow: bool
    spans: list[SeenSpan] = field(default_factory=list)
    requests: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    ends: threading.Event = field(default_factory=threading.Event)

    def wait(self, holds: Callable[[Sequence[SeenSpan]], bool]) -> list[SeenSpan]:
        """All spans, as soon as they are as wanted."""
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self.spans), CAP_SECONDS), self.spans
            return list(self.spans)

    def wait_requests(self, count: int) -> None:
        """Until so many requests have come, answered or not."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.requests >= count, CAP_SECONDS)

    def take(self, body: bytes) -> None:
        """A request has come."""
        watch("traces", body)
        with self.changed:
            self.requests += 1
            if not self.is_slow:
                self.spans += _spans(ExportTraceServiceRequest.FromString(body))
            self.changed.notify_all()


@contextmanager
def open_collector(*, is_slow: bool = False) -> Iterator[Collector]:
    """A collector for the length of a block."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            if is_slow:
                collector.ends.wait()
                return
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}", is_slow)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield collector
        finally:
            collector.ends.set()
            server.shutdown()
            thread.join()


def _spans(request: ExportTraceServiceRequest) -> list[SeenSpan]:
    return [
        SeenSpan(
            name=span.name,
            kind=span.kind,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            links=[link.span_id.hex() for link in span.links],
            attributes=_read(span.attributes),
            resource=_read(group.resource.attributes),
            has_failed=span.status.code == span.status.STATUS_CODE_ERROR,
            events=[(event.name, _read(event.attributes)) for event in span.events],
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _read(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in attributes}
