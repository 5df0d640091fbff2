"""How a table of routes becomes a blueprint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from quart import Blueprint, Response

Route = tuple[Literal["GET", "POST", "PUT", "DELETE"], str, Callable[..., Awaitable[Response]]]


def add_routes(blueprint: Blueprint, routes: Sequence[Route]) -> Blueprint:
    """The blueprint with these (method, path, handler); HEAD comes with GET, and OPTIONS is nobody's."""
    for method, path, handler in routes:
        blueprint.add_url_rule(
            path,
            endpoint=f"{method} {path}".replace(".", "_"),  # quart takes no dots
            view_func=handler,
            methods=[method],
            provide_automatic_options=False,
        )
    return blueprint
