"""`cador-trio dead-letters`: requests that failed for good are listed, shown, and sent again.

What is read ends where the topic ended at the start, so that a replay never meets the dead letters that it causes.
"""

from __future__ import annotations

import heapq
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cador_trio.commands.endings import EXIT_FAILED, EXIT_OK, CommandFailed, UsageWrong, printable, say, tell, told
from cador_trio.commands.letters import Filters, Position, Row, origin, page, table
from cador_trio.commands.output import give_bytes
from cador_trio.commands.surroundings import BROKERS, DEAD_LETTER_TOPIC, settings_of
from cador_trio.commands.topics import Bounds, Reader, Writer, open_reader, open_writer
from cador_trio.errors import CadorError
from cador_trio.kafka.dead_letters import DeadLetter, read_dead_letter
from cador_trio.kafka.messages import Message, Record

__all__ = ["Filters", "Place", "Replay", "run_list", "run_replay", "run_show"]

FILE_COLUMNS: Final = 200  # width of the table where nobody looks at a terminal


@dataclass(frozen=True, slots=True)
class Place:
    """Where the dead letters are: the daemon's variables, and what the user says instead of them."""

    variables: Mapping[str, str]
    brokers: str | None = None
    topic: str | None = None

    def __repr__(self) -> str:
        return f"Place(brokers={self.brokers!r}, topic={self.topic!r})"  # among the variables may be secrets


@dataclass(frozen=True, slots=True)
class Replay:
    """What is to be sent again: positions, or all that the filters take; `to` is a topic."""

    positions: Sequence[str] = ()
    is_all: bool = False
    filters: Filters = field(default_factory=Filters)
    to: str | None = None
    is_dry_run: bool = False


def run_list(place: Place, filters: Filters, *, limit: int, as_json: bool) -> int:
    """Print a table, or with `as_json` an object a line, of the newest `limit` dead letters; the newest last.

    Returns:
        The process's exit code, as for all here: 0, 2 wrong usage, 3 nothing there or something does not work, 130.
    """
    return told(lambda: _list(_Letters(place), filters, limit, as_json=as_json))


def run_show(place: Place, position: str, *, only_value: bool) -> int:
    """Print all of one dead letter, or with `only_value` the request's own bytes."""
    return told(lambda: _show(_Letters(place), Position.of(position), only_value=only_value))


def run_replay(place: Place, replay: Replay) -> int:
    """Send dead letters again, one after the other, each acknowledged before the next; stops where that fails."""
    return told(lambda: _replay(_Letters(place), replay))


class _Letters:
    """The dead-letter topic. Raises CadorErrors, SettingsError and UsageWrong among them."""

    def __init__(self, place: Place) -> None:
        self.settings = settings_of(place.variables, {BROKERS: place.brokers, DEAD_LETTER_TOPIC: place.topic})
        if not self.settings.kafka_brokers_request:
            raise UsageWrong("there are no brokers", hint="name them by --kafka or KAFKA_BROKERS_REQUEST")
        if not self.settings.dead_letter_topic:
            raise UsageWrong("there is no dead-letter topic", hint="name it by --topic or CADOR_DEAD_LETTER_TOPIC")
        self.brokers: str = self.settings.kafka_brokers_request
        self.topic: str = self.settings.dead_letter_topic

    def chosen(self, filters: Filters) -> Iterator[tuple[Position, DeadLetter]]:
        """All that are there now and that the filters take; what is no dead letter is counted and said."""
        chosen = filters.at(datetime.now(UTC))
        foreign = 0
        with open_reader(self.settings, self.brokers) as reader:
            bounds = self._bounds(reader)
            begin = {partition: bound.low for partition, bound in bounds.items()}
            end = {partition: bound.high for partition, bound in bounds.items()}
            for record in reader.read(self.topic, begin, end):
                try:
                    letter = read_dead_letter(record)
                except CadorError:
                    foreign += 1
                    continue
                if chosen.takes(letter):
                    yield _position(record), letter
        if foreign:
            say(f"{foreign} message(s) in {self.topic} are no dead letters, and left out")

    def one(self, reader: Reader, position: Position) -> DeadLetter:
        """The dead letter there. Raises CommandFailed if there is none (any more)."""
        bounds = self._bounds(reader)
        bound = bounds.get(position.partition)
        if bound is None:
            raise CommandFailed(
                f"{self.topic} has no partition {position.partition}", hint=f"it has 0 to {max(bounds)}"
            )
        begin, end = {position.partition: position.offset}, {position.partition: position.offset + 1}
        if bound.low <= position.offset < bound.high:
            for record in reader.read(self.topic, begin, end):
                return self._letter(record)
        raise CommandFailed(f"there is nothing at {position} of {self.topic}", hint=_what_is_there(position, bound))

    def _bounds(self, reader: Reader) -> dict[int, Bounds]:
        bounds = reader.bounds(self.topic)
        if all(bound.low == bound.high for bound in bounds.values()):
            raise CommandFailed(f"{self.topic} is empty", hint="nothing has failed for good, or it is kept no longer")
        return bounds

    def _letter(self, record: Record) -> DeadLetter:
        try:
            return read_dead_letter(record)
        except CadorError as error:
            raise CommandFailed(
                f"the message at {_position(record)} of {self.topic} is no dead letter: {error.message}",
                hint="is it the dead-letter topic?",
            ) from error


def _position(record: Record) -> Position:
    return Position(record.partition, record.offset)


def _what_is_there(position: Position, bound: Bounds) -> str:
    if bound.low == bound.high:
        return f"partition {position.partition} is empty"
    return f"partition {position.partition} has offsets {bound.low} to {bound.high - 1}, with gaps"


# --- The three commands ------------------------------------------------------------------------------------------


def _list(letters: _Letters, filters: Filters, limit: int, *, as_json: bool) -> int:
    count = 0
    newest: list[tuple[int, Position, Row]] = []
    for position, letter in letters.chosen(filters):
        count += 1
        row = (letter.failed_at, position, Row.of(position, letter))
        (heapq.heappushpop if len(newest) == limit else heapq.heappush)(newest, row)
    if not count:
        raise CommandFailed(f"no dead letter in {letters.topic} is meant", hint="look without the filters")
    rows = [row for _, _, row in sorted(newest)]
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else FILE_COLUMNS
    for line in (json.dumps(row.as_json()) for row in rows) if as_json else table(rows, columns):
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    if count > len(rows):
        say(f"these are the newest {len(rows)} of {count}; --limit shows more")
    return EXIT_OK


def _show(letters: _Letters, position: Position, *, only_value: bool) -> int:
    with open_reader(letters.settings, letters.brokers) as reader:
        letter = letters.one(reader, position)
    if not only_value:
        for line in page(position, letter):
            sys.stdout.write(f"{line}\n")
        return EXIT_OK
    if not letter.is_complete:
        raise _not_here(letters, position, letter)
    give_bytes(letter.value or b"", None)
    return EXIT_OK


def _replay(letters: _Letters, replay: Replay) -> int:
    if bool(replay.positions) == replay.is_all:
        raise UsageWrong("name positions, or --all", hint="for example 0/17, as the list shows it")
    if replay.positions and replay.filters:
        raise UsageWrong("positions are not filtered", hint="leave --since, --task-id and --error-class to --all")
    positions = sorted({Position.of(text) for text in replay.positions})
    if replay.to == letters.topic:
        raise UsageWrong("--to is the dead-letter topic itself", hint="name a request topic")
    with (
        open_reader(letters.settings, letters.brokers) as checks,
        open_writer(letters.settings, letters.brokers) as writer,
    ):
        sender = _Sender(letters, replay, checks, writer)
        for position, letter in _wanted(letters, replay, positions):
            sender.send(position, letter)
    if not sender.sent and not sender.left_out:
        raise CommandFailed(f"no dead letter in {letters.topic} is meant", hint="look with the list")
    say(f"{sender.sent} would be sent" if replay.is_dry_run else f"{sender.sent} sent; they stay in {letters.topic}")
    return EXIT_FAILED if sender.left_out else EXIT_OK


def _wanted(letters: _Letters, replay: Replay, positions: Sequence[Position]) -> Iterator[tuple[Position, DeadLetter]]:
    if replay.is_all:
        yield from letters.chosen(replay.filters)
        return
    with open_reader(letters.settings, letters.brokers) as reader:
        for position in positions:
            yield position, letters.one(reader, position)


class _Sender:
    """Sends dead letters where they belong, to topics that exist."""

    def __init__(self, letters: _Letters, replay: Replay, checks: Reader, writer: Writer) -> None:
        self._letters = letters
        self._replay = replay
        self._checks = checks
        self._writer = writer
        self._known: set[str] = set()
        self.sent = 0
        self.left_out = 0

    def send(self, position: Position, letter: DeadLetter) -> None:
        """Send one and say where it is now, or that it is not here. Raises CommandFailed if it can't be sent."""
        if not letter.is_complete:
            self.left_out += 1
            tell(_not_here(self._letters, position, letter))
            return
        topic = self._replay.to or self._letters.settings.job_request_topic or letter.origin.topic
        if topic not in self._known:
            self._checks.bounds(topic)  # a misspelt topic must not be made by writing to it
            self._known.add(topic)
        what = f"{position} → {topic}"
        if not self._replay.is_dry_run:
            sent = self._writer.send(topic, Message(letter.key, letter.value, letter.headers))
            what += f"/{sent.partition}/{sent.offset}"
        self.sent += 1
        sys.stdout.write(f"{what}  task {printable(letter.task_id)}, {len(letter.value or b''):,} bytes\n")
        sys.stdout.flush()


def _not_here(letters: _Letters, position: Position, letter: DeadLetter) -> CommandFailed:
    return CommandFailed(
        f"the request of {position} is not in {letters.topic}: it was too large, and is only represented",
        hint=f"it was {origin(letter)}: send it from there or from its source; show tells its size and SHA-256",
    )
