"""A real Kafka of one node, on loopback ports that stay its own, which tests may stop, kill, pause and start again.

Knows how a broker is set up; what is in it is the tests' affair.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._resource import ResourceType

from tests.peers.object_stores.server_process import HOST, reserved_ports

from .clients import allow_access, is_answering
from .jars import find_java, kafka_jars
from .peer import KafkaPeer
from .process import DidNotStart, SupervisedProcess, log_tail

LIFE_SECONDS: Final = 3_600.0
"""No broker runs longer, whatever becomes of the tests."""

_START_SECONDS: Final = 90.0  # 2 on two cores with nothing else to do
_FORMAT_SECONDS: Final = 60
_LOG4J: Final = Path(__file__).with_name("log4j2.properties")
_JVM: Final = (
    *("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
    *("-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={_LOG4J}"),
)

# One node for all, small, and quick where a production broker is patient. Kafka's own names; a test's settings go over.
_SETTINGS: Final[Mapping[str, str | int]] = MappingProxyType(
    {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
        # A topic that a test has not created is missing, as it is where administrators are careful.
        "auto.create.topics.enable": "false",
        "num.partitions": 1,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        # How often it looks for transactions that are over time; 10 s by default.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 4,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1_000,
        # KIP-848 groups: clients can't choose, so that these two are what every such group has.
        "group.consumer.session.timeout.ms": 6_000,
        "group.consumer.min.session.timeout.ms": 1_000,
        "group.consumer.heartbeat.interval.ms": 500,
        "group.consumer.min.heartbeat.interval.ms": 100,
        # A node that was killed may register again only when its last life's session is over; 9 s by default.
        "broker.session.timeout.ms": 3_000,
        "broker.heartbeat.interval.ms": 500,
        "log.cleaner.dedupe.buffer.size": 2_097_152,
        "log.segment.bytes": 134_217_728,
        "log.index.size.max.bytes": 1_048_576,
        "metadata.log.segment.bytes": 8_388_608,
    }
)


class RealKafka(KafkaPeer):
    """A broker, between `start` and its end; made by `running_kafka`.

    Its data, its port and so its address stay the same over all its lives.
    """

    def __init__(self, folder: Path, port: int, sasl_port: int, command: list[str | Path], life_seconds: float) -> None:
        super().__init__(f"{HOST}:{port}")
        self.sasl_bootstrap = f"{HOST}:{sasl_port}"
        """For the users alone: SASL_PLAINTEXT, PLAIN. By `bootstrap` everyone may do everything."""
        self.log_path = folder / "kafka.log"
        self._command = command
        self._life_seconds = life_seconds
        self._process: SupervisedProcess | None = None

    @property
    def pid(self) -> int:
        """Of the broker itself."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        """Whether there is a process; one that is paused runs."""
        return self._process is not None and self._process.is_running

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            DidNotStart: it ended early, or did not answer in a minute and a half; the text holds the end of its log.

        """
        assert self._process is None, "it is started already"
        self._process = SupervisedProcess(self._command, self.log_path, self._life_seconds)
        try:
            self._process.wait_until(lambda: is_answering(self.bootstrap), _START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order (SIGTERM) and wait for that; nothing happens if it is not started."""
        self._end(kill=False)

    def kill(self) -> None:
        """End it at once (SIGKILL), also if it is paused; nothing happens if it is not started."""
        self._end(kill=True)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay, nothing is answered."""
        self._running.pause()

    def resume(self) -> None:
        """Let it go on after `pause` (SIGCONT)."""
        self._running.resume()

    def allow(self, user: str, kind: ResourceType, name: str, operation: AclOperation) -> None:
        """Give a user a right: to a topic, group, transactional id or (named `kafka-cluster`) the cluster."""
        allow_access(self.bootstrap, user, kind, name, operation)

    def log_tail(self) -> str:
        """The end of what it has printed in all its lives."""
        return log_tail(self.log_path)

    @property
    def _running(self) -> SupervisedProcess:
        assert self._process is not None, "it is not started"
        return self._process

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(kill=kill)


@contextmanager
def running_kafka(
    folder: Path,
    settings: Mapping[str, str | int] = MappingProxyType({}),
    users: Mapping[str, str] = MappingProxyType({}),
    *,
    life_seconds: float = LIFE_SECONDS,
) -> Iterator[RealKafka]:
    """Run a broker in `folder`, which must exist and be empty, from its first answer to the end of the block.

    Args:
        folder: gets its properties, data and log.
        settings: the broker's own, over those that every broker of the tests has.
        users: passwords by name, for `sasl_bootstrap`, which is open if there is one; none has a right at first.
        life_seconds: each of its lives is ended after so long.

    Raises:
        NoKafkaHere: the machine lacks Java or Maven.
        JarsNotFetched: see `jars`.
        DidNotStart: it ended early, or did not answer in time.

    """
    java, jars = find_java(), kafka_jars()
    properties = folder / "server.properties"
    with reserved_ports(3) as [port, controller_port, sasl_port]:
        doors = {"PLAINTEXT": port, "CONTROLLER": controller_port, **({"SASL_PLAINTEXT": sasl_port} if users else {})}
        own = {**_places(folder, doors), **(_security(users) if users else {}), **settings}
        lines = [f"{name}={value}" for name, value in {**_SETTINGS, **own}.items()]
        properties.write_text("\n".join(lines), encoding="utf-8")
        base: list[str | Path] = [java, *_JVM, "-cp", f"{jars}/*"]
        _format(base, properties)
        kafka = RealKafka(folder, port, sasl_port, [*base, "kafka.Kafka", properties], life_seconds)
        try:
            kafka.start()
            yield kafka
        finally:
            # Nobody needs its data any more; its log stays.
            kafka.close()
            kafka.kill()
            shutil.rmtree(folder / "data")


def _places(folder: Path, doors: Mapping[str, int]) -> Mapping[str, str]:
    listeners = {name: f"{name}://{HOST}:{port}" for name, port in doors.items()}
    return {
        "controller.quorum.voters": f"1@{HOST}:{doors['CONTROLLER']}",
        "listeners": ",".join(listeners.values()),
        "advertised.listeners": ",".join(listener for name, listener in listeners.items() if name != "CONTROLLER"),
        "log.dirs": f"{folder / 'data'}",
    }


def _security(users: Mapping[str, str]) -> Mapping[str, str]:
    passwords = " ".join(f'user_{name}="{password}"' for name, password in users.items())
    return {
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": (
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {passwords};"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # Whoever comes by the other doors: the node itself and the tests' own clients.
        "super.users": "User:ANONYMOUS",
    }


def _format(base: list[str | Path], properties: Path) -> None:
    """Make the data folder, for a cluster of its own id."""
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # As one word: an id may begin with a dash, which would be taken for an option.
    command = [*base, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", properties]
    try:
        subprocess.run(
            [os.fspath(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=_FORMAT_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise DidNotStart(f"{error}\n{error.output or ''}") from error
