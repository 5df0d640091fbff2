"""The demo, step by step: algorithm, daemon, one job from request to results, and what is shown of it.

The job goes by HTTP (`demo_http.py`) or by Kafka (`demo_kafka.py`), as any client's would; that everything runs here is
for the user's convenience.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import trio
from PIL import Image
from rich.console import Console

from cador_trio.commands.atlas import Sighting, compare, shortcomings
from cador_trio.commands.demo import DemoFailed, KafkaChoice
from cador_trio.commands.demo_http import HttpRoad, Results, Road
from cador_trio.commands.demo_kafka import KafkaRoad, open_kafka_road
from cador_trio.commands.picture import Frame, draw
from cador_trio.commands.processes import JOB_SECONDS, find_algorithm, open_algorithm, open_daemon
from cador_trio.commands.report import Places, bodies_table, places_text
from cador_trio.job import JsonObject
from cador_trio.observe.logs import set_up_logs

IMAGE: Final = "blue-marble-black-sea-caspian.png"
# The image has 15 pixels a degree, north up, from 24° E, 50° N on.
FRAME: Final = Frame(24.0, 50.0, 1 / 15, -1 / 15)
TASK: Final = "demo"


async def demonstrate(keep: bool, folder: Path, kafka: KafkaChoice | None = None) -> bool:
    """Run the whole demo; with `keep` it stays up at the end until a signal says stop.

    The job goes by HTTP, or by the Kafka that is chosen.

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
                _open_road(kafka, keep, console) as road,
                open_daemon(algorithm_url, folder, console, road.settings) as url,
            ):
                results = await _run_job(road, url, algorithm / IMAGE, folder)
                await _show_all(results, url, algorithm / IMAGE, folder, keep, console)
                has_finished.set()
                if keep:
                    await stop.wait()
            life.cancel_scope.cancel("the demo is over")
    return has_finished.is_set()


@asynccontextmanager
async def _open_road(kafka: KafkaChoice | None, keep: bool, console: Console) -> AsyncIterator[Road]:
    if kafka is None:
        yield HttpRoad(console)
    else:
        async with open_kafka_road(kafka.brokers, keep, console) as road:
            yield road


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


async def _show_all(  # noqa: PLR0913, PLR0917 - what there is to show, and where
    results: Results, url: str, image: Path, folder: Path, keep: bool, console: Console
) -> None:
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


async def _run_job(road: Road, url: str, image: Path, folder: Path) -> Results:
    """Send the image by this road; what came back. Raises DemoFailed."""
    content = base64.b64encode(await trio.Path(image).read_bytes()).decode("ascii")
    request: JsonObject = {
        "image": content,
        "technicalMetadata": {
            "taskId": TASK,
            "referential": {
                "upperLeft": {"lat": FRAME.latitude, "lon": FRAME.longitude},
                "latStep": FRAME.latitude_step,
                "lonStep": FRAME.longitude_step,
            },
            "outputStorage": {"POSIX": {"folder": str(folder)}},
            "postProcessing": {"tags": isinstance(road, KafkaRoad)},
        },
    }
    try:
        with trio.fail_after(JOB_SECONDS):
            return await road.run_job(url, request, IMAGE)
    except trio.TooSlowError as error:
        raise DemoFailed(
            f"the job took longer than {JOB_SECONDS:.0f} s", "is the machine busy? try once more"
        ) from error
    except httpx.HTTPError as error:
        raise DemoFailed(f"the daemon at {url} does not answer: {error}", "its log is above") from error


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
