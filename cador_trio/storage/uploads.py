"""One try at storing a body in a bucket, and the proof that it arrived.

Blocking calls on a driver, for worker threads that trio has started; who tries again, and when, is `buckets.py`. No
upload counts as a success before the store has shown that it has the very bytes: by answering our checksum with the
same, by an ETag that is their MD5, or, where it can do neither, by giving them back.
"""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import trio

from cador_trio.job import Body, Image
from cador_trio.storage.failures import Garbled, S3Refused
from cador_trio.storage.outgoing import CHUNK_BYTES, Outgoing
from cador_trio.storage.s3 import PAYLOAD_SHA256, Headers, S3Driver

_CHECKSUM: Final = "x-amz-checksum-sha256"
_MEDIA_TYPE: Final = re.compile(r"[!-~]+/[ -~]+")


@dataclass(frozen=True, slots=True)
class Target:
    """An object to be: its place, its bytes, its media type."""

    bucket: str
    key: str
    body: Body
    media_type: str

    @classmethod
    def of(cls, bucket: str, key: str, image: Image) -> Target:
        """The object of an image."""
        return cls(bucket, key, image.body, _media_type(image.media_type))


@dataclass(frozen=True, slots=True)
class PartSent:
    """A part that the store has. `sha256` is the state after it, of the body as a whole."""

    etag: str
    sha256: hashlib._Hash
    is_verified: bool


def _media_type(text: str) -> str:
    """A media type that can be signed and sent as it is: the algorithm may say anything here."""
    text = " ".join(text.split())
    return text if _MEDIA_TYPE.fullmatch(text) else "application/octet-stream"


# --- In one piece ------------------------------------------------------------------------------------------------


def put_whole(driver: S3Driver, target: Target) -> None:
    """Store an object in one request, and verify it. Raises Garbled if it is stored with other bytes."""
    try:
        _put_whole(driver, target)
    except S3Refused as refused:
        if refused.status != HTTPStatus.NOT_IMPLEMENTED or not driver.takes_sha256:
            raise
        driver.takes_sha256 = driver.echoes_sha256 = False  # there are stores that refuse what they don't know
        _put_whole(driver, target)


def _put_whole(driver: S3Driver, target: Target) -> None:
    checksum = base64.b64encode(bytes.fromhex(target.body.sha256)).decode()
    headers = {"Content-Type": target.media_type, "Content-Length": str(target.body.size)}
    # One of the two, so that the store itself refuses bytes that were lost or changed: without, there are servers that
    # keep what came before a connection broke.
    if driver.takes_sha256:
        headers[_CHECKSUM] = checksum
    else:
        headers[PAYLOAD_SHA256] = target.body.sha256
    # MD5 takes longer than everything else together: not for a store that is known to answer the checksum.
    with Outgoing(target.body, md5=not driver.echoes_sha256) as outgoing:
        answer = driver.put(target.bucket, target.key, outgoing, headers)
        md5 = outgoing.md5
    driver.echoes_sha256 = driver.takes_sha256 and answer.get(_CHECKSUM) == checksum
    if driver.echoes_sha256:
        return
    if not _has_md5(answer, md5 or _md5_of(target.body)):
        compare(driver, target, answer.get("etag"))


def _has_md5(answer: Headers, md5: str) -> bool:
    google = f"md5={base64.b64encode(bytes.fromhex(md5)).decode()}"
    return answer.get("etag", "").strip('"') == md5 or google in answer.get("x-goog-hash", "")


def _md5_of(body: Body) -> str:
    with Outgoing(body, md5=True) as again:
        while again.read(CHUNK_BYTES):
            pass
        return again.md5 or ""


def compare(driver: S3Driver, target: Target, etag: str | None = None) -> None:
    """Read an object back and compare it with its body.

    Raises Garbled if it is another. One with the `etag` that our upload was answered is ours, and is removed then;
    else somebody may have written it after us.
    """
    stored = hashlib.sha256()
    headers, blocks = driver.get(target.bucket, target.key)
    for block in blocks:
        trio.from_thread.check_cancelled()
        stored.update(block)
    if stored.hexdigest() != target.body.sha256:
        if etag is not None and headers.get("etag") == etag:
            with suppress(S3Refused):
                driver.delete(target.bucket, target.key)
        raise Garbled("the store has other bytes than were sent")


# --- In parts ----------------------------------------------------------------------------------------------------


def begin(driver: S3Driver, target: Target) -> str:
    """Begin an upload in parts; its id."""
    return driver.begin_upload(target.bucket, target.key, {"Content-Type": target.media_type})


def put_part(driver: S3Driver, target: Target, upload: str, number: int, part: Outgoing) -> PartSent:
    """Send a part, numbered from 1. Raises Garbled if the store has other bytes."""
    with part:
        answer = driver.put_part(target.bucket, target.key, upload, number, part)
    etag = answer.get("etag", "")
    return PartSent(etag, part.sha256, _has_md5(answer, part.md5 or ""))


def complete(driver: S3Driver, target: Target, upload: str, parts: list[PartSent]) -> bool:
    """Make the parts an object, and verify what its parts have not proved yet; False if it must be sent once more."""
    etag = None
    try:
        etag = driver.complete_upload(target.bucket, target.key, upload, [part.etag for part in parts])
    except S3Refused as refused:
        if (
            refused.code == "InvalidPart"
        ):  # a try that was broken off came in late, and took the place of the whole part
            driver.abort_upload(target.bucket, target.key, upload)
            return False
        # The answer to an earlier try may have got lost: then the upload is gone because it is done.
        if refused.code != "NoSuchUpload":
            raise
    else:
        if all(part.is_verified for part in parts):
            return True
    try:
        compare(driver, target, etag)
    except (Garbled, S3Refused):
        return False
    return True


def abort(driver: S3Driver, target: Target, upload: str) -> None:
    """Drop an upload with its parts. Raises Garbled if it is still there: a part was on its way, try again."""
    driver.abort_upload(target.bucket, target.key, upload)
    try:
        is_there = upload in driver.uploads_of(target.bucket, target.key)
    except S3Refused:  # not every key may list
        return
    if is_there:
        raise Garbled("an upload is still there after it was aborted")


def abort_others(driver: S3Driver, target: Target, upload: str | None) -> None:
    """Drop every upload of this very object but ours: a beginning whose answer was lost has left one."""
    for other in driver.uploads_of(target.bucket, target.key):
        if other != upload:
            driver.abort_upload(target.bucket, target.key, other)
