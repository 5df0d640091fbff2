"""The S3 operations that storing objects needs, on objects in memory: no socket, no signature, no misbehaviour.

Addresses are of the path style, `/bucket/key`, and every bucket exists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from .misbehaviour import Operation

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass
class SeenRequest:
    """A request as it comes in; it grows while its body arrives.

    Attributes:
        headers: by lower-case name.
        body: what has arrived of it.
        whole: nothing is missing.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray, repr=False)
    whole: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        bucket, _, key = parts.path.removeprefix("/").partition("/")
        self.bucket, self.key = unquote(bucket), unquote(key)
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}

    @property
    def operation(self) -> Operation:
        """What it asks for."""
        if not self.key:
            return _OF_BUCKETS.get((self.method, *self.query.keys() & {"uploads"}), "Unknown")
        return _OF_OBJECTS.get((self.method, *self.query.keys() & {"uploads", "uploadId"}), "Unknown")


_OF_BUCKETS: Final[dict[tuple[str, ...], Operation]] = {
    ("HEAD",): "HeadBucket",
    ("GET", "uploads"): "ListMultipartUploads",
}
_OF_OBJECTS: Final[dict[tuple[str, ...], Operation]] = {
    ("PUT",): "PutObject",
    ("GET",): "GetObject",
    ("HEAD",): "HeadObject",
    ("DELETE",): "DeleteObject",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "uploadId"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass
class Upload:
    """An upload in parts that is pending."""

    bucket: str
    key: str
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryS3:
    """Buckets and what is in them.

    Attributes:
        objects: what can be read, by (bucket, key).
        uploads: what is pending, by upload id.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.uploads: dict[str, Upload] = {}
        self._begun = 0

    def perform(self, request: SeenRequest) -> Reply:
        """Do what a whole request asks for."""
        match request.operation:
            case "HeadBucket":
                return Reply(200)
            case "PutObject" | "GetObject" | "HeadObject" | "DeleteObject":
                return self._object(request)
            case "Unknown":
                return error(501, "NotImplemented")
            case _:
                return self._multipart(request)

    def _object(self, request: SeenRequest) -> Reply:
        place = request.bucket, request.key
        if request.operation == "PutObject":
            self.objects[place] = bytes(request.body)
            return Reply(200, _etag(request.body))
        if request.operation == "DeleteObject":
            self.objects.pop(place, None)
            return Reply(204)
        if place not in self.objects:
            return error(404, "NoSuchKey")
        return Reply(200, _etag(self.objects[place]), self.objects[place])

    def _multipart(self, request: SeenRequest) -> Reply:
        if request.operation == "CreateMultipartUpload":
            self._begun += 1
            upload_id = f"upload-{self._begun}"
            self.uploads[upload_id] = Upload(request.bucket, request.key)
            return _xml("InitiateMultipartUploadResult", _text("UploadId", upload_id))
        if request.operation == "ListMultipartUploads":
            return _xml("ListMultipartUploadsResult", *self._pending(request.bucket, request.query.get("prefix", "")))
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None:
            return error(404, "NoSuchUpload")
        if request.operation == "UploadPart":
            upload.parts[int(request.query["partNumber"])] = bytes(request.body)
            return Reply(200, _etag(request.body))
        del self.uploads[request.query["uploadId"]]
        if request.operation == "AbortMultipartUpload":
            return Reply(204)
        return self._complete(upload, request)

    def _pending(self, bucket: str, prefix: str) -> Iterator[str]:
        for upload_id, upload in self.uploads.items():
            if upload.bucket == bucket and upload.key.startswith(prefix):
                yield f"<Upload>{_text('Key', upload.key)}{_text('UploadId', upload_id)}</Upload>"

    def _complete(self, upload: Upload, request: SeenRequest) -> Reply:
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", request.body)]
        parts = [upload.parts[number] for number in numbers]
        self.objects[upload.bucket, upload.key] = b"".join(parts)
        digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
        return _xml("CompleteMultipartUploadResult", _text("ETag", f'"{digest}-{len(parts)}"'))


def error(status: int, code: str, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """S3's way to say no; unlike its other documents without a namespace."""
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>As told.</Message></Error>"
    return Reply(status, (("Content-Type", "application/xml"), *headers), text.encode())


def _etag(content: bytes | bytearray) -> tuple[tuple[str, str], ...]:
    return (("ETag", f'"{hashlib.md5(content).hexdigest()}"'),)


def _text(tag: str, value: str) -> str:
    return f"<{tag}>{escape(value)}</{tag}>"


def _xml(name: str, *elements: str) -> Reply:
    text = f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="{_NAMESPACE}">{"".join(elements)}</{name}>'
    return Reply(200, (("Content-Type", "application/xml"),), text.encode())
