"""Images of real jobs on their way through a real daemon to real object stores."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.daemon.large import MOST_GROWTH, algorithm_process, done, peak, reset_peak
from tests.daemon.process import IMAGE, client_of, eventually, running_daemon
from tests.peers.fake_algorithm import Pattern, open_fake_algorithm
from tests.peers.object_stores.misbehaving import MisbehavingS3
from tests.peers.object_stores.misbehaviour import Refuse
from tests.peers.object_stores.store import ObjectStore

SIZE = 2_000_000_000  # bytes
ROOM = 2 * SIZE + SIZE // 4  # on the disk: spooled, stored, and some
MANY_SECONDS = 240.0


def spelled_out(peer: ObjectStore, **changes: Any) -> dict[str, Any]:
    """A request that stores in this bucket."""
    settings = {
        "url": peer.url,
        "containerPath": f"{peer.bucket}/masks",
        "key": peer.access_key,
        "secret": peer.secret_key,
        **changes,
    }
    return {**IMAGE, "technicalMetadata": {"outputStorage": {"S3": settings}}}


@pytest.mark.parametrize(("mode", "result"), [("image", "output"), ("stateful", "mask")])
async def test_two_gigabytes_reach_a_bucket(versitygw: ObjectStore, tmp_path: Path, mode: str, result: str) -> None:
    """An image of 2 GB, in parts, arrives byte for byte, and resident memory grows by less than 64 MiB at its peak."""
    if shutil.disk_usage(tmp_path).free < ROOM:
        pytest.skip(f"needs {ROOM} free bytes for temporary files")
    peer = versitygw.with_new_bucket()
    expected = Pattern(SIZE).sha256
    async with (
        algorithm_process(mode, SIZE) as url,
        running_daemon(tmp_path, url) as daemon,
        client_of(daemon) as client,
    ):
        client.timeout = httpx.Timeout(MANY_SECONDS)
        before = reset_peak(daemon)
        reference = (await client.get(await done(client, spelled_out(peer), result))).json()
        growth = peak(daemon) - before
        await eventually(client, lambda: daemon.spooled() == [])
    assert growth < MOST_GROWTH
    assert (reference["size"], reference["sha256"]) == (SIZE, expected)
    assert await trio.to_thread.run_sync(digest_of, peer, reference["key"]) == expected
    assert peer.pending_multipart_uploads() == []
    peer.client.delete_object(Bucket=peer.bucket, Key=reference["key"])


def digest_of(peer: ObjectStore, key: str) -> str:
    digest = hashlib.sha256()
    for block in peer.client.get_object(Bucket=peer.bucket, Key=key)["Body"].iter_chunks(1024 * 1024):
        digest.update(block)
    return digest.hexdigest()


async def test_every_image_of_an_answer_is_stored(seaweedfs: ObjectStore, tmp_path: Path) -> None:
    """Inline base64 images and lists of them are decoded and stored, and their references take their places."""
    peer = seaweedfs.with_new_bucket()
    async with (
        open_fake_algorithm() as fake,
        running_daemon(tmp_path, fake.url) as daemon,
        client_of(daemon) as client,
    ):
        answer = (await client.post("/api/v1/jobs", json=spelled_out(peer))).json()
        assert answer["mask"]["bucket"] == peer.bucket
        for reference in (answer["mask"], *answer["chips"]):
            stored = peer.read_object(reference["key"])
            assert stored is not None
            assert hashlib.sha256(stored).hexdigest() == reference["sha256"]
            assert len(stored) == reference["size"]
            assert reference["uri"] == f"s3://{peer.bucket}/{reference['key']}"
            assert peer.describe_object(reference["key"])["ContentType"] == reference["mediaType"]
        assert len(peer.list_keys()) == 1 + len(answer["chips"])
        await eventually(client, lambda: daemon.spooled() == [])


async def test_only_the_store_step_is_tried_again(tmp_path: Path) -> None:
    """A store that fails when the algorithm has finished costs no second run of the algorithm."""
    async with trio.open_nursery() as server_nursery:
        server = await server_nursery.start(MisbehavingS3([Refuse(503, "SlowDown")] * 2, ["PutObject"]).serve)
        place = {"url": server.url, "containerPath": "images", "key": "k", "secret": "s"}
        request = {**IMAGE, "technicalMetadata": {"outputStorage": {"S3": place}}}
        async with (
            open_fake_algorithm() as fake,
            running_daemon(tmp_path, fake.url) as daemon,
            client_of(daemon) as client,
        ):
            answer = await client.post("/api/v1/jobs", json=request)
            assert answer.status_code == 200
            assert len([one for one in fake.requests if one.method == "POST"]) == 1
            assert server.operations().count("PutObject") == len(server.objects) + 2
        server_nursery.cancel_scope.cancel("the test is done")


# --- No secrets --------------------------------------------------------------------------------------------------


async def test_no_secret_leaves_by_any_way(versitygw: ObjectStore, versitygw_auto: ObjectStore, tmp_path: Path) -> None:
    """Runs with S3, GCS and profiles, good ones and bad ones: nothing that comes out holds a key, secret or token."""
    s3, google = versitygw.with_new_bucket(), versitygw_auto.with_new_bucket()
    hidden = [s3.access_key, s3.secret_key, google.access_key, google.secret_key, "hush-", "AWS4-HMAC", "X-Amz-"]
    profiles = tmp_path / "profiles.toml"
    (tmp_path / "wrong").write_text("hush-wrong-secret")
    profiles.write_text(
        f'[archive]\ntype = "S3"\nurl = "{s3.url}"\ncontainerPath = "{s3.bucket}"\n'
        f'key = "{s3.access_key}"\nsecret = "{s3.secret_key}"\n'
        f'[wrong]\ntype = "S3"\nurl = "{s3.url}"\ncontainerPath = "{s3.bucket}"\n'
        f'key = "{s3.access_key}"\nsecretFile = "wrong"\n'
    )
    storages: list[tuple[dict[str, Any], int]] = [
        ({"profile": "archive", "containerPath": "below"}, 200),
        ({"profile": "wrong"}, 502),
        ({"S3": storage_of(s3)}, 200),
        ({"S3": {**storage_of(s3), "secret": "hush-secret"}}, 502),
        ({"S3": {**storage_of(s3), "key": "hush-key"}}, 502),
        ({"S3": {**storage_of(s3), "token": "hush-token"}}, 502),
        ({"S3": {**storage_of(s3), "url": "http://user:hush-password@host"}}, 400),
        ({"S3": {**storage_of(s3), "url": "http://127.0.0.1:hush-port"}}, 400),
        ({"S3": {**storage_of(s3), "secret": ["hush-list"]}}, 400),
        ({"GCS": storage_of(google, without="url")}, 200),
        ({"GCS": {**storage_of(google, without="url"), "secret": "hush-secret"}}, 502),
    ]
    async with (
        open_fake_algorithm() as fake,
        running_daemon(
            tmp_path,
            fake.url,
            CADOR_STORAGE_PROFILES=str(profiles),
            CADOR_GCS_ENDPOINT=google.url,
            CADOR_LOG_LEVEL="debug",
        ) as daemon,
        client_of(daemon) as client,
    ):
        said = [await outcome_of(client, storage, status) for storage, status in storages]
        said += [(await client.get(path)).text for path in ("/api/v1/jobs", "/health", "/readyz", "/metrics")]
        said += await everything_about_jobs(client)
        await daemon.stop()
        said += daemon.output
    for text in said:
        for secret in hidden:
            assert secret not in text, text
    assert len(s3.list_keys()) > len(s3.list_keys("below/")) > 0
    assert google.list_keys()


def storage_of(peer: ObjectStore, without: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = spelled_out(peer)["technicalMetadata"]["outputStorage"]["S3"]
    return {name: value for name, value in settings.items() if name != without}


async def outcome_of(client: httpx.AsyncClient, storage: dict[str, Any], status: int) -> str:
    request = {**IMAGE, "technicalMetadata": {"outputStorage": storage}}
    answer = await client.post("/api/v1/jobs", json=request)
    assert answer.status_code == status, answer.text
    return answer.text + str(answer.headers)


async def everything_about_jobs(client: httpx.AsyncClient) -> list[str]:
    jobs = (await client.get("/api/v1/jobs")).json()
    return [
        (await client.get(f"/api/v1/jobs/{job}/{part}")).text
        for job in jobs
        for part in ("status", "results", "events")
    ]
