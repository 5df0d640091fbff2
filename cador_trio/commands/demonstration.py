"""The demo, step by step: algorithm, daemon, one job from request to results, and what is shown of it.

Talks to the daemon over its REST API alone, as any client would; that both run here is for the user's convenience.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import trio
from PIL import Image
from rich.console import Console
from rich.status import Status

from cador_trio.commands.atlas import Sighting, compare, shortcomings
from cador_trio.commands.demo import DemoFailed
from cador_trio.commands.picture import Frame, draw
from cador_trio.commands.processes import JOB_SECONDS, find_algorithm, open_algorithm, open_daemon
from cador_trio.commands.report import Places, bodies_table, done, places_text
from cador_trio.job import JsonObject
from cador_trio.observe.logs import set_up_logs

IMAGE: Final = "blue-marble-black-sea-caspian.png"
# The image has 15 pixels a degree, north up, from 24° E, 50° N on.
FRAME: Final = Frame(24.0, 50.0, 1 / 15, -1 / 15)
TASK: Final = "demo"

ASK_AGAIN_SECONDS: Final = 0.1  # between looks at a daemon that isn't ready


@dataclass(frozen=True, slots=True)
class Results:
    """What the daemon answered. `features` are in longitude and latitude, `mask` is the reference of a stored image."""

    url: str
    features: list[JsonObject]
    mask: JsonObject


async def demonstrate(keep: bool, folder: Path) -> bool:
    """Run the whole demo; with `keep` it stays up at the end until a signal says stop.

    Returns:
        Whether it came to its end; False if SIGINT or SIGTERM came first.

    Raises:
        DemoFailed: something does not work; perhaps in a group. Also CadorError if the daemon can't start.
    """
    console = Console(highlight=False)
    set_up_logs("warning", "auto")
    algorithm = find_algorithm()
    _make(folder)
    has_finished, stop = trio.Event(), trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as life:
            life.start_soon(_obey, signals, has_finished, stop, life.cancel_scope)
            async with (
                open_algorithm(algorithm, console) as algorithm_url,
                open_daemon(algorithm_url, folder, console) as url,
            ):
                await _show_all(url, algorithm / IMAGE, folder, keep, console)
                has_finished.set()
                if keep:
                    await stop.wait()
            life.cancel_scope.cancel("the demo is over")
    return has_finished.is_set()


async def _obey(
    signals: AsyncIterator[int], has_finished: trio.Event, stop: trio.Event, life: trio.CancelScope
) -> None:
    """The first signal after the demonstration ends it in order; any other drops everything."""
    async for number in signals:
        if has_finished.is_set() and not stop.is_set():
            stop.set()
        else:
            life.cancel(signal.Signals(number).name)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoFailed(
            f"the output folder {folder} can't be made: {error.strerror}", "name another one with --output"
        ) from error


# --- The job -----------------------------------------------------------------------------------------------------


async def _show_all(url: str, image: Path, folder: Path, keep: bool, console: Console) -> None:
    results = await _run_job(url, image, folder, console)
    sightings, size = await _compare(results, image)
    mask = await _verify_mask(results, size)
    picture, geojson = folder / "water.png", folder / "water.geojson"
    await trio.to_thread.run_sync(draw, image, results.features, sightings, FRAME, picture)
    collection = {"type": "FeatureCollection", "features": results.features}
    await trio.Path(geojson).write_text(json.dumps(collection), encoding="utf-8")
    console.print()
    console.print(bodies_table(sightings))
    places = Places(mask, picture, geojson, url, results.url)
    console.print()
    # Soft wrap: an address that is broken into lines can't be copied.
    console.print(places_text(places, keep=keep), soft_wrap=True)
    if wrong := shortcomings(sightings):
        raise DemoFailed("; ".join(wrong), "the picture shows where the shores went: compare them with the image")


async def _run_job(url: str, image: Path, folder: Path, console: Console) -> Results:
    """Send the image, watch the job, fetch its results."""
    content = base64.b64encode(await trio.Path(image).read_bytes()).decode("ascii")
    request = {
        "image": content,
        "technicalMetadata": {
            "taskId": TASK,
            "referential": {
                "upperLeft": {"lat": FRAME.latitude, "lon": FRAME.longitude},
                "latStep": FRAME.latitude_step,
                "lonStep": FRAME.longitude_step,
            },
            "outputStorage": {"POSIX": {"folder": str(folder)}},
        },
    }
    try:
        with trio.fail_after(JOB_SECONDS):
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=JOB_SECONDS) as client:
                with console.status("Waiting for the daemon to be ready …"):
                    await _wait_ready(client)
                with console.status("The job …") as line:
                    answer = await client.post("/api/v1/jobs", json=request, headers={"Prefer": "respond-async"})
                    status = await _follow(client, _json(answer, 202)["href"], line)
                done(console, f"Job {status['jobId']} with {IMAGE} succeeded in {status['duration'] / 1000:.2f} s")
                water = _json(await client.get(f"{status['href']}/water"), 200)
                mask = _json(await client.get(f"{status['href']}/mask"), 200)
    except trio.TooSlowError as error:
        raise DemoFailed(
            f"the job took longer than {JOB_SECONDS:.0f} s", "is the machine busy? try once more"
        ) from error
    except httpx.HTTPError as error:
        raise DemoFailed(f"the daemon at {url} does not answer: {error}", "its log is above") from error
    return Results(status["href"], water["features"], mask)


async def _wait_ready(client: httpx.AsyncClient) -> None:
    while True:
        answer = await client.get("/readyz")
        if answer.status_code == 200:
            return
        await trio.sleep(ASK_AGAIN_SECONDS)


async def _follow(client: httpx.AsyncClient, status_url: str, line: Status) -> dict[str, Any]:
    """Show the job's events until its end; its last status. Raises DemoFailed if that is not SUCCEEDED."""
    status: dict[str, Any] = {}
    async with client.stream("GET", status_url.removesuffix("/status") + "/events") as stream:
        async for text in stream.aiter_lines():
            if text.startswith("data:"):
                status = json.loads(text.removeprefix("data:"))
                line.update(f"The job is {status['status']}, {status['progress']} %")
    if status.get("status") != "SUCCEEDED":
        raise DemoFailed(
            f"the job is {status.get('status', 'lost')}: {status.get('message', '')}", status.get("hint", "")
        )
    return status


def _json(answer: httpx.Response, expected: int) -> dict[str, Any]:
    """The JSON object in an answer. Raises DemoFailed with the daemon's own words on any other status."""
    if answer.status_code == expected:
        document: dict[str, Any] = answer.json()
        return document
    try:
        error = answer.json()
        message, hint = error["message"], error.get("hint", "")
    except (ValueError, KeyError, TypeError):
        message, hint = answer.text[:200], ""
    raise DemoFailed(f"{answer.request.method} {answer.url.path} was answered {answer.status_code}: {message}", hint)


# --- What came out -----------------------------------------------------------------------------------------------


async def _compare(results: Results, image: Path) -> tuple[list[Sighting], tuple[int, int]]:
    """The bodies of water beside the atlas, and the image's width and height."""
    with Image.open(io.BytesIO(await trio.Path(image).read_bytes())) as opened:
        size = opened.size
    try:
        return compare(results.features, FRAME.edges(*size)), size
    except (KeyError, TypeError, ValueError) as error:
        raise DemoFailed(
            f"the result `water` is not what the algorithm gives: {error!r}", "look at it: " + results.url
        ) from error


async def _verify_mask(results: Results, size: tuple[int, int]) -> JsonObject:
    """Read the stored mask back: the bytes are those that the reference names, and show the same water."""
    try:
        content = await trio.Path(results.mask["path"]).read_bytes()
    except (OSError, KeyError, TypeError) as error:
        raise DemoFailed(f"the stored mask can't be read back: {error!r}", f"its reference: {results.mask}") from error
    if (len(content), hashlib.sha256(content).hexdigest()) != (results.mask["size"], results.mask["sha256"]):
        raise DemoFailed("the stored mask is not what its reference says", f"its reference: {results.mask}")
    with Image.open(io.BytesIO(content)) as mask:
        white = mask.convert("L").histogram()[255]
        shape = mask.size
    pixels = sum(feature["properties"]["pixels"] for feature in results.features)
    if (shape, white) != (size, pixels):
        raise DemoFailed(f"the stored mask shows {white} pixels of water, not {pixels}", "look at the file")
    return results.mask
