"""Dead letters: the sender's own bytes, all that is known of the failure, and back again."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from typing import Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import AlgorithmDied, CadorError, DeadlinePassed, RequestRefused
from cador_trio.job import Attempt
from cador_trio.kafka.dead_letters import MAX_ATTEMPTS, dead_letter, read_dead_letter
from cador_trio.kafka.messages import Coordinates, Headers, Message, Record

NO_LIMIT: Final = 10**9
RECORD: Final = Record("requests", 3, 17, b"key", b"\xff not JSON", (("theirs", b"\x00"), ("none", None)), 1_000)
JOB_ID: Final = UUID("12345678-1234-5678-1234-567812345678")
DIED: Final = AlgorithmDied("the connection broke", hint="look at its log")


def letter_of(  # noqa: PLR0913 - by name
    record: Record = RECORD,
    *,
    error: CadorError = DIED,
    attempts: tuple[Attempt, ...] = (),
    task_name: str = "t-1",
    traceparent: str | None = None,
    limit: int = NO_LIMIT,
) -> Message:
    return dead_letter(
        record,
        error=error,
        attempts=attempts,
        job_id=JOB_ID,
        task_name=task_name,
        algorithm="detector/0.3.1",
        failed_at=1_764_000_000_000,
        traceparent=traceparent,
        limit=limit,
    )


def as_read(message: Message) -> Record:
    """The message as it lies in the dead-letter topic."""
    return Record("dead", 0, 5, message.key, message.value, message.headers, 2_000)


def test_a_dead_letter_is_the_record_and_what_is_known() -> None:
    """Key, value and headers are unchanged, the sender's come first; the added ones are those of the contract."""
    attempts = (Attempt(1_763_000_000_000, "reset"), Attempt(1_763_000_009_000, "reset again"))
    message = letter_of(attempts=attempts, traceparent="00-trace")
    assert (message.key, message.value) == (RECORD.key, RECORD.value)
    assert message.headers == (
        ("theirs", b"\x00"),
        ("none", None),
        ("cador-error-class", b"AlgorithmDied"),
        ("cador-error", b"the connection broke (look at its log)"),
        (
            "cador-attempts",
            b'[{"at":1763000000000,"error":"reset"},{"at":1763000009000,"error":"reset again"}]',
        ),
        ("cador-origin", b"requests/3/17"),
        ("cador-job-id", b"12345678-1234-5678-1234-567812345678"),
        ("cador-task-id", b"t-1"),
        ("cador-algorithm", b"detector/0.3.1"),
        ("cador-failed-at", b"1764000000000"),
        ("traceparent", b"00-trace"),
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
# Names that both sides use, too.
NAMES = st.one_of(TEXTS, st.sampled_from(["traceparent", "cador-task-id", "cador-kind", "x-correlation-id"]))
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=20)), max_size=5).map(tuple)
ATTEMPTS = st.lists(st.builds(Attempt, at=st.integers(0, 2**53), error=TEXTS), max_size=MAX_ATTEMPTS).map(tuple)
RECORDS = st.builds(
    Record,
    topic=st.text("abc._-", min_size=1),
    partition=st.integers(0, 2**31),
    offset=st.integers(0, 2**63 - 1),
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    headers=HEADERS,
    timestamp=st.integers(0, 2**53),
)


@given(record=RECORDS, attempts=ATTEMPTS, task_name=TEXTS, traceparent=st.none() | TEXTS, message=TEXTS)
def test_what_was_written_is_read(
    record: Record, attempts: tuple[Attempt, ...], task_name: str, traceparent: str | None, message: str
) -> None:
    """Every part comes back, the sender's headers in their order and number."""
    error = DeadlinePassed(message)
    letter = read_dead_letter(
        as_read(letter_of(record, error=error, attempts=attempts, task_name=task_name, traceparent=traceparent))
    )
    assert letter.origin == Coordinates(record.topic, record.partition, record.offset)
    assert (letter.error_class, letter.error) == ("DeadlinePassed", error.message)
    assert letter.attempts == attempts
    assert (letter.job_id, letter.task_id, letter.algorithm) == (JOB_ID, task_name, "detector/0.3.1")
    assert (letter.failed_at, letter.traceparent) == (1_764_000_000_000, traceparent)
    assert (letter.key, letter.value, letter.headers) == (record.key, record.value, record.headers)
    assert letter.is_complete


def test_a_second_death_is_told_of_alone() -> None:
    """Sent again with all its headers, a dead letter loses those of its first death and keeps the sender's."""
    first = letter_of(attempts=(Attempt(1, "first"),), limit=600)
    again = replace(as_read(first), offset=40)
    second = letter_of(again, error=DeadlinePassed("too late"), task_name="t-2")
    names = [name for name, _ in second.headers]
    assert all(names.count(name) == 1 for name in names if name not in {"cador-task-id", "theirs"})
    letter = read_dead_letter(as_read(second))
    assert (letter.error_class, letter.attempts, letter.origin.offset) == ("DeadlinePassed", (), 40)
    assert letter.task_id == "t-2"
    assert letter.is_complete  # of what was sent again, nothing is missing
    assert letter.headers[:2] == (("theirs", b"\x00"), ("none", None))


def test_only_the_last_attempts_are_told_of() -> None:
    """A hundred tries would not fit."""
    attempts = tuple(Attempt(at, "busy") for at in range(100))
    assert read_dead_letter(as_read(letter_of(attempts=attempts))).attempts == attempts[-MAX_ATTEMPTS:]


LARGE: Final = replace(RECORD, value=b"x" * 5_000)
STAND_IN: Final = {
    "topic": "requests",
    "partition": 3,
    "offset": 17,
    "size": 5_000,
    "sha256": hashlib.sha256(b"x" * 5_000).hexdigest(),
}


def test_a_record_that_does_not_fit_is_represented() -> None:
    """By coordinates, size and digest; a header says that this is not what was sent."""
    exact = letter_of(LARGE).size
    assert letter_of(LARGE, limit=exact).value == LARGE.value
    message = letter_of(LARGE, limit=exact - 1)
    assert message.size < exact
    assert json.loads(message.value or b"") == STAND_IN
    assert message.headers[-1] == ("cador-replaced", b"coordinates, size and sha256")
    letter = read_dead_letter(as_read(message))
    assert not letter.is_complete
    assert (letter.key, letter.headers) == (LARGE.key, LARGE.headers)


@pytest.mark.parametrize(
    ("record", "kept_key", "kept_headers"),
    [
        (replace(RECORD, headers=(("large", b"x" * 5_000),)), b"key", ()),
        (replace(RECORD, key=b"k" * 5_000), None, ()),
    ],
)
def test_headers_and_key_are_kept_only_if_they_fit(
    record: Record, kept_key: bytes | None, kept_headers: Headers
) -> None:
    """A record may be large in other places than its value."""
    message = letter_of(record, limit=1_000)
    assert message.size <= 1_000
    letter = read_dead_letter(as_read(message))
    assert (letter.key, letter.headers, letter.is_complete) == (kept_key, kept_headers, False)


def test_what_is_known_is_never_left_out() -> None:
    """A limit that is smaller than that gets the smallest there is."""
    message = letter_of(LARGE, limit=10)
    assert read_dead_letter(as_read(message)).error_class == "AlgorithmDied"


OTHER_HEADERS = st.lists(
    st.tuples(
        st.sampled_from([name for name, _ in letter_of(traceparent="00").headers]) | TEXTS,
        st.none()
        | st.binary(max_size=12)
        | st.sampled_from([b"[1]", b'[{"at":"x","error":1}]', b"a/b/c", b"1/2", b"{}"]),
    ),
    max_size=12,
).map(tuple)


@given(headers=OTHER_HEADERS, place=st.integers(0, 12), rest=OTHER_HEADERS)
def test_anything_else_is_no_dead_letter(headers: Headers, place: int, rest: Headers) -> None:
    """Whatever lies in the topic is read or refused; nothing else is raised."""
    good = letter_of().headers
    for mixed in (headers, good[:place] + headers + good[place:] + rest):
        with suppress(RequestRefused):
            read_dead_letter(replace(RECORD, headers=mixed))


@pytest.mark.parametrize("missing", range(2, 10))
def test_every_header_is_needed(missing: int) -> None:
    """Half a dead letter is none."""
    message = letter_of()
    headers = message.headers[:missing] + message.headers[missing + 1 :]
    with pytest.raises(RequestRefused, match="dead letter"):
        read_dead_letter(replace(as_read(message), headers=headers))


def test_no_content_in_a_repr() -> None:
    """What a sender wrote may hold secrets, and a repr may be logged."""
    record = replace(RECORD, value=b"hunter2", headers=(("authorization", b"hunter2"),))
    assert "hunter2" not in repr(record)
    assert "hunter2" not in repr(read_dead_letter(as_read(letter_of(record))))
