"""The fixtures that most tests of the HTTP door want: a sample algorithm, and a daemon in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.intake.running import open_daemon
from tests.peers.fake_algorithm import FakeAlgorithm, open_fake_algorithm


@pytest.fixture
async def fake() -> AsyncIterator[FakeAlgorithm]:
    """A stateless algorithm with one output of every kind."""
    async with open_fake_algorithm() as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeAlgorithm) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a daemon with the settings that it has by itself."""
    async with open_daemon(fake) as client:
        yield client
