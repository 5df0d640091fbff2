"""The words of a script: what the misbehaving S3 server can do with a request. Values only; sizes are bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operation = Literal[
    "HeadBucket",
    "PutObject",
    "GetObject",
    "HeadObject",
    "DeleteObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "ListMultipartUploads",
    "Unknown",
]
"""What a request asks for, in Amazon's words."""


@dataclass(frozen=True)
class Fine:
    """Does what is asked for."""


@dataclass(frozen=True)
class Refuse:
    """Answers this status and S3's code for it, and does nothing of what was asked for.

    `headers` are added, such as Retry-After or Location. An `early` answer is given as soon as the head has been read,
    while the client still sends; else the body is read first.
    """

    status: int = 503
    code: str = "SlowDown"
    headers: tuple[tuple[str, str], ...] = ()
    early: bool = False


@dataclass(frozen=True)
class CloseBeforeHead:
    """Closes the connection when the request begins to arrive, without reading any of it."""


@dataclass(frozen=True)
class CloseAfterHead:
    """Reads the head of the request, and closes the connection."""


@dataclass(frozen=True)
class ResetInBody:
    """Resets the connection after about so many bytes of the body."""

    after: int = 1


@dataclass(frozen=True)
class Stall:
    """Reads about so many bytes of the body, or with 0 the head alone, and then nothing, for ever.

    The client notices when the buffers between are full, thus never with a body of less than `STALL_SHOWS_BYTES`.
    """

    after: int = 0


STALL_SHOWS_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class HangBeforeAnswer:
    """Reads the whole request, and is silent until the client leaves."""


@dataclass(frozen=True)
class CloseBeforeAnswer:
    """Reads the whole request, does what it asks for if it is `done`, and closes the connection without a word."""

    done: bool = False


@dataclass(frozen=True)
class WrongETag:
    """Does what is asked for, and answers the ETag of something else."""


@dataclass(frozen=True)
class ErrorIn200:
    """Answers 200 and an error in the body, as S3 may when it has begun to answer; does nothing."""

    code: str = "InternalError"


Step = (
    Fine
    | Refuse
    | CloseBeforeHead
    | CloseAfterHead
    | ResetInBody
    | Stall
    | HangBeforeAnswer
    | CloseBeforeAnswer
    | WrongETag
    | ErrorIn200
)
