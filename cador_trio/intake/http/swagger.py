"""`/openapi/spec.json`, and `/swagger`: a page that shows it without loading anything from elsewhere.

The page is ours (folder `page`), the Swagger UI on it comes from the package swagger-ui-bundle.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import trio
from quart import Blueprint, Response, request
from swagger_ui_bundle import swagger_ui_path

from cador_trio.errors import NotFound
from cador_trio.intake.http.openapi import openapi_document
from cador_trio.intake.http.respond import ASK_AGAIN, cached
from cador_trio.intake.http.routing import add_routes
from cador_trio.json_text import write
from cador_trio.settings import Settings

_OURS: Final = resources.files("cador_trio.intake.http") / "page"
_ASSETS: Final[dict[str, tuple[Traversable, str]]] = {
    "page.js": (_OURS, "text/javascript; charset=utf-8"),
    "swagger-ui-bundle.js": (swagger_ui_path, "text/javascript; charset=utf-8"),
    "swagger-ui.css": (swagger_ui_path, "text/css; charset=utf-8"),
    "favicon-32x32.png": (swagger_ui_path, "image/png"),
}
# Nothing from outside, and no script in the page itself; Swagger UI sets styles and has its icons in data: URLs.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_ASSET_CACHING: Final = "public, max-age=3600"  # an upgrade of the daemon may change them


def swagger_routes(settings: Settings) -> Blueprint:
    """The document, the page and what it is made of; open to all, since a browser's address bar sends no token."""
    document = write(openapi_document(settings))

    async def spec() -> Response:
        return cached(Response(document, content_type="application/json"), document, ASK_AGAIN)

    async def page() -> Response:
        html = (_OURS / "index.html").read_text("utf-8")
        # With or without a slash at the end, and behind a proxy that has us below some path: links are relative.
        html = html.replace("{base}", "./" if request.path.endswith("/") else "swagger/")
        response = Response(html, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = ASK_AGAIN
        return response

    async def asset(asset: str) -> Response:
        if asset not in _ASSETS:
            raise NotFound(f"the page has no {asset[:80]!r}", hint="it is at /swagger")
        folder, media_type = _ASSETS[asset]
        # A megabyte that is asked for once in a while: read each time, so that it costs no memory.
        data = await trio.to_thread.run_sync((folder / asset).read_bytes)
        return cached(Response(data, content_type=media_type), data, _ASSET_CACHING)

    return add_routes(
        Blueprint("swagger", __name__),
        [("GET", "/openapi/spec.json", spec), ("GET", "/swagger", page), ("GET", "/swagger/<asset>", asset)],
    )
