"""Who we are at an object store: the values, and where a profile's values are read from.

Nothing here shows a value: not in `repr`, not in an error. Reading files blocks for as long as a small local file
takes; done in worker threads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from cador_trio.errors import StoreFailed

_SHORTEST_CUT: Final = 4  # letters; a shorter key is no secret, and cutting it out would cut up every text


@dataclass(frozen=True, slots=True)
class Credentials:
    """Key id, secret and session token ("" for none). Its own source: `read` gives itself."""

    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)

    def read(self) -> Credentials:
        """See `CredentialSource`."""
        return self

    def cut_out_of(self, text: str) -> str:
        """A text of the store's without these values."""
        for value in sorted((self.key, self.secret, self.token), key=len, reverse=True):
            if len(value) >= _SHORTEST_CUT:
                text = text.replace(value, "***")
        return text


class CredentialSource(Protocol):
    """Where credentials come from."""

    def read(self) -> Credentials:
        """The values of now. Raises StoreFailed where they can't be read."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value that a profile spells out."""

    text: str = field(repr=False)

    def read(self) -> str:
        """The value."""
        return self.text


@dataclass(slots=True)
class SecretFile:
    """A value in a file, read again whenever the file has changed. White space around it is no part of it."""

    path: Path
    _kept: tuple[tuple[int, int, int], str] | None = field(
        default=None, repr=False
    )  # how the file was, and what it said

    def read(self) -> str:
        """The value of now. Raises OSError, and ValueError if it is empty or no text."""
        status = self.path.stat()
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        kept = self._kept
        if kept is None or kept[0] != seen:
            text = self.path.read_text(encoding="utf-8").strip()
            if not text or not text.isprintable():
                raise ValueError("is empty or not one line of text")
            self._kept = kept = (seen, text)  # in one step: threads read it
        return kept[1]


@dataclass(frozen=True, slots=True)
class Variable:
    """A value in an environment variable."""

    name: str

    def read(self) -> str:
        """The value of now. Raises ValueError if it is not set."""
        text = os.environ.get(self.name, "").strip()
        if not text:
            raise ValueError(f"the variable {self.name} is not set")
        return text


Source = Value | SecretFile | Variable


@dataclass(frozen=True, slots=True)
class ProfileCredentials:
    """A profile's credentials: sources of `key`, `secret` and perhaps `token`, by those names."""

    profile: str
    sources: Mapping[str, Source]

    def read(self) -> Credentials:
        """See `CredentialSource`."""
        return Credentials(*(self._value(name) for name in ("key", "secret", "token")))

    def _value(self, name: str) -> str:
        if name not in self.sources:
            return ""
        try:
            return self.sources[name].read()
        except (OSError, ValueError) as error:
            raise StoreFailed(
                f"storage profile {self.profile}: its {name} can't be read: {reason(error)}",
                hint="Look at CADOR_STORAGE_PROFILES and the files that it names.",
            ) from error


def reason(error: OSError | ValueError) -> str:
    """Why a file can't be read, in words that quote nothing of it."""
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    return (error.strerror or "unreadable") if isinstance(error, OSError) else str(error)
