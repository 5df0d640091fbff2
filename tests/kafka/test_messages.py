"""Messages: the contract's examples come out as they are, and nothing that was sent can spoil them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import ResultRefused
from cador_trio.intake.request import decode_request
from cador_trio.job import Job, JobState, Product, Result
from cador_trio.json_text import write
from cador_trio.kafka.messages import (
    MAX_PRODUCED,
    Coordinates,
    Message,
    Produced,
    Record,
    StatusFacts,
    Subject,
    output_message,
    output_size,
    status_message,
    tag_message,
    without_credentials,
)
from cador_trio.storage.destinations import check_storage
from tests.kafka.contract import vector

JOB_ID: Final = UUID("12345678-1234-5678-1234-567812345678")
TASK_ID: Final = "9f1c2c6e-5d0f-4c5a-8f0e-2f4f3f9b7a10"


class TextBody:
    """A body in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.in_memory = True

    def read_all(self) -> bytes:
        return self.content

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.content)

    def close(self) -> None:
        pass


def job_of(request: Any, *, traceparent: str | None = None, attempt: int = 1) -> Job:
    decoded = decode_request(json.dumps(request).encode(), check_storage)
    return Job(JOB_ID, "kafka", decoded, "c-1", 1_764_000_000_000, traceparent=traceparent, attempt=attempt)


def inline(name: str, value: Any, encoding: Any = "json") -> Result:
    return Result(name, name, None, "application/json", TextBody(write(value)), encoding)


def stored(name: str, reference: Any, index: int | None = None) -> Result:
    result_id = name if index is None else f"{name}_{index}"
    return Result(result_id, name, index, "image/png", None, "none", reference)


def whole(result: Result) -> Product:
    return Product({result.output: result}, whole=True)


def value_of(message: Message) -> Any:
    assert message.value is not None
    assert message.value.isascii()
    return json.loads(message.value, object_pairs_hook=unique)


def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(members)) == len(members)
    return dict(members)


def output_of(product: Product, request: Any = None, *, echo_credentials: bool = False) -> Any:
    """The output message's value; its size is never more than was said before."""
    job = job_of({} if request is None else request)
    message = output_message(job, product, echo_credentials=echo_credentials)
    assert message.size <= output_size(job, product, echo_credentials=echo_credentials)
    return value_of(message)


# --- Output ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_name", "output_name", "references"),
    [
        ("request-posix-tags-referential", "output-posix-referential", {"mask"}),
        ("request-s3", "output-s3", {"mask"}),
        ("request-minimal", "output-no-storage-inline", set()),
        ("request-s3", "output-stateless-single-image", {"output"}),
    ],
)
def test_outputs_are_the_contracts(request_name: str, output_name: str, references: set[str]) -> None:
    """The examples, member for member and in the same order."""
    expected = vector(output_name)
    values = {name: value for name, value in expected.items() if not name.endswith("Metadata")}
    outputs = {
        name: stored(name, value) if name in references else inline(name, value) for name, value in values.items()
    }
    product = Product(outputs, whole=output_name == "output-stateless-single-image")
    found = output_of(product, vector(request_name))
    assert found == expected
    assert list(found) == list(expected)


def test_a_whole_collection_has_its_members_beside_the_metadata() -> None:
    """As the original sends a FeatureCollection."""
    collection = {"type": "FeatureCollection", "features": []}
    assert output_of(whole(inline("output", collection)), {"userMetadata": [1]}) == {
        **collection,
        "technicalMetadata": {"taskId": str(JOB_ID)},
        "userMetadata": [1],
    }


def test_an_empty_answer_is_metadata_alone() -> None:
    """No comma before nothing; by names or whole."""
    for product in (Product({}), whole(inline("output", {}))):
        assert set(output_of(product)) == {"technicalMetadata", "userMetadata"}


@pytest.mark.parametrize("value", [[1, {"a": []}], "a text", 4.5, None, True, ""])
@pytest.mark.parametrize("encoding", ["json", "text", "base64"])
def test_any_other_whole_answer_is_called_output(value: Any, encoding: Any) -> None:
    """Array, text, number."""
    assert output_of(whole(inline("output", value, encoding)))["output"] == value


def test_a_whole_answer_in_a_store_is_a_reference_called_output() -> None:
    """Of an image, or of JSON that was too large."""
    for result in (
        stored("output", {"objectId": "x"}),
        Result("output", "output", None, "application/json", None, "json", {"objectId": "x"}),
    ):
        assert output_of(whole(result))["output"] == {"objectId": "x"}


def test_lists_of_images_are_lists_of_references() -> None:
    """In order."""
    images = tuple(stored("chips", {"objectId": f"chips_{index}"}, index) for index in range(3))
    found = output_of(Product({"chips": images, "none": ()}))
    assert found["chips"] == [{"objectId": f"chips_{index}"} for index in range(3)]
    assert found["none"] == []


def test_an_image_without_a_store_is_refused() -> None:
    """By its name and size, in the message and already when it is measured."""
    product = Product({"mask": Result("mask", "mask", None, "image/png", TextBody(b"pixels"), "none")})
    with pytest.raises(ResultRefused, match="mask is an image of 6 bytes"):
        output_message(job_of({}), product, echo_credentials=False)
    with pytest.raises(ResultRefused, match="mask is an image"):
        output_size(job_of({}), product, echo_credentials=False)


@pytest.mark.parametrize("name", ["technicalMetadata", "userMetadata"])
def test_a_whole_answer_can_not_pose_as_the_envelope(name: str) -> None:
    """A member of that name at its top is refused; deeper, or as a text, it is the algorithm's own affair."""
    with pytest.raises(ResultRefused, match=f"member called {name}"):
        output_of(whole(inline("output", {"type": "Feature", name: {}})))
    harmless = {"type": "Feature", "properties": {name: name}}
    assert output_of(whole(inline("output", harmless)))["properties"] == {name: name}


def test_a_task_id_of_ours_is_told_where_the_callers_would_stand() -> None:
    """The output has no other place for it; what the caller wrote is left as it is."""
    assert output_of(Product({}), {"technicalMetadata": {"a": 1}})["technicalMetadata"] == {
        "a": 1,
        "taskId": str(JOB_ID),
    }
    for sent, told in ((7, 7), (1.5, 1.5), ("", str(JOB_ID)), (None, str(JOB_ID)), ("é", "é")):
        assert output_of(Product({}), {"technicalMetadata": {"taskId": sent}})["technicalMetadata"] == {"taskId": told}


@pytest.mark.parametrize("name", ["request-s3", "request-gcs"])
def test_credentials_are_echoed_only_when_the_operator_says_so(name: str) -> None:
    """For a consumer that depends on them."""
    request = vector(name)
    kept = output_of(Product({}), request, echo_credentials=True)["technicalMetadata"]
    assert kept == request["technicalMetadata"]
    text = json.dumps(output_of(Product({}), request))
    assert "EXAMPLEKEY" not in text
    assert "example-secret" not in text


SECRETS = ["key", "secret", "token", "sessionToken", "accessKeyId", "secret_access_key", "PASSWORD", "credentials"]


@given(names=st.sets(st.sampled_from(SECRETS), min_size=1), variant=st.sampled_from(["S3", "GCS", "FTP"]))
def test_nothing_that_could_be_a_credential_is_echoed(names: set[str], variant: str) -> None:
    """Whatever a sender calls it, however deep it lies; the rest of the settings stays."""
    settings = dict.fromkeys(names, "hunter2") | {"containerPath": "a", "nested": [dict.fromkeys(names, 1)]}
    technical = {"key": "the caller's own", "outputStorage": {variant: settings}}
    assert without_credentials(technical) == {
        "key": "the caller's own",
        "outputStorage": {variant: {"containerPath": "a", "nested": [{}]}},
    }
    assert settings.keys() >= names  # the job still needs them


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.text().filter(lambda name: name not in {"technicalMetadata", "userMetadata"})


@given(outputs=st.dictionaries(NAMES, JSON, max_size=4), user=JSON, is_whole=st.booleans())
def test_whatever_the_algorithm_says_is_one_json_object(outputs: Mapping[str, Any], user: Any, is_whole: bool) -> None:
    """All of it is there, beside the metadata as it was sent."""
    product = Product({name: inline(name, value) for name, value in outputs.items()})
    if is_whole:
        product = whole(inline("output", outputs))
    found = output_of(product, {"userMetadata": user})
    assert found == {**outputs, "technicalMetadata": {"taskId": str(JOB_ID)}, "userMetadata": user}


# --- Statuses and tags -------------------------------------------------------------------------------------------


def facts_of(status: Any) -> StatusFacts:
    return StatusFacts(
        JobState(status["status"]),
        status["progress"],
        status["errMsg"],
        status["stats"]["duration"],
        status["modifiedAt"],
    )


@pytest.mark.parametrize("name", ["accepted", "running", "succeeded", "failed", "cancelled"])
def test_statuses_are_the_contracts(name: str) -> None:
    """The examples, member for member and in the same order."""
    expected = vector(f"status-{name}")
    produced = None
    if (entries := expected.get("producedKafkaMessages")) is not None:
        *tags, output = [Coordinates(**entry) for entry in entries[1:]]
        produced = Produced(entries[:1], tags, output)
    subject = Subject(TASK_ID, "c-1", None, 1)
    found = value_of(status_message(subject, facts_of(expected), node="cador-7d4f", produced=produced))
    assert found == expected
    assert list(found) == list(expected)


SUBJECT: Final = Subject("t", "c-1", None, 1)
SUCCEEDED: Final = StatusFacts(JobState.SUCCEEDED, 40, "", 5, 6)


def entries_of(produced: Produced) -> tuple[Any, Any]:
    found = value_of(status_message(SUBJECT, SUCCEEDED, node="n", produced=produced))
    return found.get("producedKafkaMessages"), found.get("producedKafkaMessagesOmitted")


def test_a_job_that_succeeded_is_at_a_hundred() -> None:
    """Whatever the algorithm said last."""
    assert value_of(status_message(SUBJECT, SUCCEEDED, node="n"))["progress"] == 100


def test_nothing_produced_is_not_told_of() -> None:
    """Absent rather than empty, as the original has it."""
    assert entries_of(Produced((), (), None)) == (None, None)


OUTPUT: Final = Coordinates("outputs", 1, 5)


def tags(count: int) -> list[Coordinates]:
    return [Coordinates("tags", 0, offset) for offset in range(count)]


def test_a_thousand_entries_are_complete() -> None:
    """References, tags, the output."""
    entries, omitted = entries_of(Produced([{"objectId": "x"}], tags(998), OUTPUT))
    assert (len(entries), omitted) == (MAX_PRODUCED, None)
    assert (entries[0], entries[1], entries[-1]) == (
        {"objectId": "x"},
        {"topic": "tags", "partition": 0, "offset": 0},
        {"topic": "outputs", "partition": 1, "offset": 5},
    )


@pytest.mark.parametrize("told", [1_000, 200_000])
def test_past_that_tags_are_counted(told: int) -> None:
    """References and the output stay; it is enough to know how many tags there are."""
    entries, omitted = entries_of(Produced([{"objectId": "x"}], tags(told), OUTPUT, tag_count=200_000))
    assert entries == [{"objectId": "x"}, OUTPUT.as_json()]
    assert omitted == 200_000


def test_past_that_references_are_counted_too() -> None:
    """A status that does not fit would be worse."""
    references = [{"objectId": str(index)} for index in range(2_000)]
    entries, omitted = entries_of(Produced(references, tags(3), OUTPUT))
    assert entries == [*references[:999], OUTPUT.as_json()]
    assert omitted == 1_001 + 3
    assert entries_of(Produced(references, (), None)) == (references[:1_000], 1_000)


def test_headers_say_what_it_is_and_of_which_job() -> None:
    """Key and headers of all three kinds."""
    subject = Subject("t-1", "c-1", "00-trace", 3)
    common = (("cador-task-id", b"t-1"), ("content-type", b"application/json"), ("x-correlation-id", b"c-1"))
    trace = ("traceparent", b"00-trace")
    tag = tag_message(subject, {"a": 1})
    assert (tag.key, tag.value) == (b"t-1", b'{"a":1}')
    assert tag.headers == (("cador-kind", b"tag"), *common, trace)
    status = status_message(subject, SUCCEEDED, node="n")
    assert status.key == b"t-1"
    assert status.headers == (("cador-kind", b"status"), *common, ("cador-attempt", b"3"), trace)
    job = job_of({"technicalMetadata": {"taskId": "t-1"}}, traceparent="00-trace", attempt=3)
    output = output_message(job, Product({}), echo_credentials=False)
    assert output.key == b"t-1"
    assert output.headers == (("cador-kind", b"output"), *common, trace)


def test_what_vendors_add_to_a_trace_goes_along() -> None:
    """With the trace, and never without one."""
    subject = Subject("t-1", "c-1", "00-trace", 3, "vendor=x")
    assert tag_message(subject, {}).headers[-2:] == (("traceparent", b"00-trace"), ("tracestate", b"vendor=x"))
    assert "tracestate" not in dict(tag_message(replace(subject, traceparent=None), {}).headers)


def test_a_subject_within_a_trace() -> None:
    """A span of ours takes the place of what came in, as a whole; without one that stays."""
    subject = Subject("t-1", "c-1", "00-trace", 3, "vendor=x")
    assert subject.within({}) is subject
    assert subject.within({"traceparent": "00-ours"}) == Subject("t-1", "c-1", "00-ours", 3, None)


def test_without_a_trace_there_is_no_header_of_one() -> None:
    """Absent rather than empty."""
    assert not {"traceparent", "tracestate"} & dict(tag_message(SUBJECT, {}).headers).keys()


@given(task_id=st.text() | st.integers() | st.floats(allow_nan=False))
def test_any_task_id_is_a_key(task_id: str | float) -> None:
    """A number is its text; half a surrogate pair, which UTF-8 can't hold, is escaped."""
    key = tag_message(Subject(task_id, "c", None, 1), {}).key
    assert key is not None
    assert key.decode("utf-8") or task_id == ""


# --- Values ------------------------------------------------------------------------------------------------------


def test_the_last_header_of_a_name_counts() -> None:
    """As Kafka's own clients have it."""
    record = Record("t", 0, 1, None, None, (("a", b"1"), ("b", None), ("a", b"2")), 0)
    assert (record.header("a"), record.header("b"), record.header("c")) == (b"2", None, None)


def varint(length: int) -> int:
    """Bytes of a length in Kafka's record format (zigzag, 7 bits a byte)."""
    return max(1, -(-(2 * length).bit_length() // 7))


@given(key=st.none() | st.binary(max_size=300), value=st.binary(max_size=300), names=st.lists(st.text(), max_size=5))
def test_size_is_an_upper_bound_of_the_record_format(key: bytes | None, value: bytes, names: list[str]) -> None:
    """Of a batch that holds this record alone."""
    message = Message(key, value, tuple((name, b"v" * len(name)) for name in names))
    body = 1 + 10 + 5 + varint(len(key or b"")) + len(key or b"") + varint(len(value)) + len(value) + varint(len(names))
    body += sum(varint(len(name.encode())) + len(name.encode()) + varint(len(name)) + len(name) for name in names)
    assert 61 + varint(body) + body <= message.size
