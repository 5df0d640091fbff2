"""The words of a script: what the fake algorithm can send, and what else it can do with a request.

Values only: nothing here knows a socket, and bodies of any size are generated while they are sent. Sizes are bytes,
times are seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Final

import h11

Json = Any
JsonObject = dict[str, Any]

PIECE: Final = 65_536  # bytes that are generated and sent at a time
SIGNATURES: Final = {"image/png": b"\x89PNG\r\n\x1a\n", "image/tiff": b"II*\0", "image/jpeg": b"\xff\xd8\xff"}


# --- What can be sent --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pattern:
    """`size` bytes that nobody holds: one block over and over, which begins like an image of `media_type`."""

    size: int
    media_type: str = "image/png"

    def __len__(self) -> int:
        return self.size

    def blocks(self) -> Iterator[memoryview]:
        block = memoryview((SIGNATURES.get(self.media_type, b"") + bytes(range(256)) * (PIECE // 256))[:PIECE])
        return (block[: self.size - start] for start in range(0, self.size, PIECE))

    @cached_property
    def sha256(self) -> str:
        """Hex digest; a second or so for a gigabyte."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Reply:
    """One HTTP answer, true or false. The classes below are its usual forms.

    `announced` is a Content-Length that lies. After `cut_after` bytes of the body the connection is closed. `piece` and
    `every` say how many bytes go out at a time, and how many seconds later the next ones follow.
    """

    status: int = 200
    body: bytes | Pattern = b""
    media_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False
    announced: int | None = None
    cut_after: int | None = None
    piece: int = PIECE
    every: float = 0.0

    @cached_property
    def head(self) -> h11.Response:
        headers = [("Content-Type", self.media_type), *self.headers] if len(self.body) else [*self.headers]
        if not self.chunked and self.status != 204:
            length = len(self.body) if self.announced is None else self.announced
            headers.append(("Content-Length", str(length)))
        return h11.Response(status_code=self.status, headers=headers)

    @cached_property
    def is_whole(self) -> bool:
        """The peer gets what was announced, so the connection can be used again."""
        return self.announced is None and self.cut_after is None

    def pieces(self) -> Iterator[memoryview]:
        """The body as it is sent, cut where it is cut."""
        blocks: Iterable[memoryview] = self.body.blocks() if isinstance(self.body, Pattern) else [memoryview(self.body)]
        left = len(self.body) if self.cut_after is None else self.cut_after
        for block in blocks:
            for start in range(0, min(len(block), left), self.piece):
                yield block[start : min(start + self.piece, left)]
            left = max(0, left - len(block))


class Answer(Reply):
    """The JSON value: an object of outputs, a FeatureCollection (`application/geo+json`), an array, a number …"""

    def __init__(self, value: Json, *, media_type: str = "application/json", chunked: bool = False) -> None:
        super().__init__(body=json.dumps(value).encode(), media_type=media_type, chunked=chunked)


class AnswerText(Reply):
    """The text as it is."""

    def __init__(self, text: str, *, media_type: str = "text/plain; charset=utf-8") -> None:
        super().__init__(body=text.encode(), media_type=media_type)


class AnswerImage(Reply):
    """A bare image of `size` bytes; `Pattern(size, media_type).sha256` is its digest."""

    def __init__(self, size: int, media_type: str = "image/png", *, chunked: bool = False) -> None:
        super().__init__(body=Pattern(size, media_type), media_type=media_type, chunked=chunked)


class Status(Reply):
    """Any status code, with a JSON or a text body or neither, and `Retry-After` as given."""

    def __init__(self, code: int, value: Json = None, *, text: str = "", retry_after: int | str | None = None) -> None:
        body = text.encode() if value is None else json.dumps(value).encode()
        media_type = "text/plain; charset=utf-8" if value is None else "application/json"
        headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
        super().__init__(status=code, body=body, media_type=media_type, headers=headers)


class Html(Reply):
    """The page of some proxy, where data was expected."""

    def __init__(self, code: int = 200) -> None:
        page = b"<!DOCTYPE html><html><body><h1>Not the page you are looking for</h1></body></html>"
        super().__init__(status=code, body=page, media_type="text/html; charset=utf-8")


class _Changed(Reply):
    """Another reply with some fields changed."""

    def __init__(self, reply: Reply, **changes: Any) -> None:
        super().__init__(**{one.name: getattr(reply, one.name) for one in fields(reply)} | changes)


class CloseMidAnswer(_Changed):
    """The reply, but after so many bytes of its body the connection is closed."""

    def __init__(self, after: int, reply: Reply) -> None:
        super().__init__(reply, cut_after=after)


class WrongLength(_Changed):
    """The reply under a Content-Length that is too large or too small; closed when all its bytes are sent."""

    def __init__(self, announced: int, reply: Reply) -> None:
        super().__init__(reply, announced=announced)


class SlowTrickle(_Changed):
    """The reply in pieces of so many bytes, one every so many seconds."""

    def __init__(self, reply: Reply, *, piece: int = 1, every: float = 0.05) -> None:
        super().__init__(reply, piece=piece, every=every)


# --- What else can happen ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hold:
    """Works until it is released, then does the next thing. A client that leaves does not stop the work."""

    then: Behaviour


@dataclass(frozen=True)
class Hang:
    """Works for ever."""


@dataclass(frozen=True)
class CloseBeforeAnswer:
    """Closes the connection without a word."""


@dataclass(frozen=True)
class Stateful:
    """Opens a job and answers its Reference, with this code, in a `Location` header instead of a body if asked.

    `states` are given out one a poll, the last one for ever: a state's word, a whole status document or a reply. PESTO
    spells SUCCEEDED as DONE. `outputs` are met at the result links; a sequence is a list of images. `index` replaces
    the answer at the results link.
    """

    outputs: Mapping[str, Behaviour | Sequence[Behaviour]] = field(default_factory=dict)
    states: Sequence[str | JsonObject | Reply] = ("SUCCEEDED",)
    code: int = 200
    by_location: bool = False
    index: Reply | None = None


Behaviour = Reply | Hold | Hang | CloseBeforeAnswer | Stateful


@dataclass(frozen=True)
class SeenRequest:
    """A request as it came in. `body` is empty if it was too large to be kept; `size` is always right."""

    method: str
    path: str
    raw_headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    size: int

    @cached_property
    def headers(self) -> dict[str, str]:
        """By lower-case name."""
        return {name.decode(): value.decode() for name, value in self.raw_headers}

    def json(self) -> Json:
        return json.loads(self.body)


# A script may also choose by looking at the request: jobs that run side by side arrive in any order.
Step = Behaviour | Callable[[SeenRequest], Behaviour]
