"""What went wrong at an object store: in plain words, with who must act, and whether trying again can cure it.

Pure: it reads errors and raises none. The store's own words are quoted without credentials, and never a URL: it may
hold a signature.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from html import unescape
from typing import Final

from cador_trio.errors import CadorError, StoreFailed
from cador_trio.storage.credentials import Credentials
from cador_trio.storage.endpoints import Endpoint


class Garbled(Exception):
    """What the store has is not what it was sent."""


class TlsFailed(OSError):
    """TLS could not be begun or kept up, for the `reason`. libcloud makes another error of every ssl.SSLError."""

    def __init__(self, reason: ssl.SSLError) -> None:
        super().__init__(*reason.args)
        self.reason = reason


class S3Refused(Exception):
    """The store's answer is an error.

    Attributes:
        status: the HTTP status.
        code, message: of its XML; "" where it has none (HEAD, proxies).
        region: the region that the store would like in the signature, if it says so.
        retry_after: seconds, if it says so.
    """

    def __init__(self, status: int, document: str, headers: Mapping[str, str]) -> None:
        self.status = status
        self.code = text_in(document, "Code")
        self.message = text_in(document, "Message")
        self.region = text_in(document, "Region") or headers.get("x-amz-bucket-region", "")
        after = headers.get("retry-after", "")
        self.retry_after = float(after) if after.isdecimal() and len(after) < 10 else None
        super().__init__(f"{status} {self.code}")


def text_in(document: str, element: str) -> str:
    """The text of an element, whatever its namespace. Enough for these small documents, and no parser to attack."""
    found = re.search(rf"<(?:\w+:)?{element}(?: [^>]*)?>([^<]*)<", document)
    return unescape(found[1]).strip() if found else ""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A try that failed: what to say if it was the last, whether another may help, and how long to wait at least."""

    failure: CadorError
    is_curable: bool
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Whom we talked to, and about what."""

    endpoint: Endpoint
    bucket: str
    region: str
    credentials: Credentials


_CURABLE_STATUS: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
# Codes that come with a 400: the bytes were lost or garbled on their way.
_CURABLE_CODES: Final = frozenset(
    {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
    | {"SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted"}
)
# These come with a curable status, and are not.
_INCURABLE_CODES: Final = frozenset(
    {"BucketAlreadyExists", "BucketAlreadyOwnedByYou", "InvalidBucketState", "ObjectLocked", "QuotaExceeded"}
)

_KEY_HINT: Final = "Is it the right key for this store?"
_WORDS: Final = {
    "NoSuchBucket": ("there is no bucket {bucket}", "Create it: cador-trio never does."),
    "InvalidAccessKeyId": ("the store does not know the access key", _KEY_HINT),
    "XAdminUserNotFound": ("the store does not know the access key", _KEY_HINT),
    "SignatureDoesNotMatch": (
        "the secret does not belong to the access key",
        "If it does: a proxy between may change requests, such as by cutting a prefix off the path.",
    ),
    "AccessDenied": (
        "the access key may not do that in bucket {bucket}",
        "Look at the policies of the key and of the bucket: storing needs to put, multipart uploads and delete.",
    ),
    "RequestTimeTooSkewed": ("the clocks of this machine and the store differ too much", "Set this machine's clock."),
    "RequestExpired": ("the clocks of this machine and the store differ too much", "Set this machine's clock."),
    "ExpiredToken": ("the session token has expired", "Give a new one; a profile reads its tokenFile again."),
    "InvalidToken": ("the session token is wrong", "Does it belong to the access key?"),
    "InvalidBucketName": ("{bucket} can't be the name of a bucket", "S3 wants 3 to 63 small letters, digits or '.-'."),
    "EntityTooLarge": ("the object is larger than the store takes", ""),
    "KeyTooLongError": ("the object's name is too long for the store", "Use a shorter folder or task id."),
    "QuotaExceeded": ("the quota of the bucket is used up", "Make room, or raise the quota."),
    "XMinioStorageFull": ("the store is full", "Make room."),
    "SlowDown": ("the store asks to slow down", ""),
    "BadDigest": ("the store got other bytes than were sent", "Something between changes them."),
}
_REGION_CODES: Final = frozenset(
    {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"}
)


def wants_other_region(refused: S3Refused, region: str) -> bool:
    """Whether the refusal is about the region in the signature, and names the right one."""
    about_region = refused.code in _REGION_CODES or refused.status in {301, 307, 400}
    return about_region and bool(refused.region) and refused.region != region


def explain(error: Exception, place: Place) -> Trouble:  # noqa: PLR0911 - a table, in the order of the tree of errors
    """A failed try, in plain words. A CadorError (the spool's, a refused address) is what it is."""
    match error:
        case CadorError():
            return Trouble(error, is_curable=False)
        case S3Refused():
            return _refused(error, place)
        case Garbled():
            return Trouble(_failure(place, str(error), "Something between here and the store changes bytes."), True)
        case TlsFailed():
            return _tls(error.reason, place)
        case socket.gaierror():
            return _no_name(error, place)
        case TimeoutError():
            return Trouble(_failure(place, "the store does not answer", "Is it up, and reachable from here?"), True)
        case ConnectionRefusedError():
            return Trouble(_failure(place, "nobody listens there", "Is the store up, and the port right?"), True)
        case OSError() | http.client.HTTPException():
            words = getattr(error, "strerror", None) or type(error).__name__
            return Trouble(_failure(place, f"the connection broke: {words}", ""), True)
        case _:
            raise error


def _refused(refused: S3Refused, place: Place) -> Trouble:
    curable = refused.status in _CURABLE_STATUS or refused.code in _CURABLE_CODES
    curable = curable and refused.code not in _INCURABLE_CODES
    if refused.code in _REGION_CODES or wants_other_region(refused, place.region):
        hint = f"The store says {refused.region}." if refused.region else "Give the bucket's region."
        return Trouble(_failure(place, f"{place.region} is the wrong region for bucket {place.bucket}", hint), False)
    code = refused.code or {403: "AccessDenied", 404: "NoSuchBucket"}.get(refused.status, "")
    if code in _WORDS:
        words, hint = _WORDS[code]
        failure = _failure(place, words.format(bucket=place.bucket), hint)
    else:
        said = " ".join(filter(None, (str(refused.status), refused.code, refused.message)))
        failure = _failure(place, f"the store says: {place.credentials.cut_out_of(said)}", "")
    return Trouble(failure, curable, refused.retry_after or 0.0)


def _tls(error: ssl.SSLError, place: Place) -> Trouble:
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "CADOR_STORAGE_CA, or the profile's caFile, names the CA to trust."
        return Trouble(_failure(place, f"its certificate is not trusted: {error.verify_message}", hint), False)
    if error.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}:
        return Trouble(_failure(place, "it does not speak TLS", "Is it http, or another port?"), False)
    return Trouble(_failure(place, f"TLS fails: {error.reason or 'the connection broke'}", ""), True)


def _no_name(error: socket.gaierror, place: Place) -> Trouble:
    is_curable = error.errno in {socket.EAI_AGAIN, socket.EAI_FAIL}
    words = "its name can't be resolved now" if is_curable else "no host has this name"
    return Trouble(_failure(place, words, "Is the host spelled right?"), is_curable)


def _failure(place: Place, words: str, hint: str) -> StoreFailed:
    return StoreFailed(f"can't store at {place.endpoint.address}: {words}", hint=hint)
