"""What comes out of the daemons under test, searched for the secrets of the tests; a leak fails the test that shows it.

Watched: what daemon processes write to standard error, what tests' own daemons log, error answers and scrapes of
`/metrics`, records of the topics for outputs, statuses and tags, our headers of dead letters, and exported spans. Not
watched, since they hold what their sender wrote: requests, and the values and foreign headers of dead letters.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import httpx

from tests.secrets import SECRETS

_LEAST_BASE64: Final = 8  # characters: anything shorter may be in any picture
_CAPTURED: Final = ("stdout", "stderr", "log")


def _forms(secret: str) -> set[bytes]:
    """As it is, as base64 wherever it begins in a longer text, as part of a URL."""
    plain = secret.encode()
    shifted = {base64.b64encode(b"\0" * shift + plain)[-(-shift * 8 // 6) :] for shift in range(3)}
    inner = {form.rstrip(b"=")[:-1] for form in shifted}  # the last character depends on what follows
    return {plain, quote(secret).encode(), *(form for form in inner if len(form) >= _LEAST_BASE64)}


_FORMS: Final = {form: secret for secret in SECRETS for form in _forms(secret)}

_found: list[str] = []


def watch(source: str, data: bytes | str | None) -> None:
    """This came out there."""
    if data:
        haystack = data if isinstance(data, bytes) else data.encode("utf-8", "replace")
        _found.extend(f"{_FORMS[form]!r} in {source}: {_around(haystack, form)}" for form in _FORMS if form in haystack)


def watch_headers(source: str, headers: Iterable[tuple[str, bytes | None]]) -> None:
    """These came out there."""
    for name, value in headers:
        watch(f"{source}, header {name}", value)


async def watch_answer(response: httpx.Response) -> None:
    """An event hook of httpx: an error or a scrape came out. Results are the algorithm's words, and are left alone."""
    if response.status_code >= 400 or response.url.path == "/metrics":
        watch(f"the answer of {response.url.path}", await response.aread())


def watch_sections(phase: str, sections: Iterable[tuple[str, str]]) -> None:
    """What pytest has captured of this phase of a test."""
    for title, text in sections:
        if title in {f"Captured {stream} {phase}" for stream in _CAPTURED}:
            watch(title, text)


def take_found() -> list[str]:
    """The leaks since the last call."""
    found = _found[:]
    _found.clear()
    return found


def _around(haystack: bytes, form: bytes) -> str:
    place = haystack.index(form)
    return haystack[max(0, place - 60) : place + len(form) + 20].decode("utf-8", "replace")
