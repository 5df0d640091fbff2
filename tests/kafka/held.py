"""Jobs whose work a test holds and lets go: requests by name, and what the fake algorithm was asked of each.

A job called `quick…` is answered at once; any other runs until it is released.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.peers.fake_algorithm import Answer, FakeAlgorithm, Hold, SeenRequest, open_fake_algorithm
from tests.peers.fake_algorithm.script import Behaviour, JsonObject


def request_of(name: str, **technical: Any) -> JsonObject:
    """A request for a job of this name, which is its task id."""
    image = base64.b64encode(name.encode()).decode()
    return {"image": image, "technicalMetadata": {"taskId": name, **technical}}


def name_of(request: SeenRequest) -> str:
    """The job's."""
    return base64.b64decode(request.json()["image"]).decode()


def runs(fake: FakeAlgorithm) -> Counter[str]:
    """How often each job was begun."""
    return Counter(name_of(request) for request in fake.seen("POST"))


@asynccontextmanager
async def open_held_algorithm() -> AsyncIterator[FakeAlgorithm]:
    """A fake that holds jobs until they are released; it counts the bytes of a job's name."""

    def step(request: SeenRequest) -> Behaviour:
        answer = Answer({"count": len(name_of(request))})
        return answer if name_of(request).startswith("quick") else Hold(answer)

    async with open_fake_algorithm(default=step) as fake:
        yield fake


async def wait_running(fake: FakeAlgorithm, *names: str) -> None:
    """Wait until all of these have been begun."""
    with trio.fail_after(60):
        await fake.wait_until(lambda: runs(fake).keys() >= set(names))


def release_all(fake: FakeAlgorithm) -> None:
    """Let everything go on that is held now."""
    while fake.held:
        fake.release()


@asynccontextmanager
async def releasing(fake: FakeAlgorithm) -> AsyncIterator[None]:
    """Inside this block nothing is held."""

    async def release() -> None:
        while True:
            await fake.wait_until(lambda: fake.held > 0)
            release_all(fake)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        yield
        nursery.cancel_scope.cancel("held again")
