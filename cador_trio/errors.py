"""The error tree: who must act, which HTTP status says so, and whether trying again can help.

Only errors live here, and nothing that raises them. Every exception of an edge library (httpx, libcloud, quart …) is
mapped to one of these in the one module that imports that library; above it, nobody sees a foreign exception.

Messages are plain text in the terms of the field. They travel to callers, status messages and logs, so they never hold
a secret, and `public_text` cuts and redacts what neighbours said before it gets in here.
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

MAX_ERROR_TEXT = 2_000  # characters of an error text that leave the process (wire contract, 3.3)

# From the scheme to the last @ of the authority: a password may hold one itself.
_URL_USER_INFO = re.compile(r"://[^/\s\"'<>]*@")
# `name=value` anywhere, and `"name": "value"`, in a JSON text inside a JSON text too; prose such as "token: can't be
# read" is none. A value with another one behind its colon was a name itself, as in `secret= "token": "value"`.
# Possessive, so that a long word is looked at once.
_VALUE = r"""(?:"(?:\\.|[^"\\])*+"? | '(?:\\.|[^'\\])*+'? | \\+["'][^"']*+(?:["'])? | [^\s"'&,;}\]\\]++)"""
_SECRET_PAIR = re.compile(
    rf"""(?ix)
    (?<![\w-]) (?=[\w-]*?(?:secret|password|passwd|token|signature|credential|key|sig(?!n))) (?P<name>[\w-]++ \\*["']?)
    (?P<sep>\s*=\s* | \s*:\s*(?=\\*["']))
    (?! (?:true|false) (?:[\s,;]|\.?$) )  # a switch's name may sound like a secret's
    {_VALUE} (?: \s*+ [:=] \s*+ {_VALUE} )*+
    """
)
# Of a field whose value stands alone: `key` at the end only, since `key_of_object` is none.
_SECRET_NAME = re.compile(r"(?i)secret|passw|token|signature|credential|authorization|key(?:id)?$")
_BEARER = re.compile(r"(?i)\b(?P<scheme>bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}")


def public_text(text: str) -> str:
    """The text as it may leave the process: one line, credentials cut out, at most `MAX_ERROR_TEXT` characters."""
    if len(text) > 4 * MAX_ERROR_TEXT:  # a neighbour's megabytes are not worth scanning
        text = _without_half_url(text[: 4 * MAX_ERROR_TEXT])
    # Every value of every log line comes through here: each pattern runs only where it could match.
    if "@" in text:
        text = _URL_USER_INFO.sub("://***@", text)
    if " " in text or not text.isprintable():
        text = _BEARER.sub(r"\g<scheme> ***", text)
    if "=" in text or ":" in text:
        text = _SECRET_PAIR.sub(r"\g<name>\g<sep>***", text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_ERROR_TEXT else text[: MAX_ERROR_TEXT - 1] + "…"


def is_secret_name(name: str) -> bool:
    """Does a field of this name hold a credential? So that its value need not look like one."""
    return _SECRET_NAME.search(name) is not None


def _without_half_url(text: str) -> str:
    """A URL that was cut before its @ does not show that it holds a password."""
    start = text.rfind("://")
    return text if start < 0 or any(map(str.isspace, text[start:])) else text[:start]


class CadorError(Exception):
    """Something went wrong that somebody can act on.

    Attributes:
        http_status: what a REST caller is answered.
        spends_attempt: a retry may cure it, and each try counts against `CADOR_MAX_ATTEMPTS`.
        waits: it is not the job's fault and costs it nothing: wait and ask again.
        hint: what to change, in one sentence.
        retry_after: seconds until trying again makes sense, if anyone knows.
    """

    http_status: ClassVar[int] = 500
    spends_attempt: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        self.message = public_text(message)
        self.hint = public_text(hint)
        self.retry_after = retry_after
        super().__init__(self.message)

    def again(self) -> Self:
        """The same error, to be kept or to be raised once more: without the traceback and all that its frames hold."""
        fresh = type(self).__new__(type(self), *self.args)
        fresh.__dict__.update(self.__dict__)
        return fresh


def unexpected_error() -> CadorError:
    """What the world is told of a defect of ours; who raised it writes the details into the log."""
    return CadorError("unexpected error in the sidecar", hint="its log has the details")


class SettingsError(CadorError):
    """The operator must act: the daemon can't start with these settings. One text a finding."""

    def __init__(self, findings: list[str]) -> None:
        self.findings = [public_text(finding) for finding in findings]
        super().__init__("; ".join(self.findings))


# --- The caller must act -----------------------------------------------------------------------------------------


class RequestRefused(CadorError):
    """The request is wrong: not JSON, not the envelope, not what the algorithm takes, not an allowed destination."""

    http_status = 400


class NotAuthenticated(CadorError):
    """The bearer token is missing or wrong."""

    http_status = 401


class NotFound(CadorError):
    """No such path, job or result here (any more)."""

    http_status = 404


class MethodNotAllowed(CadorError):
    """The path exists, the method doesn't."""

    http_status = 405

    def __init__(self, message: str, *, allow: tuple[str, ...], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.allow = allow


class RequestTimedOut(CadorError):
    """The request body stopped coming."""

    http_status = 408


class Conflict(CadorError):
    """The job's state forbids it, such as a cancellation past the point of no return."""

    http_status = 409


class BodyTooLarge(CadorError):
    """The request body is over `CADOR_MAX_BODY_BYTES`."""

    http_status = 413


class UnsupportedMediaType(CadorError):
    """The Content-Type of the request is not JSON."""

    http_status = 415


class NotNow(CadorError):
    """No capacity: all slots and waiting places are taken, the spool is full, or the daemon is draining."""

    http_status = 503


class DeliveredTooOften(CadorError):
    """A request that began `CADOR_MAX_DELIVERIES` times, and each time the process that ran it died."""

    http_status = 500


# --- The algorithm -----------------------------------------------------------------------------------------------


class AlgorithmRefused(CadorError):
    """The algorithm says that the request is wrong (its own 4xx)."""

    http_status = 400


class AlgorithmFailed(CadorError):
    """The algorithm says that it failed (500, status FAILED or CANCELLED); its message is passed on."""

    http_status = 500


class AlgorithmBroken(CadorError):
    """The algorithm's answer makes no sense: HTML, not decodable, a link outside, the wrong length, too large."""

    http_status = 502


class AlgorithmDied(CadorError):
    """The connection broke, or a gateway said 502/504, after the request was sent: the work may be lost."""

    http_status = 502
    spends_attempt = True


class AlgorithmBusy(CadorError):
    """429 or 503: the algorithm works on something else."""

    http_status = 503
    waits = True


class AlgorithmUnreachable(CadorError):
    """Nobody listens at `PROCESSING_SERVER`: starting, restarting, or wrongly addressed."""

    http_status = 503
    waits = True


# --- The job -----------------------------------------------------------------------------------------------------


class DeadlinePassed(CadorError):
    """The algorithm stage took longer than `CADOR_JOB_TIMEOUT_SECONDS`."""

    http_status = 504


class ResultTooLarge(CadorError):
    """An answer, a result or a base64 image is over its limit; the message holds both sizes in bytes."""

    http_status = 502


class ResultRefused(CadorError):
    """The algorithm's result can't be made into products: a position that can't be converted, a reserved name."""

    http_status = 502


class SpoolFull(NotNow):
    """No room left in the spool: its byte budget, or the disk under it."""


class StoreFailed(CadorError):
    """The store is down, refuses us, or is misconfigured."""

    http_status = 502


class StoreTimedOut(StoreFailed):
    """The store step took longer than `CADOR_STORE_TIMEOUT_SECONDS`."""


# --- Kafka -------------------------------------------------------------------------------------------------------


class KafkaUnavailable(CadorError):
    """No broker answers, or it refuses us; or a topic that is needed does not exist."""

    http_status = 503
    waits = True


class InstanceFenced(CadorError):
    """Another instance uses our `CADOR_INSTANCE_ID`: it has taken over our transactions."""
