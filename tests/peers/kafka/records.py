"""What the clients of the tests give back: the records of a topic, and what a group has committed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple


@dataclass(frozen=True)
class TestRecord:
    """A record as it is in its topic."""

    __test__: ClassVar[bool] = False  # pytest would take the name for a test

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp: int
    """Milliseconds since 1970."""

    def header(self, name: str) -> bytes | None:
        """The value of the last header of that name; None if there is none."""
        return next((value for other, value in reversed(self.headers) if other == name), None)


class Committed(NamedTuple):
    """What a group has committed for one partition."""

    offset: int
    metadata: str
