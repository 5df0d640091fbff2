"""Outcomes into transactions, with a scripted writer and under virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.errors import InstanceFenced, KafkaUnavailable
from cador_trio.kafka.committer import (
    BEGUN_SECONDS,
    MAX_BYTES,
    MAX_JOBS,
    MAX_TAGS,
    RECOVERY_PAUSE_SECONDS,
    SIGHT_SECONDS,
    Claim,
    Claims,
)
from cador_trio.kafka.effects import Commit, Done, Effects, Refused, Role, Verdict
from cador_trio.kafka.ledger import Ledger
from cador_trio.kafka.messages import Coordinates
from cador_trio.kafka.writer import MessageRefused, OutcomeUnknown, PartitionsGone
from tests.kafka.doubles import InlineCommitter, ScriptedWriter, StillPolling, claim_of, effects_of


@dataclass
class Desk:
    """A committer at work, and the verdicts that it gives, by offset; one with a source None by -1."""

    committer: InlineCommitter
    writer: ScriptedWriter
    polling: StillPolling
    claims: Claims
    nursery: trio.Nursery
    verdicts: dict[int, Verdict] = field(default_factory=dict)

    async def hand_in(self, *batch: Effects) -> None:
        """Hand these in, in this order; their verdicts come later."""
        for effects in batch:
            self.nursery.start_soon(self._wait, effects)
            await wait_all_tasks_blocked()  # Trio starts tasks in any order

    async def _wait(self, effects: Effects) -> None:
        offset = -1 if effects.source is None else effects.source.offset
        self.verdicts[offset] = await self.committer.commit(effects)


@asynccontextmanager
async def open_desk(*, is_held: bool) -> AsyncIterator[Desk]:
    polling, claims, writer = StillPolling(), Claims(), ScriptedWriter()
    if is_held:
        writer.halt.close()
    committer = InlineCommitter(polling, claims)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run, writer)
        await wait_all_tasks_blocked()
        yield Desk(committer, writer, polling, claims, nursery)
        writer.halt.open()
        nursery.cancel_scope.cancel()


@pytest.fixture
async def desk(autojump_clock: MockClock) -> AsyncIterator[Desk]:
    """One whose writer is ready."""
    async with open_desk(is_held=False) as opened:
        yield opened


@pytest.fixture
async def held(autojump_clock: MockClock) -> AsyncIterator[Desk]:
    """One whose writer gets ready when its halt opens: what is handed in before goes together."""
    async with open_desk(is_held=True) as opened:
        yield opened


def sizes(writer: ScriptedWriter) -> list[int]:
    """Jobs of each commit."""
    return [len(commit.batch) for commit in writer.tried]


def refusing(offset: int, role: Role = Role.OUTPUT) -> Callable[[Commit], Exception | None]:
    """A step that finds a message of this record's job too large."""

    def refuse(commit: Commit) -> Exception:
        (found,) = (one for one in commit.batch if one.source is not None and one.source.offset == offset)
        return MessageRefused(found, role, 1_234)

    return refuse


# --- What goes together -------------------------------------------------------------------------------------------


async def test_what_is_ready_goes_in_one(desk: Desk, autojump_clock: MockClock) -> None:
    """While one transaction is on its way the next jobs gather, and all of them go in the next one."""
    claim = claim_of(desk.claims)
    desk.writer.halt.close()
    await desk.hand_in(*(effects_of(claim, offset) for offset in range(5)))
    desk.writer.halt.open()
    await trio.sleep(1)
    assert sizes(desk.writer) == [1, 4]
    assert desk.writer.offsets == [0, 1, 2, 3, 4]
    assert set(desk.verdicts.values()) == {Done.COMMITTED}
    assert desk.writer.written[-1].points[0].offset == 5


async def test_nothing_waits_for_a_job(desk: Desk, autojump_clock: MockClock) -> None:
    """A job that is alone is committed with no time passing, and one that still runs is not waited for."""
    claim = claim_of(desk.claims)
    claim.ledger.deliver(0)
    claim.ledger.begin(0)
    effects = effects_of(claim, 1)
    before = trio.current_time()
    assert await desk.committer.commit(effects) is Done.COMMITTED
    assert trio.current_time() == before
    point = desk.writer.written[0].points[0]
    assert point.offset == 0
    successor = Ledger(point.offset, point.metadata)
    assert successor.deliver(0).begun == 1
    assert successor.deliver(1).is_done


@pytest.mark.parametrize(
    ("size", "tags", "most"),
    [(0, 0, MAX_JOBS), (MAX_BYTES // 4, 0, 4), (0, MAX_TAGS // 5, 5), (MAX_BYTES + 1, 0, 1), (0, MAX_TAGS + 1, 1)],
    ids=["jobs", "bytes", "tags", "one huge job", "one job with many tags"],
)
async def test_a_transaction_has_limits(held: Desk, size: int, tags: int, most: int, autojump_clock: MockClock) -> None:
    """Jobs, bytes and tags of one are bounded; a job that is over a bound by itself goes alone."""
    claim = claim_of(held.claims)
    batch = [effects_of(claim, offset, size=size, tag_count=tags) for offset in range(2 * most + 1)]
    for effects in batch:
        held.nursery.start_soon(held.committer.commit, effects)
    await wait_all_tasks_blocked()
    held.writer.halt.open()
    await trio.sleep(1)
    assert sum(sizes(held.writer)) == 2 * most + 1
    assert max(sizes(held.writer)) == most


async def test_all_partitions_go_in_one(held: Desk, autojump_clock: MockClock) -> None:
    """Jobs of two partitions share a transaction, which has an offset for each and the number of its assignment."""
    one, two = claim_of(held.claims, 0, number=3), claim_of(held.claims, 7, number=4, position=10)
    await held.hand_in(effects_of(one, 0), effects_of(two, 10), effects_of(one, 1))
    held.writer.halt.open()
    await trio.sleep(1)
    last = held.writer.written[-1]
    assert {number: point.offset for number, point in last.points.items()} == {0: 2, 7: 11}
    assert last.numbers == {0: 3, 7: 4}


async def test_what_has_no_offset_goes_along(desk: Desk, autojump_clock: MockClock) -> None:
    """A REST job's messages share the transaction, and touch no partition."""
    await desk.hand_in(Effects(None))
    await trio.sleep(1)
    assert desk.verdicts == {-1: Done.COMMITTED}
    assert desk.writer.written[0].points == {}


# --- Begun jobs ---------------------------------------------------------------------------------------------------


async def test_begun_jobs_are_written_down_soon(desk: Desk, autojump_clock: MockClock) -> None:
    """With no job finished, a transaction without effects says what has begun; it is the only one."""
    claim = claim_of(desk.claims)
    claim.ledger.deliver(0)
    claim.ledger.begin(0)
    desk.committer.note_begun()
    await trio.sleep(10 * BEGUN_SECONDS)
    (commit,) = desk.writer.written
    assert commit.batch == []
    assert Ledger(commit.points[0].offset, commit.points[0].metadata).deliver(0).begun == 1


async def test_begun_jobs_ride_with_finished_ones(desk: Desk, autojump_clock: MockClock) -> None:
    """One that finishes meanwhile takes them along at once."""
    claim = claim_of(desk.claims)
    effects = effects_of(claim, 0)
    claim.ledger.deliver(1)
    claim.ledger.begin(1)
    desk.committer.note_begun()
    await wait_all_tasks_blocked()
    assert await desk.committer.commit(effects) is Done.COMMITTED
    await trio.sleep(10 * BEGUN_SECONDS)
    (commit,) = desk.writer.written
    assert Ledger(commit.points[0].offset, commit.points[0].metadata).deliver(1).begun == 1


async def test_nothing_new_is_nothing_to_commit(desk: Desk, autojump_clock: MockClock) -> None:
    """Being told twice of what is already written down costs no transaction."""
    claim_of(desk.claims)
    desk.committer.note_begun()
    desk.committer.note_begun()
    await trio.sleep(10)
    assert desk.writer.tried == []


async def test_waiting_until_all_is_written_down(desk: Desk, autojump_clock: MockClock) -> None:
    """`wait_clean` returns once what was begun is committed, and at once if nothing is open."""
    claim = claim_of(desk.claims)
    await desk.committer.wait_clean([0])
    claim.ledger.deliver(0)
    claim.ledger.begin(0)
    await desk.committer.wait_clean([0])
    assert not claim.ledger.is_dirty
    await desk.committer.wait_clean([5])


# --- What can go wrong --------------------------------------------------------------------------------------------


async def test_a_refused_message_decides_its_job_alone(held: Desk, autojump_clock: MockClock) -> None:
    """The job hears the role and the size, the others go again at once, in their order; the offset waits for it."""
    claim = claim_of(held.claims)
    await held.hand_in(*(effects_of(claim, offset) for offset in range(4)))
    held.writer.script.append(refusing(1))
    held.writer.halt.open()
    await trio.sleep(1)
    assert held.verdicts[1] == Refused(Role.OUTPUT, 1_234)
    assert held.writer.offsets == [0, 2, 3]
    assert held.writer.written[-1].points[0].offset == 1
    await held.hand_in(Effects(effects_of(claim, 1).source))
    await trio.sleep(1)
    assert held.writer.written[-1].points[0].offset == 4


async def test_partitions_that_are_gone(held: Desk, autojump_clock: MockClock) -> None:
    """Jobs are not judged by the refusal: those that stay go again, those of the lost partition drop with it."""
    stays, goes = claim_of(held.claims, 0), claim_of(held.claims, 1)
    held.writer.script.append(PartitionsGone({1}))
    await held.hand_in(effects_of(stays, 0), effects_of(goes, 1))
    held.writer.halt.open()
    await wait_all_tasks_blocked()
    held.claims.remove(1)
    held.committer.drop([1])
    await trio.sleep(10)
    assert held.verdicts == {0: Done.COMMITTED, 1: Done.DROPPED}
    assert 1 not in held.writer.written[-1].points
    assert goes.gone.is_set()


async def test_a_group_that_lost_sight_of_us(desk: Desk, autojump_clock: MockClock) -> None:
    """While nobody says that the partition is lost, it is tried again and again, but not without a pause."""
    claim = claim_of(desk.claims)
    desk.writer.script.extend([PartitionsGone({0})] * 5)
    before = trio.current_time()
    assert await desk.committer.commit(effects_of(claim, 0)) is Done.COMMITTED
    assert trio.current_time() - before >= 1
    assert len(desk.writer.tried) == 6


async def test_a_former_assignment_is_not_this_one(desk: Desk, autojump_clock: MockClock) -> None:
    """A job whose partition went and came back is dropped: its record is in other hands, be they ours."""
    effects = effects_of(claim_of(desk.claims, 0, number=1), 0)
    desk.claims.remove(0)
    claim_of(desk.claims, 0, number=2)
    assert await desk.committer.commit(effects) is Done.DROPPED
    assert desk.writer.tried == []


@pytest.mark.parametrize("went_through", [True, False])
async def test_an_unknown_outcome_is_looked_up(desk: Desk, went_through: bool, autojump_clock: MockClock) -> None:
    """A new producer, then what Kafka shows decides: committed jobs are not published again, others are."""
    claim = claim_of(desk.claims)

    def fail(commit: Commit) -> Exception:
        if went_through:
            point = commit.points[0]
            desk.polling.shown[0] = (point.offset, point.metadata)
        return OutcomeUnknown("who knows")

    desk.writer.script.append(fail)
    desk.polling.unavailable = 2
    assert await desk.committer.commit(effects_of(claim, 0)) is Done.COMMITTED
    assert desk.writer.opened == 2
    assert len(desk.writer.written) == (0 if went_through else 1)
    assert not claim.ledger.is_dirty
    assert claim.ledger.unfinished == 0


async def test_an_unknown_outcome_shown_by_one_partition(held: Desk, autojump_clock: MockClock) -> None:
    """What one partition shows is true of all: a transaction holds them together."""
    one, two = claim_of(held.claims, 0), claim_of(held.claims, 1)

    def fail(commit: Commit) -> Exception:
        held.polling.shown[1] = (commit.points[1].offset, commit.points[1].metadata)
        held.claims.remove(0)
        return OutcomeUnknown("who knows")

    held.writer.script.append(fail)
    await held.hand_in(effects_of(one, 0), effects_of(two, 1))
    held.writer.halt.open()
    await trio.sleep(5)
    assert len(held.writer.tried) == 1
    assert held.verdicts == {0: Done.COMMITTED, 1: Done.COMMITTED}


async def test_an_unknown_outcome_of_what_is_no_longer_ours(desk: Desk, autojump_clock: MockClock) -> None:
    """Nothing is looked up for a partition that has gone meanwhile: the next owner reads what is committed."""
    claim = claim_of(desk.claims)

    def fail(_: Commit) -> Exception:
        desk.claims.remove(0)
        return OutcomeUnknown("who knows")

    desk.writer.script.append(fail)
    assert await desk.committer.commit(effects_of(claim, 0)) is Done.DROPPED
    assert len(desk.writer.tried) == 1


PLACE: Final = Coordinates("statuses", 0, 7)


@pytest.mark.parametrize("sight", [True, False, None])
async def test_an_unknown_outcome_of_jobs_from_no_record(
    desk: Desk, sight: bool | None, autojump_clock: MockClock
) -> None:
    """No offset tells, so one of their messages is looked for. Not there, or not to be known: they are sent."""
    desk.writer.script.append(OutcomeUnknown("who knows", PLACE))
    desk.committer.sights.extend([KafkaUnavailable("not now"), sight])
    assert await desk.committer.commit(Effects(None)) is Done.COMMITTED
    assert desk.committer.looked_at == [PLACE, PLACE]
    assert len(desk.writer.written) == (0 if sight else 1)


async def test_jobs_from_no_record_hold_up_the_others_for_a_while(desk: Desk, autojump_clock: MockClock) -> None:
    """If nobody can be asked for long, they are sent: others wait behind them."""
    desk.writer.script.append(OutcomeUnknown("who knows", PLACE))
    before = trio.current_time()
    assert await desk.committer.commit(Effects(None)) is Done.COMMITTED
    assert SIGHT_SECONDS <= trio.current_time() - before <= SIGHT_SECONDS + 5
    assert len(desk.writer.written) == 1


async def test_giving_up_while_a_message_is_looked_for(held: Desk, autojump_clock: MockClock) -> None:
    """No job is left without a verdict, from Kafka or not, and nothing is asked any more."""
    claim = claim_of(held.claims)
    held.writer.script.append(OutcomeUnknown("who knows", PLACE))
    await held.hand_in(effects_of(claim, 0), Effects(None))
    held.writer.halt.open()
    await trio.sleep(10 + RECOVERY_PAUSE_SECONDS / 2)  # between two looks
    looks = len(held.committer.looked_at)
    assert looks > 1
    held.committer.give_up()
    await trio.sleep(10)
    assert held.verdicts == {0: Done.DROPPED, -1: Done.DROPPED}
    assert len(held.committer.looked_at) == looks


async def test_no_message_of_an_unknown_outcome_arrived(desk: Desk, autojump_clock: MockClock) -> None:
    """Then nobody has asked for the commit, and there is nothing to look for."""
    desk.writer.script.append(OutcomeUnknown("who knows"))
    assert await desk.committer.commit(Effects(None)) is Done.COMMITTED
    assert desk.committer.looked_at == []
    assert len(desk.writer.written) == 1


async def test_an_unknown_outcome_of_both_kinds(held: Desk, autojump_clock: MockClock) -> None:
    """Offsets are asked first; if their partitions have gone, the message tells for both."""
    claim = claim_of(held.claims)

    def fail(_: Commit) -> Exception:
        held.claims.remove(0)
        return OutcomeUnknown("who knows", PLACE)

    held.writer.script.append(fail)
    held.committer.sights.append(True)
    await held.hand_in(effects_of(claim, 0), Effects(None))
    held.writer.halt.open()
    await trio.sleep(5)
    assert held.verdicts == {0: Done.COMMITTED, -1: Done.COMMITTED}
    assert len(held.writer.tried) == 1


# --- The end ------------------------------------------------------------------------------------------------------


async def test_giving_up_drops_everything(desk: Desk, autojump_clock: MockClock) -> None:
    """What is on its way and what waits is dropped, the claims are gone, and what comes later is dropped at once."""
    claim = claim_of(desk.claims)
    desk.writer.halt.close()
    await desk.hand_in(effects_of(claim, 0), effects_of(claim, 1))
    desk.committer.give_up()
    await wait_all_tasks_blocked()
    assert desk.verdicts == {0: Done.DROPPED, 1: Done.DROPPED}
    assert claim.gone.is_set()
    assert await desk.committer.commit(effects_of(claim, 2)) is Done.DROPPED
    await desk.committer.wait_clean([0])


async def test_giving_up_while_an_outcome_is_looked_up(desk: Desk, autojump_clock: MockClock) -> None:
    """Also what a new producer would have decided is dropped: no job is left without a verdict."""
    claim = claim_of(desk.claims)

    def fail(_: Commit) -> Exception:
        desk.committer.give_up()
        return OutcomeUnknown("who knows")

    desk.writer.script.append(fail)
    await desk.hand_in(effects_of(claim, 0))
    await trio.sleep(1)
    assert desk.verdicts == {0: Done.DROPPED}


@pytest.mark.parametrize("error", [InstanceFenced("another one"), ValueError("nobody thought of it")], ids=repr)
async def test_an_error_that_ends_the_committer_leaves_no_job_waiting(
    error: Exception, autojump_clock: MockClock
) -> None:
    """Fenced, or worse: it comes out, and every job hears that nothing of it is visible, so that the daemon can end."""
    polling, claims, writer = StillPolling(), Claims(), ScriptedWriter()
    committer = InlineCommitter(polling, claims)
    claim = claim_of(claims)
    verdicts: list[Verdict] = []

    async def hand_in(effects: Effects) -> None:
        verdicts.append(await committer.commit(effects))

    writer.halt.close()  # both go together
    with pytest.RaisesGroup(type(error), flatten_subgroups=True):
        async with trio.open_nursery() as jobs:
            with trio.fail_after(10):
                async with trio.open_nursery() as services:
                    services.start_soon(committer.run, writer)
                    jobs.start_soon(hand_in, effects_of(claim, 0))
                    jobs.start_soon(hand_in, effects_of(claim, 1))
                    await wait_all_tasks_blocked()
                    writer.script.append(error)
                    writer.halt.open()
    assert verdicts == [Done.DROPPED, Done.DROPPED]


async def test_a_claim_ends_once() -> None:
    """Removing a partition sets its event; a second time, or one that was never ours, is harmless."""
    claims = Claims()
    claim = claim_of(claims, 3, number=9)
    assert claims.current(3, 9) is claim
    assert claims.current(3, 8) is None
    claims.remove(3)
    claims.remove(3)
    assert claim.gone.is_set()
    assert claims.all() == []
    assert isinstance(claim, Claim)
