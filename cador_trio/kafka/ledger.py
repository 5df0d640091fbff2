"""What is delivered, begun and finished of one partition, and what a commit says about it.

Pure: knows offsets, no client and no clock. Kafka remembers one offset a partition, but jobs finish in any order. So
the commit's offset is that of the lowest unfinished record, and its metadata, a text that Kafka keeps beside it, tells
what is already known of those behind: which are still unfinished, and how often each of them has begun.

What rests on it:

- Records of a partition come in the order of their offsets. So an offset that was passed over doesn't exist (a
  transaction's marker, compacted away), and counts as finished wherever that makes the text shorter.
- Finishing a record, giving it back and passing over a hole never makes the text longer; `may_begin` is asked before
  anything that does. So a commit always fits.
- Metadata counts only beside the offset that it was written with. Everything else (none, another program's, cut off,
  copied to a translated offset) counts as none: records are handed out again rather than skipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple
from zlib import crc32

# Kafka's default offset.metadata.max.bytes is 4096, and one more than this is refused.
MAX_METADATA: Final = 4_095  # characters
# A count is one digit, so that beginning again never makes the text longer.
MAX_BEGUN: Final = 31  # stands for itself and everything above

_VERSION: Final = "1:"
_DIGITS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_MORE: Final = 32  # set in every digit of a number but its last: 5 bits a digit
_CHECK_DIGITS: Final = 6
_WIDEST_NUMBER: Final = 13  # digits of 63 bits
# For entries, when all else is at its widest.
_ROOM: Final = MAX_METADATA - len(_VERSION) - _CHECK_DIGITS - _WIDEST_NUMBER


@dataclass(frozen=True, slots=True)
class Delivered:
    """What is known of a record that comes: its effects are committed, or it began so often and its process died."""

    is_done: bool
    begun: int


@dataclass(frozen=True, slots=True)
class CommitPoint:
    """What is committed: the offset to go on from, and the metadata beside it (ASCII, at most `MAX_METADATA`)."""

    offset: int
    metadata: str


class _Entry(NamedTuple):
    """An unfinished record in the metadata, and how often it has begun."""

    offset: int
    begun: int


@dataclass(slots=True)
class _Unfinished:
    """A record in our hands: how often it had begun when it came, and whether it has now."""

    before: int
    is_begun: bool = False

    @property
    def begun(self) -> int:
        return min(self.before + self.is_begun, MAX_BEGUN)


class Ledger:
    """One partition, as long as it is assigned. To be used from one thread at a time; no call waits.

    Offsets that are not unfinished, or were forgotten meanwhile (see `deliver`), are passed over in silence.
    """

    def __init__(self, position: int | None, metadata: str | None) -> None:
        """Go on from what is committed; `position` is None if nothing is."""
        self._next = position  # the highest delivered offset + 1
        self._unfinished: dict[int, _Unfinished] = {}  # delivered ones, ascending
        # What the last owner left unfinished and has not come yet, ascending, is ahead. Below `_end`, what is neither
        # ahead nor unfinished is finished.
        self._end, entries = (0, []) if position is None else _decode(position, metadata or "")
        self._ahead = deque(entries)
        self._committed = self.commit_point()

    @property
    def unfinished(self) -> int:
        """How many delivered records are not finished."""
        return len(self._unfinished)

    @property
    def lowest_unfinished(self) -> int | None:
        """The lowest delivered offset that is not finished."""
        return next(iter(self._unfinished), None)

    @property
    def committed(self) -> int | None:
        """The offset that the group has committed; None if nothing is."""
        return None if self._committed is None else self._committed.offset

    @property
    def is_dirty(self) -> bool:
        """What is known differs from what was last committed."""
        return self.commit_point() != self._committed

    def deliver(self, offset: int) -> Delivered:
        """A record has come. If it `is_done`, nothing is left to do; else it is unfinished from now on.

        Offsets only go up. One below everything that is unfinished comes from a topic that was made anew, or from a
        position that an operator put back: what was known is about other records, and forgotten.
        """
        if self._next is not None and offset < self._next:
            if (known := self._unfinished.get(offset)) is not None:
                return Delivered(is_done=False, begun=known.before)
            if self._unfinished and offset > next(iter(self._unfinished)):
                return Delivered(is_done=True, begun=0)
            self._forget()
        self._next = offset + 1
        while self._ahead and self._ahead[0].offset < offset:
            self._ahead.popleft()
        if self._ahead and self._ahead[0].offset == offset:
            begun = self._ahead.popleft().begun
        elif offset < self._end:
            return Delivered(is_done=True, begun=0)
        else:
            begun = 0
        self._unfinished[offset] = _Unfinished(begun)
        return Delivered(is_done=False, begun=begun)

    def may_begin(self, offset: int) -> bool:
        """Whether a commit has room for this one too, begun or finished.

        To be asked for every delivered record before it begins, or is finished without. False means: wait until a lower
        one has finished, then ask again. The lowest unfinished one always may: whoever was allowed before was allowed
        with everything below it told, too.
        """
        if offset < self._end:  # it is told already
            return True
        lowest, count = self._offset(), len(self._unfinished) + len(self._ahead)
        highest = self._ahead[-1].offset if self._ahead else next(reversed(self._unfinished), offset)
        if count * (len(_number(highest - lowest)) + 1) <= _ROOM:  # quick: as if each were as far away as the last one
            return True
        return sum(map(len, _texts(lowest, self._entries(offset + 1)))) <= _ROOM

    def begin(self, offset: int) -> None:
        """A delivered record is handed to the algorithm; if our process dies before it ends, that has counted."""
        if (record := self._unfinished.get(offset)) is not None:
            record.is_begun = True

    def give_back(self, offset: int) -> None:
        """It is stopped in an orderly way, and is as it was when it came: its next owner begins it anew."""
        if (record := self._unfinished.get(offset)) is not None:
            record.is_begun = False

    def finish(self, offsets: Collection[int]) -> None:
        """Their effects are committed."""
        for offset in offsets:
            if self._unfinished.pop(offset, None) is not None:
                self._end = max(self._end, offset + 1)

    def commit_point(self, also: Collection[int] = ()) -> CommitPoint | None:
        """What to commit now, as if `also` were finished too; None while nothing is known.

        Raises:
            ValueError: it doesn't fit, since records began or finished that `may_begin` was not asked about.
        """
        if self._next is None:
            return None
        done = {offset for offset in also if offset in self._unfinished}
        end = max(self._end, *(offset + 1 for offset in done)) if done else self._end
        offset = self._offset(done)
        metadata = _encode(offset, end, self._entries(end, done))
        if len(metadata) > MAX_METADATA:
            raise ValueError(f"metadata of {len(metadata)} characters: more has begun than was allowed to")
        return CommitPoint(offset, metadata)

    def note_committed(self, point: CommitPoint) -> None:
        """This is what Kafka holds now."""
        self._committed = point

    def _offset(self, done: Collection[int] = ()) -> int:
        """The lowest unfinished offset, else the one after all that came."""
        lowest = next((offset for offset in self._unfinished if offset not in done), self._next)
        return 0 if lowest is None else lowest

    def _entries(self, end: int, done: Collection[int] = ()) -> list[_Entry]:
        """What must be told if everything else below `end` is finished."""
        told = [
            _Entry(offset, record.begun)
            for offset, record in self._unfinished.items()
            if (offset < end or record.begun) and offset not in done
        ]
        return [*told, *self._ahead]

    def _forget(self) -> None:
        self._unfinished.clear()
        self._ahead.clear()
        self._end = 0


# --- The metadata ------------------------------------------------------------------------------------------------
#
# "1:", a checksum over offset and numbers, and the numbers: how far finished ones go from the offset on, then for every
# unfinished one its distance from the one before, and its count. A number has 5 bits a digit, the low ones first.


def _encode(offset: int, end: int, entries: list[_Entry]) -> str:
    if end <= offset and not entries:
        return ""
    body = _number(max(end - offset, 0)) + "".join(_texts(offset, entries))
    return f"{_VERSION}{_check(offset, body)}{body}"


def _texts(offset: int, entries: list[_Entry]) -> Iterator[str]:
    expected = offset
    for entry in entries:
        yield _number(entry.offset - expected) + _number(entry.begun)
        expected = entry.offset + 1


def _decode(offset: int, metadata: str) -> tuple[int, list[_Entry]]:
    """How far finished ones go, and the unfinished ones; nothing of either if it is not ours."""
    nothing: tuple[int, list[_Entry]] = (0, [])
    body = metadata[len(_VERSION) + _CHECK_DIGITS :]
    if len(metadata) > MAX_METADATA or metadata != f"{_VERSION}{_check(offset, body)}{body}":
        return nothing
    numbers = list(_numbers(body))
    if len(numbers) % 2 == 0:
        return nothing
    end, *pairs = numbers
    entries: list[_Entry] = []
    expected = offset
    for gap, begun in zip(pairs[::2], pairs[1::2], strict=True):
        entries.append(_Entry(expected + gap, min(begun, MAX_BEGUN)))
        expected += gap + 1
    return offset + end, entries


def _check(offset: int, body: str) -> str:
    """Of the offset too: a tool that copies a group to another cluster translates it, and keeps the metadata."""
    check = crc32(f"{offset}:{body}".encode("utf-8", "backslashreplace"))
    return "".join(_DIGITS[check >> shift & 63] for shift in range(0, 6 * _CHECK_DIGITS, 6))


def _number(value: int) -> str:
    digits = ""
    while value >= _MORE:
        digits += _DIGITS[_MORE | value & 31]
        value >>= 5
    return digits + _DIGITS[value]


def _numbers(body: str) -> Iterator[int]:
    """The numbers of a body whose check was right."""
    number = shift = 0
    for digit in body:
        value = _DIGITS.find(digit)
        number |= (value & 31) << shift
        shift += 5
        if value < _MORE:
            yield number
            number = shift = 0
