"""The demo's job by HTTP: posted, followed by its events, its results fetched.

Talks to the daemon over its REST API alone, as any client would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

import httpx
import trio
from rich.console import Console
from rich.status import Status

from cador_trio.commands.demo import DemoFailed
from cador_trio.commands.processes import JOB_SECONDS
from cador_trio.commands.report import done
from cador_trio.job import JsonObject

ASK_AGAIN_SECONDS: Final = 0.1  # between looks at a daemon that isn't ready


@dataclass(frozen=True, slots=True)
class Results:
    """What came back. `features` are in longitude and latitude, `mask` is the reference of a stored image."""

    url: str
    features: list[JsonObject]
    mask: JsonObject


class Road(Protocol):
    """A way for a job to the daemon and back."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the daemon needs for it, by the names of `Settings`."""

    async def run_job(self, url: str, request: JsonObject, title: str) -> Results:
        """Send the request to the daemon at this address, show how it goes; its results. Raises DemoFailed."""


@dataclass(frozen=True)
class HttpRoad:
    """By HTTP."""

    console: Console
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    async def run_job(self, url: str, request: JsonObject, title: str) -> Results:
        """See Road."""
        async with open_client(url) as client:
            with self.console.status("Waiting for the daemon to be ready …"):
                await wait_ready(client)
            with self.console.status("The job …") as line:
                answer = await client.post("/api/v1/jobs", json=request, headers={"Prefer": "respond-async"})
                status = await _follow(client, json_of(answer, 202)["href"], line)
            done(self.console, f"Job {status['jobId']} with {title} succeeded in {status['duration'] / 1000:.2f} s")
            water = json_of(await client.get(f"{status['href']}/water"), 200)
            mask = json_of(await client.get(f"{status['href']}/mask"), 200)
        return Results(status["href"], water["features"], mask)


def open_client(url: str) -> httpx.AsyncClient:
    """A client of the daemon."""
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=JOB_SECONDS)


async def wait_ready(client: httpx.AsyncClient) -> JsonObject:
    """Wait for `/readyz` to say yes; what else it says."""
    while True:
        answer = await client.get("/readyz")
        if answer.status_code == 200:
            return json_of(answer, 200)
        await trio.sleep(ASK_AGAIN_SECONDS)


def json_of(answer: httpx.Response, expected: int) -> dict[str, Any]:
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
