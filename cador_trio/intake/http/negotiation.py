"""What the headers of a request ask for: pure functions over their texts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from cador_trio.errors import RequestRefused, UnsupportedMediaType

_PLAIN = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,198}[\x21-\x7e])?")
_TRACE = re.compile(r"[\x20-\x7e]{1,1000}")  # as long as a record's may be
MAX_PAGE = 1_000


@dataclass(frozen=True)
class Preference:
    """`Prefer` of RFC 7240, as far as it concerns us. `wait` is in seconds."""

    respond_async: bool = False
    wait: float | None = None


def read_prefer(values: Sequence[str]) -> Preference:
    """The preferences in all `Prefer` headers; what we don't know or can't read is no preference (RFC 7240, 2)."""
    respond_async = False
    wait = None
    for item in ",".join(values).split(","):
        name, _, value = item.partition(";")[0].partition("=")
        match name.strip().lower():
            case "respond-async":
                respond_async = True
            case "wait" if wait is None:
                wait = _seconds(value.strip().strip('"'))
    return Preference(respond_async, wait)


def correlation_id(sent: str | None) -> str:
    """The caller's `X-Correlation-ID` if it is a short plain text, else one of ours."""
    return sent if sent is not None and _PLAIN.fullmatch(sent) else str(uuid4())


def trace_context(parents: Sequence[str], states: Sequence[str]) -> dict[str, str]:
    """The W3C trace context in all `traceparent` and `tracestate` headers of a request, which never refuses one.

    Two parents are none (Trace Context, 3.2), and what no header of ours could hold is none either.
    """
    found = {"traceparent": parents[0].strip() if len(parents) == 1 else "", "tracestate": ",".join(states).strip()}
    trace = {name: value for name, value in found.items() if _TRACE.fullmatch(value)}
    return trace if "traceparent" in trace else {}


def plain_header(name: str, value: str) -> str:
    """A header that must be a short plain text, as it is.

    Raises:
        RequestRefused: not 1 to 200 printable ASCII characters.
    """
    if not _PLAIN.fullmatch(value):
        raise RequestRefused(f"{name} must be 1 to 200 printable ASCII characters")
    return value


def check_content_type(content_type: str | None) -> None:
    """A request body is JSON.

    Raises:
        UnsupportedMediaType: it says that it is something else.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if (
        media_type
        and media_type != "application/json"
        and not re.fullmatch(r"[\w.!#$&^-]+/[\w.!#$&^-]+\+json", media_type)
    ):
        raise UnsupportedMediaType(
            f"the Content-Type {media_type[:80]} is not JSON", hint="send application/json, or no Content-Type at all"
        )


def page_number(text: str | None, name: str, default: int, *, least: int, most: int | None = None) -> int:
    """A whole number of a query string.

    Raises:
        RequestRefused: it is none, or out of its range.
    """
    if text is None:
        return default
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise RequestRefused(f"{name} must be a whole number, {bounds}")
    return number


def whole_seconds(seconds: float | None) -> str:
    """For `Retry-After`: whole seconds, at least 1."""
    return str(max(1, math.ceil(seconds or 1)))


def _seconds(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
