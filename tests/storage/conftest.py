"""The stores that the contract cases run against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from cador_trio.storage.buckets import PartSizes
from cador_trio.storage.destinations import Destination, Policy, PosixDestination, check_storage
from cador_trio.storage.endpoints import Endpoint
from cador_trio.storage.outgoing import CHUNK_BYTES
from cador_trio.storage.store import Store
from cador_trio.storage.wire import Patience
from tests.peers.object_stores.store import ObjectStore

MIB = 1024 * 1024
# Seconds; short ones, for what is meant to fail, long enough for a busy machine.
PATIENCE = Patience(connect=5.0, send=5.0, receive=20.0)


class StoreUnderTest(Protocol):
    """A store, and a look at what is really in it."""

    store: Store

    def destination(self, task_name: str) -> Destination:
        """A destination that `resolve` would allow."""

    def objects(self) -> dict[str, bytes]:
        """What a reader finds, by object id."""

    def leftovers(self) -> list[str]:
        """What is there and is no object: half-written files, orphaned uploads."""


class PosixUnderTest:
    """A folder that doesn't exist yet, in an allowed root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "a" / "b"
        self.policy = Policy((str(root),))
        self.store = Store(self.policy)

    def destination(self, task_name: str = "t-1") -> PosixDestination:
        return PosixDestination(str(self.folder), task_name)

    def objects(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._files() if not path.name.startswith(".")}

    def leftovers(self) -> list[str]:
        return [path.name for path in self._files() if path.name.startswith(".")]

    def _files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]


class BucketUnderTest:
    """A new bucket of a server that runs, and a folder in it, asked for as a request would."""

    def __init__(self, peer: ObjectStore, *, variant: str = "S3", sizes: PartSizes | None = None) -> None:
        self.peer = peer.with_new_bucket()
        self.variant = variant
        self.policy = Policy(gcs=Endpoint.from_url(peer.url))
        self.store = Store(self.policy, patience=PATIENCE, ca=peer.ca, sizes=sizes or PartSizes())

    def settings(self, **changes: Any) -> dict[str, Any]:
        """What a request says."""
        place: dict[str, Any] = {"containerPath": f"{self.peer.bucket}/a/b"}
        if self.variant == "S3":
            place |= {"url": self.peer.url, "region": self.peer.region}
        return {**place, "key": self.peer.access_key, "secret": self.peer.secret_key, **changes}

    def destination(self, task_name: str = "t-1", **changes: Any) -> Destination:
        request = check_storage({self.variant: self.settings(**changes)})
        assert request is not None
        return self.store.resolve(request, task_name)

    def objects(self) -> dict[str, bytes]:
        keys = self.peer.list_keys()
        return {key.removeprefix("a/b/"): self.peer.read_object(key) or b"" for key in keys}

    def leftovers(self) -> list[str]:
        return self.peer.pending_multipart_uploads()

    def close(self) -> None:
        self.store.close()


@pytest.fixture
def posix(tmp_path: Path) -> PosixUnderTest:
    root = tmp_path / "root"
    root.mkdir()
    return PosixUnderTest(root)


@pytest.fixture
def weed(seaweedfs: ObjectStore) -> Iterator[BucketUnderTest]:
    """SeaweedFS."""
    with closing(BucketUnderTest(seaweedfs)) as world:
        yield world


@pytest.fixture
def versity(versitygw: ObjectStore) -> Iterator[BucketUnderTest]:
    """versitygw."""
    with closing(BucketUnderTest(versitygw)) as world:
        yield world


@pytest.fixture
def versity_in_parts(versitygw: ObjectStore) -> Iterator[BucketUnderTest]:
    """versitygw, with everything over a chunk sent in parts of the least size that it takes."""
    with closing(BucketUnderTest(versitygw, sizes=PartSizes(whole=CHUNK_BYTES, part=5 * MIB))) as world:
        yield world


@pytest.fixture
def weed_in_parts(seaweedfs: ObjectStore) -> Iterator[BucketUnderTest]:
    """SeaweedFS, with everything over a chunk sent in parts."""
    with closing(BucketUnderTest(seaweedfs, sizes=PartSizes(whole=CHUNK_BYTES, part=5 * MIB))) as world:
        yield world


@pytest.fixture
def versity_tls(versitygw_tls: ObjectStore) -> Iterator[BucketUnderTest]:
    """versitygw behind TLS, in a region of its own."""
    with closing(BucketUnderTest(versitygw_tls)) as world:
        yield world


@pytest.fixture
def gcs(versitygw_auto: ObjectStore) -> Iterator[BucketUnderTest]:
    """Google's way of signing, against a server that checks it."""
    with closing(BucketUnderTest(versitygw_auto, variant="GCS")) as world:
        yield world


@pytest.fixture(params=["posix", "weed", "versity", "versity_tls", "gcs", "versity_in_parts", "weed_in_parts"])
def world(request: pytest.FixtureRequest) -> StoreUnderTest:
    """Every store in turn."""
    world: StoreUnderTest = request.getfixturevalue(request.param)
    return world
