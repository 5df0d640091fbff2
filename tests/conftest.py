"""Fixtures that every room's tests may ask for."""

import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("cador-trio", deadline=None)
settings.load_profile("cador-trio")

pytest_plugins = ["tests.peers.kafka_fixtures", "tests.peers.object_store_fixtures", "tests.peers.pesto_fixtures"]


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A test that sets logging up, as the commands do, sets it up for itself alone."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
