"""Dead letters as a user chooses and reads them: positions, filters, the table and the page of one.

Pure. What a sender wrote is cut and made harmless for a terminal; credentials in it are masked, since a screen is
looked at by many. Whoever wants the very bytes asks for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cador_trio.commands.endings import UsageWrong, printable
from cador_trio.errors import public_text
from cador_trio.job import Json, JsonObject
from cador_trio.json_text import NotJson, read_answer
from cador_trio.kafka.dead_letters import DeadLetter

SHOWN_CHARACTERS: Final = 200  # of one text inside a request; images in base64 are longer
MASK: Final = "***"

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SECRET: Final = re.compile(r"(?i)key|secret|token|passw|credential|signature")  # members of outputStorage
_SECRET_HEADER: Final = re.compile(rf"{_SECRET.pattern}|authorization|cookie")


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """Where a dead letter is in its topic."""

    partition: int
    offset: int

    @classmethod
    def of(cls, text: str) -> Position:
        """From `PARTITION/OFFSET`, as the list shows it. Raises UsageWrong."""
        partition, separator, offset = text.partition("/")
        if not separator or not all(
            part.isascii() and part.isdigit() and len(part) < 19 for part in (partition, offset)
        ):
            raise UsageWrong(f"{text[:80]!r} is not PARTITION/OFFSET", hint="for example 0/17, as the list shows it")
        return cls(int(partition), int(offset))

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which dead letters are meant; None is all. `since` as the user wrote it."""

    since: str | None = None
    task_id: str | None = None
    error_class: str | None = None

    def __bool__(self) -> bool:
        return (self.since, self.task_id, self.error_class) != (None, None, None)

    def at(self, now: datetime) -> Chosen:
        """With the moment worked out. Raises UsageWrong."""
        since = None if self.since is None else _moment(self.since, now)
        return Chosen(since, self.task_id, None if self.error_class is None else self.error_class.lower())


@dataclass(frozen=True, slots=True)
class Chosen:
    """Filters that can be applied; `since` is epoch milliseconds."""

    since: int | None
    task_id: str | None
    error_class: str | None

    def takes(self, letter: DeadLetter) -> bool:
        """The dead letter is meant."""
        return (
            (self.since is None or letter.failed_at >= self.since)
            and (self.task_id is None or letter.task_id == self.task_id)
            and (self.error_class is None or letter.error_class.lower() == self.error_class)
        )


def _moment(text: str, now: datetime) -> int:
    """Epoch milliseconds of `30m` (ago) or of an ISO date or time; without a zone it is UTC."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    try:
        if found:
            moment = now - timedelta(**{_UNITS[found[2]]: int(found[1])})
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        hint = "for example 2h, 7d, 2026-01-31 or 2026-01-31T12:00Z"
        raise UsageWrong(f"--since {text[:80]!r} is no time", hint=hint) from error
    return int(moment.timestamp() * 1000)


def when(milliseconds: int) -> str:
    """A time for people, UTC."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"


def origin(letter: DeadLetter) -> str:
    """Where the request was."""
    return f"{letter.origin.topic}/{letter.origin.partition}/{letter.origin.offset}"


# --- The list ----------------------------------------------------------------------------------------------------

_HEADINGS: Final = ("position", "failed at", "task", "error class", "tries", "bytes", "error")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the list: what is kept of a dead letter once its value is let go of."""

    position: Position
    failed_at: int
    task_id: str
    error_class: str
    attempts: int
    size: int
    error: str
    is_complete: bool

    @classmethod
    def of(cls, position: Position, letter: DeadLetter) -> Row:
        """`size` is what the request had, also where it is only represented."""
        return cls(
            position,
            letter.failed_at,
            letter.task_id,
            letter.error_class,
            len(letter.attempts),
            _size(letter),
            letter.error,
            letter.is_complete,
        )

    def as_json(self) -> JsonObject:
        """An object for programs."""
        return {
            "position": str(self.position),
            "failedAt": self.failed_at,
            "taskId": self.task_id,
            "errorClass": self.error_class,
            "attempts": self.attempts,
            "size": self.size,
            "error": self.error,
            "isComplete": self.is_complete,
        }

    def cells(self) -> tuple[str, ...]:
        """Texts for the table, in the order of its columns."""
        size = f"{self.size:,}" + ("" if self.is_complete else " (gone)")
        texts = (self.task_id, self.error_class, str(self.attempts), size, self.error)
        return (str(self.position), when(self.failed_at), *map(printable, texts))


def _size(letter: DeadLetter) -> int:
    """Bytes of the request itself, which what represents it tells."""
    content = letter.value or b""
    if letter.is_complete:
        return len(content)
    try:
        told = read_answer(content)
    except NotJson:
        return 0
    size = told.get("size") if isinstance(told, dict) else None
    return size if isinstance(size, int) else 0


def table(rows: Sequence[Row], width: int) -> Iterator[str]:
    """Lines of at most `width` characters, as far as what identifies a dead letter leaves room for its error."""
    lines = [_HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS) - 1)]
    left = max(width - sum(widths) - 2 * len(widths), len("error") + 15)
    for line in lines:
        *cells, error = line
        padded = [
            cell.rjust(size) if heading in {"tries", "bytes"} else cell.ljust(size)
            for cell, size, heading in zip(cells, widths, _HEADINGS, strict=False)
        ]
        yield "  ".join([*padded, _cut(error, left)]).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# --- One ---------------------------------------------------------------------------------------------------------


def page(position: Position, letter: DeadLetter) -> Iterator[str]:
    """All of one dead letter, line by line."""
    facts = {
        "position": str(position),
        "failed at": when(letter.failed_at),
        "task": letter.task_id,
        "job": str(letter.job_id),
        "came from": origin(letter),
        "algorithm": letter.algorithm,
        "traceparent": letter.traceparent or "",
        "error": f"{letter.error_class}: {letter.error}",
        "key": "" if letter.key is None else letter.key.decode("utf-8", "replace"),
    }
    for name, text in facts.items():
        if text:
            yield f"{name + ':':<13}{printable(text)}"
    for attempt in letter.attempts:
        yield f"{'attempt:':<13}{when(attempt.at)}  {printable(attempt.error)}"
    for name, content in letter.headers:
        yield f"{'header:':<13}{printable(f'{name}: {_header(name, content)}')}"
    yield from _request(letter)


def _header(name: str, content: bytes | None) -> str:
    if content is None:
        return ""
    return MASK if _SECRET_HEADER.search(name) else public_text(content.decode("utf-8", "replace"))


def _request(letter: DeadLetter) -> Iterator[str]:
    if not letter.is_complete:
        yield "request:     not here, it was too large for this topic; what is known of it:"
    elif letter.value is None:
        yield "request:     null"
        return
    else:
        yield f"request:     {len(letter.value):,} bytes (texts cut, credentials masked; --value gives the bytes)"
    content = letter.value or b""
    try:
        document = read_answer(content)
    except NotJson as error:
        yield f"no JSON: {printable(str(error))}"
        yield printable(_cut(public_text(content[: 4 * SHOWN_CHARACTERS].decode("utf-8", "replace")), SHOWN_CHARACTERS))
        return
    yield json.dumps(_fit_to_show(document, is_storage=False), indent=2)


def _fit_to_show(value: Json, *, is_storage: bool) -> Json:
    """The same with long texts cut, credentials of storage masked and passwords of URLs cut out."""
    if isinstance(value, dict):
        return {
            name: MASK
            if is_storage and _SECRET.search(name)
            else _fit_to_show(member, is_storage=is_storage or name == "outputStorage")
            for name, member in value.items()
        }
    if isinstance(value, list):
        return [_fit_to_show(member, is_storage=is_storage) for member in value]
    if isinstance(value, str):
        text = public_text(value[: 2 * SHOWN_CHARACTERS])
        is_long = len(value) > SHOWN_CHARACTERS
        return f"{text[:SHOWN_CHARACTERS]}… ({len(value):,} characters)" if is_long else text
    return value
