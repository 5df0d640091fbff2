"""The Kafkas of the tests are what the tests take them for: what the product relies on is so, and none is left behind.

Where a proof is about the broker, the clients are librdkafka's with as few settings as can be.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._resource import ResourceType

from tests.peers.kafka import jars
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.clients import UnknownTopic, is_answering, quiet, read_topic, wait_for_records
from tests.peers.kafka.jars import JarsNotFetched, NoKafkaHere, find_java, kafka_jars
from tests.peers.kafka.mock import PARTITIONS, MockKafka
from tests.peers.kafka.peer import KafkaPeer
from tests.peers.kafka.process import DidNotStart
from tests.peers.kafka.records import Committed, TestRecord
from tests.peers.kafka_fixtures import OwnKafka, Topics
from tests.secrets import KAFKA_PASSWORD

HERE = Path(__file__).parents[2]
CAP = 30.0


def values_of(records: list[TestRecord]) -> list[bytes | None]:
    return [record.value for record in records]


def transactional(kafka: KafkaPeer, name: str, **properties: Any) -> Producer:
    """A producer with its transactional id, in its first transaction."""
    producer = Producer({**quiet(kafka.bootstrap), "transactional.id": name, **properties})
    producer.init_transactions(CAP)
    producer.begin_transaction()
    return producer


@contextmanager
def member(kafka: KafkaPeer, group: str, topic: str) -> Iterator[Consumer]:
    """A member of a group of one, which has its partitions."""
    properties = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    assigned = threading.Event()
    with closing(Consumer({**quiet(kafka.bootstrap), **properties})) as consumer:
        consumer.subscribe([topic], on_assign=lambda *_: assigned.set())
        for _ in range(int(CAP * 10)):
            consumer.poll(0.1)
            if assigned.is_set():
                break
        assert consumer.assignment()
        yield consumer


def code_of(refused: pytest.ExceptionInfo[KafkaException]) -> int:
    error: KafkaError = refused.value.args[0]
    return error.code()


# --- Topics --------------------------------------------------------------------------------------------------------


def test_a_topic_shows_what_was_put_there(kafka: RealKafka, topics: Topics) -> None:
    """Key, value, headers, partition and offset are told when a record is put there, and read back the same."""
    topic = topics("any")
    kafka.create_topics({topic: 3})
    first = kafka.produce(topic, [b"a", None], keys=[b"k", None], headers=[("h", b"1"), ("h", b"2")], partition=2)
    other = kafka.produce(topic, [b"b"], partition=0)
    assert [(record.partition, record.offset) for record in first] == [(2, 0), (2, 1)]
    assert first[0].header("h") == b"2"
    assert first[0].header("x") is None
    assert kafka.read_topic(topic) == other + first


def test_an_empty_topic_is_read_at_once(kafka: RealKafka, topics: Topics) -> None:
    """There is nothing to wait for."""
    kafka.create_topics({topics("any"): 2})
    assert kafka.read_topic(topics("any")) == []


def test_a_topic_that_nobody_made_is_missing(kafka: RealKafka, topics: Topics) -> None:
    """Neither readers nor writers make one."""
    with pytest.raises(UnknownTopic):
        kafka.read_topic(topics("any"))
    with pytest.raises(UnknownTopic):
        kafka.committed(topics("group"), topics("any"))


def test_a_record_that_is_too_large_is_refused(kafka: RealKafka, topics: Topics) -> None:
    """A topic's own limit holds whatever a producer would send; what is below it is taken."""
    topic = topics("any")
    kafka.create_topics({topic: 1}, {"max.message.bytes": "2000000"})
    assert len(kafka.produce(topic, [bytes(1_990_000)])) == 1
    with pytest.raises(KafkaException) as refused:
        kafka.produce(topic, [bytes(2_000_000)])
    assert code_of(refused) == KafkaError.MSG_SIZE_TOO_LARGE
    assert [len(record.value or b"") for record in kafka.read_topic(topic)] == [1_990_000]


async def test_records_are_waited_for(kafka: RealKafka, topics: Topics) -> None:
    """A condition on all records of a topic is waited for, also when the topic comes to be later."""
    topic = topics("any")
    found: list[TestRecord] = []
    asked = threading.Event()

    def has_two(records: list[TestRecord]) -> bool:
        asked.set()
        return len(records) == 2

    async def wait() -> None:
        found.extend(await kafka.wait_for_records(topic, has_two))

    async with trio.open_nursery() as waiting:
        waiting.start_soon(wait)
        assert await trio.to_thread.run_sync(asked.wait, CAP)
        await trio.to_thread.run_sync(kafka.create_topics, {topic: 1})
        await trio.to_thread.run_sync(kafka.produce, topic, [b"1", b"2"])
    assert values_of(found) == [b"1", b"2"]


def test_what_does_not_come_is_told(kafka: RealKafka, topics: Topics) -> None:
    """A wait that ends without its condition shows how far the topic is."""
    kafka.create_topics({topics("any"): 1})
    kafka.produce(topics("any"), [b"the only one"])
    with pytest.raises(TimeoutError, match="the only one"):
        wait_for_records(kafka.bootstrap, topics("any"), lambda records: len(records) == 2, seconds=3)


# --- Transactions --------------------------------------------------------------------------------------------------


def test_an_aborted_transaction_is_not_read(kafka: RealKafka, topics: Topics) -> None:
    """Readers of committed records see what was committed, others see all; marks at the end are no obstacle."""
    topic = topics("any")
    kafka.create_topics({topic: 1})
    producer = transactional(kafka, topics("id"))
    producer.produce(topic, b"committed")
    producer.commit_transaction(CAP)
    producer.begin_transaction()
    producer.produce(topic, b"aborted")
    producer.flush(CAP)
    producer.abort_transaction(CAP)
    assert values_of(kafka.read_topic(topic)) == [b"committed"]
    assert values_of(kafka.read_topic(topic, "read_uncommitted")) == [b"committed", b"aborted"]


def test_an_open_transaction_hides_what_is_behind_it(kafka: RealKafka, topics: Topics) -> None:
    """Records of others behind it wait for its end as well: no transaction may wait for a job."""
    topic = topics("any")
    kafka.create_topics({topic: 1})
    producer = transactional(kafka, topics("id"))
    producer.produce(topic, b"open")
    producer.flush(CAP)
    kafka.produce(topic, [b"of another"])
    assert kafka.read_topic(topic) == []
    assert values_of(kafka.read_topic(topic, "read_uncommitted")) == [b"open", b"of another"]
    producer.commit_transaction(CAP)
    found = wait_for_records(kafka.bootstrap, topic, lambda records: len(records) == 2)
    assert values_of(found) == [b"open", b"of another"]


def test_a_transaction_over_time_is_aborted_by_the_broker(kafka: RealKafka, topics: Topics) -> None:
    """A producer that is gone holds readers up for no longer than its transaction's timeout and a little."""
    topic = topics("any")
    kafka.create_topics({topic: 1})
    producer = transactional(kafka, topics("id"), **{"transaction.timeout.ms": 1_000})
    producer.produce(topic, b"abandoned")
    producer.flush(CAP)
    kafka.produce(topic, [b"behind"])
    found = wait_for_records(kafka.bootstrap, topic, bool)
    assert values_of(found) == [b"behind"]


def test_a_producer_is_fenced_by_the_next_of_its_name(kafka: RealKafka, topics: Topics) -> None:
    """The next one with the same transactional id ends the open transaction, and the first is of no use any more."""
    topic = topics("any")
    kafka.create_topics({topic: 1})
    zombie = transactional(kafka, topics("id"))
    zombie.produce(topic, b"of the zombie")
    zombie.flush(CAP)
    successor = transactional(kafka, topics("id"))
    successor.produce(topic, b"of the successor")
    successor.commit_transaction(CAP)
    with pytest.raises(KafkaException) as refused:
        zombie.commit_transaction(CAP)
    assert code_of(refused) == KafkaError._FENCED
    assert refused.value.args[0].fatal()
    assert values_of(wait_for_records(kafka.bootstrap, topic, bool)) == [b"of the successor"]


# --- Offsets -------------------------------------------------------------------------------------------------------


def test_offsets_share_the_fate_of_their_transaction(kafka: RealKafka, topics: Topics) -> None:
    """They and their metadata are committed or not, together with the records."""
    topic, group = topics("any"), topics("group")
    kafka.create_topics({topic: 1})
    with member(kafka, group, topic) as consumer:
        producer = transactional(kafka, topics("id"))
        for offset, end in ((5, producer.commit_transaction), (7, producer.abort_transaction)):
            if offset == 7:
                producer.begin_transaction()
            place = TopicPartition(topic, 0, offset, metadata=f"at {offset}")
            producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), CAP)
            end(CAP)
            assert kafka.committed(group, topic) == {0: Committed(5, "at 5")}


def test_metadata_of_4095_characters_is_kept(kafka: RealKafka, topics: Topics) -> None:
    """One more is refused; characters are counted, not bytes."""
    topic, group = topics("any"), topics("group")
    kafka.create_topics({topic: 1})
    with closing(Consumer({**quiet(kafka.bootstrap), "group.id": group})) as consumer:
        consumer.commit(offsets=[TopicPartition(topic, 0, 3, metadata="é" * 4_095)], asynchronous=False)
        with pytest.raises(KafkaException) as refused:
            consumer.commit(offsets=[TopicPartition(topic, 0, 4, metadata="x" * 4_096)], asynchronous=False)
    assert code_of(refused) == KafkaError.OFFSET_METADATA_TOO_LARGE
    assert kafka.committed(group, topic) == {0: Committed(3, "é" * 4_095)}


def test_metadata_too_large_aborts_a_transaction_and_no_more(kafka: RealKafka, topics: Topics) -> None:
    """The refusal asks for an abort; the producer's next transaction is as good as any."""
    topic, group = topics("any"), topics("group")
    kafka.create_topics({topic: 1})
    with member(kafka, group, topic) as consumer:
        producer = transactional(kafka, topics("id"))
        place = TopicPartition(topic, 0, 1, metadata="x" * 4_096)
        with pytest.raises(KafkaException) as refused:
            producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), CAP)
        assert refused.value.args[0].txn_requires_abort()
        producer.abort_transaction(CAP)
        producer.begin_transaction()
        producer.send_offsets_to_transaction([TopicPartition(topic, 0, 1)], consumer.consumer_group_metadata(), CAP)
        producer.commit_transaction(CAP)
    assert kafka.committed(group, topic) == {0: Committed(1, "")}


def test_the_broker_fences_members_and_not_partitions(kafka: RealKafka, topics: Topics) -> None:
    """A member may commit a partition that it does not have, by a transaction too: who has what is for us to know."""
    group = topics("group")
    kafka.create_topics({topics("its"): 1, topics("not"): 1})
    with member(kafka, group, topics("its")) as consumer:
        producer = transactional(kafka, topics("id"))
        place = TopicPartition(topics("not"), 0, 9)
        producer.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), CAP)
        producer.commit_transaction(CAP)
    assert kafka.committed(group, topics("not")) == {0: Committed(9, "")}


def test_a_member_that_has_left_is_refused(kafka: RealKafka, topics: Topics) -> None:
    """Its group metadata commits nothing any more; the transaction has to be aborted."""
    topic, group = topics("any"), topics("group")
    kafka.create_topics({topic: 1})
    with member(kafka, group, topic) as consumer:
        metadata = consumer.consumer_group_metadata()
    producer = transactional(kafka, topics("id"))
    with pytest.raises(KafkaException) as refused:
        producer.send_offsets_to_transaction([TopicPartition(topic, 0, 9)], metadata, CAP)
    assert code_of(refused) == KafkaError.UNKNOWN_MEMBER_ID
    assert refused.value.args[0].txn_requires_abort()
    producer.abort_transaction(CAP)
    assert kafka.committed(group, topic) == {}


# --- The mock cluster ----------------------------------------------------------------------------------------------


def test_the_mock_cluster_has_no_transactions(mock_kafka: MockKafka) -> None:
    """It takes part in them, and shows what was aborted: nothing about exactly-once can be tried there."""
    producer = transactional(mock_kafka, "id")
    producer.produce("any", b"aborted")
    producer.flush(CAP)
    producer.abort_transaction(CAP)
    assert values_of(mock_kafka.read_topic("any")) == [b"aborted"]


def test_the_mock_cluster_keeps_records_and_offsets(mock_kafka: MockKafka) -> None:
    """A topic is there with its first record; offsets and their metadata are kept."""
    for partition in range(PARTITIONS):
        mock_kafka.produce("any", [b"x"], keys=[b"k"], headers=[("h", b"v")], partition=partition)
    read = mock_kafka.read_topic("any")
    assert [record.partition for record in read] == list(range(PARTITIONS))
    assert {(record.key, record.value, record.headers) for record in read} == {(b"k", b"x", (("h", b"v"),))}
    with closing(Consumer({**quiet(mock_kafka.bootstrap), "group.id": "group"})) as consumer:
        consumer.commit(offsets=[TopicPartition("any", 2, 1, metadata="1:abc")], asynchronous=False)
    assert mock_kafka.committed("group", "any") == {2: Committed(1, "1:abc")}


# --- Rights --------------------------------------------------------------------------------------------------------


def test_a_user_may_do_what_was_allowed(own_kafka: OwnKafka, topics: Topics) -> None:
    """By the door with passwords, a user without rights is refused, and one with the right to a topic is not."""
    topic = topics("any")
    kafka = own_kafka(users={"alice": KAFKA_PASSWORD})
    kafka.create_topics({topic: 1})
    properties = {
        **quiet(kafka.sasl_bootstrap),
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "alice",
        "sasl.password": KAFKA_PASSWORD,
        "topic.metadata.propagation.max.ms": 0,
    }
    reported: list[KafkaError | None] = []

    def write() -> None:
        producer = Producer(properties)
        producer.produce(topic, b"x", on_delivery=lambda error, _: reported.append(error))
        producer.flush(CAP)

    write()
    assert reported[0] is not None
    assert reported[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    kafka.allow("alice", ResourceType.TOPIC, topic, AclOperation.WRITE)
    write()
    assert reported[1:] == [None]
    assert values_of(kafka.read_topic(topic)) == [b"x"]


# --- How a broker lives and ends -----------------------------------------------------------------------------------


def test_a_broker_keeps_all_over_its_lives(own_kafka: OwnKafka, topics: Topics) -> None:
    """Stopped, killed or paused, it comes back under the same address with the same records; meanwhile it is away."""
    kafka = own_kafka({"num.io.threads": 3})
    address, topic = kafka.bootstrap, topics("any")
    kafka.create_topics({topic: 1})
    kafka.produce(topic, [b"1"])
    for number, (leave, come) in enumerate(
        [(kafka.stop, kafka.start), (kafka.kill, kafka.start), (kafka.pause, kafka.resume)], 2
    ):
        leave()
        assert not is_answering(address, seconds=0.3)
        come()
        kafka.produce(topic, [str(number).encode()])
    assert kafka.bootstrap == address
    assert values_of(read_topic(address, topic)) == [b"1", b"2", b"3", b"4"]


def test_a_broker_that_cannot_start_says_why(own_kafka: OwnKafka) -> None:
    """The text of the failure holds what it has printed."""
    with pytest.raises(DidNotStart, match=r"num\.io\.threads"):
        own_kafka({"num.io.threads": 0})


def kill_launcher(launcher: int, _supervisor: int) -> None:
    os.kill(launcher, signal.SIGKILL)


def terminate_group_of_launcher(launcher: int, _supervisor: int) -> None:
    os.killpg(launcher, signal.SIGTERM)


def kill_supervisor(_launcher: int, supervisor: int) -> None:
    os.kill(supervisor, signal.SIGKILL)


LAUNCH = """
import os, sys
from pathlib import Path
from tests.peers.kafka.process import SupervisedProcess

process = SupervisedProcess(["sleep", "600"], Path(sys.argv[1]), 600)
process.pause()
inheriting = os.fork()  # keeps all descriptors open, as a forked worker does
if inheriting:
    print(process.pid, process._supervisor.pid, inheriting, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("disaster", [kill_launcher, terminate_group_of_launcher, kill_supervisor])
def test_a_broker_ends_with_its_launcher(disaster: Callable[[int, int], None], tmp_path: Path) -> None:
    """However its launcher or supervisor dies, and though it be paused, no process is left behind."""
    command = [sys.executable, "-c", LAUNCH, str(tmp_path / "log")]
    with subprocess.Popen(
        command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as launcher:
        assert launcher.stdout is not None
        pid, supervisor, _ = map(int, launcher.stdout.readline().split())
        ended = os.pidfd_open(pid)
        disaster(launcher.pid, supervisor)
        # Sooner than the supervisor's grace is over.
        assert select.select([ended], [], [], 15)[0]
        os.close(ended)


# --- What a machine may lack ---------------------------------------------------------------------------------------


def test_without_java_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no Java, or one that is too old, the reason names what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoKafkaHere, match=r"no program `java` on PATH.*install"):
        find_java()
    program(tmp_path / "java", """echo 'openjdk version "11.0.2" 2019-01-15' >&2""")
    with pytest.raises(NoKafkaHere, match=r'version "11.*needs Java 17'):
        find_java()


def test_without_maven_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the jars aren't there and can't be fetched, the reason names what to install."""
    monkeypatch.setattr(jars, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoKafkaHere, match=r"no program `mvn` on PATH.*install"):
        kafka_jars()


def test_the_jars_are_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that fails, or brings other bytes, leaves nothing; the next one is taken, and once it is, kept."""
    monkeypatch.setattr(jars, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(jars, "SUMS", tmp_path / "sums")
    (tmp_path / "sums").write_text(f"{hashlib.sha256(b'whole').hexdigest()}  a.jar\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    find_folder = (
        """for word in "$@"; do case $word in -DoutputDirectory=*) to=${word#*=};; esac; done; mkdir -p "$to"; """
    )
    for script in ("printf half > $to/a.jar; echo no room; exit 1", "printf other > $to/a.jar; echo no room"):
        program(tmp_path / "mvn", find_folder + script)
        with pytest.raises(JarsNotFetched, match=r"no room|a\.jar"):
            kafka_jars()
    program(tmp_path / "mvn", find_folder + "printf whole > $to/a.jar")
    found = kafka_jars()
    assert [path.name for path in found.iterdir()] == ["a.jar"]
    (tmp_path / "mvn").unlink()
    assert kafka_jars() == found
    assert sorted(path.name for path in found.parent.iterdir()) == [found.name, f"{found.name}.lock"]


def program(path: Path, script: str) -> None:
    path.touch(0o755)
    path.write_text(f"#!/bin/sh\n{script}\n")


def test_what_is_lacking_is_in_the_summary(tmp_path: Path) -> None:
    """Without Java the tests that need a broker are skipped with the reason in pytest's summary, async ones too."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "are_waited_for or cannot_start", __file__],
        cwd=HERE,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.count("SKIPPED [1]") == 2, run.stdout
    assert run.stdout.count("no program `java` on PATH") == 2
    assert "2 skipped" in run.stdout
