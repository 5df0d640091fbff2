"""The one decoder for all doors: what it takes, and everything that it must refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import RequestRefused
from cador_trio.intake.request import decode_request
from cador_trio.job import JobRequest, Referential
from cador_trio.storage.destinations import check_storage
from tests.intake.running import vector

INVALID: dict[str, Any] = vector("requests-invalid")

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
# Objects whose keys are often the envelope's own.
ENVELOPES = st.fixed_dictionaries(
    {},
    optional={
        "image": JSON_VALUES,
        "userMetadata": JSON_VALUES,
        "technicalMetadata": JSON_VALUES
        | st.fixed_dictionaries(
            {},
            optional={
                "taskId": JSON_VALUES,
                "inputTimestamp": JSON_VALUES,
                "postProcessing": JSON_VALUES | st.fixed_dictionaries({}, optional={"tags": JSON_VALUES}),
                "referential": JSON_VALUES
                | st.fixed_dictionaries(
                    {
                        "upperLeft": st.fixed_dictionaries({"lon": JSON_VALUES, "lat": JSON_VALUES}),
                        "lonStep": JSON_VALUES,
                        "latStep": JSON_VALUES,
                    }
                ),
                "outputStorage": JSON_VALUES
                | st.dictionaries(st.sampled_from(["S3", "GCS", "POSIX", "profile"]), JSON_VALUES, max_size=2),
            },
        ),
    },
)


def decode(request: Any) -> JobRequest:
    return decode_request(json.dumps(request).encode(), check_storage)


def with_referential(**changes: Any) -> dict[str, Any]:
    referential = {"upperLeft": {"lat": 41.2, "lon": 2.07}, "latStep": -1e-05, "lonStep": 1e-05} | changes
    return {"technicalMetadata": {"referential": referential}}


def test_the_least_request() -> None:
    """All that is optional may be absent."""
    assert decode({"image": "x"}) == JobRequest(
        inputs={"image": "x"},
        technical_metadata={},
        user_metadata={},
        task_id=None,
        input_timestamp=None,
        storage=None,
        wants_tags=False,
        referential=None,
        size=len('{"image": "x"}'),
    )


def test_the_minimal_vector() -> None:
    """A request with inputs and a task id."""
    request = vector("request-minimal")
    decoded = decode(request)
    assert decoded.task_id == request["technicalMetadata"]["taskId"]
    assert decoded.inputs == {"image": request["image"]}


def test_the_full_request() -> None:
    """Every part of the envelope is read; the inputs are what is left."""
    request = vector("request-posix-tags-referential")
    decoded = decode(request)
    technical = request["technicalMetadata"]
    place = technical["referential"]
    assert decoded.technical_metadata == technical
    assert decoded.user_metadata == request["userMetadata"]
    assert decoded.task_id == technical["taskId"]
    assert decoded.input_timestamp == technical["inputTimestamp"]
    assert decoded.wants_tags is True
    assert decoded.referential == Referential(
        upper_left_lon=place["upperLeft"]["lon"],
        upper_left_lat=place["upperLeft"]["lat"],
        lon_step=place["lonStep"],
        lat_step=place["latStep"],
    )
    assert decoded.storage is not None
    assert (decoded.storage.variant, decoded.storage.settings) == ("POSIX", technical["outputStorage"]["POSIX"])
    assert decoded.inputs == {
        name: value for name, value in request.items() if name not in {"technicalMetadata", "userMetadata"}
    }


@pytest.mark.parametrize(("name", "variant"), [("request-s3", "S3"), ("request-gcs", "GCS")])
def test_object_stores(name: str, variant: str) -> None:
    """Both object stores are read, and neither shows its credentials."""
    storage = decode(vector(name)).storage
    assert storage is not None
    assert storage.variant == variant
    assert storage.settings["secret"] not in repr(storage)


@pytest.mark.parametrize("name", [name for name in INVALID if name != "task-id-escapes"])
def test_invalid_requests(name: str) -> None:
    """Every request of the contract that is wrong by itself is refused; a task id, only by the store that it is for."""
    with pytest.raises(RequestRefused) as refused:
        decode(INVALID[name])
    assert refused.value.http_status == 400


@pytest.mark.parametrize("task_id", ["scene 42", 42, 4.2, "../x", 0])
def test_task_ids_are_kept(task_id: str | float) -> None:
    """A text or a number is kept as sent."""
    decoded = decode({"technicalMetadata": {"taskId": task_id}}).task_id
    assert (decoded, type(decoded)) == (task_id, type(task_id))


@pytest.mark.parametrize("task_id", [None, ""])
def test_no_task_id(task_id: str | None) -> None:
    """Null and the empty text are none."""
    assert decode({"technicalMetadata": {"taskId": task_id}}).task_id is None


@pytest.mark.parametrize("task_id", [True, [], {}])
def test_task_ids_of_other_kinds(task_id: object) -> None:
    """Nothing else names a job; a boolean is no number."""
    with pytest.raises(RequestRefused, match=r"technicalMetadata\.taskId must be a text or a number"):
        decode({"technicalMetadata": {"taskId": task_id}})


@pytest.mark.parametrize("post_processing", [None, [], "x", {"tags": "false"}, {"tags": 0}, {"tags": None}])
def test_tags_must_be_boolean(post_processing: object) -> None:
    """The original took the text "false" for true."""
    with pytest.raises(RequestRefused, match="postProcessing"):
        decode({"technicalMetadata": {"postProcessing": post_processing}})


@pytest.mark.parametrize(
    "changes",
    [
        {"lonStep": 0},
        {"latStep": 0.0},
        {"lonStep": "1"},
        {"latStep": True},
        {"lonStep": None},
        {"latStep": 10**400},
        {"upperLeft": None},
        {"upperLeft": {"lat": 90.1, "lon": 0}},
        {"upperLeft": {"lat": -90.1, "lon": 0}},
        {"upperLeft": {"lat": 0}},
        {"upperLeft": {"lat": 0, "lon": [1]}},
    ],
)
def test_wrong_referentials(changes: dict[str, Any]) -> None:
    """All four numbers are there, finite, in range, and no step is zero."""
    with pytest.raises(RequestRefused, match=r"technicalMetadata\.referential"):
        decode(with_referential(**changes))


@pytest.mark.parametrize("longitude", [180.0001, -720, 360])
def test_longitudes_may_go_round(longitude: float) -> None:
    """A longitude is not bounded."""
    place = decode(with_referential(upperLeft={"lat": 90, "lon": longitude})).referential
    assert place is not None
    assert place.upper_left_lon == longitude


def test_null_referential_and_storage() -> None:
    """Null means none for both."""
    decoded = decode({"technicalMetadata": {"referential": None, "outputStorage": None}})
    assert (decoded.referential, decoded.storage) == (None, None)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "line 1, column 1"),
        (b"{", "line 1, column 2"),
        (b"{} {}", "line 1, column 4"),
        (b'{"a": 1, "a": 1}', "'a' is there twice"),
        (b'{"x": {"a": 1, "b": 2, "a": 3}}', "'a' is there twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e400}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\n"}', "line 1, column 8"),
        (b'{"a": ' * 100 + b"[]" + b"}" * 100, "more than 100 levels"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_not_json(data: bytes, hint: str) -> None:
    """What is not strict JSON is refused, and the hint says what and where."""
    with pytest.raises(RequestRefused, match="the request is not JSON") as refused:
        decode_request(data, check_storage)
    assert hint in refused.value.hint


def test_100_levels() -> None:
    """A hundred levels are few enough."""
    data = b'{"a": ' * 99 + b"{}" + b"}" * 99
    assert decode_request(data, check_storage).inputs == json.loads(data)


def test_large_integers_are_kept() -> None:
    """An integer that no float holds stays what it is."""
    assert decode({"seed": 2**80 + 1}).inputs == {"seed": 2**80 + 1}


@pytest.mark.parametrize("value", [None, True, 1, "text", [], [{}]])
def test_not_an_object(value: object) -> None:
    """A request is an object."""
    with pytest.raises(RequestRefused, match="must be a JSON object, not"):
        decode(value)


@given(st.binary() | st.text().map(str.encode) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(data: bytes) -> None:
    """Whatever comes in, the only error is the refusal."""
    try:
        decode_request(data, check_storage)
    except RequestRefused:
        return


@given(ENVELOPES)
def test_any_envelope(request_object: dict[str, Any]) -> None:
    """An envelope that is taken gives back all that its sender wrote, as it was written."""
    try:
        decoded = decode(request_object)
    except RequestRefused:
        return
    assert decoded.technical_metadata == request_object.get("technicalMetadata", {})
    assert decoded.user_metadata == request_object.get("userMetadata", {})
    assert decoded.inputs == ({"image": request_object["image"]} if "image" in request_object else {})
