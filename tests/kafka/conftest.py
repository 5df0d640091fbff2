"""What several modules of this room's tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.kafka.doubles import KafkaHouse, open_kafka_house


@pytest.fixture
async def house(tmp_path: Path, autojump_clock: MockClock) -> AsyncIterator[KafkaHouse]:
    """One slot, one partition, nothing committed."""
    async with open_kafka_house(tmp_path) as opened:
        opened.assign()
        await wait_all_tasks_blocked()
        yield opened
