"""Order by key on a real broker: within a key one after the other, also over a restart; across keys side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.process import IMAGE
from tests.kafka.street import KafkaStreet, ends, running, value_of
from tests.peers.fake_algorithm import Answer, Hold, open_fake_algorithm
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import Topics


@pytest.fixture
def street(kafka: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(kafka, topics)


async def test_one_key_one_after_the_other(street: KafkaStreet, tmp_path: Path) -> None:
    """While the first of a key is held, other keys run and it keeps its own waiting; a restart changes no order."""
    await street.create()
    keys = [b"a", b"a", b"b", b"a", b"b", None]
    jobs = [
        {**IMAGE, "technicalMetadata": {"taskId": f"{(key or b'none').decode()}-{number}"}}
        for number, key in enumerate(keys)
    ]
    settings = street.settings(
        CADOR_ORDER_BY_KEY="true", CADOR_MAX_CONCURRENT_JOBS="8", CADOR_SHUTDOWN_GRACE_SECONDS="0"
    )
    async with open_fake_algorithm([Hold(Answer({"count": 1}))], default=Answer({"count": 2})) as fake:
        async with running(tmp_path, fake, settings) as daemon:
            await street.request(jobs[0], keys=[keys[0]])
            await fake.wait_for_request(1, "POST")
            await street.request(*jobs[1:], keys=keys[1:])
            assert {end["taskId"] for end in await street.wait_ends(3)} == {"b-2", "b-4", "none-5"}
            assert await daemon.stop() == 0
        async with running(tmp_path, fake, settings) as daemon:
            await street.wait_ends(len(jobs))
            assert await daemon.stop() == 0
    outputs = [value_of(output)["technicalMetadata"]["taskId"] for output in await street.read("outputs")]
    assert len(outputs) == len(jobs)
    assert [task for task in outputs if task.startswith("a-")] == ["a-0", "a-1", "a-3"]
    assert [task for task in outputs if task.startswith("b-")] == ["b-2", "b-4"]
    assert len(ends(await street.read("statuses"))) == len(jobs)
    assert await street.committed() == {0: len(jobs)}
