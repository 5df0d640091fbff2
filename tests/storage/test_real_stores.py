"""What real servers say to what is wrong, and what only they can prove."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
import trio

from cador_trio.check import check_neighbours
from cador_trio.cli import main
from cador_trio.errors import StoreFailed
from cador_trio.settings import Settings
from cador_trio.storage.buckets import PartSizes
from cador_trio.storage.destinations import Policy, check_storage
from cador_trio.storage.setup import open_store
from cador_trio.storage.store import Store
from tests.peers.object_stores.store import ObjectStore

from .bodies import image
from .conftest import MIB, PATIENCE, BucketUnderTest

IN_PARTS = PartSizes(whole=MIB, part=5 * MIB)
TWELVE_MIB = bytes(range(256)) * (12 * MIB // 256) + b"end"  # parts of 5, 5 and 2 MiB


@pytest.fixture(params=["seaweedfs", "versitygw", "versitygw_auto"])
def in_parts(request: pytest.FixtureRequest) -> Iterator[BucketUnderTest]:
    """Each server, with objects in parts."""
    variant = "GCS" if request.param == "versitygw_auto" else "S3"
    with closing(BucketUnderTest(request.getfixturevalue(request.param), variant=variant, sizes=IN_PARTS)) as world:
        yield world


async def test_parts_become_an_object(in_parts: BucketUnderTest) -> None:
    """An object of several parts is byte for byte what it was, and nothing is pending."""
    await in_parts.store.put(in_parts.destination(), image(TWELVE_MIB))
    assert in_parts.objects() == {"t-1_mask": TWELVE_MIB}
    assert in_parts.leftovers() == []
    assert in_parts.peer.describe_object("a/b/t-1_mask")["ETag"].endswith('-3"')


@pytest.mark.parametrize("name", ["weed", "versity", "versity_tls", "gcs"])
async def test_media_type_is_stored(request: pytest.FixtureRequest, name: str) -> None:
    """Who reads the object is told what it is; spaces in a media type don't spoil the signature."""
    world: BucketUnderTest = request.getfixturevalue(name)
    await world.store.put(world.destination(), replace(image(b"x"), media_type="image/tiff;  application=geotiff"))
    assert world.peer.describe_object("a/b/t-1_mask")["ContentType"] == "image/tiff; application=geotiff"


@pytest.mark.parametrize("name", ["weed", "versity", "versity_tls"])
async def test_checksum_is_verified_and_answered(request: pytest.FixtureRequest, name: str) -> None:
    """These stores check SHA-256 and say so: from the second upload on no MD5 is computed."""
    world: BucketUnderTest = request.getfixturevalue(name)
    await world.store.put(world.destination(), image(b"x"))
    [idle] = world.store._buckets._drivers._idle
    assert idle.driver.echoes_sha256


# --- What is wrong, in plain words -------------------------------------------------------------------------------

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("versity", {"secret": "wrong-secret"}, "the secret does not belong to the access key"),
    ("versity", {"key": "nobody"}, "the store does not know the access key"),
    ("versity", {"region": "eu-west-1"}, "eu-west-1 is the wrong region"),
    ("versity", {"containerPath": "no-such-bucket/a"}, "there is no bucket no-such-bucket"),
    ("versity_tls", {"secret": "wrong-secret"}, "the secret does not belong to the access key"),
    ("weed", {"secret": "wrong-secret"}, "the secret does not belong to the access key"),
    ("weed", {"key": "nobody"}, "the store does not know the access key"),
    ("weed", {"containerPath": "no-such-bucket/a"}, "there is no bucket no-such-bucket"),
    # libcloud's own driver for Google would ask a metadata server about such a key, then wait for a person for ever.
    ("gcs", {"key": "not-one-of-googles"}, "the store does not know the access key"),
    ("gcs", {"secret": "wrong-secret"}, "the secret does not belong to the access key"),
    ("gcs", {"containerPath": "no-such-bucket/a"}, "there is no bucket no-such-bucket"),
]


@pytest.mark.parametrize(("name", "changes", "words"), WRONG)
async def test_mistakes_are_found_before_dispatch_and_at_the_upload(
    request: pytest.FixtureRequest, name: str, changes: dict[str, Any], words: str
) -> None:
    """Each mistake is said in the same words by `prepare` and by `put`, at once and without credentials."""
    world: BucketUnderTest = request.getfixturevalue(name)
    destination = world.destination(**changes)
    for step in (world.store.prepare(destination), world.store.put(destination, image(b"x"))):
        with trio.fail_after(20), pytest.raises(StoreFailed, match=words) as caught:
            await step
        for secret in (world.peer.access_key, world.peer.secret_key, "wrong-secret"):
            assert secret not in caught.value.message + caught.value.hint
    assert world.objects() == {}


@pytest.mark.parametrize("name", ["versity", "weed"])
async def test_key_without_rights(request: pytest.FixtureRequest, name: str) -> None:
    """A key that may not write is told so by the upload: the question before it may be forbidden on its own."""
    world: BucketUnderTest = request.getfixturevalue(name)
    limited = world.peer.limited
    destination = world.destination(key=limited.access_key, secret=limited.secret_key)
    await world.store.prepare(destination)
    with pytest.raises(StoreFailed, match="may not do that in bucket"):
        await world.store.put(destination, image(b"x"))


async def test_region_is_learnt(versitygw_tls: ObjectStore) -> None:
    """A request that says no region finds the store's own."""
    with closing(BucketUnderTest(versitygw_tls)) as world:
        destination = world.destination(region=None)
        await world.store.prepare(destination)
        await world.store.put(destination, image(b"x"))
        assert world.objects() == {"t-1_mask": b"x"}


async def test_clock_that_is_wrong(versity: BucketUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature of another hour is the clock's fault, and is said so."""

    class Late(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Late:
            return super().now(tz) - timedelta(hours=2)

    monkeypatch.setattr("cador_trio.storage.s3.datetime", Late)
    with pytest.raises(StoreFailed, match="the clocks of this machine and the store"):
        await versity.store.put(versity.destination(), image(b"x"))


# --- TLS ---------------------------------------------------------------------------------------------------------


async def test_unknown_authority(versity_tls: BucketUnderTest) -> None:
    """A certificate of an authority that nobody named is not trusted, whatever the environment says."""
    with closing(Store(Policy(), patience=PATIENCE)) as store, pytest.raises(StoreFailed, match="is not trusted"):
        await store.prepare(versity_tls.destination())


async def test_bundle_that_vanishes(versity_tls: BucketUnderTest, tmp_path: Path) -> None:
    """A CA bundle is read again when it has changed; one that is gone is no outage of the store."""
    bundle = tmp_path / "ca.pem"
    assert versity_tls.peer.ca is not None
    bundle.write_bytes(versity_tls.peer.ca.read_bytes())
    with closing(Store(Policy(), patience=PATIENCE, ca=bundle)) as store:
        await store.prepare(versity_tls.destination())
        store._buckets.close()
        bundle.unlink()
        with pytest.raises(StoreFailed, match=r"CA bundle .* can't be read: No such file"):
            await store.put(versity_tls.destination(), image(b"x"))


async def test_certificate_of_another_name(versity_tls: BucketUnderTest) -> None:
    """The certificate must be the name's that was asked for, not the address's that is connected to."""

    class Everywhere(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
            return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(Everywhere())
    port = versity_tls.peer.url.rpartition(":")[2]
    with pytest.raises(StoreFailed, match="not trusted: Hostname mismatch"):
        await versity_tls.store.prepare(versity_tls.destination(url=f"https://other.example:{port}"))
    await versity_tls.store.prepare(versity_tls.destination(url=f"https://localhost:{port}"))


async def test_https_to_a_plain_server(versity: BucketUnderTest) -> None:
    """TLS where none is spoken is a wrong URL, not an outage."""
    url = versity.peer.url.replace("http://", "https://")
    with trio.fail_after(20), pytest.raises(StoreFailed, match="does not speak TLS"):
        await versity.store.prepare(versity.destination(url=url))


# --- Profiles, and `cador-trio check --storage` ------------------------------------------------------------------


@pytest.fixture
def profiles(versitygw: ObjectStore, tmp_path: Path) -> tuple[ObjectStore, Path]:
    """A bucket of its own, and a file with a good profile of it and some bad ones."""
    peer = versitygw.with_new_bucket()
    (tmp_path / "secret").write_text(peer.secret_key)
    (tmp_path / "wrong").write_text("hush-wrong")
    common = f'type = "S3"\nurl = "{peer.url}"\nregion = "us-east-1"\nkey = "{peer.access_key}"\n'
    path = tmp_path / "profiles.toml"
    path.write_text(
        f'[archive]\n{common}containerPath = "{peer.bucket}/a"\nsecretFile = "secret"\n'
        f'[wrong-secret]\n{common}containerPath = "{peer.bucket}"\nsecretFile = "wrong"\n'
        f'[wrong-bucket]\n{common}containerPath = "no-such-bucket"\nsecretFile = "secret"\n'
        f'[disk]\ntype = "POSIX"\nfolder = "{tmp_path}"\n'
        f'[gone]\ntype = "POSIX"\nfolder = "{tmp_path}/gone"\n'
    )
    return peer, path


async def test_check_probes_profiles(profiles: tuple[ObjectStore, Path]) -> None:
    """The probe is written, read back and deleted, or what is wrong is said in plain words."""
    peer, path = profiles
    names = ["archive", "disk", "wrong-secret", "wrong-bucket", "gone", "nowhere"]
    settings = Settings(storage_profiles=path, processing_server="http://127.0.0.1:9", port=0)
    findings = [finding for finding in await check_neighbours(settings, names) if "storage profile" in finding.text]
    assert [finding.is_good for finding in findings] == [True, True, False, False, False, False]
    for finding, words in zip(
        findings,
        [
            "written, read back",
            "written, read back",
            "secret does not belong",
            "no bucket",
            "does not exist",
            "no storage",
        ],
        strict=True,
    ):
        assert words in finding.text
        assert "hush" not in finding.text
        assert peer.secret_key not in finding.text
    assert peer.list_keys() == []
    assert not [path for path in path.parent.iterdir() if "check" in path.name]


async def test_secret_that_is_rotated_while_we_run(profiles: tuple[ObjectStore, Path]) -> None:
    """A profile whose secret is put right in its file works from the next upload on, without a new start."""
    peer, path = profiles
    request = check_storage({"profile": "wrong-secret", "containerPath": "below"})
    assert request is not None
    with closing(open_store(Settings(storage_profiles=path))) as store:
        destination = store.resolve(request, "t-1")
        with pytest.raises(StoreFailed, match="the secret does not belong"):
            await store.put(destination, image(b"x"))
        (path.parent / "wrong").write_text(peer.secret_key)
        stored = await store.put(destination, image(b"x"))
    assert peer.read_object("below/t-1_mask") == b"x"
    assert stored.reference["profile"] == "wrong-secret"
    assert peer.url not in str(stored.reference)


def test_check_takes_profiles_on_the_command_line() -> None:
    """`--storage` may be given several times."""
    [option] = [option for option in main.commands["check"].params if option.name == "profiles"]
    assert option.opts == ["--storage"]
    assert option.multiple


async def test_prefix_in_the_url(versity: BucketUnderTest) -> None:
    """A prefix is part of what is asked for: a server that has none there refuses or finds no such bucket."""
    prefix = secrets.token_hex(4)
    with pytest.raises(StoreFailed, match=f"there is no bucket|may not|does not belong|{prefix}"):
        await versity.store.put(versity.destination(url=f"{versity.peer.url}/{prefix}"), image(b"x"))
    assert versity.objects() == {}
