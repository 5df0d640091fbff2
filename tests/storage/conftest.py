"""The stores that the contract cases run against."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from cador_trio.storage.destinations import Destination, Policy, PosixDestination
from cador_trio.storage.store import Store


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


@pytest.fixture
def posix(tmp_path: Path) -> PosixUnderTest:
    root = tmp_path / "root"
    root.mkdir()
    return PosixUnderTest(root)


@pytest.fixture(params=["posix"])
def world(request: pytest.FixtureRequest) -> StoreUnderTest:
    """Every store in turn."""
    world: StoreUnderTest = request.getfixturevalue(request.param)
    return world
