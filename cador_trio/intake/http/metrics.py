"""`/metrics`, for Prometheus: in the format that it asks for."""

from __future__ import annotations

from quart import Blueprint, Response, request

from cador_trio.intake.http.routing import add_routes
from cador_trio.observe.metrics import Registry, exposition


def metrics_routes(registry: Registry) -> Blueprint:
    """The scrape of this registry, at the root."""

    async def scrape() -> Response:
        text, media_type = exposition(registry, request.headers.get("Accept", ""))
        response = Response(text, content_type=media_type)
        response.headers["Cache-Control"] = "no-store"
        return response

    return add_routes(Blueprint("metrics", __name__), [("GET", "/metrics", scrape)])
