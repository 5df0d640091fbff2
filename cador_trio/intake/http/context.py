"""What a handler may ask of the request that it answers; beside its body, which `door.read_body` gathers."""

from __future__ import annotations

from collections.abc import Mapping

from quart import g, request

from cador_trio.errors import RequestRefused
from cador_trio.intake.http.links import Links
from cador_trio.intake.http.negotiation import plain_header, trace_context
from cador_trio.settings import Settings


def links(settings: Settings) -> Links:
    """Links below our public base URL, else below the address that the caller used. Forwarded headers prove nothing."""
    return Links(settings.public_url or f"{request.scheme}://{request.host or _own_address()}")


def _own_address() -> str:
    """Where the request came in, for a caller that named no host, or none that can be one."""
    host, port = request.scope["server"] or ("localhost", None)
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")


def forwarded_headers() -> Mapping[str, str]:
    """The headers that go along to the algorithm.

    Raises:
        RequestRefused: `X-ADS-Debug` can't be sent on as it is.
    """
    headers = {"X-Correlation-ID": g.correlation_id}
    if (debug := request.headers.get("X-ADS-Debug")) is not None:
        headers["X-ADS-Debug"] = plain_header("X-ADS-Debug", debug)
    return headers | trace_context(request.headers.getlist("traceparent"), request.headers.getlist("tracestate"))


def query(name: str) -> str | None:
    """A parameter of the query string.

    Raises:
        RequestRefused: it is there twice.
    """
    values = request.args.getlist(name)
    if len(values) > 1:
        raise RequestRefused(f"{name} is in the query {len(values)} times", hint="once is enough")
    return values[0] if values else None
