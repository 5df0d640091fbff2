"""Jobs from a real broker, through a daemon process, to the topics and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon.process import IMAGE, client_of
from tests.kafka.street import KafkaStreet, ends, running, value_of
from tests.peers.fake_algorithm import Answer, Hold, open_fake_algorithm
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import Topics


@pytest.fixture
def street(kafka: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(kafka, topics)


async def test_a_job_from_request_to_offset(street: KafkaStreet, tmp_path: Path) -> None:
    """ACCEPTED, RUNNING, output, SUCCEEDED that tells where the output lies; the offset is done; no dead letter."""
    await street.create()
    async with (
        open_fake_algorithm([], default=Answer({"count": 7})) as fake,
        running(tmp_path, fake, street.settings()) as daemon,
    ):
        await street.request({**IMAGE, "technicalMetadata": {"taskId": "t-1"}, "userMetadata": {"mine": True}})
        (end,) = await street.wait_ends(1)
        assert await daemon.stop() == 0
    (output,) = await street.read("outputs")
    assert value_of(output) == {"count": 7, "technicalMetadata": {"taskId": "t-1"}, "userMetadata": {"mine": True}}
    assert end["status"] == "SUCCEEDED"
    assert end["producedKafkaMessages"] == [
        {"topic": output.topic, "partition": output.partition, "offset": output.offset}
    ]
    statuses = [value_of(record)["status"] for record in await street.read("statuses")]
    assert statuses == ["ACCEPTED", "RUNNING", "SUCCEEDED"]
    assert await street.read("dead") == []
    assert await street.committed() == {0: 1}


async def test_jobs_that_finish_out_of_order(street: KafkaStreet, tmp_path: Path) -> None:
    """Those behind a long one are committed while it runs; after a restart it alone runs again."""
    await street.create()
    long, short = (
        {**IMAGE, "technicalMetadata": {"taskId": "long"}},
        {**IMAGE, "technicalMetadata": {"taskId": "short"}},
    )
    async with open_fake_algorithm([Hold(Answer({"count": 1}))], default=Answer({"count": 2})) as fake:
        settings = street.settings(CADOR_MAX_CONCURRENT_JOBS="4", CADOR_SHUTDOWN_GRACE_SECONDS="0")
        async with running(tmp_path, fake, settings) as daemon:
            await street.request(long)
            await fake.wait_for_request(1, "POST")
            await street.request(short, short, short)
            assert {end["taskId"] for end in await street.wait_ends(3)} == {"short"}
            assert await street.committed() == {0: 0}
            assert await daemon.stop() == 0
        async with running(tmp_path, fake, settings) as daemon:
            assert [end["taskId"] for end in await street.wait_ends(4)].count("long") == 1
            assert await daemon.stop() == 0
    assert len(await street.read("outputs")) == 4
    assert len(fake.seen("POST")) == 5
    assert await street.committed() == {0: 4}


async def test_a_job_that_is_cancelled_over_http(street: KafkaStreet, tmp_path: Path) -> None:
    """It is listed and watched like any other; DELETE ends it CANCELLED, which is no failure."""
    await street.create()
    async with (
        open_fake_algorithm([Hold(Answer({"count": 1}))]) as fake,
        running(tmp_path, fake, street.settings()) as daemon,
        client_of(daemon) as client,
    ):
        await street.request({**IMAGE, "technicalMetadata": {"taskId": "t-1"}})
        await fake.wait_for_request(1, "POST")
        (job_id,) = (await client.get("/jobs")).json()
        assert (await client.get(f"/jobs/{job_id}/status")).json()["status"] == "RUNNING"
        assert (await client.delete(f"/jobs/{job_id}")).status_code == 204
        (end,) = await street.wait_ends(1)
        assert (end["status"], end["errMsg"]) == ("CANCELLED", "cancelled by the client")
        fake.release()
        assert await daemon.stop() == 0
    assert await street.read("dead") == []
    assert await street.read("outputs") == []
    assert await street.committed() == {0: 1}


async def test_what_is_no_request(street: KafkaStreet, tmp_path: Path) -> None:
    """FAILED and a dead letter for each, and the next job runs."""
    await street.create()
    poisons = [b"not json", b"\xff\xfe", None, b"[1]", b'{"a": NaN}', b'{"technicalMetadata": null}']
    async with (
        open_fake_algorithm([], default=Answer({"count": 7})) as fake,
        running(tmp_path, fake, street.settings()) as daemon,
    ):
        await street.request(*poisons, {**IMAGE, "technicalMetadata": {"taskId": "t-1"}})
        found = await street.wait_ends(len(poisons) + 1)
        assert await daemon.stop() == 0
    assert sorted(end["status"] for end in found) == ["FAILED"] * len(poisons) + ["SUCCEEDED"]
    letters = await street.read("dead")
    assert sorted(map(repr, (letter.value for letter in letters))) == sorted(map(repr, poisons))
    assert len(ends(await street.read("statuses"))) == len(poisons) + 1
    assert await street.committed() == {0: len(poisons) + 1}
