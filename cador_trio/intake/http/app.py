"""The quart application: routes put together, and what every request goes through."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

import structlog
from pydantic import SecretStr
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from cador_trio.errors import BodyTooLarge, CadorError, MethodNotAllowed, NotAuthenticated, NotFound, unexpected_error
from cador_trio.intake.http.asyncapi import SCHEMAS, asyncapi_routes
from cador_trio.intake.http.connection import Connection, NoWebSocket, Request
from cador_trio.intake.http.door import Door
from cador_trio.intake.http.geoprocess import algorithm_metrics, geoprocess_routes
from cador_trio.intake.http.metrics import metrics_routes
from cador_trio.intake.http.negotiation import correlation_id
from cador_trio.intake.http.probes import probe_routes
from cador_trio.intake.http.respond import error_body, error_response, json_response, without_body
from cador_trio.intake.http.swagger import swagger_routes
from cador_trio.observe.health import Health
from cador_trio.observe.metrics import Registry, count_request

log = structlog.get_logger(__name__)

# Reachable without the token: probes and scrapes ask without one, and so does a browser that opens the page.
OPEN_PATHS: Final = frozenset(
    {"/livez", "/readyz", "/metrics", "/health", "/api/v1/health", "/openapi/spec.json", "/swagger"}
)
OPEN_FOLDERS: Final = ("/swagger/", SCHEMAS)  # the same for every daemon; the AsyncAPI document has topics in it


OPERATORS_BODY_BYTES: Final = 1024  # nothing there takes one


class App(QuartTrio):
    """quart with our corrections."""

    asgi_http_class = Connection
    asgi_websocket_class = NoWebSocket
    request_class = Request


def create_app(door: Door) -> App:
    """The ASGI application of the HTTP door."""
    app = _bare_app(int(door.settings.max_body_bytes), door.settings.api_token)
    app.register_blueprint(geoprocess_routes(door, "v1"), url_prefix="/api/v1")
    app.register_blueprint(algorithm_metrics(door, "v1_metrics"), url_prefix="/api/v1")
    app.register_blueprint(geoprocess_routes(door, "root"))
    app.register_blueprint(probe_routes(door.health, door.messages.delivery))
    if door.settings.metrics_port is None:
        app.register_blueprint(metrics_routes(door.metrics))
    app.register_blueprint(swagger_routes(door.settings))
    app.register_blueprint(asyncapi_routes(door.messages.documents))
    return app


def create_operators_app(health: Health, delivery: Callable[[], str | None], metrics: Registry) -> App:
    """What `CADOR_METRICS_PORT` serves: what the kubelet and Prometheus ask for, who have no token to show."""
    app = _bare_app(OPERATORS_BODY_BYTES, token=None)
    app.register_blueprint(probe_routes(health, delivery))
    app.register_blueprint(metrics_routes(metrics))
    return app


def _bare_app(max_body_bytes: int, token: SecretStr | None) -> App:
    """What every request goes through, and no routes."""
    app = App(__name__, static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=max_body_bytes,
        # Ours are in `read_body` and in the kernel (`server.py`); quart's would cut results short.
        BODY_TIMEOUT=None,
        RESPONSE_TIMEOUT=None,
    )
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False  # it answers with redirects
    _add_checks(app, token)
    _add_error_handlers(app)
    return app


def _add_checks(app: App, token: SecretStr | None) -> None:
    @app.before_request
    async def identify() -> None:
        g.correlation_id = correlation_id(request.headers.get("X-Correlation-ID"))
        if token is not None and not _is_open(request.path):
            _check_token(request.headers.get("Authorization", ""), token)

    @app.after_request
    async def sign(response: Response) -> Response:
        response.headers["X-Correlation-ID"] = g.correlation_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        count_request(None if request.url_rule is None else request.url_rule.rule, request.method, response.status_code)
        return without_body(response) if request.method == "HEAD" else response


def _is_open(path: str) -> bool:
    return path.rstrip("/") in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def _check_token(authorization: str, token: SecretStr) -> None:
    scheme, _, shown = authorization.partition(" ")
    # Headers come as Latin-1 text: this gives back the bytes that were sent.
    sent, expected = shown.strip().encode("latin-1", "replace"), token.get_secret_value().encode()
    if scheme.lower() != "bearer" or not hmac.compare_digest(sent, expected):
        raise NotAuthenticated("a bearer token is needed", hint="send Authorization: Bearer with the API token")


def _add_error_handlers(app: App) -> None:
    @app.errorhandler(CadorError)
    async def ours(error: CadorError) -> Response:
        return error_response(error)

    @app.errorhandler(HTTPException)
    async def theirs(error: HTTPException) -> Response:
        found = _as_ours(error)
        if found is None:
            return json_response(error_body(error.description or error.name, ""), error.code or 500)
        return error_response(found)

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        log.error("a request failed for a reason that nobody thought of", path=request.path, exc_info=error)
        return error_response(unexpected_error())


def _as_ours(error: HTTPException) -> CadorError | None:
    """What the framework refuses, in our words; None if it is nothing that we know."""
    match error.code:
        case 404:
            return NotFound(f"nothing is at {request.path[:200]}", hint="/swagger lists what there is")
        case 405:
            methods = error.valid_methods if isinstance(error, WerkzeugMethodNotAllowed) else None
            allow = tuple(sorted(methods or ()))
            return MethodNotAllowed(
                f"{request.method} is not possible here", allow=allow, hint=f"use {' or '.join(allow)}"
            )
        case 413:
            return BodyTooLarge("the request body is too large", hint="CADOR_MAX_BODY_BYTES is the limit")
        case _:
            return None
