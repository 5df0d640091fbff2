"""`/livez` and `/readyz`, for orchestrators: 200 or 503, with the reasons in the body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from quart import Blueprint, Response

from cador_trio.intake.http.respond import json_response
from cador_trio.intake.http.routing import add_routes
from cador_trio.job import JsonObject
from cador_trio.observe.health import Health

ALIVE: Final = "/livez"
READY: Final = "/readyz"
PROBES: Final = (ALIVE, READY)


def probe_routes(health: Health, delivery: Callable[[], str | None]) -> Blueprint:
    """Both probes, at the root. `delivery` is the guarantee that holds for jobs from Kafka; None without Kafka."""

    async def livez() -> Response:
        return _answer(health.stuck(), {})

    async def readyz() -> Response:
        guarantee = delivery()
        return _answer(health.not_ready(), {} if guarantee is None else {"delivery": guarantee})

    return add_routes(Blueprint("probes", __name__), [("GET", ALIVE, livez), ("GET", READY, readyz)])


def verdict(reasons: list[str]) -> JsonObject:
    """What a probe is told: that all is well, or why not."""
    return {"status": "unavailable" if reasons else "ok", "reasons": reasons}


def _answer(reasons: list[str], besides: JsonObject) -> Response:
    return json_response(verdict(reasons) | besides, 503 if reasons else 200)
