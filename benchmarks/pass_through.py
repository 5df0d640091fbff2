"""The bare peer: quart-trio in front of httpx as anyone would write it, without jobs, checks, limits or records.

A process of its own: `python -m benchmarks.pass_through ALGORITHM_URL`; its URL is the first line on stdout.
"""

from __future__ import annotations

import sys
from typing import Final

import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio

REQUEST_SECONDS: Final = 60.0


def create_app(algorithm: str, client: httpx.AsyncClient) -> QuartTrio:
    """POST goes to the algorithm, its answer comes back."""
    app = QuartTrio(__name__)

    @app.post("/api/v1/jobs")
    async def jobs() -> Response:
        answer = await client.post(
            f"{algorithm}/api/v1/jobs",
            content=await request.get_data(),
            headers={"Content-Type": request.headers.get("Content-Type", "application/json")},
        )
        return Response(answer.content, status=answer.status_code, content_type=answer.headers.get("Content-Type"))

    return app


async def _run(algorithm: str) -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    async with httpx.AsyncClient(timeout=REQUEST_SECONDS) as client, trio.open_nursery() as nursery:
        (url,) = await nursery.start(serve, create_app(algorithm, client), config)
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(_run, sys.argv[1])
