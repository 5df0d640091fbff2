"""The water-body detector behind the Geo Process API: `python server.py --host 127.0.0.1 --port 0`.

The first line on stdout is the base URL, once it listens; SIGTERM or SIGINT ends it. It works on one image at a time
and is "busy" (503) meanwhile, like most algorithm containers. It reads any `file://` and `http(s)://` URI that it is
given: keep it inside the pod, with a sidecar in front.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import signal
import urllib.request
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trio
from detector import MINIMUM_PIXELS, find_water
from hypercorn.config import Config
from hypercorn.trio import serve
from numpy.typing import NDArray
from PIL import Image
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import BadRequest, HTTPException, ServiceUnavailable

HERE = Path(__file__).parent
DESCRIBE: dict[str, Any] = json.loads((HERE / "describe.json").read_text(encoding="utf-8"))
MAX_BODY = 100 * 1024 * 1024  # bytes of a request
FETCH_TIMEOUT = 30  # seconds without a byte from the host of an image

app = QuartTrio(__name__)
app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
worker = trio.CapacityLimiter(1)


@app.get("/api/v1/describe")
async def describe() -> Response:
    """Say what goes in and what comes out."""
    return Response(json.dumps(DESCRIBE), content_type="application/json")


@app.get("/api/v1/health")
async def health() -> Response:
    """Say OK."""
    return Response("OK", content_type="text/plain")


@app.get("/api/v1/version")
async def version() -> Response:
    """Say which version this is."""
    return Response(DESCRIBE["version"], content_type="text/plain")


@app.get("/api/v1/openapi")
async def openapi() -> Response:
    """Give this API's description."""
    return Response((HERE / "openapi.yaml").read_text(encoding="utf-8"), content_type="text/plain; charset=utf-8")


@app.post("/api/v1/jobs")
async def jobs() -> Response:
    """Find water in one image; the answer is the result itself."""
    body = await request.get_data()
    if worker.available_tokens == 0:
        raise ServiceUnavailable("busy with another image")
    # A caller that leaves does not stop the thread; it keeps the only token, so "busy" stays true.
    answer = await trio.to_thread.run_sync(_answer, body, limiter=worker)
    return Response(answer, content_type="application/json")


@app.errorhandler(HTTPException)
async def error(problem: HTTPException) -> Response:
    """Turn every error into the API's Error object."""
    body = {"message": problem.description, "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds")}
    if "X-Correlation-ID" in request.headers:
        body["correlationId"] = request.headers["X-Correlation-ID"]
    return Response(json.dumps(body), status=problem.code, content_type="application/json")


def _answer(body: str | bytes) -> str:
    """Request JSON to answer JSON; blocks. Raises BadRequest with what is wrong with the input."""
    try:
        payload = json.loads(body)
        text, minimum = payload["image"], payload.get("minimumPixels", MINIMUM_PIXELS)
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise BadRequest('send a JSON object with an "image": base64 text or a URI') from problem
    if not isinstance(text, str) or type(minimum) is not int or minimum < 1:
        raise BadRequest('"image" is a text, "minimumPixels" an integer of at least 1')
    water = find_water(_open_image(text), minimum)
    collection = {"type": "FeatureCollection", "features": water.features}
    return json.dumps({"water": collection, "mask": _png(water.mask), "count": len(water.features)})


def _open_image(text: str) -> NDArray[np.uint8]:
    try:
        if text.startswith(("file://", "http://", "https://")):
            with urllib.request.urlopen(text, timeout=FETCH_TIMEOUT) as source:  # noqa: S310 - schemes are checked above
                content = source.read()
        else:
            content = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as problem:
        raise BadRequest(f"the image can't be read: {problem}") from problem


def _png(mask: NDArray[np.bool_]) -> str:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


async def main(host: str, port: int) -> None:
    """Serve until a signal says stop; requests that are running get hypercorn's three seconds of grace."""
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.loglevel = "WARNING"
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(partial(serve, app, config, shutdown_trigger=stop.wait))
            print(urls[0], flush=True)  # noqa: T201 - whoever started us reads the address
            async for _ in signals:
                break
            stop.set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Find bodies of water, behind the Geo Process API.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 - a container's port
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    arguments = parser.parse_args()
    trio.run(main, arguments.host, arguments.port)
