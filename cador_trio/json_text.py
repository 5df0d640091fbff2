"""JSON as bytes: strict reading, and writing in slices that leave the interpreter to others.

Pure. The two C loops of the standard library (reading and writing) never let another thread run, and a 200 MB answer
keeps them busy for seconds; so large values are written slice by slice, and large texts read with hooks that the
interpreter can switch at. Both are meant for a worker thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from cador_trio.job import Json

MAX_DEPTH = 100  # levels of a request (details.md of the wire contract: deeper ones are refused)
# JSON above this is read, converted and written in a worker thread: 5 to 10 ms of work.
THREAD_BYTES = 256 * 1024
SLICE_VALUES = 5_000  # values that are written in one go: some milliseconds
SLICE_CHARACTERS = 1024 * 1024  # of a text that are written in one go
_CHARACTERS_A_VALUE = SLICE_CHARACTERS // SLICE_VALUES
_SLICED_LEVELS = 64  # deeper, a value is written in one go: nobody keeps millions of values there


class NotJson(ValueError):
    """The bytes are not the JSON that is wanted; the message says what and where."""


def read_request(data: bytes) -> Json:
    """A request from a door: UTF-8 JSON without duplicate keys, NaN, Infinity or more than 100 levels.

    Raises:
        NotJson: naming the first thing that is wrong.
    """
    value = _read(data, object_pairs_hook=_unique_keys, parse_float=_finite)
    # Two brackets a level at least: most requests need no walk.
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise NotJson(f"more than {MAX_DEPTH} levels deep")
    return value


def read_answer(data: bytes) -> Json:
    """What a neighbour answered: UTF-8 JSON; NaN and Infinity are refused, the rest is as it is.

    Raises:
        NotJson: naming what is wrong.
    """
    # Between two calls of a hook in Python the interpreter may switch; the C loop alone would keep it to the end.
    return _read(data) if len(data) <= THREAD_BYTES else _read(data, object_hook=_same, parse_float=_float)


def write(value: Json) -> bytes:
    """The value as ASCII JSON (other characters escaped, as the original's consumers read it).

    Raises:
        NotJson: for NaN, Infinity, or what JSON can't hold.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        raise NotJson(f"not writable as JSON: {error}") from error


def write_slices(value: Json) -> Iterator[bytes]:
    """`write` in pieces, each the work of some milliseconds at most; joined they are the same bytes."""
    return _slices(value, _SLICED_LEVELS)


def _slices(value: Json, levels: int) -> Iterator[bytes]:
    if isinstance(value, str) and len(value) > SLICE_CHARACTERS:
        yield from _text_slices(value)
    elif not levels or not isinstance(value, dict | list | tuple) or _is_quick(value):
        yield write(value)
    elif isinstance(value, dict):
        opening = b"{"
        for name, member in value.items():
            yield opening + write(name) + b":"
            yield from _slices(member, levels - 1)
            opening = b","
        yield b"}"
    else:
        yield from _array_slices(value, levels)


def _text_slices(text: str) -> Iterator[bytes]:
    yield b'"'
    for start in range(0, len(text), SLICE_CHARACTERS):
        yield write(text[start : start + SLICE_CHARACTERS])[1:-1]
    yield b'"'


def _array_slices(items: Sequence[Json], levels: int) -> Iterator[bytes]:
    """Neighbours go together as long as they are quick to write."""
    separator = b"["
    start = 0
    while start < len(items):
        end, left = start, SLICE_VALUES
        while end < len(items) and (left := _values_left(items[end], left)) >= 0:
            end += 1
        if end > start:
            yield separator + write(items[start:end])[1:-1]
            start = end
        else:
            yield separator
            yield from _slices(items[start], levels - 1)
            start += 1
        separator = b","
    yield b"]"


def _is_quick(value: Json) -> bool:
    return _values_left(value, SLICE_VALUES) >= 0


def _values_left(value: Json, left: int) -> int:
    """What is left of this many values after these; negative, and not worked out, if they are too many."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list | tuple | dict):
            if len(item) >= left:
                return -1
            # A row of numbers, as positions are, is not worth a look at each.
            if isinstance(item, dict):
                pending += item.values()
            elif item and isinstance(item[0], float | int) and isinstance(item[-1], float | int):
                left -= len(item)
            else:
                pending += item
        elif isinstance(item, str):
            left -= len(item) // _CHARACTERS_A_VALUE
        left -= 1
        if left < 0:
            break
    return left


def _read(data: bytes, **hooks: Any) -> Json:
    if len(data) > THREAD_BYTES:
        hooks["parse_int"] = _int
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant, **hooks)
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise NotJson("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except NotJson:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise NotJson("a number with too many digits") from error


def _same(members: dict[str, Json]) -> dict[str, Json]:
    return members


def _int(text: str) -> int:
    return int(text)


def _float(text: str) -> float:
    return float(text)


def _unique_keys(members: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(members)
    if len(found) != len(members):
        seen: set[str] = set()
        for name, _ in members:
            if name in seen:
                raise NotJson(f"the key {name[:80]!r} is there twice in one object")
            seen.add(name)
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJson(f"the number {text[:40]} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not JSON")


def _is_deeper(value: Json, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            member
            for container in level
            if isinstance(container, dict | list)
            for member in (container.values() if isinstance(container, dict) else container)
            if isinstance(member, dict | list)
        ]
        if not level:
            return False
    return True
