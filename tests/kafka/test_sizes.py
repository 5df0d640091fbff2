"""What is too large for a message, topics on other clusters, and delivery at least once: daemons and brokers."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from confluent_kafka.admin import AdminClient

from tests.daemon.process import IMAGE, Daemon
from tests.kafka.street import KINDS, KafkaStreet, ends, running, value_of
from tests.peers.fake_algorithm import Answer, Hold, SeenRequest, open_fake_algorithm
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.clients import quiet
from tests.peers.kafka.mock import MockKafka
from tests.peers.kafka.peer import KafkaPeer
from tests.peers.kafka_fixtures import OwnKafka, Topics

LIMIT: Final = 50_000  # CADOR_INLINE_RESULT_LIMIT of most tests
TAGS: Final = 200_000
GROWTH: Final = 1_500_000_000  # bytes that the daemon may take for them; about half of that was seen


@pytest.fixture
def street(kafka: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(kafka, topics)


async def create(street: KafkaStreet, **largest: int) -> None:
    """The five topics, of one partition; some with another `max.message.bytes`."""
    for kind in KINDS:
        configs = {"max.message.bytes": str(largest[kind])} if kind in largest else {}
        await trio.to_thread.run_sync(street.kafka.create_topics, {street.name(kind): 1}, configs)


def request(task_id: str, storage: Path | None = None, **technical: Any) -> dict[str, Any]:
    """A good one."""
    stored = {} if storage is None else {"outputStorage": {"POSIX": {"folder": str(storage)}}}
    return {**IMAGE, "technicalMetadata": {"taskId": task_id, **stored, **technical}}


def noise(size: int) -> str:
    """So many characters that no compression makes small."""
    return secrets.token_urlsafe(size)[:size].replace("-", "_")  # tests/leaks.py looks for a word with a dash


def answer_by_size(seen: SeenRequest) -> Answer:
    """As large as the threshold of the request says, in thousands of characters."""
    return Answer({"summary": noise(1_000 * int(seen.json()["threshold"]))})


def by_task(statuses: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {status["taskId"]: status for status in statuses}


# --- Results ------------------------------------------------------------------------------------------------------


async def test_a_large_result_goes_by_reference(street: KafkaStreet, tmp_path: Path) -> None:
    """With storage it is an object with the right bytes, and output, status and tags name it."""
    await create(street)
    features = [_feature(number) for number in range(400)]
    collection = {"type": "FeatureCollection", "features": features}
    async with (
        open_fake_algorithm([], default=Answer({"detections": collection, "count": 7})) as fake,
        running(tmp_path, fake, street.settings(CADOR_INLINE_RESULT_LIMIT=str(LIMIT))) as daemon,
    ):
        await street.request(request("t-1", daemon.store, postProcessing={"tags": True}))
        (end,) = await street.wait_ends(1)
        assert await daemon.stop() == 0
    (output,) = await street.read("outputs")
    value = value_of(output)
    assert value["count"] == 7
    reference = value["detections"]
    (stored,) = [path for path in daemon.store.rglob("*") if path.is_file()]
    assert json.loads(stored.read_bytes()) == collection
    assert reference["size"] == stored.stat().st_size
    assert reference["sha256"] == hashlib.sha256(stored.read_bytes()).hexdigest()
    tags = await street.read("tags")
    assert len(tags) == len(features)
    assert all(value_of(tag)["outputs"] == [reference] for tag in tags)
    assert end["status"] == "SUCCEEDED"
    assert end["producedKafkaMessages"] == [
        reference,
        *({"topic": tag.topic, "partition": 0, "offset": tag.offset} for tag in tags),
        {"topic": output.topic, "partition": 0, "offset": output.offset},
    ]


async def test_a_large_result_without_a_store(street: KafkaStreet, tmp_path: Path) -> None:
    """FAILED, with the size that it has and the size that is allowed; nothing else of it is visible."""
    await create(street)
    async with (
        open_fake_algorithm([], default=Answer({"summary": "x" * (2 * LIMIT)})) as fake,
        running(tmp_path, fake, street.settings(CADOR_INLINE_RESULT_LIMIT=str(LIMIT))) as daemon,
    ):
        await street.request(request("t-1", postProcessing={"tags": True}))
        (end,) = await street.wait_ends(1)
        assert await daemon.stop() == 0
    assert end["status"] == "FAILED"
    assert str(LIMIT) in end["errMsg"]
    assert str(2 * LIMIT)[:3] in end["errMsg"]
    assert await street.read("outputs") == []
    (letter,) = await street.read("dead")
    assert letter.header("cador-error-class") == b"ResultTooLarge"
    assert await street.committed() == {0: 1}


async def test_outputs_that_their_topic_refuses(street: KafkaStreet, tmp_path: Path) -> None:
    """A topic that takes less than our limit: the large jobs fail, those in the same transaction are unharmed.

    Small ones have to go through also where many of them together are more than the topic takes at once.
    """
    await create(street, outputs=20_000)
    sizes = [1, 15, 60, 15, 1, 15, 60, 15, 15, 15, 15, 15]
    async with (
        open_fake_algorithm([Hold(Answer({"count": 1}))], default=answer_by_size) as fake,
        running(tmp_path, fake, street.settings(CADOR_MAX_CONCURRENT_JOBS="16")) as daemon,
    ):
        await street.request(request("first"))
        await fake.wait_for_request(1, "POST")
        await street.request(*({**request(f"t-{number}"), "threshold": size} for number, size in enumerate(sizes)))
        found = by_task(await street.wait_ends(len(sizes)))
        fake.release()
        await street.wait_ends(len(sizes) + 1)
        assert await daemon.stop() == 0
    wanted = {f"t-{number}": "FAILED" if size > 20 else "SUCCEEDED" for number, size in enumerate(sizes)}
    assert {task: status["status"] for task, status in found.items()} == wanted
    assert all("topic" in status["errMsg"] for status in found.values() if status["status"] == "FAILED")
    outputs = [value_of(output)["technicalMetadata"]["taskId"] for output in await street.read("outputs")]
    good = [task for task, state in wanted.items() if state == "SUCCEEDED"]
    assert sorted(outputs) == sorted([*good, "first"])
    assert await street.committed() == {0: len(sizes) + 1}


async def test_dead_letters_that_their_topic_refuses(street: KafkaStreet, tmp_path: Path) -> None:
    """They go by coordinates, size and digest, be it a refused request or a failed job."""
    await create(street, dead=10_000)
    garbage = noise(50_000).encode()
    failing = {**request("t-1"), "image": noise(60_000)}
    async with (
        open_fake_algorithm([], default=Answer({"summary": "x" * (2 * LIMIT)})) as fake,
        running(tmp_path, fake, street.settings(CADOR_INLINE_RESULT_LIMIT=str(LIMIT))) as daemon,
    ):
        sent = await street.request(garbage, failing)
        found = await street.wait_ends(2)
        assert await daemon.stop() == 0
    assert [end["status"] for end in found] == ["FAILED", "FAILED"]
    letters = await street.read("dead")
    stand_ins = sorted((value_of(letter) for letter in letters), key=lambda value: int(value["offset"]))
    assert [value["sha256"] for value in stand_ins] == [
        hashlib.sha256(record.value or b"").hexdigest() for record in sent
    ]
    assert all(letter.header("cador-replaced") for letter in letters)
    assert await street.committed() == {0: 2}


# --- Many tags ----------------------------------------------------------------------------------------------------


def _feature(number: int) -> dict[str, Any]:
    ring = [[number, 0.0], [number, 1.0], [number + 1.0, 1.0], [number, 0.0]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"category": "vessel", "confidence": 0.9},
    }


async def test_a_job_with_200000_detections(street: KafkaStreet, tmp_path: Path) -> None:
    """Publishes as many tags, in one piece; the status lists some and counts the rest; memory stays bounded."""
    await create(street)
    collection = {"type": "FeatureCollection", "features": [_feature(number % 1_000) for number in range(TAGS)]}
    async with (
        open_fake_algorithm([], default=Answer({"detections": collection})) as fake,
        running(tmp_path, fake, street.settings()) as daemon,
    ):
        await daemon.wait_event("partition assigned")
        before = _memory(daemon, "VmRSS")
        await street.request(request("t-1", daemon.store, postProcessing={"tags": True}))
        (end,) = await street.wait_ends(1, seconds=120)
        growth = _memory(daemon, "VmHWM") - before
        assert await daemon.stop() == 0
    tags = await trio.to_thread.run_sync(street.kafka.read_topic, street.name("tags"))  # a schema check takes longer
    assert len(tags) == TAGS
    assert sorted(value_of(tag)["tag"]["linkedId"] for tag in tags) == list(range(TAGS))
    assert end["status"] == "SUCCEEDED"
    assert len(end["producedKafkaMessages"]) <= 1_000
    assert len(end["producedKafkaMessages"]) + end["producedKafkaMessagesOmitted"] == TAGS + 2
    assert growth < GROWTH


def _memory(daemon: Daemon, name: str) -> int:
    """Bytes of the process: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{daemon.pid}/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1_024


# --- Other clusters, and at least once ----------------------------------------------------------------------------


async def test_outputs_on_another_cluster(
    own_kafka: OwnKafka, kafka: RealKafka, topics: Topics, tmp_path: Path
) -> None:
    """They arrive there, the status tells their coordinates, and the log says which of all is how sure."""
    away = await trio.to_thread.run_sync(own_kafka)
    street = KafkaStreet(kafka, topics)
    await create(street)
    await trio.to_thread.run_sync(away.create_topics, {topics("outputs"): 1})
    settings = street.settings(KAFKA_BROKERS_OUTPUT=away.bootstrap, KAFKA_BROKERS_TAGS=kafka.bootstrap)
    async with (
        open_fake_algorithm([], default=Answer({"count": 7})) as fake,
        running(tmp_path, fake, settings) as daemon,
    ):
        said = (await daemon.wait_event("Kafka is there"))["delivery"]
        await street.request(*(request(f"t-{number}") for number in range(20)))
        found = await street.wait_ends(20)
        assert await daemon.stop() == 0
    assert "exactly once" in said
    assert "output" in said.partition(";")[2]
    assert "at least once" in said
    outputs = await replace(street, kafka=away).read("outputs")
    assert {value_of(output)["technicalMetadata"]["taskId"] for output in outputs} == {f"t-{n}" for n in range(20)}
    places = [(end["producedKafkaMessages"][0]["offset"], end["taskId"]) for end in found]
    assert sorted(places) == sorted(
        (output.offset, value_of(output)["technicalMetadata"]["taskId"]) for output in outputs
    )
    assert await street.read("outputs") == []
    assert await street.committed() == {0: 20}


async def test_another_cluster_that_is_away_for_a_while(
    own_kafka: OwnKafka, kafka: RealKafka, topics: Topics, tmp_path: Path
) -> None:
    """Jobs wait for it with no transaction open, and go on by themselves; their statuses come after their outputs."""
    away = await trio.to_thread.run_sync(own_kafka)
    street = KafkaStreet(kafka, topics)
    await create(street)
    await trio.to_thread.run_sync(away.create_topics, {topics("outputs"): 1})
    settings = street.settings(KAFKA_BROKERS_OUTPUT=away.bootstrap, KAFKA_BROKERS_TAGS=kafka.bootstrap)
    async with (
        open_fake_algorithm([Hold(Answer({"count": 7}))], default=Answer({"count": 8})) as fake,
        running(tmp_path, fake, settings) as daemon,
    ):
        await street.request(request("t-1"), request("t-2"))
        await fake.wait_for_request(1, "POST")
        await trio.to_thread.run_sync(away.kill)
        fake.release()
        await fake.wait_for_request(2, "POST")
        # A reader of the request cluster sees what others put there meanwhile: nothing of ours is open.
        await trio.to_thread.run_sync(street.kafka.produce, street.name("dead"), [b"{}"])
        assert len(await trio.to_thread.run_sync(street.kafka.read_topic, street.name("dead"))) == 1
        assert ends(await street.read("statuses")) == []
        await trio.to_thread.run_sync(away.start)
        found = await street.wait_ends(2)
        assert await daemon.stop() == 0
    assert {end["status"] for end in found} == {"SUCCEEDED"}
    assert len(await replace(street, kafka=away).read("outputs")) >= 2


async def _at_least_once(street: KafkaStreet, tmp_path: Path) -> None:
    jobs = [request(f"t-{number}", postProcessing={"tags": True}) for number in range(30)]
    answer = Answer({"detections": {"type": "FeatureCollection", "features": [_feature(0), _feature(1)]}})
    settings = street.settings(CADOR_DELIVERY="at-least-once", CADOR_MAX_CONCURRENT_JOBS="4")
    async with open_fake_algorithm([], default=answer) as fake, running(tmp_path, fake, settings) as daemon:
        said = (await daemon.wait_event("Kafka is there"))["delivery"]
        await street.request(*jobs, b"not json")
        found = await street.wait_ends(len(jobs) + 1)
        outputs = await street.wait("outputs", len(jobs))
        tags = await street.wait("tags", 2 * len(jobs))
        letters = await street.wait("dead", 1)
        assert await daemon.stop() == 0
    assert "at least once" in said
    assert sorted(end["status"] for end in found) == ["FAILED", *["SUCCEEDED"] * len(jobs)]
    assert (len(outputs), len(tags), len(letters)) == (len(jobs), 2 * len(jobs), 1)
    by_offset = {(output.partition, output.offset): output.key for output in outputs}
    for end in found:
        if end["status"] == "SUCCEEDED":
            where = end["producedKafkaMessages"][-1]
            assert by_offset[where["partition"], where["offset"]] == end["taskId"].encode()
    assert sum((await street.committed()).values()) == len(jobs) + 1


async def test_at_least_once(street: KafkaStreet, tmp_path: Path) -> None:
    """By setting, on a real broker: everything arrives, and offsets are committed behind it."""
    await create(street)
    await _at_least_once(street, tmp_path)


async def test_at_least_once_without_transactions(mock_kafka: MockKafka, topics: Topics, tmp_path: Path) -> None:
    """The same with brokers that have none, and topics that come to be by use."""
    peer: KafkaPeer = mock_kafka
    street = KafkaStreet(peer, topics)
    for kind in KINDS:
        await trio.to_thread.run_sync(AdminClient(quiet(peer.bootstrap)).list_topics, street.name(kind))
    await _at_least_once(street, tmp_path)
