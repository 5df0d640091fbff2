"""What each end of a job sends, among doubles and under virtual time: the table of the design, line by line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.errors import (
    AlgorithmBroken,
    AlgorithmDied,
    AlgorithmFailed,
    AlgorithmRefused,
    CadorError,
    DeadlinePassed,
    StoreFailed,
)
from cador_trio.job import Answer, EndReason, JobState, Value
from cador_trio.kafka.delivery import COURTESY_SECONDS, PROGRESS_SECONDS, RestDelivery
from cador_trio.kafka.effects import Commit, Effects, Role, Whereabouts
from cador_trio.kafka.messages import Coordinates, Message
from cador_trio.kafka.writer import MessageRefused, MessagesBroken
from cador_trio.registry import JobRecord
from cador_trio.run_job import admit, run_job
from tests.doubles import make_job
from tests.kafka.doubles import TOPIC, KafkaHouse, open_kafka_house, record, value_of

GOOD: Final = {"image": "x", "technicalMetadata": {"taskId": "t-1"}, "userMetadata": {"mine": 1}}
TAGGED: Final = {"image": "x", "technicalMetadata": {"taskId": "t-1", "postProcessing": {"tags": True}}}
STORED: Final = {"image": "x", "technicalMetadata": {"taskId": "t-1", "outputStorage": {"POSIX": {}}}}


async def run_one(house: KafkaHouse, value: Any = GOOD, offset: int = 0) -> Effects:
    """A request, and the effects that it ends with."""
    house.receive(record(offset, value, key=b"key", headers=(("mine", b"1"),)))
    await trio.sleep(5)
    return house.writer.effects[-1]


def status_of(effects: Effects, where: Whereabouts = Whereabouts()) -> dict[str, Any]:  # noqa: B008 - it is frozen
    assert effects.status is not None
    found: dict[str, Any] = value_of(effects.status(where))
    return found


def headers_of(message: Message | None) -> dict[str, bytes | None]:
    assert message is not None
    return dict(message.headers)


# --- Successes ----------------------------------------------------------------------------------------------------


async def test_a_success(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Output and SUCCEEDED with the offset; no dead letter, no tags that nobody asked for."""
    effects = await run_one(house)
    assert effects.source is not None
    assert (effects.source.partition, effects.source.offset, effects.source.number) == (0, 0, 1)
    assert value_of(effects.output) == {
        "boxes": [1, 2],
        "technicalMetadata": {"taskId": "t-1"},
        "userMetadata": {"mine": 1},
    }
    assert headers_of(effects.output)["cador-kind"] == b"output"
    assert (effects.dead_letter, effects.tag_count, list(effects.tags())) == (None, 0, [])
    status = status_of(effects, Whereabouts([], Coordinates("outputs", 1, 2)))
    assert (status["status"], status["errMsg"], status["progress"]) == ("SUCCEEDED", "", 100)
    assert status["producedKafkaMessages"] == [{"topic": "outputs", "partition": 1, "offset": 2}]
    assert house.statuses.states("t-1") == ["ACCEPTED", "RUNNING"]


async def test_tags(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Those that were asked for, as often as a transaction is tried."""
    effects = await run_one(house, TAGGED)
    assert effects.tag_count == 1
    assert [value_of(tag) for tag in effects.tags()] == [value_of(tag) for tag in effects.tags()]
    assert effects.size >= sum(message.size for message in effects.tags())
    status = status_of(effects, Whereabouts([Coordinates("tags", 0, 5)], Coordinates("outputs", 1, 2)))
    assert [entry["topic"] for entry in status["producedKafkaMessages"]] == ["tags", "outputs"]


async def test_more_tags_than_are_listed(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """The status counts what it leaves out."""
    house.street.results.tags = lambda *_, **__: [{"n": number} for number in range(2_500)]  # type: ignore[method-assign]  # a double of a double
    effects = await run_one(house, TAGGED)
    where = Whereabouts([Coordinates("tags", 0, number) for number in range(1_000)], Coordinates("outputs", 0, 0))
    status = status_of(effects, where)
    assert effects.tag_count == 2_500
    assert len(status["producedKafkaMessages"]) + status["producedKafkaMessagesOmitted"] == 2_501


@pytest.mark.parametrize("missing", [Role.OUTPUT, Role.TAG, Role.STATUS, Role.DEAD_LETTER])
async def test_a_topic_that_there_is_not(tmp_path: Path, missing: Role, autojump_clock: MockClock) -> None:
    """Messages without a topic are not made."""
    async with open_kafka_house(tmp_path, topics=set(Role) - {missing}) as house:
        house.assign()
        effects = await run_one(house, TAGGED)
        assert (effects.output is None) == (missing is Role.OUTPUT)
        assert effects.tag_count == (0 if missing is Role.TAG else 1)


async def test_references_are_told(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """A stored image is a reference in output and status."""
    house.street.algorithm.images = [("mask", None, b"pixels")]
    effects = await run_one(house, STORED)
    assert value_of(effects.output)["mask"] == {"objectId": "t-1_mask"}
    assert status_of(effects)["producedKafkaMessages"] == [{"objectId": "t-1_mask"}]


async def test_an_image_without_a_store(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """FAILED: messages hold references only."""
    house.street.algorithm.images = [("mask", None, b"pixels")]
    effects = await run_one(house)
    assert effects.output is None
    assert status_of(effects)["status"] == "FAILED"
    assert "image" in status_of(effects)["errMsg"]


# --- Failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        AlgorithmDied("reset three times"),
        AlgorithmRefused("its own 400"),
        AlgorithmFailed("its own 500"),
        AlgorithmBroken("HTML"),
        DeadlinePassed("too slow"),
        StoreFailed("down too long"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failure(house: KafkaHouse, error: CadorError, autojump_clock: MockClock) -> None:
    """FAILED and a dead letter with the original, with the offset; no output."""
    house.street.algorithm.error = error
    effects = await run_one(house)
    status = status_of(effects)
    assert (status["taskId"], status["status"], status["errMsg"]) == ("t-1", "FAILED", error.message)
    assert "producedKafkaMessages" not in status
    letter = effects.dead_letter
    assert letter is not None
    assert (letter.key, json.loads(letter.value or b"")) == (b"key", GOOD)
    assert letter.headers[0] == ("mine", b"1")
    headers = headers_of(letter)
    assert headers["cador-error-class"] == type(error).__name__.encode()
    assert headers["cador-origin"] == f"{TOPIC}/0/0".encode()
    assert headers["cador-algorithm"] == b"detector/1"
    assert effects.output is None
    assert effects.source is not None


async def test_attempts_are_told(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """The dead letter lists the tries before the last one, too, with their times."""
    algorithm = house.street.algorithm
    algorithm.halt.close()
    house.receive(record(0, GOOD))
    await wait_all_tasks_blocked()
    algorithm.orders[0].on_attempt_failed(AlgorithmDied("reset"))
    await trio.sleep(7)
    algorithm.error = AlgorithmDied("reset again")
    algorithm.halt.open()
    await trio.sleep(1)
    (letter,) = house.writer.letters
    attempts = json.loads(headers_of(letter)["cador-attempts"] or b"")
    assert [attempt["error"] for attempt in attempts] == ["reset", "reset again"]
    assert attempts[1]["at"] - attempts[0]["at"] == 7_000


async def test_without_a_dead_letter_topic(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The status carries the coordinates beside the reason, of refused requests and failed jobs alike."""
    async with open_kafka_house(tmp_path, topics=set(Role) - {Role.DEAD_LETTER}) as house:
        house.assign()
        house.street.algorithm.error = AlgorithmFailed("its own 500")
        failed = await run_one(house)
        refused = await run_one(house, b"no json", offset=1)
        assert (failed.dead_letter, refused.dead_letter) == (None, None)
        assert status_of(failed)["errMsg"] == f"its own 500 (request {TOPIC}/0/0)"
        assert f"{TOPIC}/0/1" in status_of(refused)["errMsg"]


async def test_cancelled_by_a_caller(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """CANCELLED with the offset, and no dead letter."""
    house.street.algorithm.halt.close()
    house.receive(record(0, GOOD))
    await wait_all_tasks_blocked()
    (job,) = house.street.registry.unfinished()
    job.cancel(EndReason.CALLER_CANCELLED)
    await trio.sleep(1)
    (effects,) = house.writer.effects
    assert (status_of(effects)["status"], effects.dead_letter, effects.output) == ("CANCELLED", None, None)
    assert job.state is JobState.CANCELLED


async def test_the_registry_says_what_is_visible(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """A success whose messages can't be sent is FAILED for whoever asks over HTTP, too."""
    house.writer.script.append(lambda commit: _refused(commit, Role.OUTPUT))
    effects = await run_one(house)
    assert status_of(effects)["status"] == "FAILED"
    assert "output message" in status_of(effects)["errMsg"]
    assert house.street.registry.newest_first()[0].state is JobState.FAILED
    assert effects.dead_letter is not None


def _broken(commit: Commit) -> Exception:
    return MessagesBroken(commit.batch[0])


def _refused(commit: Commit, role: Role, at_least: int = 0) -> Exception | None:
    """The topic of this role takes nothing of that size."""
    (effects,) = commit.batch
    present = {Role.OUTPUT: effects.output, Role.DEAD_LETTER: effects.dead_letter}
    message = effects.status and effects.status(Whereabouts()) if role is Role.STATUS else present[role]
    return MessageRefused(effects, role, message.size) if message is not None and message.size > at_least else None


async def test_dead_letters_get_smaller(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """One that its topic refuses goes by coordinates, size and digest."""
    house.street.algorithm.error = AlgorithmFailed("its own 500")
    house.writer.script.extend([lambda commit: _refused(commit, Role.DEAD_LETTER, 2_000)] * 9)
    value = json.dumps({**GOOD, "image": "x" * 5_000}).encode()
    effects = await run_one(house, value)
    assert value_of(effects.dead_letter) == {
        "topic": TOPIC,
        "partition": 0,
        "offset": 0,
        "size": len(value),
        "sha256": hashlib.sha256(value).hexdigest(),
    }


@pytest.mark.parametrize("role", [Role.DEAD_LETTER, Role.STATUS])
async def test_topics_that_take_nothing(house: KafkaHouse, role: Role, autojump_clock: MockClock) -> None:
    """What can be told in no form is left out; the job ends and the offset is done."""
    house.street.algorithm.error = AlgorithmFailed("its own 500")
    house.writer.script.extend([lambda commit: _refused(commit, role)] * 50)
    effects = await run_one(house)
    assert effects.source is not None
    assert (effects.dead_letter is None) == (role is Role.DEAD_LETTER)
    assert (effects.status is None) == (role is Role.STATUS)
    assert house.street.registry.unfinished() == []


async def test_messages_that_can_t_be_made(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """A defect of ours ends this job as FAILED, and neither the daemon nor the jobs committed with it."""
    house.writer.script.append(_broken)
    effects = await run_one(house)
    assert effects.output is None
    assert status_of(effects)["errMsg"].startswith("unexpected error in the sidecar")
    assert value_of(effects.dead_letter) == GOOD


async def test_failures_that_can_t_be_told(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Their dead letter goes without a status."""
    house.street.algorithm.error = AlgorithmFailed("its own 500")
    house.writer.script.append(_broken)
    effects = await run_one(house)
    assert effects.dead_letter is not None
    assert effects.status is None


async def test_refusals_that_can_t_be_told(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """The same for a request that never was a job."""
    house.writer.script.append(_broken)
    effects = await run_one(house, b"no JSON")
    assert effects.dead_letter is not None
    assert effects.status is None


async def test_a_huge_original(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An original that no message of ours holds is represented at once."""
    async with open_kafka_house(tmp_path, largest_message=10_000) as house:
        house.assign()
        effects = await run_one(house, b"x" * 20_000)
        assert value_of(effects.dead_letter)["size"] == 20_000
        assert headers_of(effects.dead_letter)["mine"] == b"1"
        assert len(house.writer.tried) == 1


# --- Statuses on the way ------------------------------------------------------------------------------------------


async def test_the_end_waits_for_the_statuses_before_it(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """The terminal status goes when ACCEPTED and RUNNING are acknowledged."""
    house.statuses.are_held = True
    house.receive(record(0, GOOD))
    await trio.sleep(100)
    assert house.statuses.states("t-1") == ["ACCEPTED", "RUNNING"]
    assert house.writer.effects == []
    house.statuses.acknowledge()
    await trio.sleep(1)
    assert len(house.writer.effects) == 1


async def test_a_job_whose_partition_goes_waits_for_no_status(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """A status broker that is away does not hold a job that is nobody's any more."""
    house.statuses.are_held = True
    house.receive(record(0, GOOD))
    await trio.sleep(1)
    house.door.lost([0])
    await trio.sleep(1)
    assert house.street.registry.unfinished() == []
    assert house.writer.effects == []


async def test_progress_is_told_now_and_then(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """One a second at most; it never goes back, and does not reach 100 before the end."""
    house.street.algorithm.halt.close()
    house.receive(record(0, GOOD))
    await wait_all_tasks_blocked()
    (order,) = house.street.algorithm.orders
    for percent in range(1, 100):
        order.on_progress(percent)
        await trio.sleep(PROGRESS_SECONDS / 10)
    order.on_progress(5)
    told = [status["progress"] for status in house.statuses.sent if status["status"] == "RUNNING"]
    assert 8 <= len(told) <= 12
    assert told == sorted(told)
    house.street.algorithm.halt.open()


@pytest.mark.parametrize("end", ["revoked", "lost"])
async def test_what_is_given_back_says_nothing(house: KafkaHouse, end: str, autojump_clock: MockClock) -> None:
    """No status follows, not even a RUNNING: its next owner speaks from now on."""
    house.street.algorithm.halt.close()
    house.receive(record(0, GOOD))
    await trio.sleep(10)
    told = len(house.statuses.sent)
    if end == "lost":
        house.door.lost([0])
    else:
        await house.door.revoked([0])
    await trio.sleep(10)
    assert len(house.statuses.sent) == told
    assert house.writer.effects == []


# --- REST jobs ----------------------------------------------------------------------------------------------------


async def run_rest(house: KafkaHouse, *, tells_all: bool, wants_tags: bool = False) -> JobRecord:
    """A REST job to its end."""
    publisher = RestDelivery(house.desk, tells_all=tells_all)
    job = make_job(task_id="r-1", wants_tags=wants_tags)
    plan = admit(job.request, job.task_name, house.street.house)
    job_record = house.street.registry.add(job)
    await run_job(job_record, plan, house.street.house, publisher)
    await wait_all_tasks_blocked()
    return job_record


async def test_a_rest_job_sends_tags_only(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """If they were asked for; there is no offset, no output and no status."""
    await run_rest(house, tells_all=False)
    assert house.writer.effects == []
    await run_rest(house, tells_all=False, wants_tags=True)
    (effects,) = house.writer.effects
    assert (effects.source, effects.output, effects.status, effects.tag_count) == (None, None, None, 1)
    assert house.statuses.sent == []


async def test_a_rest_job_that_tells_all(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """CADOR_PUBLISH_REST_JOBS: statuses on the way, output and terminal status, as for a job from Kafka."""
    await run_rest(house, tells_all=True, wants_tags=True)
    (effects,) = house.writer.effects
    assert value_of(effects.output)["boxes"] == [1, 2]
    assert status_of(effects)["status"] == "SUCCEEDED"
    assert effects.tag_count == 1
    assert house.statuses.states("r-1") == ["ACCEPTED", "RUNNING"]


async def test_a_rest_job_that_fails(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """FAILED is told, if all is; there is no dead letter for what never was a record."""
    house.street.algorithm.error = AlgorithmFailed("its own 500")
    await run_rest(house, tells_all=True)
    (effects,) = house.writer.effects
    assert status_of(effects)["status"] == "FAILED"
    assert effects.dead_letter is None


@pytest.mark.parametrize("tells_all", [False, True])
async def test_a_rest_caller_does_not_wait_for_brokers(
    house: KafkaHouse, tells_all: bool, autojump_clock: MockClock
) -> None:
    """With the brokers away the job ends all the same, after a courtesy; messages follow when they are back."""
    house.writer.halt.close()
    before = trio.current_time()
    with trio.fail_after(2 * COURTESY_SECONDS):
        job = await run_rest(house, tells_all=tells_all, wants_tags=True)
    assert job.state is JobState.SUCCEEDED
    assert trio.current_time() - before <= COURTESY_SECONDS
    house.writer.halt.open()
    await trio.sleep(1)
    assert len(house.writer.effects) == 1


async def test_a_rest_result_that_is_too_large(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its caller gets it whatever its size; the message is left out."""
    async with open_kafka_house(tmp_path, inline_limit=500) as house:
        house.street.algorithm.answer = lambda: Answer({"boxes": Value("x" * 1_000)})
        job = await run_rest(house, tells_all=True)
        assert job.product is not None
        assert job.product.size > 1_000
        (effects,) = house.writer.effects
        assert effects.output is None
        assert status_of(effects)["status"] == "SUCCEEDED"


async def test_refused_messages_of_a_rest_job(house: KafkaHouse, autojump_clock: MockClock) -> None:
    """Are logged, and change nothing for its caller."""
    house.writer.script.append(lambda commit: MessageRefused(commit.batch[0], Role.TAG, 5))
    job = await run_rest(house, tells_all=False, wants_tags=True)
    assert job.state is JobState.SUCCEEDED
