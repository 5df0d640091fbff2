"""JSON as bytes: strict reading, and writing in slices that leave the interpreter to others.

Pure. The two C loops of the standard library (reading and writing) never let another thread run, and a 200 MB answer
keeps them busy for seconds; so large values are written slice by slice, and large texts read with a hook that the
interpreter can switch at. Both are meant for a worker thread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from cador_trio.job import Json

MAX_DEPTH = 100  # levels of a request (details.md of the wire contract: deeper ones are refused)
# JSON above this is read, converted and written in a worker thread: 5 to 10 ms of work.
THREAD_BYTES = 256 * 1024
SLICE_ITEMS = 500  # items of a long array that are written in one go: some milliseconds
_SLICED_LEVELS = 4  # envelope, output, FeatureCollection, features


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
    return _read(data, object_hook=_let_others_run)


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
    if levels and isinstance(value, dict) and value:
        opening = b"{"
        for name, member in value.items():
            yield opening + write(name) + b":"
            yield from _slices(member, levels - 1)
            opening = b","
        yield b"}"
    elif levels and isinstance(value, list) and len(value) > SLICE_ITEMS:
        for start in range(0, len(value), SLICE_ITEMS):
            yield b"," if start else b"["
            yield write(value[start : start + SLICE_ITEMS])[1:-1]
        yield b"]"
    else:
        yield write(value)


def _read(data: bytes, **hooks: Any) -> Json:
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


def _let_others_run(members: dict[str, Json]) -> dict[str, Json]:
    return members


def _unique_keys(members: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(members)
    if len(found) != len(members):
        names = [name for name, _ in members]
        twice = next(name for name in found if names.count(name) > 1)
        raise NotJson(f"the key {twice[:80]!r} is there twice in one object")
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
