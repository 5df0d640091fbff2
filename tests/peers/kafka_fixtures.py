"""Fixtures that lend Kafkas to tests: one real broker for the session, brokers of a test's own, and mock clusters.

A pytest plugin, named in the root `conftest.py`. Where a broker can't run, for want of Java or Maven, the tests that
need one are skipped with the reason; a download that fails, or a broker that does not start, is a failure. Tests that
share the broker take topics and groups of their own (`topics`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Protocol, TypeAlias

import pytest

from .kafka.broker import RealKafka, running_kafka
from .kafka.jars import NoKafkaHere, find_java, kafka_jars
from .kafka.mock import MockKafka, running_mock_kafka


class OwnKafka(Protocol):
    """Makes a broker for the test, which runs; also in another thread than the test's."""

    def __call__(
        self,
        settings: Mapping[str, str | int] = MappingProxyType({}),
        users: Mapping[str, str] = MappingProxyType({}),
    ) -> RealKafka:
        """Start one, with settings of Kafka's over those that all of the tests' brokers have; see `running_kafka`."""
        ...


Topics: TypeAlias = Callable[[str], str]
"""`topics("requests")`: the same word gives the same name throughout a test, and another in every other test."""


@pytest.fixture(scope="session")
def kafka_programs() -> None:
    """What a broker needs, which the first use on a machine fetches (ten seconds)."""
    try:
        find_java()
        kafka_jars()
    except NoKafkaHere as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def kafka(kafka_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKafka]:
    """A real broker for all tests, which none may stop, pause or hold transactions open in for long."""
    with running_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def own_kafka(kafka_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnKafka]:
    """Real brokers of the test's own, to be stopped, killed and paused, or with settings of their own."""
    with ExitStack() as stack:

        def start(
            settings: Mapping[str, str | int] = MappingProxyType({}),
            users: Mapping[str, str] = MappingProxyType({}),
        ) -> RealKafka:
            return stack.enter_context(running_kafka(tmp_path_factory.mktemp("own_kafka"), settings, users))

        yield start


@pytest.fixture
def mock_kafka() -> Iterator[MockKafka]:
    """A mock cluster of one broker: no transactions, no administration, topics come to be by use."""
    with running_mock_kafka() as cluster:
        yield cluster


@pytest.fixture
def topics() -> Topics:
    """Names for topics and groups that no other test has."""
    token = secrets.token_hex(6)
    return lambda word: f"{word}-{token}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the broker of a failed test has printed."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for name, value in item.funcargs.items():
            if isinstance(value, RealKafka):
                report.sections.append((f"log of {name}", value.log_tail()))
    return report
