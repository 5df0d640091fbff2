"""The quart application: routes put together, and what every request goes through."""

from __future__ import annotations

import hmac
from typing import Final

import structlog
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from cador_trio.errors import BodyTooLarge, CadorError, MethodNotAllowed, NotAuthenticated, NotFound
from cador_trio.intake.http.door import Door
from cador_trio.intake.http.geoprocess import algorithm_metrics, geoprocess_routes
from cador_trio.intake.http.negotiation import correlation_id
from cador_trio.intake.http.probes import probe_routes
from cador_trio.intake.http.respond import error_body, error_response, json_response

log = structlog.get_logger(__name__)

# Reachable without the token: probes ask without one.
OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/health", "/api/v1/health"})


def create_app(door: Door) -> QuartTrio:
    """The ASGI application of the HTTP door."""
    app = QuartTrio(__name__, static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=int(door.settings.max_body_bytes),
        # Ours are in `read_body` and on the streamed responses; quart's would cut results short.
        BODY_TIMEOUT=None,
        RESPONSE_TIMEOUT=None,
    )
    app.url_map.strict_slashes = False
    app.register_blueprint(geoprocess_routes(door, "v1"), url_prefix="/api/v1")
    app.register_blueprint(algorithm_metrics(door, "v1_metrics"), url_prefix="/api/v1")
    app.register_blueprint(geoprocess_routes(door, "root"))
    app.register_blueprint(probe_routes(door.health))
    _add_checks(app, door)
    _add_error_handlers(app)
    return app


def _add_checks(app: QuartTrio, door: Door) -> None:
    token = door.settings.api_token

    @app.before_request
    async def identify() -> None:
        g.correlation_id = correlation_id(request.headers.get("X-Correlation-ID"))
        if token is not None and request.path not in OPEN_PATHS:
            scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
            expected = token.get_secret_value().encode()
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), expected):
                raise NotAuthenticated("a bearer token is needed", hint="send Authorization: Bearer with the API token")

    @app.after_request
    async def sign(response: Response) -> Response:
        response.headers["X-Correlation-ID"] = g.get("correlation_id", "")
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def _add_error_handlers(app: QuartTrio) -> None:
    @app.errorhandler(CadorError)
    async def ours(error: CadorError) -> Response:
        return error_response(error)

    @app.errorhandler(HTTPException)
    async def theirs(error: HTTPException) -> Response:
        match error:
            case WerkzeugMethodNotAllowed():
                allow = tuple(sorted(error.valid_methods or ()))
                return error_response(
                    MethodNotAllowed(
                        f"{request.method} is not possible here", allow=allow, hint=f"use {' or '.join(allow)}"
                    )
                )
            case _ if error.code == 404:
                return error_response(
                    NotFound(f"nothing is at {request.path[:200]}", hint="/swagger lists what there is")
                )
            case _ if error.code == 413:
                return error_response(
                    BodyTooLarge("the request body is too large", hint="CADOR_MAX_BODY_BYTES is the limit")
                )
            case _:
                return json_response(error_body(error.description or error.name, ""), error.code or 500)

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        log.error("a request failed for a reason that nobody thought of", path=request.path, exc_info=error)
        return json_response(error_body("unexpected error in the sidecar", "its log has the details"), 500)
