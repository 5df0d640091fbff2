"""Fixtures that every room's tests may ask for."""

import logging
import sys
import threading
from collections.abc import Generator, Iterator
from typing import Final

import pytest
import structlog
from hypothesis import settings

from cador_trio.observe.logs import _redact
from tests.leaks import take_found, watch_sections

# How long an example takes says more about the machine than about the code. The same examples come every time, so that
# a change is judged by what it changes; `--hypothesis-profile=new-examples` looks further.
settings.register_profile("new-examples", deadline=None)
settings.register_profile("cador-trio", deadline=None, derandomize=True, database=None)
settings.load_profile("cador-trio")

# What is logged in the process of the tests is redacted as in a daemon.
REDACTED_LINES: Final = (
    structlog.processors.format_exc_info,
    _redact,
    structlog.processors.add_log_level,
    structlog.dev.ConsoleRenderer(),
)

pytest_plugins = ["tests.peers.kafka_fixtures", "tests.peers.object_store_fixtures", "tests.peers.pesto_fixtures"]


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A test that sets logging up, as the commands do, sets it up for itself alone; in others no secret is shown."""
    handlers, level = logging.root.handlers[:], logging.root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, *REDACTED_LINES])
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail the test in whose course a secret came out of a daemon (tests/leaks.py)."""
    report = yield
    if not report.failed:  # a failed one shows what it likes
        watch_sections(report.when, report.sections)
    if leaks := take_found():
        report.outcome = "failed"
        report.sections.append(("secrets that came out", "\n".join(leaks)))
        report.longrepr = report.longrepr or "a secret came out of a daemon: see below"
    return report
