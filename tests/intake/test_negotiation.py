"""What the headers and the query of a request are taken to mean."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cador_trio.errors import RequestRefused, UnsupportedMediaType
from cador_trio.intake.http.negotiation import (
    Preference,
    check_content_type,
    correlation_id,
    page_number,
    plain_header,
    read_prefer,
    trace_context,
    whole_seconds,
)

PLAIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200).filter(
    lambda text: text == text.strip()
)


@pytest.mark.parametrize(
    ("values", "preference"),
    [
        ([], Preference()),
        (["respond-async"], Preference(respond_async=True)),
        (["Respond-Async"], Preference(respond_async=True)),
        (["wait=10"], Preference(wait=10)),
        (['wait="10"'], Preference(wait=10)),
        (["wait = 10"], Preference(wait=10)),
        (["wait=0"], Preference(wait=0)),
        (["respond-async, wait=10"], Preference(respond_async=True, wait=10)),
        (["respond-async", "wait=10"], Preference(respond_async=True, wait=10)),
        (["wait=10; because=x, handling=lenient"], Preference(wait=10)),
        (["wait=1, wait=2"], Preference(wait=1)),
        (["wait=-1"], Preference()),
        (["wait=1.5"], Preference()),
        (["wait=soon"], Preference()),
        (["wait=1234567890"], Preference()),
        (["return=minimal"], Preference()),
    ],
)
def test_preferences(values: list[str], preference: Preference) -> None:
    """`Prefer` is read as RFC 7240 has it, the first of two wins, and what can't be read is no preference."""
    assert read_prefer(values) == preference


@given(st.lists(st.text()))
@example([",;=,"])
def test_any_preference_is_harmless(values: list[str]) -> None:
    """No text in `Prefer` is an error."""
    read_prefer(values)


@given(PLAIN)
def test_plain_texts_are_kept(text: str) -> None:
    """A short printable ASCII text is taken as it is, as a correlation id and as a key."""
    assert correlation_id(text) == plain_header("X", text) == text


@given(st.text())
@example("")
@example("x" * 201)
@example("two\nlines")
@example("é")
def test_other_texts_are_refused_or_replaced(text: str) -> None:
    """Nothing else gets through, neither into our logs nor into a header."""
    if not (text.isascii() and text.isprintable() and text == text.strip() and 0 < len(text) <= 200):
        assert correlation_id(text) != text
        with pytest.raises(RequestRefused, match=r"^X must be"):
            plain_header("X", text)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.api+json",
        "application/geo+json",
    ],
)
def test_json_types(content_type: str | None) -> None:
    """A body is JSON if it says so, or says nothing."""
    check_content_type(content_type)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "application/jsonx"],
)
def test_other_types(content_type: str) -> None:
    """A body that says that it is something else is refused, and the hint says what to send."""
    with pytest.raises(UnsupportedMediaType, match="is not JSON") as refused:
        check_content_type(content_type)
    assert "application/json" in refused.value.hint


@given(st.integers(min_value=1, max_value=1000))
def test_page_numbers_in_range(number: int) -> None:
    """A whole number in its range is taken, leading zeros and all."""
    assert page_number(f"0{number}", "limit", 5, least=1, most=1000) == number


@pytest.mark.parametrize("text", ["0", "1001", "-1", "", " 1", "1.0", "ten", "1e2", "١", "9" * 400])
def test_page_numbers_out_of_range(text: str) -> None:
    """Everything else is refused with the bounds."""
    with pytest.raises(RequestRefused, match="limit must be a whole number, 1 to 1000"):
        page_number(text, "limit", 5, least=1, most=1000)


def test_page_number_by_default() -> None:
    """Without a number there is the default."""
    assert page_number(None, "limit", 5, least=1) == 5


@pytest.mark.parametrize(("seconds", "text"), [(None, "1"), (0, "1"), (0.2, "1"), (1.01, "2"), (30, "30")])
def test_whole_seconds(seconds: float | None, text: str) -> None:
    """`Retry-After` is rounded up, and never zero."""
    assert whole_seconds(seconds) == text


@pytest.mark.parametrize(
    ("parents", "states", "context"),
    [
        ([], [], {}),
        (["00-a-b-01"], [], {"traceparent": "00-a-b-01"}),
        ([" 00-a-b-01 "], ["v=1", "w=2"], {"traceparent": "00-a-b-01", "tracestate": "v=1,w=2"}),
        (["00-a-b-01"], [""], {"traceparent": "00-a-b-01"}),
        (["00-a-b-01"], ["v=é"], {"traceparent": "00-a-b-01"}),
        (["00-a-b-01"], ["v" * 1_001], {"traceparent": "00-a-b-01"}),
        (["00-a-b-01", "00-c-d-01"], ["v=1"], {}),
        ([], ["v=1"], {}),
        (["00-é"], ["v=1"], {}),
        (["0" * 1_001], [], {}),
        ([""], [], {}),
    ],
)
def test_trace_contexts(parents: list[str], states: list[str], context: dict[str, str]) -> None:
    """One parent and all states, as they are; what no header of ours could hold is left out, and refuses nothing."""
    assert trace_context(parents, states) == context
