"""One job from request to settled, among doubles and under virtual time: its way, its five early ends, its failures."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cador_trio.capacity import Exchange, Limits
from cador_trio.errors import (
    AlgorithmBroken,
    AlgorithmBusy,
    AlgorithmFailed,
    AlgorithmUnreachable,
    CadorError,
    Conflict,
    DeadlinePassed,
    RequestRefused,
    ResultRefused,
    ResultTooLarge,
    SpoolFull,
    StoreFailed,
    StoreTimedOut,
)
from cador_trio.job import (
    Answer,
    Cancelled,
    Door,
    EndReason,
    Failed,
    GivenBack,
    Image,
    JobState,
    Json,
    Outcome,
    Product,
    Referential,
    StoredObject,
    Succeeded,
    Value,
)
from cador_trio.json_text import THREAD_BYTES, read_answer
from cador_trio.order import Order
from cador_trio.registry import JobRecord
from cador_trio.run_job import SETTLE_SECONDS
from tests.doubles import Halt, Street, make_job, open_street

NORTH_UP: Final = Referential(upper_left_lon=10.0, upper_left_lat=50.0, lon_step=0.5, lat_step=-0.5)
TWO_IMAGES: Final = [("chips", 0, b"first pixels"), ("chips", 1, b"second pixels")]


@pytest.fixture
async def street(tmp_path: Path, autojump_clock: MockClock) -> AsyncIterator[Street]:
    """A house with one slot. Its tests ask for the clock themselves, else pytest-trio does not use it."""
    assert trio.lowlevel.current_clock() is autojump_clock
    async with open_street(tmp_path) as opened:
        yield opened


def outcome_of(record: JobRecord) -> Outcome:
    assert record.outcome is not None
    return record.outcome


def product_of(record: JobRecord) -> Product:
    outcome = outcome_of(record)
    assert isinstance(outcome, Succeeded), outcome
    return outcome.product


def error_of(record: JobRecord) -> CadorError:
    outcome = outcome_of(record)
    assert isinstance(outcome, Failed), outcome
    return outcome.error


def json_of(product: Product, name: str) -> Json:
    output = product.outputs[name]
    assert not isinstance(output, tuple)
    assert output.body is not None
    return read_answer(output.body.read_all())


def assert_nothing_is_held(street: Street) -> None:
    """No slot, no permit, no byte but those of results that history keeps."""
    figures = street.capacity.figures()
    assert (figures.in_use, figures.unfinished, figures.waiting) == (0, 0, {"http": 0, "kafka": 0})
    kept = [record.product.size for record in street.registry.newest_first() if record.product is not None]
    assert street.spool.used == sum(kept)
    assert street.registry._turns == {}
    assert street.algorithm.clocks == []


# --- The way ------------------------------------------------------------------------------------------------------


async def test_a_plain_job_gives_what_the_algorithm_answered(street: Street, autojump_clock: MockClock) -> None:
    """The outputs of a stateless answer are the product, and the caller's headers went along."""
    record = await street.run(make_job())
    assert json_of(product_of(record), "boxes") == [1, 2]
    assert street.algorithm.orders[0].headers == {"X-Correlation-ID": "correlation"}
    assert street.algorithm.orders[0].inputs == {"image": "pixels"}
    assert (record.state, record.progress) == (JobState.SUCCEEDED, 100)
    assert_nothing_is_held(street)


async def test_every_step_of_a_full_job_happens_in_its_order(street: Street, autojump_clock: MockClock) -> None:
    """Conversion, store, tags, publication and deletion on the algorithm follow one another, and only one at a time."""
    algorithm, store, publisher = street.algorithm, street.store, street.publisher
    algorithm.images, algorithm.leftovers = TWO_IMAGES, ["http://algorithm/results/1"]
    for halt in (store.prepare_halt, algorithm.halt, store.halt, publisher.halt, algorithm.forget_halt):
        halt.close()
    record = street.submit(make_job(task_id="t", stores=True, wants_tags=True, referential=NORTH_UP))

    await store.prepare_halt.reached.wait()
    assert (record.state, algorithm.orders) == (JobState.ACCEPTED, [])
    store.prepare_halt.open()

    await algorithm.halt.reached.wait()
    assert record.state is JobState.RUNNING
    assert algorithm.orders[0].take_out_images
    algorithm.orders[0].on_progress(40)
    assert record.progress == 40
    algorithm.halt.open()

    await store.halt.reached.wait()
    assert street.capacity.figures().in_use == 0  # the slot is another job's by now
    assert street.capacity.figures().unfinished == 1
    assert street.results.tagged == []
    store.halt.open()

    await publisher.halt.reached.wait()
    ((tagged, stored),) = street.results.tagged
    assert tagged.outputs["boxes"] == Value({"of": "boxes", "lon": 10.0, "was": [1, 2]})
    assert stored == [{"objectId": "t_chips_0"}, {"objectId": "t_chips_1"}]
    assert (record.state, algorithm.forgotten) == (JobState.RUNNING, [])
    publisher.halt.open()

    await algorithm.forget_halt.reached.wait()
    assert len(publisher.published) == 1
    assert record.state is JobState.RUNNING
    algorithm.forget_halt.open()

    await record.ended.wait()
    assert algorithm.forgotten == ["http://algorithm/results/1"]
    assert store.objects == {"t_chips_0": b"first pixels", "t_chips_1": b"second pixels"}
    (_, product, tags) = publisher.published[0]
    assert product is product_of(record)
    assert tags == [{"tagger": "org.detector.1"}]
    assert_nothing_is_held(street)


async def test_stored_images_are_references_and_give_their_bytes_back(
    street: Street, autojump_clock: MockClock
) -> None:
    """With storage the product holds references, and the spool only the JSON."""
    street.algorithm.images = TWO_IMAGES
    record = await street.run(make_job(task_id="t", stores=True))
    chips = product_of(record).outputs["chips"]
    assert isinstance(chips, tuple)
    assert [(chip.result_id, chip.body, chip.reference) for chip in chips] == [
        ("chips_0", None, {"objectId": "t_chips_0"}),
        ("chips_1", None, {"objectId": "t_chips_1"}),
    ]
    assert street.spool.used == len(b"[1,2]")
    assert_nothing_is_held(street)


async def test_images_without_storage_are_kept_for_the_caller(street: Street, autojump_clock: MockClock) -> None:
    """Without storage the product holds the bytes themselves, and nothing is put anywhere."""
    street.algorithm.images = TWO_IMAGES
    record = await street.run(make_job())
    chips = product_of(record).outputs["chips"]
    assert isinstance(chips, tuple)
    assert [chip.body.read_all() for chip in chips if chip.body is not None] == [b"first pixels", b"second pixels"]
    assert not street.algorithm.orders[0].take_out_images
    assert street.store.puts == []
    assert_nothing_is_held(street)


async def test_what_is_handed_out_is_converted(street: Street, autojump_clock: MockClock) -> None:
    """A referential turns the JSON outputs into longitude and latitude before they are packed."""
    record = await street.run(make_job(referential=NORTH_UP))
    assert json_of(product_of(record), "boxes") == {"of": "boxes", "lon": 10.0, "was": [1, 2]}


async def test_a_whole_answer_is_converted_without_a_name(street: Street, autojump_clock: MockClock) -> None:
    """An answer that has no names is converted as one value."""
    street.algorithm.answer = lambda: Answer({"output": Value([1])}, whole=True)
    record = await street.run(make_job(referential=NORTH_UP))
    assert product_of(record).whole
    assert json_of(product_of(record), "output") == {"of": None, "lon": 10.0, "was": [1]}


@pytest.mark.parametrize("encoding", ["text", "base64"])
async def test_texts_and_pixels_are_not_converted(street: Street, autojump_clock: MockClock, encoding: Any) -> None:
    """Only JSON is; a text that looks like a position is a text."""
    street.algorithm.answer = lambda: Answer({"note": Value("text", "text/plain", encoding)})
    record = await street.run(make_job(referential=NORTH_UP))
    assert json_of(product_of(record), "note") == "text"


@pytest.mark.parametrize(
    ("wants_tags", "takes_tags", "made"), [(True, True, 1), (True, False, 0), (False, True, 0), (False, False, 0)]
)
async def test_tags_are_made_when_asked_for_and_somebody_takes_them(
    street: Street, autojump_clock: MockClock, wants_tags: bool, takes_tags: bool, made: int
) -> None:
    """Neither a request alone nor a topic alone makes tags; the conversion never depends on them."""
    street.publisher.takes_tags = takes_tags
    record = await street.run(make_job(wants_tags=wants_tags, referential=NORTH_UP))
    assert len(street.results.tagged) == made
    assert len(street.publisher.published[0][2]) == made
    assert json_of(product_of(record), "boxes")["lon"] == 10.0


async def test_two_jobs_with_one_task_id_run_one_after_the_other(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The second is not even dispatched before the first has settled, though a slot is free for it."""
    async with open_street(tmp_path, slots=2) as street:
        street.publisher.halt.close()
        first = street.submit(make_job(task_id="same"))
        await wait_all_tasks_blocked()
        second = street.submit(make_job(task_id="same"))
        other = street.submit(make_job(task_id="another"))
        await wait_all_tasks_blocked()
        assert len(street.algorithm.orders) == 2
        assert (first.state, second.state, other.state) == ("RUNNING", "ACCEPTED", "RUNNING")
        street.publisher.halt.open()
        for record in (first, second, other):
            await record.ended.wait()
        assert len(street.algorithm.orders) == 3
        assert_nothing_is_held(street)


# --- Admission ----------------------------------------------------------------------------------------------------


async def test_admission_checks_the_destination_before_the_inputs(street: Street, autojump_clock: MockClock) -> None:
    """Storage settings are refused first, inputs second, as the wire contract orders them."""
    street.algorithm.refusal = RequestRefused("inputs")
    street.store.resolve_error = RequestRefused("destination")
    with pytest.raises(RequestRefused, match="destination"):
        street.submit(make_job(stores=True))
    street.store.resolve_error = None
    with pytest.raises(RequestRefused, match="inputs"):
        street.submit(make_job(stores=True))


async def test_a_full_spool_refuses_newcomers(street: Street, autojump_clock: MockClock) -> None:
    """503 with the figures and a time, once history has given way; and the next job is welcome when there is room."""
    body = await street.spool.keep(b"x" * 10)
    street.spool.budget = 10
    with pytest.raises(SpoolFull, match="no room") as refused:
        street.submit(make_job())
    assert "10 of CADOR_SPOOL_BYTES=10" in refused.value.hint
    assert refused.value.retry_after is not None
    body.close()
    street.spool.budget = 1_000
    assert (await street.run(make_job())).state is JobState.SUCCEEDED


# --- The five ends ------------------------------------------------------------------------------------------------

# Where a job is when its end strikes, in the order of its way.
MOMENTS: Final = ("its task's turn", "the store's word", "a slot", "the algorithm", "the store", "publication")
BEFORE_SLOT: Final = MOMENTS[:3]
ENDS: Final[Sequence[tuple[Door, EndReason]]] = [
    ("http", EndReason.CALLER_CANCELLED),
    ("http", EndReason.CALLER_LEFT),
    ("http", EndReason.SHUTDOWN),
    ("http", EndReason.DEADLINE),
    ("kafka", EndReason.CALLER_CANCELLED),
    ("kafka", EndReason.SHUTDOWN),
    ("kafka", EndReason.REVOKED),
    ("kafka", EndReason.DEADLINE),
]


def expected_end(door: Door, reason: EndReason, moment: str) -> str:
    """What becomes of the job: one table for all ends and moments."""
    if moment == "publication":
        return "succeeded"
    if reason is EndReason.DEADLINE:
        # The deadline is the algorithm stage's; for a job from Kafka it begins with the slot.
        is_running = moment == "the algorithm" or (moment in BEFORE_SLOT and door == "http")
        return "timed out" if is_running else "succeeded"
    return "given back" if door == "kafka" and reason is not EndReason.CALLER_CANCELLED else "cancelled"


async def bring_to(street: Street, moment: str, door: Door) -> tuple[JobRecord, list[JobRecord]]:
    """A job that has come to this moment and is held there; and the jobs that stand in its way."""
    halts: dict[str, Halt] = {
        "the store's word": street.store.prepare_halt,
        "the algorithm": street.algorithm.halt,
        "the store": street.store.halt,
        "publication": street.publisher.halt,
    }
    street.algorithm.images = TWO_IMAGES
    others = []
    if moment in halts:
        halts[moment].close()
    else:
        # Its own deadline must not move the one in the way: it is past it, or it keeps its slot.
        street.algorithm.can_cancel = False
        street.publisher.halt.close() if moment == "its task's turn" else street.algorithm.halt.close()
        others = [street.submit(make_job(task_id="t" if moment == "its task's turn" else "another", door="kafka"))]
        await wait_all_tasks_blocked()
    record = street.submit(make_job(task_id="t", door=door, stores=True, wants_tags=True))
    await wait_all_tasks_blocked()
    assert not record.ended.is_set()
    assert record.state is (JobState.ACCEPTED if moment in BEFORE_SLOT else JobState.RUNNING)
    return record, others


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("door", "reason"), ENDS)
async def test_each_end_at_each_moment_leaves_one_terminal_state_and_nothing_else(
    street: Street, autojump_clock: MockClock, door: Door, reason: EndReason, moment: str
) -> None:
    """Cancelled, timed out, given back or (past the point of no return) done; nothing is held, nothing stored twice."""
    record, others = await bring_to(street, moment, door)
    if reason is EndReason.DEADLINE:
        await trio.sleep(street.house.job_timeout_seconds + 1)
    elif moment == "publication":
        with pytest.raises(Conflict, match="point of no return"):
            record.cancel(reason)
    else:
        record.cancel(reason)
    await wait_all_tasks_blocked()
    expected = expected_end(door, reason, moment)
    # A job that is cut short does not wait for whatever held it.
    assert record.ended.is_set() is (expected != "succeeded")
    street.let_all_go()
    await street.registry.wait_all_ended()
    await wait_all_tasks_blocked()

    match outcome_of(record):
        case Succeeded():
            found = "succeeded"
        case Failed(error=DeadlinePassed() as error):
            found = "timed out"
            assert error.http_status == 504
        case Cancelled(reason=why):
            found = "cancelled"
            assert why is reason
        case GivenBack(reason=why):
            found = "given back"
            assert why is reason
        case other:
            found = repr(other)
    assert found == expected
    seen = street.states[record.job.job_id]
    assert sum(state.is_terminal for state in seen) == (0 if expected == "given back" else 1)
    is_known = record in street.registry.newest_first()
    assert is_known is (expected != "given back")
    if expected == "succeeded":
        assert sorted(street.store.puts) == ["t_chips_0", "t_chips_1"]
    elif moment != "the store":
        assert street.store.puts == []
    # Each job that has succeeded was published once, and no other.
    done = [known.job.job_id for known in (record, *others) if known.state is JobState.SUCCEEDED]
    assert sorted(job.job_id for job, _, _ in street.publisher.published) == sorted(done)
    # Each was announced once, and told its end, whatever it was.
    assert street.publisher.accepted_jobs.count(record.job.job_id) == 1
    assert [outcome for job, outcome in street.publisher.told if job.job_id == record.job.job_id] == [record.outcome]
    assert_nothing_is_held(street)
    assert (await street.run(make_job(task_id="t"))).state is JobState.SUCCEEDED


async def test_a_cancellation_between_two_images_stores_no_more(street: Street, autojump_clock: MockClock) -> None:
    """What was stored whole stays, what was not begun never is, and nothing is stored twice by the next job."""
    street.algorithm.images = TWO_IMAGES
    street.store.halt.close()
    record = street.submit(make_job(task_id="t", stores=True))
    await street.store.halt.reached.wait()
    record.cancel(EndReason.CALLER_CANCELLED)
    await record.ended.wait()
    street.store.halt.open()
    await wait_all_tasks_blocked()
    assert street.store.puts == []
    assert_nothing_is_held(street)


async def test_a_cancellation_that_was_accepted_is_never_followed_by_success(
    street: Street, autojump_clock: MockClock
) -> None:
    """Struck where no step of the job waits any more: it still ends CANCELLED, as its caller was told."""
    records: list[JobRecord] = []
    street.results.on_georeference = lambda: records[0].cancel(EndReason.CALLER_CANCELLED)
    records.append(street.submit(make_job(referential=NORTH_UP)))
    await records[0].ended.wait()
    assert outcome_of(records[0]) == Cancelled(EndReason.CALLER_CANCELLED)
    assert street.publisher.published == []
    assert_nothing_is_held(street)


async def test_a_job_that_is_cancelled_before_it_starts_never_starts(street: Street, autojump_clock: MockClock) -> None:
    """A cancellation between acceptance and the job's first step takes effect at that step."""
    record = street.submit(make_job())
    record.cancel(EndReason.CALLER_LEFT)
    await record.ended.wait()
    assert outcome_of(record) == Cancelled(EndReason.CALLER_LEFT)
    assert street.algorithm.orders == []


async def test_the_first_reason_stands(street: Street, autojump_clock: MockClock) -> None:
    """A second reason changes nothing: the job is given back once, or cancelled once."""
    street.algorithm.halt.close()
    record = street.submit(make_job(door="kafka"))
    await street.algorithm.halt.reached.wait()
    record.cancel(EndReason.REVOKED)
    record.cancel(EndReason.CALLER_CANCELLED)
    await record.ended.wait()
    assert outcome_of(record) == GivenBack(EndReason.REVOKED)


@pytest.mark.parametrize(
    ("door", "expected"),
    [("http", Cancelled(EndReason.SHUTDOWN)), ("kafka", GivenBack(EndReason.SHUTDOWN))],
)
async def test_a_job_whose_daemon_is_cancelled_ends_as_on_shutdown(
    tmp_path: Path, autojump_clock: MockClock, door: Door, expected: Outcome
) -> None:
    """Cancelled from outside, without a reason: nobody waits for ever, and a Kafka job gets no terminal status."""
    async with open_street(tmp_path) as street:
        street.algorithm.halt.close()
        record = street.submit(make_job(door=door))
        await street.algorithm.halt.reached.wait()
        street.jobs_nursery.cancel_scope.cancel()
    assert outcome_of(record) == expected
    assert_nothing_is_held(street)


async def test_settling_runs_to_its_end_though_the_daemon_is_cancelled(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Past the point of no return, publication and deletion happen even under a cancelled nursery."""
    async with open_street(tmp_path) as street:
        street.publisher.halt.close()
        street.algorithm.leftovers = ["http://algorithm/results/1"]
        record = street.submit(make_job())
        await street.publisher.halt.reached.wait()
        street.jobs_nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert not record.ended.is_set()
        street.publisher.halt.open()
    assert record.state is JobState.SUCCEEDED
    assert street.algorithm.forgotten == ["http://algorithm/results/1"]
    assert_nothing_is_held(street)


# --- The deadline -------------------------------------------------------------------------------------------------


async def test_the_deadline_says_what_the_job_was_doing(street: Street, autojump_clock: MockClock) -> None:
    """504 tells a slow algorithm from a queue that was too long, and from an earlier job of the same task."""
    street.algorithm.halt.close()
    running = street.submit(make_job(task_id="t"))
    await street.algorithm.halt.reached.wait()
    turn, queued = street.submit(make_job(task_id="t")), street.submit(make_job())
    await street.registry.wait_all_ended()
    assert "the algorithm worked on it" in error_of(running).message
    assert "an earlier job with its task id ran" in error_of(turn).message
    assert "it waited for a slot" in error_of(queued).message
    assert "100 s" in error_of(running).message
    assert "CADOR_JOB_TIMEOUT_SECONDS" in error_of(running).hint


async def test_the_deadline_runs_from_acceptance(street: Street, autojump_clock: MockClock) -> None:
    """Time in the queue counts for a job from HTTP: what is left is the algorithm's."""
    street.algorithm.halt.close()
    first = street.submit(make_job())
    await street.algorithm.halt.reached.wait()
    second = street.submit(make_job())
    await trio.sleep(60)
    first.cancel(EndReason.CALLER_CANCELLED)
    await wait_all_tasks_blocked()
    assert second.state is JobState.RUNNING
    await second.ended.wait()
    assert trio.current_time() == pytest.approx(second.accepted_at + 100)
    assert isinstance(error_of(second), DeadlinePassed)


async def test_the_deadline_of_a_kafka_job_runs_from_dispatch(street: Street, autojump_clock: MockClock) -> None:
    """It may wait in the queue as long as it takes."""
    street.algorithm.halt.close()
    first = street.submit(make_job(door="kafka"))
    await street.algorithm.halt.reached.wait()
    second = street.submit(make_job(door="kafka"))
    started = trio.current_time()
    await first.ended.wait()
    assert trio.current_time() == pytest.approx(started + 100)
    await second.ended.wait()
    assert trio.current_time() == pytest.approx(started + 200)
    assert isinstance(error_of(second), DeadlinePassed)


async def test_the_deadline_stands_still_while_the_algorithm_is_unreachable(
    street: Street, autojump_clock: MockClock
) -> None:
    """An hour without an algorithm costs the job nothing of its hundred seconds."""

    async def wait_an_hour(order: Order, connection: Any, exchange: Exchange) -> Answer:
        await trio.sleep(30)
        with order.deadline.standing_still():
            await trio.sleep(3_600)
        await trio.sleep(69)
        return Answer({"boxes": Value(1)})

    street.algorithm.process = wait_an_hour  # type: ignore[method-assign] # a double of the double
    record = await street.run(make_job())
    assert record.state is JobState.SUCCEEDED


async def test_the_rest_of_the_deadline_counts_once_the_algorithm_is_back(
    street: Street, autojump_clock: MockClock
) -> None:
    """What was used before the algorithm went away stays used."""

    async def come_back_and_hang(order: Order, connection: Any, exchange: Exchange) -> Answer:
        await trio.sleep(30)
        with order.deadline.standing_still():
            await trio.sleep(3_600)
        return await trio.sleep_forever()

    street.algorithm.process = come_back_and_hang  # type: ignore[method-assign] # a double of the double
    record = await street.run(make_job())
    assert isinstance(error_of(record), DeadlinePassed)
    assert trio.current_time() == pytest.approx(record.accepted_at + 3_600 + 100)


async def test_the_clock_of_a_waiting_job_can_be_stopped_too(street: Street, autojump_clock: MockClock) -> None:
    """A patient job in the queue shows its clock to the algorithm's room, which can stop it."""
    street.algorithm.halt.close()
    first = street.submit(make_job(door="kafka"))
    await street.algorithm.halt.reached.wait()
    waiting = street.submit(make_job())
    await wait_all_tasks_blocked()
    (clock,) = street.algorithm.clocks
    clock.stop()
    await first.ended.wait()  # after its hundred seconds
    await wait_all_tasks_blocked()
    assert street.algorithm.clocks == []
    await waiting.ended.wait()
    assert trio.current_time() == pytest.approx(waiting.accepted_at + 200)


async def test_the_clock_of_a_caller_who_waits_is_not_stopped(street: Street, autojump_clock: MockClock) -> None:
    """Somebody holds a connection open for it: the deadline is the longest that they wait."""
    street.algorithm.halt.close()
    street.submit(make_job(door="kafka"))
    await street.algorithm.halt.reached.wait()
    waiting = street.submit(make_job(is_patient=False))
    await wait_all_tasks_blocked()
    assert street.algorithm.clocks == []
    await waiting.ended.wait()
    assert isinstance(error_of(waiting), DeadlinePassed)


async def test_a_deadline_that_passes_while_the_algorithm_is_busy_is_no_timeout(
    street: Street, autojump_clock: MockClock
) -> None:
    """503 says who was in the way, 504 would blame the job."""

    async def stay_busy(order: Order, connection: Any, exchange: Exchange) -> Answer:
        order.deadline.excuse = AlgorithmBusy("it works on something else", retry_after=7)
        return await trio.sleep_forever()

    street.algorithm.process = stay_busy  # type: ignore[method-assign] # a double of the double
    error = error_of(await street.run(make_job()))
    assert isinstance(error, AlgorithmBusy)
    assert (error.http_status, error.retry_after) == (503, 7)


async def test_an_algorithm_that_cannot_cancel_keeps_the_slot_not_the_job(
    street: Street, autojump_clock: MockClock
) -> None:
    """The job times out at once; its slot is free when the algorithm is, and the late answer's bytes are given back."""
    street.algorithm.can_cancel = False
    street.algorithm.images = TWO_IMAGES
    street.algorithm.halt.close()
    record = await street.run(make_job())
    assert isinstance(error_of(record), DeadlinePassed)
    figures = street.capacity.figures()
    assert (figures.in_use, figures.unfinished) == (1, 0)
    following = street.submit(make_job())
    await wait_all_tasks_blocked()
    assert not following.ended.is_set()
    assert len(street.algorithm.orders) == 1
    street.algorithm.halt.open()
    await following.ended.wait()
    assert following.state is JobState.SUCCEEDED
    assert street.publisher.published[0][0].job_id == following.job.job_id
    assert_nothing_is_held(street)


# --- What goes wrong ----------------------------------------------------------------------------------------------


def fail_at(street: Street, place: str, error: Exception) -> None:
    """Make one neighbour raise."""
    match place:
        case "prepare":
            street.store.prepare_error = error
        case "algorithm":
            street.algorithm.error = error
        case "georeference":

            def raise_error() -> None:
                raise error

            street.results.on_georeference = raise_error
        case "store":
            street.store.error = error
        case "tags":
            street.results.tags_error = error
        case "publish" if isinstance(error, CadorError):
            street.publisher.verdict = Failed(error)
        case "publish":
            street.publisher.error = error


PLACES: Final = ("prepare", "algorithm", "georeference", "store", "tags", "publish")


@pytest.mark.parametrize("place", PLACES)
async def test_an_unexpected_error_ends_that_job_alone(street: Street, autojump_clock: MockClock, place: str) -> None:
    """FAILED without a word of the error's text, which might hold anything; the next job is served."""
    street.algorithm.images = TWO_IMAGES
    street.algorithm.leftovers = ["http://algorithm/results/1"]
    fail_at(street, place, ValueError("password=hunter2"))
    record = await street.run(make_job(stores=True, wants_tags=True, referential=NORTH_UP))
    error = error_of(record)
    assert record.state is JobState.FAILED
    assert (error.message, error.http_status) == ("unexpected error in the sidecar", 500)
    assert "hunter2" not in f"{error.message}{error.hint}{error!r}"
    assert street.algorithm.forgotten == []  # the results are not safe with us: they stay where they are
    assert_nothing_is_held(street)
    street.store.prepare_error = street.algorithm.error = street.store.error = None
    street.results.tags_error = street.publisher.error = None
    street.results.on_georeference = lambda: None
    assert (await street.run(make_job())).state is JobState.SUCCEEDED


@pytest.mark.parametrize("place", PLACES)
async def test_an_error_that_says_who_must_act_is_the_jobs(
    street: Street, autojump_clock: MockClock, place: str
) -> None:
    """Its message, hint and status reach the caller, and nothing is held."""
    street.algorithm.images = TWO_IMAGES
    fail_at(street, place, AlgorithmFailed("no water here", hint="look elsewhere"))
    record = await street.run(make_job(stores=True, wants_tags=True, referential=NORTH_UP))
    error = error_of(record)
    assert (error.message, error.hint, error.http_status) == ("no water here", "look elsewhere", 500)
    assert (len(street.store.puts) == 2) is (place in {"tags", "publish"})
    assert_nothing_is_held(street)


async def test_json_that_is_too_large_for_its_message_goes_to_the_store(
    street: Street, autojump_clock: MockClock
) -> None:
    """The largest first, and no more than must; what is stored is a reference everywhere, in the tags too."""
    street.algorithm.answer = lambda: Answer({name: Value("x" * size) for name, size in SIZES.items()})
    street.publisher.message_limit = 150
    record = await street.run(make_job(task_id="t", stores=True, wants_tags=True))
    product = product_of(record)
    assert street.store.objects == {"t_large": b'"' + b"x" * 200 + b'"'}
    references = {result.result_id: result.reference for result in product.results}
    assert references == {"small": None, "large": {"objectId": "t_large"}, "middle": None}
    ((_, stored),) = street.results.tagged
    assert stored == [{"objectId": "t_large"}]
    assert product.size == 114  # of what is left, quotes included
    assert_nothing_is_held(street)


SIZES: Final = {"small": 10, "large": 200, "middle": 100}


@pytest.mark.parametrize(("stores", "limit"), [(False, 150), (True, -1)])
async def test_what_fits_no_message_fails_with_both_sizes(
    street: Street, autojump_clock: MockClock, stores: bool, limit: int
) -> None:
    """Nowhere to store it, or too large though all of it is stored: FAILED, and nothing is held."""
    street.algorithm.answer = lambda: Answer({name: Value("x" * size) for name, size in SIZES.items()})
    street.publisher.message_limit = limit
    error = error_of(await street.run(make_job(stores=stores)))
    assert isinstance(error, ResultTooLarge)
    assert "316 bytes" in error.message
    assert f"{limit} bytes" in error.message
    assert_nothing_is_held(street)


async def test_results_of_a_job_that_is_given_back_at_the_last_moment_are_let_go_of(
    street: Street, autojump_clock: MockClock
) -> None:
    """Its next owner makes them again: they are wanted neither here nor on the algorithm."""
    street.algorithm.images = TWO_IMAGES
    street.algorithm.leftovers = ["http://algorithm/results/1"]
    street.publisher.verdict = GivenBack(EndReason.REVOKED)
    record = await street.run(make_job(door="kafka"))
    assert outcome_of(record) == GivenBack(EndReason.REVOKED)
    assert street.algorithm.forgotten == ["http://algorithm/results/1"]
    assert record not in street.registry.newest_first()
    assert_nothing_is_held(street)


async def test_a_failed_job_remembers_no_traceback(street: Street, autojump_clock: MockClock) -> None:
    """The error that history keeps holds neither frames nor causes, and so none of the megabytes that hang on them."""

    class Heavy(list[int]):
        """A list that a weak reference can follow."""

    heavy = Heavy()
    gone = weakref.ref(heavy)
    street.algorithm.answer = lambda kept=heavy: Answer({"boxes": Value(kept)})  # type: ignore[misc] # binds it now
    del heavy

    def raise_error() -> None:
        raise ResultRefused("no such position") from ValueError("cause")

    street.results.on_georeference = raise_error
    record = await street.run(make_job(referential=NORTH_UP))
    error = error_of(record)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    street.algorithm.answer = lambda: Answer({})
    del raise_error
    gc.collect()
    assert gone() is None


async def test_an_ended_job_lets_go_of_its_payload(street: Street, autojump_clock: MockClock) -> None:
    """History keeps who and when, not the pixels that came in or the credentials beside them."""
    record = await street.run(make_job(task_id="t", stores=True))
    assert record.job.request.inputs == {}
    assert record.job.request.storage is None
    assert (record.job.task_name, record.job.correlation_id) == ("t", "correlation")


async def test_a_store_that_is_too_slow_fails_the_job_with_its_count(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its own deadline ends the store step, and the message says how far it got."""
    async with open_street(tmp_path, store_timeout_seconds=30) as street:
        street.algorithm.images = TWO_IMAGES
        street.store.halt.close()
        record = await street.run(make_job(stores=True))
        error = error_of(record)
        assert isinstance(error, StoreTimedOut)
        assert "30 s" in error.message
        assert "0 of 2 images" in error.message
        assert error.http_status == 502
        assert_nothing_is_held(street)


async def test_the_first_image_that_can_not_be_stored_ends_the_others(
    street: Street, autojump_clock: MockClock
) -> None:
    """Images are stored at once; nobody waits for the rest of a job that has failed, and its error is the one told."""
    started: list[str] = []

    async def put(destination: str, image: Image) -> StoredObject:
        started.append(image.result_id)
        if image.result_id == "chips_1":
            raise StoreFailed("no such bucket")
        return await trio.sleep_forever()

    street.algorithm.images = TWO_IMAGES
    street.store.put = put  # type: ignore[method-assign] # a double of the double
    error = error_of(await street.run(make_job(stores=True)))
    assert (type(error), error.message) == (StoreFailed, "no such bucket")
    assert "chips_1" in started
    assert_nothing_is_held(street)


async def test_a_store_that_can_not_be_written_is_found_out_before_dispatch(
    street: Street, autojump_clock: MockClock
) -> None:
    """The algorithm is not bothered with a job whose results can't be kept."""
    street.store.prepare_error = StoreFailed("read-only")
    record = await street.run(make_job(stores=True))
    assert isinstance(error_of(record), StoreFailed)
    assert street.algorithm.orders == []


@pytest.mark.parametrize(("is_patient", "seconds"), [(True, 60), (False, 30)])
async def test_a_store_that_says_nothing_is_waited_for_before_dispatch(
    tmp_path: Path, autojump_clock: MockClock, is_patient: bool, seconds: float
) -> None:
    """As long as for storing itself, or half a minute if somebody holds a connection open; then the store is named."""
    async with open_street(tmp_path, store_timeout_seconds=60) as street:
        street.store.prepare_halt.close()
        began = trio.current_time()
        error = error_of(await street.run(make_job(stores=True, is_patient=is_patient)))
        assert isinstance(error, StoreTimedOut)
        assert trio.current_time() - began == pytest.approx(seconds)
        assert street.algorithm.orders == []
        assert_nothing_is_held(street)


async def test_unreachable_is_passed_on_to_a_caller_who_waits(street: Street, autojump_clock: MockClock) -> None:
    """503, not a failure of the algorithm."""
    street.algorithm.error = AlgorithmUnreachable("nobody there")
    assert error_of(await street.run(make_job(is_patient=False))).http_status == 503


@pytest.mark.parametrize("name", ["technicalMetadata", "userMetadata"])
async def test_an_output_may_not_be_called_like_the_envelope(
    street: Street, autojump_clock: MockClock, name: str
) -> None:
    """The envelope wins, and the job fails with a clear word."""
    street.algorithm.answer = lambda: Answer({name: Value(1)})
    error = error_of(await street.run(make_job()))
    assert isinstance(error, ResultRefused)
    assert name in error.message


async def test_the_envelopes_names_are_free_inside_a_whole_answer(street: Street, autojump_clock: MockClock) -> None:
    """A whole answer has no names of outputs, only `output`."""
    street.algorithm.answer = lambda: Answer({"output": Value({"userMetadata": 1})}, whole=True)
    assert (await street.run(make_job())).state is JobState.SUCCEEDED


async def test_results_with_one_id_are_refused(street: Street, autojump_clock: MockClock) -> None:
    """Item 0 of `chips` and an output `chips_0` would be one object, one URL: neither may overwrite the other."""
    street.algorithm.images = TWO_IMAGES
    street.algorithm.answer = lambda: Answer({"chips_0": Value(1)})
    record = await street.run(make_job(stores=True))
    assert "chips_0" in error_of(record).message
    assert street.store.puts == []
    assert_nothing_is_held(street)


async def test_a_number_that_json_does_not_have_breaks_the_answer(street: Street, autojump_clock: MockClock) -> None:
    """The algorithm's infinity is its fault: 502, and what was already packed is given back."""
    street.algorithm.answer = lambda: Answer({"good": Value("x" * 500), "bad": Value(math.inf)})
    error = error_of(await street.run(make_job()))
    assert isinstance(error, AlgorithmBroken)
    assert "bad" in error.message
    assert street.spool.used == 0


async def test_a_spool_without_room_fails_the_job(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A result that does not fit is 503, its bytes are free again, and a small job gets through."""
    async with open_street(tmp_path, spool_bytes=100) as street:
        street.algorithm.images = [("a", None, b"x" * 60), ("b", None, b"x" * 60)]
        assert isinstance(error_of(await street.run(make_job())), SpoolFull)
        assert street.spool.used == 0
        street.algorithm.images = []
        assert (await street.run(make_job())).state is JobState.SUCCEEDED


async def test_history_gives_way_to_a_running_job(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Old results go before a new job fails; their job's status stays."""
    async with open_street(tmp_path, spool_bytes=100) as street:
        street.algorithm.images = [("a", None, b"x" * 60)]
        old = await street.run(make_job())
        assert len(product_of(old).results) == 2
        new = await street.run(make_job())
        assert new.state is JobState.SUCCEEDED
        assert old.has_lost_results
        assert (old.state, product_of(old).outputs) == (JobState.SUCCEEDED, {})


# --- Settling -----------------------------------------------------------------------------------------------------


async def test_what_can_not_be_deleted_on_the_algorithm_spoils_nothing(
    street: Street, autojump_clock: MockClock
) -> None:
    """The results are safe and published: the job has succeeded."""
    street.algorithm.leftovers = ["http://algorithm/results/1"]
    street.algorithm.forget_error = ValueError("nobody thought of it")
    record = await street.run(make_job())
    assert record.state is JobState.SUCCEEDED
    assert_nothing_is_held(street)


async def test_settling_does_not_wait_for_ever(street: Street, autojump_clock: MockClock) -> None:
    """An algorithm that does not answer the deletions holds the job for a bounded time."""
    street.algorithm.leftovers = ["http://algorithm/results/1"]
    street.algorithm.forget_halt.close()
    record = await street.run(make_job())
    assert record.state is JobState.SUCCEEDED
    assert trio.current_time() == pytest.approx(record.accepted_at + SETTLE_SECONDS)


async def test_the_publisher_takes_the_time_it_needs(street: Street, autojump_clock: MockClock) -> None:
    """Nothing is given up halfway: a job whose messages are late is still done, not half done."""
    street.publisher.halt.close()
    record = street.submit(make_job())
    await street.publisher.halt.reached.wait()
    await trio.sleep(86_400)
    assert not record.ended.is_set()
    street.publisher.halt.open()
    await record.ended.wait()
    assert record.state is JobState.SUCCEEDED


# --- Large answers ------------------------------------------------------------------------------------------------


async def test_large_answers_are_worked_on_in_threads(tmp_path: Path) -> None:
    """Conversion and tags of a large answer leave the event loop, and what is written is the same JSON."""
    main = trio.lowlevel.current_trio_token()
    threads: list[bool] = []

    def note_thread() -> None:
        try:
            threads.append(trio.lowlevel.current_trio_token() is main)
        except RuntimeError:
            threads.append(False)

    value = {"features": [{"id": number, "text": "é" * 40} for number in range(3_000)]}
    limits = Limits(unfinished=9, http_share=0.25, waiting=9, waiting_bytes=9, linger_seconds=9)
    async with open_street(tmp_path, limits=limits, spool_bytes=10_000_000) as street:
        street.results.on_georeference = note_thread
        for size, outside in ((THREAD_BYTES + 1, True), (THREAD_BYTES, False)):
            street.algorithm.answer = answer_of_size(value, size)
            record = await street.run(make_job(referential=NORTH_UP))
            assert json_of(product_of(record), "boxes")["was"] == value
            assert threads.pop() is not outside
            street.registry.remove(record)
        assert_nothing_is_held(street)


def answer_of_size(value: Json, size: int) -> Callable[[], Answer]:
    """The answer that claims this size; only the claim decides where the work is done."""
    return lambda: Answer({"boxes": Value(value)}, size=size)
