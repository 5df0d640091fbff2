"""One trace from the producer's header through a daemon to every message that it leaves, on a real broker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.daemon.process import IMAGE, Line
from tests.kafka.street import KafkaStreet, running
from tests.peers.fake_algorithm import Answer, Status, open_fake_algorithm
from tests.peers.fake_algorithm.documents import sample_detections
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.records import TestRecord
from tests.peers.kafka_fixtures import Topics
from tests.peers.otlp import SeenSpan, open_collector
from tests.secrets import API_TOKEN, COLLECTOR_TOKEN, HUSHED, PASSWORD

GOOD, BAD, POISON = (f"{digit * 32}" for digit in "abc")  # trace ids
PARENT_ID = "b7ad6b7169203331"
STAGES = {"cador.queued", "cador.algorithm", "cador.georeference", "cador.store", "cador.publish"}
PLACE = {"upperLeft": {"lon": 10.0, "lat": 50.0}, "lonStep": 0.5, "latStep": -0.5}


@pytest.fixture
def street(kafka: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(kafka, topics)


def trace_header(trace_id: str) -> list[tuple[str, bytes]]:
    return [("traceparent", f"00-{trace_id}-{PARENT_ID}-01".encode()), ("tracestate", b"vendor=x")]


def traces_of(records: Sequence[TestRecord]) -> list[str]:
    """The trace contexts of these messages."""
    return [(record.header("traceparent") or b"").decode() for record in records]


def of_trace(spans: Sequence[SeenSpan], trace_id: str) -> dict[str, SeenSpan]:
    found = [span for span in spans if span.trace_id == trace_id]
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


async def test_a_trace_from_header_to_header(street: KafkaStreet, tmp_path: Path) -> None:
    """Through every stage to the algorithm, output, statuses and tags; of a failure and a poison to the dead letter.

    The transaction that holds a job's messages links to the job's span, since it serves others too.
    """
    await street.create()
    storage = {"POSIX": {"folder": str(tmp_path / "daemon" / "store")}}
    wishes = {"taskId": "good", "postProcessing": {"tags": True}, "referential": PLACE, "outputStorage": storage}
    with open_collector() as collector:
        settings = street.settings(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, CADOR_STORE_INLINE_IMAGES="true", CADOR_MAX_CONCURRENT_JOBS="1"
        )
        async with (
            open_fake_algorithm(
                [Answer({"boxes": sample_detections()})], default=Status(500, {"message": "no"})
            ) as fake,
            running(tmp_path / "daemon", fake, settings) as daemon,
        ):
            await daemon.wait_event("the algorithm is reachable")  # else a job that waits for it says so
            await street.request({**IMAGE, "technicalMetadata": wishes}, headers=trace_header(GOOD))
            await street.wait_ends(1)
            await street.request({**IMAGE, "technicalMetadata": {"taskId": "bad"}}, headers=trace_header(BAD))
            await street.wait_ends(2)
            await street.request(b"no JSON", headers=trace_header(POISON))
            await street.wait_ends(3)
            sent = [request.headers for request in fake.seen("POST")]
            assert await daemon.stop() == 0
    good, bad, poison = (of_trace(collector.spans, trace_id) for trace_id in (GOOD, BAD, POISON))

    assert set(good) == {"cador.job", *STAGES}
    assert {span.parent_id for name, span in good.items() if name != "cador.job"} == {good["cador.job"].span_id}
    assert good["cador.job"].parent_id == PARENT_ID
    assert good["cador.job"].attributes["messaging.destination.name"] == street.name("requests")
    assert good["cador.job"].attributes["messaging.kafka.offset"] == 0

    assert sent[0]["traceparent"] == f"00-{GOOD}-{good['cador.algorithm'].span_id}-01"
    commits = [span for span in collector.spans if span.name == "cador.commit"]
    assert {link for span in commits for link in span.links} == {
        good["cador.publish"].span_id,
        bad["cador.publish"].span_id,
        poison["cador.job"].span_id,
    }

    of_good, of_bad, of_poison = (
        f"00-{trace_id}-{spans['cador.job'].span_id}-01"
        for trace_id, spans in ((GOOD, good), (BAD, bad), (POISON, poison))
    )
    assert set(traces_of(await street.read("outputs"))) == {of_good}
    tags = await street.read("tags")
    assert set(traces_of(tags)) == {of_good}
    assert {tag.header("tracestate") for tag in tags} == {b"vendor=x"}
    assert traces_of(await street.read("statuses")) == [of_good] * 3 + [of_bad] * 3 + [of_poison]
    assert traces_of(await street.read("dead")) == [of_bad, of_poison]
    assert (bad["cador.job"].has_failed, bad["cador.job"].attributes["cador.job.outcome"]) == (True, "failed")
    assert poison["cador.job"].attributes["cador.job.outcome"] == "refused"
    check_lines(daemon.lines)


def check_lines(lines: Sequence[Line]) -> None:
    """Every line of a job has all of its ids."""
    told = {line["event"]: line for line in lines if "job_id" in line}
    assert {event: line["trace_id"] for event, line in told.items()} == {
        "job succeeded": GOOD,
        "job failed": BAD,
        "request refused": POISON,
    }
    assert all({"job_id", "task_id", "correlation_id"} <= line.keys() for line in told.values())


async def test_no_secret_leaves_by_any_way(street: KafkaStreet, tmp_path: Path) -> None:
    """Secrets of requests, settings and neighbours, at the most talkative level: the search of tests/leaks.py sees all.

    Dead letters alone hold what their sender wrote; and a task is called what its sender calls it, in every message.
    """
    await street.create()
    url = f"http://user:{PASSWORD}@127.0.0.1:1"
    store = {"url": "http://127.0.0.1:1", "containerPath": "b", "key": f"{HUSHED}key", "secret": f"{HUSHED}secret"}
    requests = [
        {"image": url, "technicalMetadata": {"taskId": "by-url"}},
        {**IMAGE, "technicalMetadata": {"taskId": "stored", "outputStorage": {"S3": store}}},
        {**IMAGE, "technicalMetadata": {"taskId": "refused", "outputStorage": {"S3": {**store, "url": url}}}},
        f'{{"secret": "{PASSWORD}"'.encode(),
    ]
    with open_collector() as collector:
        settings = street.settings(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{COLLECTOR_TOKEN}",
            CADOR_API_TOKEN=API_TOKEN,
            CADOR_LOG_LEVEL="debug",
            CADOR_STORE_TIMEOUT_SECONDS="0.5",
        )
        failure = Status(500, {"message": f"can't read {url} with token={PASSWORD}"})
        async with (
            open_fake_algorithm(default=failure) as fake,
            running(tmp_path / "daemon", fake, settings) as daemon,
        ):
            await street.request(*requests)
            await street.wait_ends(len(requests))
            assert await daemon.stop() == 0
    assert len(await street.read("dead")) == len(requests)
    assert [span.name for span in collector.spans].count("cador.job") == len(requests)
