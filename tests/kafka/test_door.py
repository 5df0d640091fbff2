"""Records to jobs, among doubles and under virtual time: order, back-pressure, and partitions that come and go."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.errors import AlgorithmUnreachable, RequestRefused
from cador_trio.json_text import THREAD_BYTES
from cador_trio.kafka import door as door_module
from cador_trio.kafka.delivery import KafkaDelivery
from cador_trio.kafka.door import LANE_RECORDS, RETRY_SECONDS, WAITING_BYTES, Errand
from cador_trio.kafka.effects import Role
from cador_trio.kafka.ledger import Ledger
from cador_trio.kafka.messages import CORRELATION_HEADER, KIND_HEADER, TASK_ID_HEADER, Record
from cador_trio.kafka.writer import MessageRefused
from tests.kafka.doubles import KafkaHouse, open_kafka_house, record, value_of


async def settle() -> None:
    """Let everything happen that needs no time."""
    await wait_all_tasks_blocked()


async def wait_end(house: KafkaHouse) -> None:
    """Until something was committed. In real time: a large request is read in a thread, which tells nobody."""
    with trio.fail_after(30):  # noqa: ASYNC912 - it may be there already
        while not house.writer.ends:  # noqa: ASYNC110 - see above
            await trio.sleep(0.01)


def named(offset: int, *, partition: int = 0, **more: Any) -> Any:
    """A good record whose correlation id is its task id, so that orders can be told apart."""
    name = f"{partition}-{offset}"
    return record(offset, partition=partition, headers=((CORRELATION_HEADER, name.encode()),), **more)


def living(*kinds: type) -> set[int]:
    """The ids of all objects of these kinds that there are."""
    return {id(one) for one in gc.get_objects() if isinstance(one, kinds)}


async def test_history_keeps_nothing_of_the_request(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A finished job lets go of what ran it at once, the record's bytes included; nothing waits for a collector."""
    async with open_kafka_house(tmp_path, slots=4) as house:
        house.assign()
        gc.collect()
        before = living(Errand, KafkaDelivery, Record)  # of other tests
        gc.disable()
        try:
            house.receive(*(named(offset) for offset in range(20)))
            await trio.sleep(10)
            house.writer.tried.clear()
            house.writer.written.clear()
            assert len(house.street.registry.newest_first()) == 20
            assert living(Errand, KafkaDelivery, Record) <= before
        finally:
            gc.enable()


# --- Intake -------------------------------------------------------------------------------------------------------


async def test_lanes_take_turns(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A partition with a long queue does not starve the others."""
    async with open_kafka_house(tmp_path) as house:
        for partition in (0, 1, 2):
            house.assign(partition)
        house.receive(*(named(offset) for offset in range(10)))
        house.receive(named(0, partition=1), named(1, partition=1), named(0, partition=2))
        await trio.sleep(100)
        assert sorted(house.ordered[:3]) == ["0-0", "1-0", "2-0"]
        assert len(house.ordered) == 13


async def test_jobs_of_one_partition_run_side_by_side(tmp_path: Path, autojump_clock: MockClock) -> None:
    """As many as there are slots; partitions are no limit. What finishes first is committed first."""
    async with open_kafka_house(tmp_path, slots=4) as house:
        house.assign()
        house.street.algorithm.halt.close()
        house.receive(*(named(offset) for offset in range(10)))
        await settle()
        assert len(house.ordered) == 4
        house.street.algorithm.halt.open()
        await trio.sleep(10)
        assert sorted(house.writer.offsets) == list(range(10))
        assert house.writer.written[-1].points[0].offset == 10


async def test_a_full_lane_pauses_its_partition(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Past its bound it asks for a pause, once; when half of it is gone it flows again."""
    house.street.algorithm.halt.close()
    assert house.receive(*(named(offset) for offset in range(LANE_RECORDS - 1))) == []
    await settle()
    assert house.receive(named(1_000), named(1_001), named(1_002), named(1_003), named(1_004)) == [0]
    assert house.receive(named(1_005)) == []
    assert house.polling.resumed == []
    house.street.algorithm.halt.open()
    await trio.sleep(100)
    assert house.polling.resumed == [0]
    assert len(house.writer.offsets) == LANE_RECORDS - 1 + 6


async def test_bytes_that_wait_are_bounded(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Large requests fill a lane before many do; each partition has its part of the whole."""
    house.street.algorithm.halt.close()
    huge = json.dumps({"image": "x" * (WAITING_BYTES // 4)}).encode()
    taken = house.receive(record(0, huge), record(1, huge), record(2, huge))
    assert taken == []
    assert house.receive(record(3, huge), record(4, huge)) == [0]
    house.assign(1)
    assert house.receive(record(0, huge, partition=1), record(1, huge, partition=1), record(2, huge, partition=1)) == [
        1
    ]
    house.door.close()


async def test_a_full_house_holds_intake_back(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """With the slot taken only a few records are looked at; the rest waits in the lane, not among the jobs."""
    house.street.algorithm.halt.close()
    house.receive(*(named(offset) for offset in range(50)))
    await settle()
    assert len(house.ordered) == 1
    assert len(house.street.registry.unfinished()) == 3  # one runs, two are ready
    house.street.algorithm.halt.open()
    await trio.sleep(100)
    assert sorted(house.writer.offsets) == list(range(50))


async def test_one_task_id_does_not_hold_back_the_others(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Requests that wait for a long job with their task id keep no slot empty."""
    same = {"image": "x", "technicalMetadata": {"taskId": "same"}}
    async with open_kafka_house(tmp_path, slots=2) as house:
        house.assign()
        await settle()
        house.street.algorithm.halt.close()
        house.receive(*(named(offset, value=same) for offset in range(20)), named(20))
        await settle()
        assert len(house.ordered) == 2
        assert "0-20" in house.ordered
        house.street.algorithm.halt.open()
        await trio.sleep(100)
        assert sorted(house.writer.offsets) == list(range(21))


async def test_what_waits_for_its_task_is_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A flood with one task id waits in the lane and in the topic, not among the jobs."""
    same = {"image": "x", "technicalMetadata": {"taskId": "same"}}
    async with open_kafka_house(tmp_path, slots=2) as house:
        house.assign()
        await settle()
        house.street.algorithm.halt.close()
        paused: list[int] = []
        for offset in range(2 * LANE_RECORDS + 1):
            paused += house.receive(named(offset, value=same))
            await settle()
        assert len(house.street.registry.unfinished()) == LANE_RECORDS + 1
        assert paused == [0]
        house.street.algorithm.halt.open()
        await trio.sleep(10_000)
        assert sorted(house.writer.offsets) == list(range(2 * LANE_RECORDS + 1))


async def test_what_was_finished_is_not_done_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The last owner's metadata says what is done behind the offset: that is not run, and the offset moves on."""
    ledger = Ledger(0, "")
    for offset in range(3):
        ledger.deliver(offset)
    ledger.finish([1, 2])
    point = ledger.commit_point()
    assert point is not None
    async with open_kafka_house(tmp_path) as house:
        house.assign(offset=point.offset, metadata=point.metadata)
        house.receive(named(0), named(1), named(2), named(3))
        await trio.sleep(10)
        assert sorted(house.ordered) == ["0-0", "0-3"]
        assert house.writer.written[-1].points[0].offset == 4


@pytest.mark.parametrize("metadata", ["", "somebody else's", "1:", "1:AAAAAA", "\ud800", "é" * 4_095])
async def test_metadata_that_is_not_ours(tmp_path: Path, metadata: str, autojump_clock: MockClock) -> None:
    """It counts as none."""
    async with open_kafka_house(tmp_path) as house:
        house.assign(offset=5, metadata=metadata)
        house.receive(named(5), named(9))
        await trio.sleep(10)
        assert sorted(house.writer.offsets) == [5, 9]
        assert house.writer.written[-1].points[0].offset == 10


async def test_messages_of_ours_are_passed_over(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Outputs, statuses and tags among the requests are skipped, their offsets done; other kinds are requests."""
    kinds = [b"output", b"status", b"tag", b"request", None]
    house.receive(*(record(offset, headers=((KIND_HEADER, kind),)) for offset, kind in enumerate(kinds)))
    await trio.sleep(10)
    assert sorted(house.writer.offsets) == [0, 1, 2, 3, 4]
    assert len(house.ordered) == 2
    assert house.writer.letters == []
    assert {end["taskId"] for end in house.writer.ends} == {"0-3", "0-4"}


async def test_statuses_tell_which_attempt_it_is(tmp_path: Path, autojump_clock: MockClock) -> None:
    """One that had begun twice is told of as the third."""
    async with open_kafka_house(tmp_path) as house:
        house.assign(metadata=house.begun_then_died(0, times=2))
        house.receive(record(0))
        await trio.sleep(10)
        (effects,) = house.writer.effects
        assert effects.output is not None
        record_of_job = house.street.registry.newest_first()[0]
        assert record_of_job.job.attempt == 3


# --- Order by key -------------------------------------------------------------------------------------------------


async def test_order_by_key(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Jobs of one key run one after the other, others pass them by; no key is no order."""
    async with open_kafka_house(tmp_path, slots=8, order_by_key=True) as house:
        house.assign(0)
        house.assign(1)
        house.street.algorithm.halt.close()
        house.receive(named(0, key=b"a"), named(1, key=b"a"), named(2, key=b"b"), named(3), named(4))
        house.receive(named(0, key=b"a", partition=1))
        await settle()
        assert sorted(house.ordered) == ["0-0", "0-2", "0-3", "0-4", "1-0"]
        house.street.algorithm.halt.open()
        await trio.sleep(10)
        assert house.ordered[-1] == "0-1"
        assert sorted(house.writer.offsets) == [0, 0, 1, 2, 3, 4]


async def test_order_by_key_holds_until_the_commit(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The next one of a key begins when the effects of the one before it are visible."""
    async with open_kafka_house(tmp_path, slots=8, order_by_key=True) as house:
        house.assign()
        await settle()
        house.writer.halt.close()
        house.receive(named(0, key=b"a"), named(1, key=b"a"))
        await settle()
        assert house.ordered == ["0-0"]
        house.writer.halt.open()
        await trio.sleep(10)
        assert house.ordered == ["0-0", "0-1"]


async def test_without_order_keys_mean_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Jobs of one key run side by side."""
    async with open_kafka_house(tmp_path, slots=8) as house:
        house.assign()
        house.street.algorithm.halt.close()
        house.receive(*(named(offset, key=b"a") for offset in range(5)))
        await settle()
        assert len(house.ordered) == 5


async def test_a_refused_request_makes_way_for_its_key(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A poison under a key does not stop the good ones behind it."""
    async with open_kafka_house(tmp_path, slots=8, order_by_key=True) as house:
        house.assign()
        house.receive(record(0, b"no json", key=b"a"), named(1, key=b"a"))
        await trio.sleep(10)
        assert sorted(house.writer.offsets) == [0, 1]


# --- Deaths -------------------------------------------------------------------------------------------------------


async def test_what_died_once_runs_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It waits until those before it have ended, and those behind it wait for its end."""
    async with open_kafka_house(tmp_path, slots=8) as house:
        house.assign(metadata=house.begun_then_died(2))
        house.street.algorithm.halt.close()
        house.receive(*(named(offset) for offset in range(5)))
        await settle()
        assert sorted(house.ordered) == ["0-0", "0-1"]
        house.street.algorithm.halt.open()
        while len(house.ordered) < 3:
            house.street.algorithm.halt.close()
            await settle()
            house.street.algorithm.halt.open()
            if len(house.ordered) == 3:
                break
        await trio.sleep(10)
        assert house.ordered[2] == "0-2"
        assert sorted(house.ordered) == [f"0-{offset}" for offset in range(5)]


async def test_nobody_joins_one_that_runs_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Not from its own partition, nor from another one."""
    async with open_kafka_house(tmp_path, slots=8) as house:
        house.assign(0, metadata=house.begun_then_died(0))
        house.assign(1)
        house.street.algorithm.halt.close()
        house.receive(named(0), named(1))
        await settle()
        house.receive(named(0, partition=1))
        await settle()
        assert house.ordered == ["0-0"]
        house.street.algorithm.halt.open()
        await trio.sleep(10)
        assert len(house.ordered) == 3


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_what_died_too_often(tmp_path: Path, large: bool) -> None:
    """FAILED under its task id and a dead letter, with no further call of the algorithm."""
    async with open_kafka_house(tmp_path, max_deliveries=2) as house:
        house.assign(metadata=house.begun_then_died(0, times=2))
        value = {"image": "x" * (THREAD_BYTES if large else 1), "technicalMetadata": {"taskId": "deadly"}}
        house.receive(record(0, value))
        await wait_end(house)
        assert house.ordered == []
        (end,) = house.writer.ends
        assert (end["taskId"], end["status"]) == ("deadly", "FAILED")
        assert "died" in end["errMsg"]
        (letter,) = house.writer.letters
        assert dict(letter.headers)["cador-error-class"] == b"DeliveredTooOften"
        assert dict(letter.headers)[TASK_ID_HEADER] == b"deadly"


async def test_orderly_ends_don_t_count(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What is given back while it runs has begun as often as before."""
    async with open_kafka_house(tmp_path) as house:
        house.assign()
        house.street.algorithm.halt.close()
        house.receive(named(0))
        await trio.sleep(1)
        assert Ledger(0, house.writer.written[-1].points[0].metadata).deliver(0).begun == 1
        await house.door.revoked([0])
        assert Ledger(0, house.writer.written[-1].points[0].metadata).deliver(0).begun == 0


# --- Partitions that go -------------------------------------------------------------------------------------------


async def test_revoked_with_a_job_that_ends_in_time(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """It has its grace, and its effects are committed before the partition goes."""
    house.street.algorithm.halt.close()
    house.receive(named(0))
    await settle()
    house.receive(named(1), named(2), named(3))
    await settle()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.door.revoked, [0])
        await trio.sleep(5)
        assert house.claims.current(0, 1) is not None
        house.street.algorithm.halt.open()
    assert house.writer.offsets == [0]
    assert house.claims.current(0, 1) is None
    assert house.ordered == ["0-0"]  # what had not reached the algorithm was given back at once
    assert [end["status"] for end in house.writer.ends] == ["SUCCEEDED"]
    assert house.street.registry.unfinished() == []


async def test_revoked_with_a_job_that_takes_too_long(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """After its grace it is given back: no terminal status, no dead letter, no offset."""
    house.street.algorithm.halt.close()
    house.receive(named(0))
    await settle()
    before = trio.current_time()
    await house.door.revoked([0])
    assert trio.current_time() - before == pytest.approx(20, abs=1)
    assert house.writer.effects == []
    assert house.street.registry.unfinished() == []
    await trio.sleep(5)
    assert house.statuses.states("0-0") == ["ACCEPTED", "RUNNING"]


async def test_revoked_without_jobs(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Returns at once, and what comes after it is nobody's."""
    before = trio.current_time()
    await house.door.revoked([0])
    assert trio.current_time() == before
    assert house.receive(named(0)) == []
    await trio.sleep(10)
    assert house.ordered == []


async def test_only_what_is_revoked_goes(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Jobs of the other partitions go on."""
    async with open_kafka_house(tmp_path, slots=4) as house:
        house.assign(0)
        house.assign(1)
        house.street.algorithm.halt.close()
        house.receive(named(0), named(0, partition=1))
        await settle()
        await house.door.revoked([0])
        house.street.algorithm.halt.open()
        await trio.sleep(10)
        assert [(one.source.partition, one.source.offset) for one in house.writer.effects if one.source] == [(1, 0)]


async def test_a_commit_that_can_t_be_had_does_not_hold_a_partition(
    house: KafkaHouse, autojump_clock: MockClock
) -> None:
    """With a finished job stuck at the committer, a revocation still ends; the job is given back."""
    await settle()
    house.writer.halt.close()
    house.receive(named(0))
    await settle()
    with trio.fail_after(60):
        await house.door.revoked([0])
    assert house.claims.current(0, 1) is None
    house.writer.halt.open()


async def test_lost(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """No grace and no commit: what runs is ended, and nothing of it is told."""
    house.street.algorithm.halt.close()
    house.receive(named(0), named(1), named(2))
    await settle()
    house.door.lost([0])
    await settle()
    assert house.street.registry.unfinished() == []
    await trio.sleep(10)
    assert house.writer.effects == []


async def test_lost_before_a_job_was_looked_at(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """What was taken on in the same moment never reaches the algorithm."""
    for offset in range(20):  # Trio lets the door or the test go first, as it likes
        house.receive(named(offset))
        await trio.lowlevel.checkpoint()  # the door has started it, it has not run yet
        house.door.lost([0])
        house.assign()
    await trio.sleep(10)
    assert house.ordered == []
    assert house.street.registry.unfinished() == []


async def test_lost_while_its_effects_wait(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """A job whose effects have not gone out by then is given back."""
    await settle()
    house.writer.halt.close()
    house.receive(named(0))
    await settle()
    house.receive(named(1))
    await settle()
    house.door.lost([0])
    await settle()
    assert [one.job.task_name for one in house.street.registry.unfinished()] == ["0-0"]  # on its way: nobody knows
    house.writer.halt.open()
    await trio.sleep(10)
    assert 1 not in house.writer.offsets


async def test_a_redelivery_while_the_old_run_winds_down(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """The partition comes back at once; the record runs again when its former run has ended, not beside it."""
    house.street.algorithm.halt.close()
    house.street.algorithm.forget_halt.close()
    house.street.algorithm.leftovers = ["http://algorithm/results/1"]
    house.receive(named(0))
    await settle()
    await settle()
    house.writer.halt.close()
    house.street.algorithm.halt.open()
    await settle()  # its effects are with the writer
    house.door.lost([0])
    house.assign()
    house.receive(named(0))
    await trio.sleep(5)
    assert house.ordered == ["0-0"]
    house.writer.halt.open()
    house.street.algorithm.forget_halt.open()
    await trio.sleep(10)
    assert house.ordered == ["0-0", "0-0"]
    assert house.street.registry.unfinished() == []


# --- The end ------------------------------------------------------------------------------------------------------


async def test_closing_gives_back_what_is_queued(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """At once, with no word; the job that runs goes on and is committed; nothing new is taken on."""
    house.street.algorithm.halt.close()
    house.receive(named(0))
    await settle()
    house.receive(*(named(offset) for offset in range(1, 10)))
    await settle()
    house.door.close()
    await settle()
    assert [one.job.task_name for one in house.street.registry.unfinished()] == ["0-0"]
    assert house.polling.is_all_paused
    assert house.receive(named(10)) == []
    house.street.algorithm.halt.open()
    await trio.sleep(10)
    assert house.ordered == ["0-0"]
    assert house.writer.offsets == [0]
    assert [end["status"] for end in house.writer.ends] == ["SUCCEEDED"]
    assert house.writer.written[-1].points[0].offset == 1


async def test_closing_before_a_job_was_looked_at(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What was taken on in the same moment is given back, too."""
    for _ in range(20):  # Trio lets the door or the test go first, as it likes
        async with open_kafka_house(tmp_path) as house:
            house.assign()
            await settle()
            house.receive(named(0), named(1))
            await trio.lowlevel.checkpoint()
            house.door.close()
            await trio.sleep(10)
            assert house.ordered == []


async def test_revoked_after_closing(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Another member may come while running jobs have their last grace: they still have it, and are committed."""
    house.street.algorithm.halt.close()
    house.receive(named(0))
    await settle()
    house.door.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.door.revoked, [0])
        await trio.sleep(5)
        assert house.claims.current(0, 1) is not None
        house.street.algorithm.halt.open()
    assert house.writer.offsets == [0]
    assert house.street.registry.unfinished() == []


async def test_revoked_after_closing_and_without_jobs(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Leaving the group waits for no grace that nobody needs."""
    house.door.close()
    before = trio.current_time()
    await house.door.revoked([0])
    assert trio.current_time() == before


# --- Requests that wait -------------------------------------------------------------------------------------------


async def test_an_algorithm_that_never_described_itself(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Requests wait without a status; they are given back on the way, and run once it has."""
    house.street.algorithm.refusal = AlgorithmUnreachable("not yet")
    house.receive(named(0), named(1))
    await trio.sleep(100 * RETRY_SECONDS)
    assert house.street.registry.newest_first() == []
    assert house.statuses.sent == []
    await house.door.revoked([0])
    house.assign()
    house.receive(named(0), named(1))
    house.street.algorithm.refusal = None
    await trio.sleep(10)
    assert sorted(house.writer.offsets) == [0, 1]


async def test_a_full_spool(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Requests wait until there is room."""
    house.street.spool.used = house.street.spool.budget
    house.receive(named(0))
    await trio.sleep(10)
    assert house.ordered == []
    house.street.spool.used = 0
    await trio.sleep(10)
    assert house.writer.offsets == [0]


async def test_inputs_that_the_algorithm_does_not_take(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Refused: FAILED under the task id and a dead letter, no ACCEPTED before it."""
    house.street.algorithm.refusal = RequestRefused("image is missing")
    house.receive(record(0))
    await trio.sleep(10)
    (end,) = house.writer.ends
    assert (end["taskId"], end["status"], end["errMsg"]) == ("0-0", "FAILED", "image is missing")
    assert len(house.writer.letters) == 1
    assert house.statuses.sent == []


async def test_bare_images_need_a_store(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Without storage that is refused before the algorithm works; with it the job runs."""
    house.street.algorithm.gives_bare_images = True
    stored = {"image": "x", "technicalMetadata": {"taskId": "t", "outputStorage": {"POSIX": {}}}}
    house.receive(record(0), record(1, stored))
    await trio.sleep(10)
    assert {end["taskId"]: end["status"] for end in house.writer.ends} == {"0-0": "FAILED", "t": "SUCCEEDED"}
    assert len(house.ordered) == 1


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
async def test_a_refusal_goes_under_the_task_id_that_can_be_read(tmp_path: Path, is_large: bool) -> None:
    """An envelope that is refused still tells whose it is, be the request large or small."""
    value = {
        "image": "x" * (THREAD_BYTES if is_large else 1),
        "technicalMetadata": {"taskId": "mine", "postProcessing": {"tags": "false"}},
    }
    async with open_kafka_house(tmp_path) as house:
        house.assign()
        house.receive(record(0, value))
        await wait_end(house)
        (end,) = house.writer.ends
        assert (end["taskId"], end["status"]) == ("mine", "FAILED")


@pytest.mark.parametrize("value", [b"no json", b"\xff", b"[]", b"null", b'{"technicalMetadata": {"taskId": true}}'])
async def test_a_refusal_without_a_task_id(house: KafkaHouse, value: bytes, autojump_clock: MockClock) -> None:
    """Goes under the job id, which is the same at every delivery."""
    house.receive(record(0, value))
    await trio.sleep(10)
    (end,) = house.writer.ends
    assert end["taskId"] == str(house.door.job_id_of(record(0)))


async def test_a_dead_letter_that_its_topic_refuses(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """A refused request's letter goes in its smaller form, as that of a failed job does."""
    house.writer.script.append(lambda commit: too_large(commit, Role.DEAD_LETTER))
    house.receive(record(0, b"x" * 5_000))
    await trio.sleep(10)
    (end,) = house.writer.ends
    assert end["status"] == "FAILED"
    (letter,) = house.writer.letters
    assert value_of(letter)["size"] == 5_000
    assert house.writer.written[-1].points[0].offset == 1


async def test_a_status_that_its_topic_refuses(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """A topic that takes no status at all stops no partition: what can't be told is left out, the offset goes on."""
    house.writer.script.extend([lambda commit: too_large(commit, Role.STATUS)] * 5)
    house.receive(record(0, b"no json"))
    await trio.sleep(100)
    assert house.writer.offsets == [0]


def too_large(commit: Any, role: Role) -> Exception | None:
    (effects,) = commit.batch
    if role is Role.DEAD_LETTER:
        return MessageRefused(effects, role, effects.dead_letter.size) if effects.dead_letter else None
    return MessageRefused(effects, role, 500) if effects.status else None


async def test_an_error_that_nobody_thought_of(
    house: KafkaHouse, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """It ends that request alone, as FAILED."""

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(door_module, "admit", fail)
    house.receive(record(0))
    await trio.sleep(10)
    monkeypatch.undo()
    house.receive(record(1))
    await trio.sleep(10)
    assert [end["status"] for end in house.writer.ends] == ["FAILED", "SUCCEEDED"]
