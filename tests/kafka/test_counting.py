"""What this room counts, among doubles: each counter moves when its thing happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import trio
from confluent_kafka import KafkaError, Producer
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.errors import AlgorithmFailed, InstanceFenced
from cador_trio.kafka import writer as writer_module
from cador_trio.kafka.clients import make_producer
from cador_trio.kafka.door import LANE_RECORDS
from cador_trio.kafka.effects import Effects, Role
from cador_trio.kafka.messages import KIND_HEADER, Message
from cador_trio.kafka.statuses import Statuses, Ticket
from cador_trio.kafka.writer import MessageRefused, OutcomeUnknown, PartitionsGone
from tests.kafka.doubles import KafkaHouse, ScriptedProducer, kafka_error, open_kafka_house, record
from tests.kafka.test_writer import Bench, commit_of, effects
from tests.observe.scraping import Moved

# --- Jobs and their messages -------------------------------------------------------------------------------------


async def test_messages_that_can_be_read(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Output, terminal status and dead letter are counted with their commit, by kind; a failure by its class too."""
    moved = Moved()
    house.receive(record(0))
    await trio.sleep(10)
    house.street.algorithm.error = AlgorithmFailed("no")
    house.receive(record(1))
    await trio.sleep(10)
    assert moved.by("kind", "cador_messages_total") == {"output": 1, "status": 2, "dead_letter": 1}
    assert moved.by("error_class", "cador_dead_letters_total") == {"AlgorithmFailed": 1}
    assert moved.by("outcome", "cador_jobs_total") == {"succeeded": 1, "failed": 1}
    assert moved.by("stage", "cador_stage_seconds_count")["commit"] >= 2


async def test_what_has_no_topic_is_not_counted(tmp_path: Path, autojump_clock: MockClock) -> None:
    """No dead-letter topic, no dead letter."""
    moved = Moved()
    async with open_kafka_house(tmp_path, topics={Role.OUTPUT}) as house:
        house.assign()
        house.receive(record(0, b"no request"))
        await trio.sleep(10)
    assert moved("cador_dead_letters_total") == moved("cador_messages_total", kind="dead_letter") == 0


async def test_requests_that_are_refused(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Once they are told, with their class and their dead letter."""
    moved = Moved()
    house.writer.halt.close()
    house.receive(record(0, b"no request"))
    await wait_all_tasks_blocked()
    assert moved("cador_jobs_total") == 0
    house.writer.halt.open()
    await trio.sleep(10)
    assert moved.by("outcome", "cador_jobs_total") == {"refused": 1}
    assert moved.by("error_class", "cador_job_errors_total", door="kafka") == {"RequestRefused": 1}
    assert moved.by("error_class", "cador_dead_letters_total") == {"RequestRefused": 1}


async def test_a_refusal_that_nobody_hears_of(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Its partition goes before it is told: the next owner refuses it, so here it is given back."""
    moved = Moved()
    house.writer.halt.close()
    house.receive(record(0, b"no request"))
    await wait_all_tasks_blocked()
    house.writer.script.append(PartitionsGone({0}))
    house.door.lost([0])
    house.writer.halt.open()
    await trio.sleep(10)
    assert moved.by("outcome", "cador_jobs_total") == {"given_back": 1}
    assert moved("cador_job_errors_total") == moved("cador_dead_letters_total") == 0


async def test_a_job_that_is_given_back(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Once, though its partition goes, its work is left and its effects are dropped; nothing of it is a message."""
    moved = Moved()
    house.street.algorithm.halt.close()
    house.receive(record(0))
    await house.street.algorithm.halt.reached.wait()
    house.door.lost([0])
    house.street.algorithm.halt.open()
    await trio.sleep(10)
    assert moved.by("outcome", "cador_jobs_total") == {"given_back": 1}
    assert moved.by("kind", "cador_messages_total") == moved.by("kind", "cador_messages_left_out_total") == {}
    assert moved.by("change", "cador_kafka_partition_changes_total") == {"lost": 1}


async def test_a_job_whose_end_is_dropped(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """It had succeeded, and its partition went before that could be committed: given back, and no success."""
    moved = Moved()
    house.writer.halt.close()
    house.receive(record(0))
    await wait_all_tasks_blocked()
    house.writer.script.append(PartitionsGone({0}))
    house.door.lost([0])
    house.writer.halt.open()
    await trio.sleep(10)
    assert moved.by("outcome", "cador_jobs_total") == {"given_back": 1}
    assert moved.by("kind", "cador_messages_total") == {}


async def test_a_request_that_had_not_begun(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """The daemon stops while it waits to be admitted: given back."""
    moved = Moved()
    house.street.algorithm.halt.close()
    house.receive(record(0), record(1))
    await wait_all_tasks_blocked()
    house.door.close()
    house.street.algorithm.halt.open()
    await trio.sleep(10)
    assert moved.by("outcome", "cador_jobs_total") == {"given_back": 1, "succeeded": 1}


async def test_records_that_are_passed_over(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Messages of ours among the requests, and what an earlier owner of the partition had done; neither is a job."""
    moved = Moved()
    house.receive(record(0, headers=((KIND_HEADER, b"tag"),)))
    await trio.sleep(10)
    house.assign(0, 0, house.begun_then_died(3))
    house.receive(record(0), record(3))
    await trio.sleep(10)
    assert moved("cador_kafka_skipped_records_total", reason="own_message") == 1
    assert moved("cador_kafka_redeliveries_total") == 1
    assert moved("cador_jobs_total", outcome="succeeded") == 2


async def test_partitions_and_what_waits_of_them(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Assigned ones are counted; waiting records are those that are not taken on."""
    moved = Moved()
    house.assign(1)
    house.street.algorithm.halt.close()
    full = house.receive(*(record(offset, partition=1) for offset in range(LANE_RECORDS + 5)))
    assert full == [1]
    await wait_all_tasks_blocked()
    assert house.door.waiting == LANE_RECORDS + 5 - len(house.door._errands)
    await house.door.revoked([1])
    assert house.door.waiting == 0
    assert moved.by("change", "cador_kafka_partition_changes_total") == {"assigned": 1, "revoked": 1}


# --- Messages that are left out ----------------------------------------------------------------------------------


async def test_courtesy_messages_that_are_dropped(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """What comes from no record is not sent again: it is counted as left out, message by message."""
    moved = Moved()
    house.committer.give_up()
    message = Message(None, b"", ())
    await house.committer.commit(Effects(None, tag_count=3, output=message, status=lambda _: message))
    assert moved.by("kind", "cador_messages_left_out_total") == {"tag": 3, "output": 1, "status": 1}


async def test_a_terminal_status_that_fits_no_topic(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """The job goes on without it."""
    moved = Moved()
    house.street.algorithm.error = AlgorithmFailed("no")
    house.writer.script.append(lambda commit: MessageRefused(commit.batch[0], Role.STATUS, 99))
    house.receive(record(0))
    await trio.sleep(10)
    assert moved.by("kind", "cador_messages_left_out_total") == {"status": 1}
    assert moved.by("outcome", "cador_jobs_total") == {"failed": 1}


def test_statuses_before_the_end() -> None:
    """Acknowledged, not taken, or never sent since the queue is full."""
    moved = Moved()
    producer = ScriptedProducer()
    producer.refusals["statuses"].extend([None, kafka_error(KafkaError._MSG_TIMED_OUT)])
    statuses = Statuses(cast("Producer", producer), "statuses")
    for _ in range(2):
        statuses.send(Ticket(), Message(None, b"", ()))
    producer.poll(0)
    producer.full = 1
    statuses.send(Ticket(), Message(None, b"", ()))
    assert moved("cador_messages_total", kind="status") == 1
    assert moved("cador_messages_left_out_total", kind="status") == 2


# --- Transactions and clients ------------------------------------------------------------------------------------


def fails(bench: Bench, call: str, error: KafkaError) -> None:
    bench.producer.failures[call].append(error)


def test_transactions_by_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abort and the try after it are two; of an unknown one nobody says that it was committed."""
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_SECONDS", 0.0)
    moved = Moved()
    bench = Bench()
    writer = bench.open()
    fails(bench, "send_offsets", kafka_error(KafkaError.INVALID_TXN_STATE, abort=True))
    writer.write(commit_of(effects()))
    assert moved.by("result", "cador_transactions_total") == {"aborted": 1, "committed": 1}
    fails(bench, "commit_transaction", kafka_error(KafkaError._FATAL, fatal=True))
    with pytest.raises(OutcomeUnknown):
        writer.write(commit_of(effects()))
    writer.open()
    fails(bench, "begin_transaction", kafka_error(KafkaError._FENCED, fatal=True))
    with pytest.raises(InstanceFenced):
        writer.write(commit_of(effects()))
    assert moved.by("result", "cador_transactions_total") == {"aborted": 1, "committed": 1, "unknown": 1, "fenced": 1}


def test_complaints_of_clients() -> None:
    """By librdkafka's own code; addresses and words are for the log."""
    moved = Moved()
    producer = make_producer({"bootstrap.servers": "127.0.0.1:1"})
    complaints: Any = {}
    for _ in range(300):
        producer.poll(0.1)
        if complaints := moved.by("code", "cador_kafka_client_errors_total"):
            break
    assert complaints
    assert set(complaints) <= {"_TRANSPORT", "_ALL_BROKERS_DOWN"}
