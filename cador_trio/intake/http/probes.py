"""`/livez` and `/readyz`, for orchestrators: 200 or 503, with the reasons in the body."""

from __future__ import annotations

from quart import Blueprint, Response

from cador_trio.intake.http.respond import json_response
from cador_trio.intake.http.routing import add_routes
from cador_trio.observe.health import Health


def probe_routes(health: Health) -> Blueprint:
    """Both probes, at the root."""

    async def livez() -> Response:
        return _verdict(health.stuck())

    async def readyz() -> Response:
        return _verdict(health.not_ready())

    return add_routes(Blueprint("probes", __name__), [("GET", "/livez", livez), ("GET", "/readyz", readyz)])


def _verdict(reasons: list[str]) -> Response:
    return json_response({"status": "unavailable" if reasons else "ok", "reasons": reasons}, 503 if reasons else 200)
