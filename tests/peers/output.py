"""Waiting for what a process under test writes."""

from __future__ import annotations

from typing import IO


def read_until(stream: IO[str] | None, mark: str) -> str:
    """What it writes up to the line with the mark; fails if it ends before."""
    assert stream is not None
    text = ""
    for line in stream:
        text += line
        if mark in line:
            return text
    raise AssertionError(f"it ended without {mark!r}: {text}")
