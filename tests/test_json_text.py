"""JSON, strict on the way in and the same bytes in slices on the way out; and never a hindrance to other threads."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from cador_trio.json_text import (
    MAX_DEPTH,
    SLICE_CHARACTERS,
    SLICE_VALUES,
    THREAD_BYTES,
    NotJson,
    read_answer,
    read_request,
    write,
    write_slices,
)

values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def padded(text: bytes) -> bytes:
    """The same JSON, large enough for the hooks of large texts."""
    return b" " * THREAD_BYTES + text


# --- Reading ------------------------------------------------------------------------------------------------------

# text, what is said of it in a request, and in an answer; None: accepted
STRICTNESS: Final = {
    "empty": (b"", "Expecting value", "Expecting value"),
    "blank": (b"  \n ", "Expecting value", "Expecting value"),
    "word": (b"hello", "Expecting value", "Expecting value"),
    "cut short": (b'{"a": [1, 2', "delimiter", "delimiter"),
    "more than one": (b"{} {}", "Extra data", "Extra data"),
    "trailing comma": (b'{"a": 1,}', "property name", "property name"),
    "single quotes": (b"{'a': 1}", "property name", "property name"),
    "comment": (b"{} // no", "Extra data", "Extra data"),
    "control character": (b'"a\nb"', "control character", "control character"),
    "byte order mark": (b"\xef\xbb\xbf{}", "BOM", "BOM"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 at byte 7", "not UTF-8 at byte 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0", "not UTF-8 at byte 0"),
    "surrogates in UTF-8": (b'"\xed\xa0\x80"', "not UTF-8 at byte 1", "not UTF-8 at byte 1"),
    "NaN": (b'{"a": NaN}', "NaN is not JSON", "NaN is not JSON"),
    "Infinity": (b"[Infinity]", "Infinity is not JSON", "Infinity is not JSON"),
    "-Infinity": (b"[-Infinity]", "-Infinity is not JSON", "-Infinity is not JSON"),
    "overflow": (b"[1e999]", "1e999 is too large", None),
    "underflow": (b"[1e-999]", None, None),
    "duplicate key": (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice", None),
    "duplicate key below": (b'[{"a": {"x": 1, "x": 1}}]', "the key 'x' is there twice", None),
    "same key, escaped": (b'{"a": 1, "\\u0061": 2}', "the key 'a' is there twice", None),
    "same key in two objects": (b'[{"a": 1}, {"a": 1}]', None, None),
    "integer of 4300 digits": (b"1" * 4_300, None, None),
    "integer of 4301 digits": (b"1" * 4_301, "too many digits", "too many digits"),
    "lone surrogate, escaped": (b'"\\ud800"', None, None),
    "null": (b"null", None, None),
    "number": (b"-0.5e3", None, None),
    "text": ('"é\U0001f30d"'.encode(), None, None),
}


@pytest.mark.parametrize("pad", [bytes, padded], ids=["small", "large"])
@pytest.mark.parametrize("case", STRICTNESS)
def test_what_is_refused_and_what_is_not(case: str, pad: Callable[[bytes], bytes]) -> None:
    """The table, for requests and for answers, whatever the size; every refusal says what is wrong."""
    text, in_request, in_answer = STRICTNESS[case]
    if (pad is padded and "UTF" in case) or "BOM" in str(in_request):
        pad = bytes  # what begins a text, or counts its bytes
    for read, complaint in ((read_request, in_request), (read_answer, in_answer)):
        if complaint is None:
            assert read(pad(text)) == json.loads(text)
        else:
            with pytest.raises(NotJson) as refused:
                read(pad(text))
            assert complaint in str(refused.value)


def test_a_complaint_says_where() -> None:
    """Line and column, as editors count."""
    with pytest.raises(NotJson, match="line 2, column 6"):
        read_request(b'{"a": 1,\n "b" 2}')


def test_a_complaint_is_short() -> None:
    """A key or a number of megabytes is quoted in part."""
    key = b'"' + b"k" * 1_000_000 + b'"'
    with pytest.raises(NotJson) as twice:
        read_request(b"{" + key + b":1," + key + b":1}")
    assert len(str(twice.value)) < 200
    with pytest.raises(NotJson) as large:
        read_request(b"9" * 1_000_000 + b".5")
    assert len(str(large.value)) < 200


def test_a_duplicate_among_many_keys_is_found_in_one_look() -> None:
    """A hundred thousand keys with one duplicate at the end: work that grows with the square would take hours."""
    keys = ",".join(f'"k{number}":0' for number in range(200_000))
    with pytest.raises(NotJson, match="'k199999'"):
        read_request(f'{{{keys},"k199999":0}}'.encode())


def nested(levels: int) -> bytes:
    return b'{"a":[' * (levels // 2) + b"[" * (levels % 2) + b"]" * (levels % 2) + b"]}" * (levels // 2)


@pytest.mark.parametrize(("levels", "accepted"), [(MAX_DEPTH - 1, True), (MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_requests_have_a_hundred_levels_at_most(levels: int, accepted: bool) -> None:
    """One more is refused; an answer may have more."""
    text = nested(levels)
    if accepted:
        read_request(text)
    else:
        with pytest.raises(NotJson, match="more than 100 levels deep"):
            read_request(text)
    read_answer(text)


def test_brackets_in_texts_are_no_levels() -> None:
    """Many brackets are no depth by themselves."""
    text = json.dumps({"a": "[" * 500, "b": [[]] * 500}).encode()
    assert read_request(text) == json.loads(text)


@pytest.mark.parametrize("read", [read_request, read_answer])
def test_a_hundred_thousand_levels_are_refused(read: Callable[[bytes], Any]) -> None:
    """Not a crash of the interpreter."""
    with pytest.raises(NotJson, match="nested too deeply"):
        read(b"[" * 100_000 + b"]" * 100_000)


@given(values)
def test_reading_gives_what_was_written(value: Any) -> None:
    """From both doors, small or large, the value that the standard library would read."""
    text = write(value)
    for data in (text, padded(text)):
        assert read_answer(data) == value
        assert read_request(data) == value


# --- Writing ------------------------------------------------------------------------------------------------------


@given(values)
def test_what_is_written_is_ascii(value: Any) -> None:
    """As the original's consumers read it; and it is JSON."""
    assert json.loads(write(value).decode("ascii")) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1, {"a": math.nan}], {1, 2}, b"bytes"])
def test_what_json_does_not_have_is_not_written(value: Any) -> None:
    """Rather than something that others can't read."""
    for attempt in (write, lambda bad: b"".join(write_slices(bad))):
        with pytest.raises(NotJson, match="not writable as JSON"):
            attempt(value)


def test_lone_surrogates_survive() -> None:
    """What came in as an escape goes out as one."""
    assert write(read_request(b'["\\ud800","\\udc00x"]')) == b'["\\ud800","\\udc00x"]'


LARGE: Final = {
    "many features": {"features": [{"id": n, "box": [n, n + 0.5], "text": "é"} for n in range(3 * SLICE_VALUES)]},
    "one feature with many positions": {"features": [{"coordinates": [[[n, n / 7] for n in range(2 * SLICE_VALUES)]]}]},
    "a giant among dwarfs": [[1], [[n] for n in range(2 * SLICE_VALUES)], [2], {"a": 1}],
    "many keys": {f"k{n}": n for n in range(2 * SLICE_VALUES)},
    "a long text": {"image": 'é\U0001f30d"\\' * SLICE_CHARACTERS, "after": 1},
    "a text that just fits": ["x" * SLICE_CHARACTERS, "x" * (SLICE_CHARACTERS - 1), "x" * (SLICE_CHARACTERS + 1)],
    "many texts": ["x" * 1_000 for _ in range(3_000)],
    "a long row of numbers": list(range(3 * SLICE_VALUES)),
    "rows that are no rows of numbers": [[1, "x" * (2 * SLICE_CHARACTERS), 2]] * 3,
    "deep and long": json.loads(nested(200).replace(b"[[]]", b"[[" + b"1," * 9_999 + b"1]]")),
    "tuples": tuple((n, n) for n in range(2 * SLICE_VALUES)),
    "empty": [],
}


@pytest.mark.parametrize("name", LARGE)
def test_slices_joined_are_what_write_gives(name: str) -> None:
    """Byte for byte, whatever is large about the value."""
    assert b"".join(write_slices(LARGE[name])) == write(LARGE[name])


@given(values, st.integers(1, 40), st.integers(1, 40))
@example([], 1, 1)
@example({}, 1, 1)
@example([[], {}], 1, 1)
@example("", 1, 1)
def test_slices_of_any_size_joined_are_what_write_gives(value: Any, slice_values: int, characters: int) -> None:
    """Also where every value is large: the slices are made tiny for this."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cador_trio.json_text.SLICE_VALUES", slice_values)
        patched.setattr("cador_trio.json_text.SLICE_CHARACTERS", characters)
        patched.setattr("cador_trio.json_text._CHARACTERS_A_VALUE", max(1, characters // slice_values))
        assert b"".join(write_slices(value)) == write(value)


@pytest.mark.parametrize("name", [name for name in LARGE if name not in {"empty", "rows that are no rows of numbers"}])
def test_no_slice_is_large(name: str) -> None:
    """Each is the work of milliseconds: a bounded number of values, a bounded length of text."""
    for piece in write_slices(LARGE[name]):
        assert piece.count(b",") <= 3 * SLICE_VALUES
        assert len(piece) <= 12 * SLICE_CHARACTERS  # a character is at most an escaped pair


# --- Other threads ------------------------------------------------------------------------------------------------


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads ask for the interpreter every half a millisecond, so that small values show what large ones do."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-4)
    yield
    sys.setswitchinterval(interval)


MANY_FEATURES: Final = {
    "features": [{"properties": {"name": "x"}, "geometry": {"coordinates": [[[n + 0.5, n]]]}} for n in range(60_000)]
}
ONE_GEOMETRY: Final = {"coordinates": [[[n + 0.5, n / 7] for n in range(200_000)]]}
INTEGERS: Final = [[n, n + 1] for n in range(300_000)]


@pytest.mark.parametrize("value", [MANY_FEATURES, ONE_GEOMETRY, INTEGERS], ids=["features", "geometry", "integers"])
@pytest.mark.parametrize("step", ["answer", "request", "slices"])
async def test_large_json_in_a_thread_leaves_the_event_loop_running(
    value: Any, step: str, frequent_switches: None
) -> None:
    """The loop goes round again and again meanwhile; with the bare C loops it would stand still to the end."""
    text = write(value)
    work: dict[str, Callable[[], object]] = {
        "answer": lambda: read_answer(text),
        "request": lambda: read_request(text),
        "slices": lambda: sum(map(len, write_slices(value))),
    }
    rounds = 0

    async def go_round() -> None:
        nonlocal rounds
        while True:
            await trio.sleep(1e-4)  # each round needs the interpreter anew
            rounds += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_round)
        await trio.to_thread.run_sync(lambda: None)  # the thread is there
        before = rounds
        await trio.to_thread.run_sync(work[step])
        assert rounds - before >= 10
        nursery.cancel_scope.cancel()
