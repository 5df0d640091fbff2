"""Statuses at once, through a scripted producer and under virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import structlog
import trio
from confluent_kafka import KafkaError, KafkaException, Producer
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.kafka.messages import Message
from cador_trio.kafka.statuses import LAST_SECONDS, Statuses, Ticket
from tests.kafka.doubles import ScriptedProducer, kafka_error

STATUS = Message(b"key", b"{}", ())


@asynccontextmanager
async def running(producer: ScriptedProducer) -> AsyncIterator[Statuses]:
    statuses = Statuses(cast("Producer", producer), "statuses")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(statuses.run)
        yield statuses
        nursery.cancel_scope.cancel("the test is over")


def is_free(ticket: Ticket) -> bool:
    """Asked anew: a type checker takes a property for a constant."""
    return ticket.is_all_there


async def test_a_ticket_waits_for_all_of_its_statuses() -> None:
    """It is free at first, and again when as many have arrived as were sent."""
    ticket = Ticket()
    assert is_free(ticket)
    await ticket.wait_all_there()
    ticket.add()
    ticket.add()
    ticket.done()
    assert not is_free(ticket)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticket.wait_all_there)
        await wait_all_tasks_blocked()
        ticket.done()
    assert is_free(ticket)


async def test_sent_at_once_and_acknowledged_later(autojump_clock: MockClock) -> None:
    """Sending does not wait; the ticket is free when the broker has answered."""
    producer = ScriptedProducer()
    producer.is_away = True
    async with running(producer) as statuses:
        ticket = Ticket()
        statuses.send(ticket, STATUS)
        assert producer.calls == ["produce statuses"]
        await trio.sleep(60)
        assert not ticket.is_all_there
        producer.is_away = False
        with trio.fail_after(1):
            await ticket.wait_all_there()


async def test_nothing_is_looked_for_when_nothing_is_on_its_way(autojump_clock: MockClock) -> None:
    """An idle daemon does not poll."""
    producer = ScriptedProducer()
    async with running(producer) as statuses:
        ticket = Ticket()
        statuses.send(ticket, STATUS)
        await ticket.wait_all_there()
        await trio.sleep(1)
        looked = producer.calls.count("poll")
        await trio.sleep(1_000)
        assert producer.calls.count("poll") == looked
        statuses.send(ticket, STATUS)
        with trio.fail_after(1):
            await ticket.wait_all_there()


async def test_what_the_broker_refuses_holds_no_job(autojump_clock: MockClock) -> None:
    """It is logged, and counts as told."""
    producer = ScriptedProducer()
    producer.refusals["statuses"].append(kafka_error(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    async with running(producer) as statuses:
        ticket = Ticket()
        statuses.send(ticket, STATUS)
        with trio.fail_after(1):
            await ticket.wait_all_there()


@pytest.mark.parametrize(
    "error", [BufferError("full"), KafkaException(kafka_error(KafkaError.MSG_SIZE_TOO_LARGE))], ids=["full", "large"]
)
async def test_what_can_t_be_sent_is_left_out(error: Exception, autojump_clock: MockClock) -> None:
    """A status is no reason to fail or to hold a job."""
    producer = ScriptedProducer()

    def refuse(call: str) -> None:
        if call == "produce":
            raise error

    producer.on_call = refuse
    async with running(producer) as statuses:
        ticket = Ticket()
        statuses.send(ticket, STATUS)
        assert ticket.is_all_there


async def test_sent_before_it_runs(autojump_clock: MockClock) -> None:
    """Statuses wait in the producer until somebody hears what became of them."""
    producer = ScriptedProducer()
    statuses = Statuses(cast("Producer", producer), "statuses")
    ticket = Ticket()
    statuses.send(ticket, STATUS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(statuses.run)
        with trio.fail_after(1):
            await ticket.wait_all_there()
        nursery.cancel_scope.cancel("the test is over")


@pytest.mark.parametrize("comes_back", [True, False])
async def test_the_last_ones_have_some_seconds(comes_back: bool, autojump_clock: MockClock) -> None:
    """When the daemon ends, what is on its way is waited for, but not for ever."""
    producer = ScriptedProducer()
    producer.is_away = True
    ticket = Ticket()
    before = trio.current_time()
    async with trio.open_nursery() as nursery, running(producer) as statuses:
        await wait_all_tasks_blocked()
        statuses.send(ticket, STATUS)

        async def come_back() -> None:
            await trio.sleep(2)
            producer.is_away = not comes_back

        nursery.start_soon(come_back)
    assert ticket.is_all_there == comes_back
    assert trio.current_time() - before <= LAST_SECONDS + 0.1
    assert trio.current_time() - before >= 2


async def test_without_a_topic(autojump_clock: MockClock) -> None:
    """Nothing is sent, nothing is waited for, and running is waiting to be cancelled."""
    statuses = Statuses(None, None)
    ticket = Ticket()
    statuses.send(ticket, STATUS)
    assert ticket.is_all_there
    assert not statuses.are_wanted
    with trio.move_on_after(10) as scope:
        await statuses.run()
    assert scope.cancelled_caught


async def test_a_status_that_was_not_taken_is_a_line_of_its_job(autojump_clock: MockClock) -> None:
    """Though the report comes in another task."""
    producer = ScriptedProducer()
    producer.refusals["statuses"].append(kafka_error(KafkaError.MSG_SIZE_TOO_LARGE))
    with structlog.testing.capture_logs() as lines:
        async with running(producer) as statuses:
            ticket = Ticket()
            with structlog.contextvars.bound_contextvars(job_id="j-1", task_id="t-1"):
                statuses.send(ticket, STATUS)
            await ticket.wait_all_there()
    (line,) = lines
    assert (line["event"], line["job_id"], line["task_id"]) == ("a status was not taken", "j-1", "t-1")
