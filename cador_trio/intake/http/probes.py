"""`/livez` and `/readyz`, for orchestrators: 200 or 503, with the reasons in the body."""

from __future__ import annotations

from quart import Blueprint, Response

from cador_trio.intake.http.respond import json_response
from cador_trio.observe.health import Health


def probe_routes(health: Health) -> Blueprint:
    """Both probes, at the root."""
    routes = Blueprint("probes", __name__)

    async def livez() -> Response:
        return _verdict(health.stuck())

    async def readyz() -> Response:
        return _verdict(health.not_ready())

    for path, view in (("/livez", livez), ("/readyz", readyz)):
        routes.add_url_rule(path, view_func=view, methods=["GET"], provide_automatic_options=False)
    return routes


def _verdict(reasons: list[str]) -> Response:
    return json_response({"status": "unavailable" if reasons else "ok", "reasons": reasons}, 503 if reasons else 200)
