"""The table of the probes, by a daemon that is probed every second while everything around it goes and comes back."""

from __future__ import annotations

import json
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import trio

from cador_trio.kafka.clients import make_consumer
from cador_trio.kafka.properties import Properties
from cador_trio.kafka.room import POLLING_THREAD
from tests.daemon.process import CAP_SECONDS, IMAGE, Daemon, client_of, open_daemon, wait_answer
from tests.kafka.held import open_held_algorithm, release_all, request_of, wait_running
from tests.kafka.street import KINDS, KafkaStreet, running
from tests.peers.kafka.mock import MockKafka, running_mock_kafka
from tests.peers.kafka_fixtures import OwnKafka, Topics

PERIOD_SECONDS: Final = 1.0
MORE_ANSWERS: Final = 1  # that must be the same while a phase lasts

# live, ready
TABLE: Final = {
    "starting": (200, 503),
    "algorithm down": (200, 503),
    "busy": (200, 200),
    "broker away": (200, 503),
    "partitions revoked": (200, 200),
    "draining": (200, 503),
}

STUCK_THREAD: Final = """
import os, time
from confluent_kafka import Consumer
from cador_trio import cli, daemon
from cador_trio.kafka import clients, room
from cador_trio.observe import health
health.STUCK_SECONDS, room.WELL_SECONDS, daemon.HEARTBEAT_SECONDS = 3.0, 0.2, 0.2
stuck = os.path.join(os.environ["CADOR_SPOOL_DIR"], "stuck")

class StuckConsumer(Consumer):
    def poll(self, timeout):
        while os.path.exists(stuck):
            time.sleep(0.01)
        return super().poll(timeout)

clients.Consumer = StuckConsumer
cli.main(["serve"])
"""


@dataclass(frozen=True)
class Answers:
    """One look at both probes."""

    live: int
    ready: int
    reasons: str


@dataclass
class Prober:
    """A kubelet, and what it has been told."""

    url: str
    seen: list[Answers] = field(default_factory=list)
    phases: dict[str, tuple[int, int]] = field(default_factory=dict)
    _news: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        """Probe every second until nobody listens any more."""
        with suppress(httpx.TransportError):
            async with probes_at(self.url) as client:
                while True:
                    live, ready = [await client.get(path) for path in ("/livez", "/readyz")]
                    self.seen.append(Answers(live.status_code, ready.status_code, json.dumps(ready.json()["reasons"])))
                    self._news.set()
                    self._news = trio.Event()
                    await trio.sleep(PERIOD_SECONDS)

    async def wait_ready(self, status: int, reason: str = "") -> None:
        """Until `/readyz` says so from now on, for this reason."""
        with trio.fail_after(CAP_SECONDS):
            while True:
                last = await self._next()
                if last.ready == status and reason in last.reasons:
                    return

    async def watch(self, phase: str, reason: str = "") -> None:
        """The phase has begun: wait until the probes say what the table does, and then see that they go on to."""
        await self.wait_ready(TABLE[phase][1], reason)
        first = len(self.seen) - 1
        for _ in range(MORE_ANSWERS):
            await self._next()
        (self.phases[phase],) = {(one.live, one.ready) for one in self.seen[first:]}
        assert all(reason in one.reasons for one in self.seen[first:])

    async def _next(self) -> Answers:
        with trio.fail_after(CAP_SECONDS):
            await self._news.wait()
        return self.seen[-1]


def probes_at(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=CAP_SECONDS)


async def wait_probes(daemon: Daemon) -> str:
    """The address of the probes, which answer before anything else does."""
    return str((await daemon.wait_event("serving probes and metrics"))["url"])


async def test_the_table_of_the_probes(own_kafka: OwnKafka, topics: Topics, tmp_path: Path) -> None:
    """Alive in all of its life; ready when it has an algorithm, brokers and a future, however much it has to do."""
    broker = await trio.to_thread.run_sync(own_kafka)
    street = KafkaStreet(broker, topics)
    await street.create(partitions=2)
    settings = {
        "CADOR_MAX_CONCURRENT_JOBS": "2",
        "CADOR_SHUTDOWN_GRACE_SECONDS": "60",
        "CADOR_REVOKE_GRACE_SECONDS": "60",
    }
    async with open_held_algorithm() as fake, trio.open_nursery() as nursery:
        await fake.refuse_connections()
        (tmp_path / "first").mkdir()
        first_settings = street.settings("first", **settings, CADOR_METRICS_PORT="0")
        async with open_daemon(tmp_path / "first", fake.url, **first_settings) as first:
            prober = Prober(await wait_probes(first))
            nursery.start_soon(prober.run)
            await prober.watch("starting", "algorithm")
            await fake.accept_again()
            await prober.wait_ready(200)

            await fake.refuse_connections()
            first.url = (await first.wait_event("serving"))["url"]
            async with client_of(first) as caller:  # by whom it finds out sooner than by looking
                assert (await caller.post("/jobs", json=IMAGE)).status_code == 503
            await prober.watch("algorithm down", "algorithm")
            await fake.accept_again()
            await prober.wait_ready(200)

            await trio.to_thread.run_sync(broker.stop)
            await prober.watch("broker away", "Kafka")
            await trio.to_thread.run_sync(broker.start)
            await prober.wait_ready(200)

            for partition, name in enumerate("ab"):
                await street.request(request_of(name), partition=partition)
            await wait_running(fake, "a", "b")
            await prober.watch("busy")

            async with running(tmp_path / "second", fake, street.settings("second", **settings)) as second:
                await first.wait_event("partitions are taken away")  # and waits for the job in them
                await prober.watch("partitions revoked")
                assert not any(line["event"] == "partition assigned" for line in second.lines)
                release_all(fake)
                await second.wait_event("partition assigned")
                assert await second.stop() == 0

            await street.request(*[request_of("c")] * 3, partition=0)
            await wait_running(fake, "c")
            first.process.send_signal(signal.SIGTERM)
            await first.wait_event("stopping: jobs have their grace")
            await prober.watch("draining", "the daemon is stopping")
            release_all(fake)
            assert await first.wait_exit() == 0
    assert prober.phases == TABLE
    assert {one.live for one in prober.seen} == {200}


def test_a_consumer_says_that_it_has_lost_its_brokers() -> None:
    """Without being asked, so that nobody has to wait for the next look at them."""
    outages: list[float] = []
    with running_mock_kafka() as cluster:
        properties: Properties = {"bootstrap.servers": cluster.bootstrap, "group.id": "group"}
        consumer = make_consumer(properties, lambda: outages.append(time.monotonic()))
        consumer.list_topics("requests", timeout=CAP_SECONDS)
        assert outages == []
    until = time.monotonic() + CAP_SECONDS
    while not outages and time.monotonic() < until:
        consumer.poll(0.1)
    consumer.close()
    assert outages


def test_the_page_has_the_table() -> None:
    """What docs/kubernetes.md promises is what is tested here."""
    page = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| (yes|no) \| (yes|no) \|$", page, re.MULTILINE)
    told = {phase: tuple(200 if word == "yes" else 503 for word in words) for phase, *words in rows}
    assert told == TABLE | {"polling thread or event loop stuck": (503, 503)}


async def test_a_stuck_polling_thread(mock_kafka: MockKafka, topics: Topics, tmp_path: Path) -> None:
    """Both probes are 503 and name it, for as long as it is stuck."""
    street = KafkaStreet(mock_kafka, topics)
    for kind in KINDS:
        await trio.to_thread.run_sync(mock_kafka.produce, topics(kind), [b""])
    settings = street.settings(CADOR_METRICS_PORT="0", CADOR_DELIVERY="at-least-once")
    async with (
        open_held_algorithm() as fake,
        open_daemon(tmp_path, fake.url, command=["-c", STUCK_THREAD], **settings) as daemon,
        probes_at(await wait_probes(daemon)) as client,
    ):
        await wait_answer(client, "/readyz", 200)
        (daemon.spool / "stuck").touch()
        for probe in ("/livez", "/readyz"):
            (reason,) = (await wait_answer(client, probe, 503)).json()["reasons"]
            assert reason.startswith(f"{POLLING_THREAD} is stuck")
        (daemon.spool / "stuck").unlink()
        await wait_answer(client, "/livez", 200)
        await wait_answer(client, "/readyz", 200)
        assert await daemon.stop() == 0
