"""Fixtures that lend a real PESTO to tests, one of each kind per session, started by the first test that asks.

A pytest plugin, named in the root `conftest.py`. Where no interpreter for PESTO is found the tests that need one are
skipped with the reason; an environment that cannot be made, or a PESTO that does not start, is a failure.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .pesto.environment import NoPythonForPesto, pesto_python
from .pesto.launcher import STATEFUL, STATELESS, PestoPeer, running_pesto


@pytest.fixture(scope="session")
def pesto_interpreter() -> Path:
    """The interpreter of PESTO's own environment, which the first use makes."""
    try:
        return pesto_python()
    except NoPythonForPesto as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def pesto_stateless(pesto_interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PestoPeer]:
    """A PESTO that answers a request with its results (`asynchronous: false`)."""
    with running_pesto(pesto_interpreter, tmp_path_factory.mktemp("pesto_stateless"), STATELESS) as peer:
        yield peer


@pytest.fixture(scope="session")
def pesto_stateful(pesto_interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PestoPeer]:
    """A PESTO that answers a request with a link to its results (`asynchronous: true`)."""
    with running_pesto(pesto_interpreter, tmp_path_factory.mktemp("pesto_stateful"), STATEFUL) as peer:
        yield peer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the PESTOs of a failed test have printed."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, PestoPeer):
                report.sections.append((f"log of {name}", value.log_tail()))
    return report
