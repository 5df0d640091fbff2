"""The object stores of the tests are what the tests take them for: each refuses what it should, and shows what it has.

Requests to the real ones are signed by botocore and sent by httpx, so that no client's detours stand between.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import trio
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError

from tests.peers.object_stores import versitygw_build
from tests.peers.object_stores.misbehaving import MisbehavingS3, open_misbehaving_s3
from tests.peers.object_stores.misbehaviour import (
    STALL_SHOWS_BYTES,
    CloseAfterHead,
    CloseBeforeAnswer,
    CloseBeforeHead,
    ErrorIn200,
    HangBeforeAnswer,
    Refuse,
    ResetInBody,
    Stall,
    Step,
    WrongETag,
)
from tests.peers.object_stores.store import KeyPair, ObjectStore
from tests.peers.object_stores.versitygw import running_versitygw
from tests.peers.object_stores.versitygw_build import NoGo, VersitygwNotBuilt, versitygw_program

BODY = b"\x89PNG, more or less"
OTHER_MD5 = base64.b64encode(hashlib.md5(b"other").digest()).decode()
OTHER_SHA256 = base64.b64encode(hashlib.sha256(b"other").digest()).decode()


@pytest.fixture(params=["seaweedfs", "versitygw", "versitygw_tls", "versitygw_auto"])
def any_store(request: pytest.FixtureRequest) -> ObjectStore:
    """Every store in turn, each time with a bucket of its own."""
    store: ObjectStore = request.getfixturevalue(request.param)
    return store.with_new_bucket()


def put(
    store: ObjectStore,
    *,
    bucket: str | None = None,
    keys: KeyPair | None = None,
    region: str | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """Put `BODY` as object `mask`, as the administrator of the store and into its bucket unless told otherwise."""
    request = AWSRequest("PUT", f"{store.url}/{bucket or store.bucket}/mask", data=BODY, headers=headers or {})
    credentials = Credentials(*(keys or (store.access_key, store.secret_key)))
    S3SigV4Auth(credentials, "s3", region or store.region).add_auth(request)
    trust = ssl.create_default_context(cafile=store.ca)
    return httpx.put(request.url, content=BODY, headers=dict(request.headers), verify=trust, trust_env=False)


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and S3's code of an error."""
    return response.status_code, response.text.partition("<Code>")[2].partition("</Code>")[0]


def test_a_store_shows_what_was_stored(any_store: ObjectStore) -> None:
    """An object that was put is read back and listed, its ETag is its MD5, and there is nothing else."""
    assert put(any_store).status_code == 200
    assert any_store.read_object("mask") == BODY
    assert any_store.read_object("nothing") is None
    assert any_store.list_keys() == ["mask"]
    assert any_store.list_keys("x") == []
    assert any_store.describe_object("mask")["ETag"] == f'"{hashlib.md5(BODY).hexdigest()}"'


def test_a_store_shows_unfinished_uploads(any_store: ObjectStore) -> None:
    """An upload in parts is seen while it is pending, and is not seen as an object."""
    client, bucket = any_store.client, any_store.bucket
    upload = client.create_multipart_upload(Bucket=bucket, Key="mask")["UploadId"]
    client.upload_part(Bucket=bucket, Key="mask", UploadId=upload, PartNumber=1, Body=BODY)
    assert any_store.pending_multipart_uploads() == ["mask"]
    assert any_store.list_keys() == []
    client.abort_multipart_upload(Bucket=bucket, Key="mask", UploadId=upload)
    assert any_store.pending_multipart_uploads() == []


def test_a_store_refuses_a_wrong_secret(any_store: ObjectStore) -> None:
    """Signatures are checked, and nothing is stored under a wrong one."""
    response = put(any_store, keys=KeyPair(any_store.access_key, "a wrong secret"))
    assert refusal(response) == (403, "SignatureDoesNotMatch")
    assert any_store.list_keys() == []


def test_a_store_refuses_a_stranger(any_store: ObjectStore) -> None:
    """A key that nobody has is told from a secret that is wrong."""
    assert refusal(put(any_store, keys=KeyPair("stranger", "secret"))) == (403, "InvalidAccessKeyId")


def test_a_store_has_no_bucket_that_nobody_made(any_store: ObjectStore) -> None:
    """A bucket that isn't there is an error, for an administrator too."""
    assert refusal(put(any_store, bucket="no-such-bucket")) == (404, "NoSuchBucket")


@pytest.mark.parametrize("header", [{"Content-MD5": OTHER_MD5}, {"x-amz-checksum-sha256": OTHER_SHA256}])
def test_a_store_verifies_checksums(any_store: ObjectStore, header: dict[str, str]) -> None:
    """Bytes that don't fit an announced checksum are refused and not stored."""
    assert refusal(put(any_store, headers=header)) == (400, "BadDigest")
    assert any_store.list_keys() == []


def test_the_limited_user_may_not_write_elsewhere(any_store: ObjectStore) -> None:
    """A known user without the right to a bucket gets an answer of its own."""
    assert refusal(put(any_store, keys=any_store.limited)) == (403, "AccessDenied")


def test_seaweedfs_lets_the_limited_user_write_and_not_read(seaweedfs: ObjectStore) -> None:
    """The limited user of SeaweedFS can store what it can't even look at afterwards."""
    assert put(seaweedfs, keys=seaweedfs.limited).status_code == 200
    request = AWSRequest("HEAD", f"{seaweedfs.url}/{seaweedfs.bucket}/mask")
    S3SigV4Auth(Credentials(*seaweedfs.limited), "s3", seaweedfs.region).add_auth(request)
    response = httpx.head(request.url, headers=dict(request.headers), trust_env=False)
    assert response.status_code == 403


def test_seaweedfs_takes_any_region(seaweedfs: ObjectStore) -> None:
    """SeaweedFS can't show that a region is wrong."""
    assert put(seaweedfs.with_new_bucket(), region="eu-west-9").status_code == 200


@pytest.mark.parametrize("name", ["versitygw", "versitygw_tls", "versitygw_auto"])
def test_versitygw_has_one_region(name: str, request: pytest.FixtureRequest) -> None:
    """versitygw refuses a signature for another region, and says which one it wants."""
    store: ObjectStore = request.getfixturevalue(name)
    response = put(store.with_new_bucket(), region="eu-west-9")
    assert refusal(response) == (400, "AuthorizationHeaderMalformed")
    assert store.region in response.text


def test_versitygw_refuses_small_parts(versitygw: ObjectStore) -> None:
    """An upload in parts needs 5 MiB in each but the last."""
    store = versitygw.with_new_bucket()
    client, place = store.client, {"Bucket": store.bucket, "Key": "mask"}
    upload = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": client.upload_part(**upload, PartNumber=number, Body=BODY)["ETag"]}
        for number in (1, 2)
    ]
    with pytest.raises(client.exceptions.ClientError, match="EntityTooSmall"):
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


def test_versitygw_tls_has_an_authority_of_its_own(versitygw_tls: ObjectStore) -> None:
    """Without the file of its authority nobody trusts it."""
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(versitygw_tls.url, trust_env=False)


def test_a_store_ends_with_its_block(versitygw_binary: Path, tmp_path: Path) -> None:
    """After the block nobody listens, no thread of it is left and its objects are gone; the log stays."""
    threads = threading.active_count()
    with running_versitygw(versitygw_binary, tmp_path) as store:
        assert put(store).status_code == 200
    with pytest.raises(httpx.ConnectError):
        put(store)
    assert threading.active_count() == threads
    assert not (tmp_path / "data").exists()
    assert store.log_path.exists()


LAUNCH = """
import sys
from pathlib import Path
from tests.peers.object_stores.versitygw import running_versitygw

with running_versitygw(Path(sys.argv[1]), Path(sys.argv[2])) as store:
    print(store.url, flush=True)
    sys.stdin.read()
"""


def test_a_store_ends_with_a_launcher_that_is_killed(versitygw_binary: Path, tmp_path: Path) -> None:
    """Even a launcher that can clean nothing up leaves no store behind."""
    command = [sys.executable, "-c", LAUNCH, str(versitygw_binary), str(tmp_path)]
    here = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        url = httpx.URL(launcher.stdout.readline().strip())
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            launcher.kill()
            assert connection.recv(1) == b""


def test_without_go_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where versitygw isn't built and can't be, the reason names what is missing."""
    monkeypatch.setattr(versitygw_build, "BINARIES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoGo, match="`go` on PATH"):
        versitygw_program()


def test_a_program_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that fails half way leaves no program; the next one makes it, and one that is there is taken."""
    monkeypatch.setattr(versitygw_build, "BINARIES", tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    go = tmp_path / "go"
    go.touch(0o755)
    go.write_text('#!/bin/sh\necho half > "$GOBIN/versitygw"; echo no room; exit 1\n')
    with pytest.raises(VersitygwNotBuilt, match="no room"):
        versitygw_program()
    go.write_text('#!/bin/sh\necho whole > "$GOBIN/versitygw"\n')
    program = versitygw_program()
    assert program.read_text() == "whole\n"
    go.unlink()
    assert versitygw_program() == program
    assert sorted(path.name for path in program.parent.iterdir()) == [program.name, f"{program.name}.lock"]


# --- The one that misbehaves -------------------------------------------------------------------------------------

LARGE = bytes(STALL_SHOWS_BYTES)
HASTY_SECONDS = 0.5  # with one that is silent
PATIENT_SECONDS = 30.0


@contextmanager
def client_of(server: MisbehavingS3, patience: float = PATIENT_SECONDS) -> Iterator[Any]:
    """A client that makes each request once, and waits no longer than that, for its bytes to leave too."""
    config = Config(
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        connect_timeout=patience,
        read_timeout=patience,
        proxies={},
    )
    session = boto3.session.Session("any", "secret", region_name="us-east-1")
    with closing(session.client("s3", endpoint_url=server.url, config=config)) as client:
        yield client


async def attempt(server: MisbehavingS3, body: bytes = BODY, patience: float = PATIENT_SECONDS) -> str:
    """What a client makes of one PUT: "stored", S3's code or the name of botocore's exception."""

    def put_once() -> str:
        with client_of(server, patience) as client:
            try:
                client.put_object(Bucket="b", Key="mask", Body=body)
            except ClientError as error:
                return str(error.response["Error"]["Code"])
            except BotoCoreError as error:
                return type(error).__name__
            return "stored"

    return await trio.to_thread.run_sync(put_once)


@pytest.mark.parametrize(
    ("step", "seen"),
    [
        (Refuse(), "SlowDown"),
        (Refuse(403, "AccessDenied"), "AccessDenied"),
        (CloseBeforeHead(), "ConnectionClosedError"),
        (CloseAfterHead(), "ConnectionClosedError"),
        (ResetInBody(100_000), "ConnectionClosedError"),
        (Stall(), "ConnectionClosedError"),
        (Stall(100_000), "ConnectionClosedError"),
        (HangBeforeAnswer(), "ReadTimeoutError"),
        (CloseBeforeAnswer(), "ConnectionClosedError"),
        (ErrorIn200(), "InternalError"),
    ],
    ids=repr,
)
async def test_misbehaviour_leaves_nothing_to_read_and_passes(step: Step, seen: str) -> None:
    """A client meets what the script says, nothing can be read afterwards, and its next try is served."""
    patience = HASTY_SECONDS if isinstance(step, Stall | HangBeforeAnswer) else PATIENT_SECONDS
    async with open_misbehaving_s3(step) as server:
        assert await attempt(server, LARGE, patience) == seen
        assert server.objects == {}
        assert server.reached == 1
        assert await attempt(server) == "stored"
        assert server.objects == {("b", "mask"): BODY}


async def test_an_early_refusal_is_answered_while_the_client_still_sends() -> None:
    """The answer comes after the head, the rest of the body is no obstacle, and the connection ends."""
    async with open_misbehaving_s3(Refuse(headers=(("Retry-After", "7"),), early=True)) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"PUT /b/mask HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nfirst")
        answer = b""
        while b"</Error>" not in answer:
            answer += await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 7\r\n" in answer
        await stream.send_all(bytes(100_000))
        await stream.aclose()
        await server.wait_until(lambda: server.open_connections == 0)
        assert server.objects == {}
        assert not server.requests[0].whole


async def test_a_lost_answer_may_hide_what_was_done() -> None:
    """A connection that closes instead of an answer says nothing about the object."""
    async with open_misbehaving_s3(CloseBeforeAnswer(done=True)) as server:
        assert await attempt(server) == "ConnectionClosedError"
        assert server.objects == {("b", "mask"): BODY}
        assert server.requests[0].whole


async def test_a_wrong_etag_is_told_for_the_right_bytes() -> None:
    """The object is stored as it came, only the answer is wrong."""
    async with open_misbehaving_s3(WrongETag()) as server:

        def put_once() -> str:
            with client_of(server) as client:
                return str(client.put_object(Bucket="b", Key="mask", Body=BODY)["ETag"])

        assert await trio.to_thread.run_sync(put_once) == f'"{"0" * 32}"'
        assert server.objects == {("b", "mask"): BODY}


async def test_steps_are_for_the_operations_that_the_test_names() -> None:
    """A failure of the last request of an upload in parts leaves it pending, until it is completed or aborted."""
    async with open_misbehaving_s3(ErrorIn200(), only=["CompleteMultipartUpload"]) as server:

        def upload_twice() -> None:
            with client_of(server) as client:
                place = {"Bucket": "b", "Key": "mask"}
                upload = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
                parts = [
                    {"PartNumber": number, "ETag": client.upload_part(**upload, PartNumber=number, Body=body)["ETag"]}
                    for number, body in enumerate([b"one", b"two"], 1)
                ]
                with pytest.raises(ClientError, match="InternalError"):
                    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
                pending = client.list_multipart_uploads(Bucket="b")["Uploads"]
                assert [entry["UploadId"] for entry in pending] == [upload["UploadId"]]
                client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
                assert client.get_object(**place)["Body"].read() == b"onetwo"
                other = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
                client.abort_multipart_upload(**other)
                client.delete_object(**place)
                client.head_bucket(Bucket="b")

        await trio.to_thread.run_sync(upload_twice)
        assert server.objects == {}
        assert server.uploads == {}
        assert server.reached == 1
        assert "Unknown" not in server.operations()
