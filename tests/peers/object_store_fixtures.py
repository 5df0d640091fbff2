"""Fixtures that lend real object stores to tests, one of each kind per session, started by the first test that asks.

A pytest plugin, named in the root `conftest.py`. Where versitygw is not built and can't be, for want of Go, the tests
that need it are skipped with the reason; a build that fails, or a store that does not start, is a failure. Tests that
could disturb each other take a bucket of their own (`ObjectStore.with_new_bucket`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.secrets import GOOGLE_LIKE_SECRET

from .object_stores.seaweedfs import running_seaweedfs
from .object_stores.server_process import log_tail
from .object_stores.store import KeyPair, ObjectStore
from .object_stores.versitygw import running_versitygw
from .object_stores.versitygw_build import NoGo, versitygw_program


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A SeaweedFS: real signatures and checksums, any region; up in two seconds."""
    with running_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as store:
        yield store


@pytest.fixture(scope="session")
def versitygw_binary() -> Path:
    """The program, which the first use on a machine builds (more than a minute)."""
    try:
        return versitygw_program()
    except NoGo as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def versitygw(versitygw_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A versitygw in Amazon's first region."""
    with running_versitygw(versitygw_binary, tmp_path_factory.mktemp("versitygw")) as store:
        yield store


@pytest.fixture(scope="session")
def versitygw_tls(versitygw_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A versitygw behind https, in a region that no list of Amazon's has."""
    folder = tmp_path_factory.mktemp("versitygw_tls")
    with running_versitygw(versitygw_binary, folder, region="garage", tls=True) as store:
        yield store


@pytest.fixture(scope="session")
def versitygw_auto(versitygw_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A versitygw with the region and the kind of key that Google's store has for AWS signatures."""
    folder = tmp_path_factory.mktemp("versitygw_auto")
    root = KeyPair("GOOG1EOBJECTSTOREPEER", GOOGLE_LIKE_SECRET)
    with running_versitygw(versitygw_binary, folder, region="auto", root=root) as store:
        yield store


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the stores of a failed test have printed."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, ObjectStore):
                report.sections.append((f"log of {name}", log_tail(value.log_path)))
    return report
