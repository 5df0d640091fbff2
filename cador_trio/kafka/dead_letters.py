"""Dead letters: records that no try could help, with all that is known about why; built, and read again for a replay.

Pure. Key, value and headers are the sender's own, unchanged: the one message that may hold what its sender wrote,
secrets included. What is known is in added headers (their names: details of the wire contract).

The sender's headers come first, ours after them. A record that was a dead letter once, and was sent again with all its
headers, loses those that only a dead letter has: it is told of this death alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cador_trio.errors import CadorError, RequestRefused
from cador_trio.job import Attempt
from cador_trio.json_text import read_answer, write
from cador_trio.kafka.messages import TASK_ID_HEADER, TRACE_HEADER, Coordinates, Headers, Message, Record, header_bytes

ERROR_CLASS_HEADER: Final = "cador-error-class"  # the first of ours
ERROR_HEADER: Final = "cador-error"
ATTEMPTS_HEADER: Final = "cador-attempts"
ORIGIN_HEADER: Final = "cador-origin"
JOB_ID_HEADER: Final = "cador-job-id"
ALGORITHM_HEADER: Final = "cador-algorithm"
FAILED_AT_HEADER: Final = "cador-failed-at"
# There if the record was too large; says what the value is instead.
REPLACED_HEADER: Final = "cador-replaced"
_REPLACED_BY: Final = b"coordinates, size and sha256"

# What only a dead letter has; its task id and trace may stand in any message.
_OF_DEAD_LETTERS: Final = frozenset(
    {
        ERROR_CLASS_HEADER,
        ERROR_HEADER,
        ATTEMPTS_HEADER,
        ORIGIN_HEADER,
        JOB_ID_HEADER,
        ALGORITHM_HEADER,
        FAILED_AT_HEADER,
        REPLACED_HEADER,
    }
)

MAX_ATTEMPTS: Final = 20  # that are told of; of more, the last ones


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter, read. `key`, `value` and `headers` are the original's, for a replay; times are epoch milliseconds.

    If it is not `is_complete`, the original was too large: the value is JSON that tells its coordinates, size and
    SHA-256, and only the topic that it came from may still have it. `repr` shows no content.
    """

    origin: Coordinates
    error_class: str
    error: str
    attempts: tuple[Attempt, ...]
    job_id: UUID
    task_id: str
    algorithm: str
    failed_at: int
    traceparent: str | None
    key: bytes | None
    value: bytes | None
    headers: Headers
    is_complete: bool

    def __repr__(self) -> str:
        return f"DeadLetter({self.origin}, {self.error_class}, job {self.job_id})"


def dead_letter(  # noqa: PLR0913 - everything that is known, by name
    record: Record,
    *,
    error: CadorError,
    attempts: Sequence[Attempt],
    job_id: UUID,
    task_name: str,
    algorithm: str,
    failed_at: int,
    traceparent: str | None,
    limit: int,
) -> Message:
    """The dead letter of a record. `algorithm` is `name/version`, `limit` the bytes of the largest message.

    A record that does not fit is represented by its coordinates, size and SHA-256, beside its headers and its key if
    they fit. What is known of the failure is never left out, so that the message is larger than a limit of less than
    that.
    """
    ours: list[tuple[str, bytes | None]] = [
        (ERROR_CLASS_HEADER, type(error).__name__.encode()),
        (ERROR_HEADER, header_bytes(f"{error.message} ({error.hint})" if error.hint else error.message)),
        (ATTEMPTS_HEADER, write([{"at": attempt.at, "error": attempt.error} for attempt in attempts[-MAX_ATTEMPTS:]])),
        (ORIGIN_HEADER, f"{record.topic}/{record.partition}/{record.offset}".encode()),
        (JOB_ID_HEADER, str(job_id).encode()),
        (TASK_ID_HEADER, header_bytes(task_name)),
        (ALGORITHM_HEADER, header_bytes(algorithm)),
        (FAILED_AT_HEADER, str(failed_at).encode()),
    ]
    if traceparent is not None:
        ours.append((TRACE_HEADER, header_bytes(traceparent)))
    for message in _from_whole_to_least(record, tuple(ours)):
        if message.size <= limit:
            break
    return message


def _from_whole_to_least(record: Record, ours: Headers) -> Iterator[Message]:
    theirs = tuple(header for header in record.headers if header[0] not in _OF_DEAD_LETTERS)
    yield Message(record.key, record.value, theirs + ours)
    value = record.value or b""
    stand_in = write(
        {
            **Coordinates(record.topic, record.partition, record.offset).as_json(),
            "size": len(value),
            "sha256": hashlib.sha256(value).hexdigest(),
        }
    )
    ours = (*ours, (REPLACED_HEADER, _REPLACED_BY))
    yield Message(record.key, stand_in, theirs + ours)
    yield Message(record.key, stand_in, ours)
    yield Message(None, stand_in, ours)


def error_class_of(letter: Message) -> str:
    """The class of the error that a dead letter of ours is about."""
    return (dict(letter.headers)[ERROR_CLASS_HEADER] or b"").decode()


def read_dead_letter(record: Record) -> DeadLetter:
    """A record of the dead-letter topic.

    Raises:
        RequestRefused: it is none.
    """
    places = [place for place, (name, _) in enumerate(record.headers) if name == ERROR_CLASS_HEADER]
    if not places:
        raise RequestRefused("no dead letter", hint=f"it has no header {ERROR_CLASS_HEADER}")
    theirs, ours = record.headers[: places[-1]], dict(record.headers[places[-1] :])
    try:
        return DeadLetter(
            origin=_origin(_text(ours, ORIGIN_HEADER)),
            error_class=_text(ours, ERROR_CLASS_HEADER),
            error=_text(ours, ERROR_HEADER),
            attempts=_attempts(ours.get(ATTEMPTS_HEADER) or b""),
            job_id=UUID(_text(ours, JOB_ID_HEADER)),
            task_id=_text(ours, TASK_ID_HEADER),
            algorithm=_text(ours, ALGORITHM_HEADER),
            failed_at=int(_text(ours, FAILED_AT_HEADER)),
            traceparent=_text(ours, TRACE_HEADER) if TRACE_HEADER in ours else None,
            key=record.key,
            value=record.value,
            headers=theirs,
            is_complete=REPLACED_HEADER not in ours,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise RequestRefused("a dead letter whose headers make no sense", hint=str(error)) from error


def _text(headers: dict[str, bytes | None], name: str) -> str:
    value = headers.get(name)
    if value is None:
        raise ValueError(f"{name} is missing")
    return value.decode("utf-8", "replace")


def _origin(text: str) -> Coordinates:
    topic, partition, offset = text.rsplit("/", 2)  # ValueError if there are not three
    return Coordinates(topic, int(partition), int(offset))


def _attempts(text: bytes) -> tuple[Attempt, ...]:
    return tuple(Attempt(int(told["at"]), str(told["error"])) for told in read_answer(text))
