"""Requests that are none, on a real broker: each ends as the design's table says, and stops nobody.

Exactly one FAILED, one dead letter with the original bytes, key and headers, and the offset is done.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_ssize_t, c_void_p
from dataclasses import dataclass
from functools import partial
from importlib.metadata import files
from itertools import count
from pathlib import Path
from typing import Any, Final

import confluent_kafka
import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.daemon.process import IMAGE
from tests.kafka.street import KINDS, KafkaStreet, ends, running, value_of
from tests.peers.fake_algorithm import Answer, open_fake_algorithm
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.clients import quiet
from tests.peers.kafka.records import TestRecord
from tests.peers.kafka_fixtures import Topics

INVALID: Final[Mapping[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "intake" / "vectors" / "requests-invalid.json").read_bytes()
)
LARGEST: Final = 1_000_000  # bytes of a message, as librdkafka has it by default
GARBAGE: Final = bytes(range(256)) * 20_000  # 5 MB

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Poison:
    """A record, and the task that its FAILED goes under, if one can be read from it."""

    name: str
    value: bytes | None
    key: bytes | None = b"some key"
    headers: Headers = ()
    task_id: str | int | float | None = None


def _spelled(name: str, text: str, task_id: str | float | None = None) -> Poison:
    return Poison(name, text.encode(), task_id=task_id)


def _request(technical: Any, size: int = 1) -> bytes:
    """A request whose image has so many bytes."""
    return json.dumps({"image": "a" * size, "technicalMetadata": technical}).encode()


def _task_of(request: Any) -> Any:
    technical = request.get("technicalMetadata") if isinstance(request, dict) else None
    return technical.get("taskId") if isinstance(technical, dict) else None


POISONS: Final = [
    *(Poison(name, json.dumps(value).encode(), task_id=_task_of(value)) for name, value in INVALID.items()),
    _spelled("no json", "not json"),
    _spelled("cut off", '{"image": "aW1hZ2U='),
    _spelled("nothing", ""),
    _spelled("two documents", '{"image": "x"} {"image": "x"}'),
    _spelled("a byte order mark", '\ufeff{"image": "x"}'),
    Poison("not utf-8", b'{"image": "\xff\xfe"}'),
    Poison("utf-16", '{"image": "x"}'.encode("utf-16")),
    Poison("null", None),
    Poison("null, no key", None, key=None),
    _spelled("the word null", "null"),
    _spelled("a text", '"text"'),
    _spelled("a number", "7"),
    _spelled("deep nesting", '{"image": "x", "deep": ' + "[" * 200 + "]" * 200 + "}"),
    _spelled("absurd nesting", "[" * 100_000),
    _spelled("absurd nesting of objects", '{"a":' * 100_000),
    _spelled("nan", '{"image": "x", "n": NaN, "technicalMetadata": {"taskId": "nan"}}', "nan"),
    _spelled("infinity", '{"image": "x", "n": -Infinity}'),
    _spelled("duplicate keys", '{"image": "x", "image": "y", "technicalMetadata": {"taskId": "double"}}', "double"),
    _spelled("duplicate envelopes", '{"technicalMetadata": {}, "technicalMetadata": {}}'),
    _spelled("a huge number", '{"image": "x", "n": 1e999}'),
    _spelled("a number of 5,000 digits", '{"image": "x", "n": ' + "9" * 5_000 + "}"),
    _spelled("a task id of 5,000 digits", '{"image": "x", "technicalMetadata": {"taskId": ' + "9" * 5_000 + "}}"),
    _spelled("a long task id", json.dumps({**IMAGE, "technicalMetadata": {"taskId": "t" * 2_000}})),
    _spelled("a task id that is a list", '{"image": "x", "technicalMetadata": {"taskId": ["t"]}}'),
    _spelled(
        "half a surrogate pair",
        '{"image": "x", "technicalMetadata": {"taskId": "\\ud800", "postProcessing": []}}',
        "\ud800",
    ),
    _spelled("no image", '{"technicalMetadata": {"taskId": "imageless"}}', "imageless"),
    Poison("garbage of 5 MB", GARBAGE),
    Poison(
        "5 MB with a wrong envelope", _request({"taskId": "large", "postProcessing": 1}, 5_000_000), task_id="large"
    ),
    Poison("a key that is no text", b"not json", key=b"\xff\x00\xfe"),
    Poison("a huge key", b"not json", key=b"k" * 200_000),
    Poison("headers of all kinds", b"not json", headers=[("a", None), ("a", b"\xff\x00"), ("", b"x"), ("ä", b"")]),
    Poison("headers of a dead letter", b"not json", headers=[("cador-error", b"old"), ("cador-origin", b"x/y/z")]),
    Poison("half our headers", b"not json", headers=[("x-correlation-id", b"\xff"), ("traceparent", b"\x00")]),
    Poison("a kind of its own", b"not json", headers=[("cador-kind", b"request")]),
]


@pytest.fixture
def street(kafka: RealKafka, topics: Topics) -> KafkaStreet:
    return KafkaStreet(kafka, topics)


async def _create(street: KafkaStreet, partitions: int) -> None:
    """The five topics; requests may be larger than what our producers take."""
    counts = {street.name(kind): 1 for kind in KINDS if kind != "requests"}
    await trio.to_thread.run_sync(street.kafka.create_topics, counts)
    requests = partial(
        street.kafka.create_topics, {street.name("requests"): partitions}, {"max.message.bytes": "10000000"}
    )
    await trio.to_thread.run_sync(requests)


async def test_every_poison(street: KafkaStreet, tmp_path: Path) -> None:
    """One FAILED and one dead letter each, whatever was committed before and whatever holes the offsets have."""
    await _create(street, partitions=3)
    topic = street.name("requests")
    # Partition 0 has another program's metadata, 1 an empty one, 2 nothing at all.
    await trio.to_thread.run_sync(_commit, street, {0: "another program's", 1: ""})
    sent: dict[tuple[int, int], Poison] = {}
    await trio.to_thread.run_sync(_transact, street, False)
    for number, poison in enumerate(POISONS):
        (record,) = await street.request(poison.value, keys=[poison.key], headers=poison.headers, partition=number % 3)
        sent[record.partition, record.offset] = poison
        if number % 9 == 0:
            await trio.to_thread.run_sync(_transact, street, number % 2 == 0)
    holes_end = await trio.to_thread.run_sync(_ends, street)
    kept = sum(1 for number in range(0, len(POISONS), 9) if number % 2 == 0) * 3
    async with (
        open_fake_algorithm([], default=Answer({"count": 7})) as fake,
        running(tmp_path, fake, street.settings(CADOR_MAX_CONCURRENT_JOBS="4")) as daemon,
    ):
        await street.wait_ends(len(POISONS) + kept)
        good = await street.request(*[{**IMAGE, "technicalMetadata": {"taskId": "good"}}] * 3)
        await street.wait_ends(len(POISONS) + kept + len(good))
        assert await daemon.stop() == 0
    found = ends(await street.read("statuses"))
    failed = {status["taskId"]: status for status in found if status["status"] == "FAILED"}
    assert len(found) == len(POISONS) + kept + len(good)
    assert sum(status["status"] == "FAILED" for status in found) == len(POISONS)
    letters = {letter.header("cador-origin"): letter for letter in await street.read("dead")}
    assert len(letters) == len(POISONS)
    for (partition, offset), poison in sent.items():
        letter = letters[f"{topic}/{partition}/{offset}".encode()]
        _check_letter(letter, poison)
        job_id = (letter.header("cador-job-id") or b"").decode()
        status = failed[job_id if poison.task_id is None else poison.task_id]
        assert status["errMsg"], poison.name
    committed = await street.committed()
    for partition, end in holes_end.items():
        assert committed[partition] + 1 >= end, partition  # the last one may be a transaction's marker


def _check_letter(letter: TestRecord, poison: Poison) -> None:
    """It has what its sender wrote, and why it died."""
    fits = len(poison.value or b"") < LARGEST - 10_000
    if fits:
        assert letter.value == poison.value, poison.name
    else:
        stand_in = value_of(letter)
        assert stand_in["size"] == len(poison.value or b"")
        assert stand_in["sha256"] == hashlib.sha256(poison.value or b"").hexdigest()
    assert (letter.header("cador-replaced") is None) == fits, poison.name
    assert letter.key == poison.key, poison.name
    theirs = [pair for pair in poison.headers if pair[0] not in {"cador-error", "cador-origin"}]
    assert list(letter.headers[: len(theirs)]) == theirs, poison.name
    assert letter.header("cador-error-class") == b"RequestRefused", poison.name
    (attempt,) = json.loads(letter.header("cador-attempts") or b"")
    assert attempt["at"] == int(letter.header("cador-failed-at") or b"")


def _commit(street: KafkaStreet, metadata: Mapping[int, str]) -> None:
    """Commit offset 0 with this metadata, as a plain consumer of the group would."""
    consumer = Consumer({**quiet(street.kafka.bootstrap), "group.id": street.name("group")})
    offsets = [TopicPartition(street.name("requests"), part, 0, metadata=text) for part, text in metadata.items()]
    consumer.commit(offsets=offsets, asynchronous=False)
    consumer.close()


def _transact(street: KafkaStreet, is_committed: bool) -> None:
    """A good request to each partition in one transaction, which leaves a marker, and a hole if it is aborted."""
    producer = Producer({**quiet(street.kafka.bootstrap), "transactional.id": street.name("elsewhere")})
    producer.init_transactions(30)
    producer.begin_transaction()
    name = "kept" if is_committed else "aborted"
    for partition in range(3):
        producer.produce(street.name("requests"), _request({"taskId": name}), partition=partition)
    producer.flush()
    (producer.commit_transaction if is_committed else producer.abort_transaction)(30)


def _ends(street: KafkaStreet) -> dict[int, int]:
    consumer = Consumer({**quiet(street.kafka.bootstrap), "group.id": "nobody"})
    ends_of = {}
    for partition in range(3):
        watermarks = consumer.get_watermark_offsets(TopicPartition(street.name("requests"), partition), timeout=30)
        assert watermarks is not None
        ends_of[partition] = watermarks[1]
    consumer.close()
    return ends_of


# --- Arbitrary records --------------------------------------------------------------------------------------------

OUR_HEADERS: Final = [
    "cador-kind",
    "cador-task-id",
    "cador-attempts",
    "cador-error-class",
    "cador-origin",
    "cador-replaced",
    "content-type",
    "x-correlation-id",
    "traceparent",
]
NAMES: Final = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
HEADERS: Final = st.lists(
    st.tuples(NAMES | st.sampled_from(OUR_HEADERS), st.none() | st.binary(max_size=60) | NAMES.map(str.encode)),
    max_size=5,
)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TECHNICAL: Final = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("taskId", "inputTimestamp", "outputStorage", "postProcessing", "referential", "x"), JSON),
)
REQUESTS: Final = st.fixed_dictionaries(
    {}, optional={"image": st.just("aW1hZ2U=") | JSON, "technicalMetadata": TECHNICAL | JSON, "userMetadata": JSON}
)
VALUES: Final = (
    st.none()
    | st.binary(max_size=200)
    | JSON.map(json.dumps).map(str.encode)
    | REQUESTS.map(json.dumps).map(str.encode)
)
RECORDS: Final = st.tuples(VALUES, st.none() | st.binary(max_size=60), HEADERS)


def _examples(number: int) -> list[tuple[bytes | None, bytes | None, Headers]]:
    found: list[tuple[bytes | None, bytes | None, Headers]] = []

    @settings(max_examples=number, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(RECORDS)
    def take(example: tuple[bytes | None, bytes | None, Headers]) -> None:
        found.append(example)

    take()
    return found


async def test_arbitrary_records_never_stop_the_consumer(street: KafkaStreet, tmp_path: Path) -> None:
    """Whatever bytes, keys and headers come: every offset is done, and good jobs run behind them."""
    await _create(street, partitions=2)
    examples = _examples(300)
    passed_over = sum(dict(headers).get("cador-kind") in {b"output", b"status", b"tag"} for _, _, headers in examples)

    def produce() -> None:
        for number, (value, key, headers) in enumerate(examples):
            street.kafka.produce(street.name("requests"), [value], keys=[key], headers=headers, partition=number % 2)

    good = [{**IMAGE, "technicalMetadata": {"taskId": f"good {number}"}} for number in range(4)]
    async with (
        open_fake_algorithm([], default=Answer({"count": 7})) as fake,
        running(tmp_path, fake, street.settings(CADOR_MAX_CONCURRENT_JOBS="8")) as daemon,
    ):
        await trio.to_thread.run_sync(produce)
        await street.request(*good[:2], partition=0)
        await street.request(*good[2:], partition=1)
        await street.wait_ends(len(examples) + len(good) - passed_over)
        assert await daemon.stop() == 0
    found = ends(await street.read("statuses"))
    assert len(found) == len(examples) + len(good) - passed_over
    succeeded = [status["taskId"] for status in found if status["status"] == "SUCCEEDED"]
    assert {f"good {number}" for number in range(len(good))} <= set(succeeded)
    assert len(await street.read("outputs")) == len(succeeded)
    assert len(await street.read("dead")) == len(found) - len(succeeded)
    assert sum((await street.committed()).values()) == len(examples) + len(good)


# --- Good requests with odd surroundings --------------------------------------------------------------------------

ODD_HEADERS: Final = [
    b"\xff\xfe",
    "é".encode(),
    b" padded ",
    b"a\r\nX-Other: b",
    b"",
    None,
    b"x" * 5_000,
]


async def test_odd_headers_of_good_requests(street: KafkaStreet, tmp_path: Path) -> None:
    """Correlation ids and traces that no HTTP header holds, and header names that are no text, fail no job."""
    await _create(street, partitions=1)
    numbers = count()
    sent = []
    for name in ("x-correlation-id", "traceparent"):
        for value in ODD_HEADERS:
            request = {**IMAGE, "technicalMetadata": {"taskId": f"t-{next(numbers)}"}}
            sent += await street.request(request, headers=[(name, value)])
    value = json.dumps({**IMAGE, "technicalMetadata": {"taskId": f"t-{next(numbers)}"}}).encode()
    await trio.to_thread.run_sync(_produce_raw, street.kafka.bootstrap, street.name("requests"), b"\xff\xfe", value)
    sent += await street.request({**IMAGE, "technicalMetadata": {"taskId": f"t-{next(numbers)}"}})
    async with (
        open_fake_algorithm([], default=Answer({"count": 7})) as fake,
        running(tmp_path, fake, street.settings()) as daemon,
    ):
        found = await street.wait_ends(len(sent) + 1)
        assert await daemon.stop() == 0
    assert [(end["taskId"], end["errMsg"]) for end in found if end["status"] != "SUCCEEDED"] == []
    assert await street.committed() == {0: len(sent) + 1}


class _Memory(ctypes.Structure):
    _fields_ = (("start", c_void_p), ("size", c_size_t))


class _Parameter(ctypes.Union):
    _fields_ = (("text", c_char_p), ("memory", _Memory), ("headers", c_void_p), ("whole", c_char * 64))


class _Tagged(ctypes.Structure):
    _fields_ = (("kind", c_int), ("parameter", _Parameter))


def _produce_raw(bootstrap: str, topic: str, header: bytes, value: bytes) -> None:
    """A record with a header of that name, which may be any bytes: Python's client has only text there."""
    library = ctypes.CDLL(_librdkafka())
    library.rd_kafka_conf_new.restype = c_void_p
    library.rd_kafka_conf_set.argtypes = [c_void_p, c_char_p, c_char_p, c_char_p, c_size_t]
    library.rd_kafka_new.restype = c_void_p
    library.rd_kafka_new.argtypes = [c_int, c_void_p, c_char_p, c_size_t]
    library.rd_kafka_headers_new.restype = c_void_p
    library.rd_kafka_headers_new.argtypes = [c_size_t]
    library.rd_kafka_header_add.argtypes = [c_void_p, c_char_p, c_ssize_t, c_char_p, c_ssize_t]
    library.rd_kafka_produceva.restype = c_void_p
    library.rd_kafka_produceva.argtypes = [c_void_p, POINTER(_Tagged), c_size_t]
    library.rd_kafka_flush.argtypes = [c_void_p, c_int]
    library.rd_kafka_destroy.argtypes = [c_void_p]
    error = ctypes.create_string_buffer(512)
    configuration = library.rd_kafka_conf_new()
    assert not library.rd_kafka_conf_set(configuration, b"bootstrap.servers", bootstrap.encode(), error, 512)
    producer = library.rd_kafka_new(0, configuration, error, 512)
    assert producer, error.value
    headers = library.rd_kafka_headers_new(1)
    library.rd_kafka_header_add(headers, header, len(header), b"v", 1)
    kept = ctypes.create_string_buffer(value)
    memory = _Memory(ctypes.cast(kept, c_void_p), len(value))
    # The numbers are librdkafka's, of topic, value and headers.
    parameters = (_Tagged * 3)(
        _Tagged(1, _Parameter(text=topic.encode())),
        _Tagged(4, _Parameter(memory=memory)),
        _Tagged(10, _Parameter(headers=headers)),
    )
    assert not library.rd_kafka_produceva(producer, parameters, 3)
    assert library.rd_kafka_flush(producer, 30_000) == 0
    library.rd_kafka_destroy(producer)


def _librdkafka() -> str:
    """The library that the client brings along."""
    for file in files("confluent-kafka") or ():
        if "librdkafka" in file.name and ".so" in file.name:
            return str(file.locate())
    pytest.skip(f"confluent-kafka {confluent_kafka.version()} has librdkafka in another place")
