"""libcloud's S3 driver, made safe: the requests that we need, and what an answer says.

Every private name of apache-libcloud 3.9.1 that is overridden or relied on is in this module, with the reason, and
tests/storage/test_s3_driver.py holds each. Blocking; for one thread at a time. No retries, no policy.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from http import HTTPStatus
from http.client import HTTPResponse
from typing import Any, Final
from urllib.parse import quote

from libcloud.common.aws import UNSIGNED_PAYLOAD, AWSRequestSignerAlgorithmV4
from libcloud.storage.drivers.s3 import S3SignatureV4Connection, S3StorageDriver

from cador_trio.storage.credentials import Credentials
from cador_trio.storage.endpoints import Endpoint
from cador_trio.storage.failures import S3Refused, text_in
from cador_trio.storage.wire import BLOCK_BYTES, Source, Wire

DEFAULT_REGION: Final = "us-east-1"
_MAX_DOCUMENT_BYTES: Final = 1024 * 1024  # of an XML answer; errors are under 10 kB, a page of uploads under 1 MB
PAYLOAD_SHA256: Final = "X-AMZ-Content-SHA256"
_NO_PAYLOAD: Final = hashlib.sha256(b"").hexdigest()
_UNSIGNED: Final = ("User-Agent", "Accept-Encoding")

Headers = Mapping[str, str]


class S3Answer:
    """What libcloud makes of a response: the status checked, the body left to who asked. Its `rawResponseCls`."""

    def __init__(self, connection: Any, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers: Headers = {name.lower(): value for name, value in response.getheaders()}
        if not HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES:
            wire: Wire = connection.connection
            document = wire.read(_MAX_DOCUMENT_BYTES).decode(errors="replace")
            wire.finish()
            raise S3Refused(self.status, document, self.headers)


class _Signer(AWSRequestSignerAlgorithmV4):  # type: ignore[misc] # libcloud publishes no types
    """The V4 signature. The caller gives the hash of a body that it knows; others are sent as unsigned payload.

    libcloud's own asks the clock in a manner that Python has deprecated, hashes whole bodies that aren't iterators,
    and derives the day's key for each request.
    """

    _day = ""
    _day_key = b""
    _payload = ""

    def get_request_headers(
        self, params: Any, headers: dict[str, str], method: str = "GET", path: str = "/", data: Any = None
    ) -> tuple[Any, dict[str, str]]:
        now = datetime.now(UTC)
        headers["X-AMZ-Date"] = now.strftime("%Y%m%dT%H%M%SZ")
        self._payload = headers.get(PAYLOAD_SHA256) or (_NO_PAYLOAD if data is None else UNSIGNED_PAYLOAD)
        headers[PAYLOAD_SHA256] = self._payload
        headers["Authorization"] = self._get_authorization_v4_header(
            params=params, headers=headers, dt=now, method=method, path=path, data=data
        )
        return params, headers

    def _get_payload_hash(self, method: str, data: Any = None) -> str:  # noqa: ARG002 - libcloud's signature
        return self._payload

    def _get_key_to_sign_with(self, dt: datetime) -> bytes:
        day = f"{dt:%Y%m%d}/{self.connection.driver.region_name}"
        if day != self._day:
            self._day_key = super()._get_key_to_sign_with(dt)
            self._day = day
        return self._day_key


class _Connection(S3SignatureV4Connection):  # type: ignore[misc]
    """libcloud's side of a connection, over a `Wire`."""

    rawResponseCls = S3Answer  # noqa: N815 - libcloud's name

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.signer = _Signer(access_key=self.user_id, access_secret=self.key, version=self.version, connection=self)

    def connect(self, *_arguments: Any, **_options: Any) -> None:
        """Where libcloud would make a connection of its own."""
        self.connection = self.driver.wire

    def morph_action_hook(self, action: str) -> str:
        """The path as it is: libcloud's own normalises `..` and `//`, so that a key could land in another bucket."""
        return str(self.request_path) + action

    def pre_connect_hook(self, params: Any, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
        """Sign what arrives as it was sent: proxies and Google's front ends rewrite some headers."""
        for name in _UNSIGNED:
            headers.pop(name, None)
        headers["Host"] = self.driver.endpoint.netloc  # libcloud's own leaves the port 443 out under http
        params, headers = super().pre_connect_hook(params, headers)
        headers["User-Agent"] = "cador-trio"
        return params, headers


class S3Driver(S3StorageDriver):  # type: ignore[misc]
    """The requests that storing needs. Keys are taken literally; empty segments, '.' and '..' are not for here.

    Raises S3Refused for what the store refuses, and what `Wire` raises.

    Attributes:
        echoes_sha256: the store has answered a checksum header with the same: it verifies it.
        takes_sha256: the store does not mind a checksum header.
        seen: buckets that were found usable.
    """

    connectionCls = _Connection  # noqa: N815 - libcloud's name

    def __init__(
        self, wire: Wire, endpoint: Endpoint, region: str, credentials: Credentials, *, takes_sha256: bool = True
    ) -> None:
        self.wire = wire
        self.endpoint = endpoint
        self.echoes_sha256 = False
        self.takes_sha256 = takes_sha256
        self.seen: set[str] = set()
        super().__init__(
            credentials.key,
            credentials.secret,
            secure=endpoint.is_tls,
            host=endpoint.host,
            port=endpoint.port,
            token=credentials.token or None,
        )
        self.region_name = region  # the constructor takes names of its own list only
        self.connection.request_path = endpoint.prefix

    def look_at(self, bucket: str) -> None:
        """Ask for a page of a bucket: the least that says what is wrong with bucket, key, region or clock."""
        self._document("GET", f"/{quote(bucket)}", {"list-type": "2", "max-keys": "1"})

    def put(self, bucket: str, key: str, body: Source | bytes, headers: Headers) -> Headers:
        """Store an object; `headers` must have its Content-Length. The answer's headers."""
        return self._call("PUT", _path(bucket, key), body, {}, headers)

    def get(self, bucket: str, key: str) -> tuple[Headers, Iterator[bytes]]:
        """The headers of an object, and its bytes in blocks, to be read to their end."""
        headers = self._ask("GET", _path(bucket, key), None, {}, {}).headers
        return headers, self._blocks(int(headers.get("content-length", "-1")))

    def _blocks(self, left: int) -> Iterator[bytes]:
        while block := self.wire.read(BLOCK_BYTES):
            left -= len(block)
            yield block
        self.wire.finish()
        if left > 0:
            raise ConnectionResetError("the object broke off")

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object, or see that it is gone."""
        self._call("DELETE", _path(bucket, key), None)

    # --- multipart uploads

    def begin_upload(self, bucket: str, key: str, headers: Headers) -> str:
        """Begin an upload in parts; its id."""
        document = self._document("POST", _path(bucket, key), {"uploads": ""}, b"", headers)
        upload = text_in(document, "UploadId")
        if not upload:
            raise S3Refused(HTTPStatus.BAD_GATEWAY, "<Message>it began an upload without an id</Message>", {})
        return upload

    def put_part(self, bucket: str, key: str, upload: str, number: int, body: Source) -> Headers:
        """Send a part; the answer's headers."""
        params = {"partNumber": str(number), "uploadId": upload}
        return self._call("PUT", _path(bucket, key), body, params, {"Content-Length": str(body.left)})

    def complete_upload(self, bucket: str, key: str, upload: str, etags: list[str]) -> str:
        """Make the parts, in order, an object; its ETag."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = self._document("POST", _path(bucket, key), {"uploadId": upload}, document, {})
        if "<CompleteMultipartUploadResult" not in answer:  # S3 may find an error after it has said 200
            raise S3Refused(HTTPStatus.INTERNAL_SERVER_ERROR, answer, {})
        return text_in(answer, "ETag")

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        """Drop an upload and its parts, or see that it is gone."""
        try:
            self._call("DELETE", _path(bucket, key), None, {"uploadId": upload})
        except S3Refused as refused:
            if refused.code != "NoSuchUpload":
                raise

    def uploads_of(self, bucket: str, key: str) -> list[str]:
        """Ids of the uploads under way for this very key (the first thousand)."""
        page = self._document("GET", f"/{quote(bucket)}", {"uploads": "", "prefix": key})
        found = re.findall(r"<Upload>(.*?)</Upload>", page, re.DOTALL)
        return [text_in(upload, "UploadId") for upload in found if text_in(upload, "Key") == key]

    # ---

    def _document(
        self, method: str, path: str, params: dict[str, str], body: bytes | None = None, headers: Headers | None = None
    ) -> str:
        length = {} if body is None else {"Content-Length": str(len(body))}
        self._ask(method, path, body, params, {**(headers or {}), **length})
        document = self.wire.read(_MAX_DOCUMENT_BYTES).decode(errors="replace")
        self.wire.finish()
        return document

    def _call(
        self,
        method: str,
        path: str,
        body: Source | bytes | None,
        params: dict[str, str] | None = None,
        headers: Headers | None = None,
    ) -> Headers:
        answer = self._ask(method, path, body, params or {}, headers or {})
        self.wire.read(_MAX_DOCUMENT_BYTES)
        self.wire.finish()
        return answer.headers

    def _ask(
        self, method: str, path: str, body: Source | bytes | None, params: dict[str, str], headers: Headers
    ) -> S3Answer:
        # Never libcloud's own retry, whatever the environment says: it would send the rest of a file that was read.
        answer: S3Answer = self.connection.request(
            path, params=params, data=body, headers=dict(headers), method=method, raw=True, retry_failed=False
        )
        return answer


def _path(bucket: str, key: str) -> str:
    return f"/{quote(bucket, safe='~')}/{quote(key, safe='/~')}"
