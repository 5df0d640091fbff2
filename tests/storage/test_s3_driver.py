"""libcloud's S3 driver as we have changed it: one test for each private name that we override or rely on.

A wire that records stands where the network would be; that the signatures are right, the real servers say in the
contract's cases.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import libcloud
import pytest
from libcloud.storage.drivers.s3 import S3SignatureV4Connection

from cador_trio.storage.credentials import Credentials
from cador_trio.storage.endpoints import Endpoint
from cador_trio.storage.failures import S3Refused
from cador_trio.storage.s3 import S3Driver, _Signer
from cador_trio.storage.wire import Source
from tests.secrets import STORE_SECRET

ENDPOINT = Endpoint("http", "store.example", 9000)
CREDENTIALS = Credentials("the-key", STORE_SECRET)


class Response:
    """What http.client would give."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self._headers = headers

    def getheaders(self) -> list[tuple[str, str]]:
        return list(self._headers.items())


class RecordingWire:
    """Keeps what it is given to send, and answers as told."""

    def __init__(self, status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.body = io.BytesIO(body)
        self.headers = headers or {}
        self.sent: list[tuple[str, str, Source | bytes | None, Mapping[str, str]]] = []

    def prepared_request(self, *, method: str, url: str, body: Any, headers: Any, **_: Any) -> None:
        self.sent.append((method, url, body, headers))

    def getresponse(self) -> Response:
        return Response(self.status, self.headers)

    def read(self, size: int) -> bytes:
        return self.body.read(size)

    def finish(self) -> None:
        """Nothing."""


def driver_on(
    wire: RecordingWire,
    *,
    endpoint: Endpoint = ENDPOINT,
    region: str = "us-east-1",
    credentials: Credentials = CREDENTIALS,
) -> S3Driver:
    return S3Driver(wire, endpoint, region, credentials)  # type: ignore[arg-type]


def put(wire: RecordingWire, key: str = "a/b", **options: Any) -> Mapping[str, str]:
    """The headers of an upload."""
    driver_on(wire, **options).put("bucket", key, b"data", {"Content-Length": "4"})
    [(_, _, _, headers)] = wire.sent
    return headers


def test_version_is_the_one_that_was_read() -> None:
    """The private names were read in this version; another one needs another look."""
    assert libcloud.__version__ == "3.9.1"


def test_plain_driver_normalises_keys() -> None:
    """libcloud alone turns a key with `..` into one of another bucket: the reason for `morph_action_hook`."""
    wire = RecordingWire()
    driver = driver_on(wire)
    hook = S3SignatureV4Connection.morph_action_hook
    assert hook(driver.connection, "/bkt1/../bkt2/x") == "/bkt2/x"
    assert driver.connection.morph_action_hook("/bkt1/../bkt2/x") == "/bkt1/../bkt2/x"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a//b", "/bucket/a//b"),
        ("../x", "/bucket/../x"),
        ("t:1_x", "/bucket/t%3A1_x"),
        ("Été 100% #1?&=+~", "/bucket/%C3%89t%C3%A9%20100%25%20%231%3F%26%3D%2B~"),
    ],
)
def test_keys_are_taken_literally(key: str, path: str) -> None:
    """What is asked for is what the path says, percent-encoded once."""
    wire = RecordingWire()
    put(wire, key)
    assert wire.sent[0][1] == path


@pytest.mark.parametrize("region", ["garage", "auto", "eu-west-1", "somewhere-else-7"])
def test_any_region_is_signed(region: str) -> None:
    """libcloud's constructor refuses names that aren't on its list."""
    assert f"/{region}/s3/aws4_request" in put(RecordingWire(), region=region)["Authorization"]


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        (Endpoint("http", "h", 80), "h"),
        (Endpoint("https", "h", 443), "h"),
        (Endpoint("http", "h", 443), "h:443"),
        (Endpoint("https", "h", 80), "h:80"),
        (Endpoint("https", "::1", 9000), "[::1]:9000"),
    ],
)
def test_host_says_the_port(endpoint: Endpoint, host: str) -> None:
    """The port is left out only where it is the scheme's own; libcloud leaves 80 and 443 out always."""
    assert put(RecordingWire(), endpoint=endpoint)["Host"] == host


def test_prefix_is_sent_and_signed() -> None:
    """A path in the URL comes before the bucket."""
    wire = RecordingWire()
    put(wire, endpoint=Endpoint("http", "h", 9000, "/api/v1/s3"))
    assert wire.sent[0][1] == "/api/v1/s3/bucket/a/b"


def test_token_is_a_signed_header() -> None:
    """A session token travels in a header that is signed, never in the query, which ends up in logs."""
    wire = RecordingWire()
    headers = put(wire, credentials=Credentials("k", "s", "the-token"))
    assert headers["x-amz-security-token"] == "the-token"
    assert "x-amz-security-token" in signed(headers)
    assert "?" not in wire.sent[0][1]


def test_what_proxies_rewrite_is_not_signed() -> None:
    """Google's front ends rewrite Accept-Encoding, proxies the User-Agent: either would break the signature."""
    headers = put(RecordingWire())
    assert not signed(headers) & {"accept-encoding", "user-agent", "connection"}
    assert "Accept-Encoding" not in headers
    assert {"host", "content-length", "x-amz-date", "x-amz-content-sha256"} <= signed(headers)


def test_nothing_is_added() -> None:
    """No storage class (a bucket's own default holds), no chunked encoding."""
    headers = {name.lower() for name in put(RecordingWire())}
    assert "transfer-encoding" not in headers
    assert not any("storage-class" in name for name in headers)


def test_payload_hash_is_the_callers() -> None:
    """A known hash is signed; without one the payload is unsigned, and a request without payload has its hash."""
    wire = RecordingWire()
    driver = driver_on(wire)
    driver.put("bucket", "k", b"data", {"Content-Length": "4", "X-AMZ-Content-SHA256": "ab" * 32})
    driver.put("bucket", "k", b"data", {"Content-Length": "4"})
    driver.delete("bucket", "k")
    hashes = [headers["X-AMZ-Content-SHA256"] for *_, headers in wire.sent]
    assert hashes == ["ab" * 32, "UNSIGNED-PAYLOAD", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]


def test_days_key_is_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signing key of a day is kept, and is libcloud's own."""
    derived: list[bytes] = []
    inherited = _Signer.__mro__[1]._get_key_to_sign_with

    def counting(self: Any, dt: Any) -> bytes:
        derived.append(inherited(self, dt))
        return derived[-1]

    monkeypatch.setattr(_Signer.__mro__[1], "_get_key_to_sign_with", counting)
    driver = driver_on(RecordingWire())
    for _ in range(3):
        driver.put("bucket", "k", b"data", {"Content-Length": "4"})
    assert driver.connection.signer._day_key == derived[0]
    assert len(derived) == 1


def test_environment_turns_no_retries_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """libcloud's own retry sends what is left of a read file, and calls an empty object a success."""
    monkeypatch.setenv("LIBCLOUD_RETRY_FAILED_HTTP_REQUESTS", "false")

    class Broken(RecordingWire):
        def prepared_request(self, **options: Any) -> None:
            super().prepared_request(**options)
            raise ConnectionResetError

    wire = Broken()
    with pytest.raises(ConnectionResetError):
        put(wire)
    assert len(wire.sent) == 1


@pytest.mark.parametrize("status", [301, 307, 400, 403, 404, 409, 412, 503])
def test_refusals_keep_what_the_store_says(status: int) -> None:
    """libcloud drops status, code and Retry-After of most refusals, and calls a 404 a wrong hash."""
    document = b"<Error xmlns='x'><Code>Some&amp;Code</Code><Message>words</Message><Region>garage</Region></Error>"
    with pytest.raises(S3Refused) as caught:
        put(RecordingWire(status, document, {"Retry-After": "7", "ETag": '"x"'}))
    refused = caught.value
    assert (refused.status, refused.code, refused.message) == (status, "Some&Code", "words")
    assert (refused.region, refused.retry_after) == ("garage", 7.0)


@pytest.mark.parametrize("document", [b"", b"<html>", b"\xff\xfe", b"<Error><Code/></Error>"])
def test_refusals_without_words(document: bytes) -> None:
    """An answer that is no XML, or none at all, is a refusal like others."""
    with pytest.raises(S3Refused) as caught:
        put(RecordingWire(502, document, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}))
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (502, "", None)


def test_upload_id_in_any_namespace() -> None:
    """Stores that leave S3's namespace out, such as rclone, can be uploaded to in parts."""
    for document in (b"<R><UploadId>u</UploadId></R>", b'<a:R xmlns:a="x"><a:UploadId>u</a:UploadId></a:R>'):
        assert driver_on(RecordingWire(body=document)).begin_upload("b", "k", {}) == "u"
    with pytest.raises(S3Refused, match="502"):
        driver_on(RecordingWire(body=b"<R/>")).begin_upload("b", "k", {})


def test_an_error_behind_200_is_no_completion() -> None:
    """S3 may find that it can't complete an upload after it has begun to answer."""
    with pytest.raises(S3Refused, match="InternalError"):
        driver_on(RecordingWire(body=b"<Error><Code>InternalError</Code></Error>")).complete_upload(
            "b", "k", "u", ["e"]
        )


def signed(headers: Mapping[str, str]) -> set[str]:
    found = re.search(r"SignedHeaders=([^,]+)", headers["Authorization"])
    assert found
    return set(found[1].split(";"))
