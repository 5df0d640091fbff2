"""Jobs that leave the algorithm early, at every moment: what becomes of the work, the slot, and what is spooled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import trio

from cador_trio.capacity import Exchange
from cador_trio.errors import NotNow
from tests.contract.algorithm_peers import KINDS, Kind, open_peer, values_of
from tests.contract.algorithm_room import BACKSTOP, Room, open_room, until
from tests.peers.fake_algorithm import (
    AnswerImage,
    FakeAlgorithm,
    Hang,
    Hold,
    Reply,
    SlowTrickle,
    Stateful,
    Status,
    minimal_describe,
    open_fake_algorithm,
)

INPUTS = {"image": "aW1hZ2U="}
COUNT = Reply(body=b'{"count": 3}')
STATEFUL = minimal_describe(asynchronous=True)
PESTO_STATEFUL = minimal_describe(asynchronous=True, pesto=True)
WHOLE_IMAGE = minimal_describe(whole="image/png")


# --- (a) A post is in flight -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_slot_is_kept_until_the_algorithm_has_answered_and_nothing_is_left_there(
    kind: Kind, asynchronous: bool, request: pytest.FixtureRequest
) -> None:
    """A post can't be taken back: the slot stays taken, the answer is dropped, stateful results are deleted."""
    async with open_peer(kind, request, asynchronous=asynchronous) as peer, open_room(peer.url) as room:
        before = peer.leftovers()
        async with trio.open_nursery() as job:
            if peer.pesto is not None:
                hold = peer.pesto.hold()
                job.start_soon(room.call, {**peer.inputs, "hold_port": hold.port})
                await trio.to_thread.run_sync(hold.wait_begun)
                release = hold.release
            else:
                assert peer.fake is not None
                peer.fake.script.append(Hold(peer.fake.default))  # type: ignore[arg-type]  # a behaviour by default
                job.start_soon(room.call, peer.inputs)
                await peer.fake.wait_for_request(1, "POST")
                release = peer.fake.release
            job.cancel_scope.cancel()
        assert room.slots_in_use == 1
        if peer.pesto is not None:
            async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
                assert (await http.post(f"{peer.url}/process", json=peer.inputs)).status_code == 429
        release()
        await room.check_nothing_is_left()
        assert peer.leftovers() == before
        answer = await room.call(peer.inputs)
        await room.forget(answer)
        answer.close()
        assert peer.leftovers() == before


class Watched(SlowTrickle):
    """Knows how much of it has been sent."""

    sent = 0

    def pieces(self) -> Iterator[memoryview]:
        for piece in super().pieces():
            self.__dict__["sent"] = self.sent + 1
            yield piece


async def test_a_job_that_leaves_in_mid_answer_gives_its_bytes_back_at_once() -> None:
    """The rest of the answer is still read, and counts no more; a gigabyte nobody wants does not sit in the spool."""
    slow = Watched(AnswerImage(40 * 65_536), piece=65_536, every=0.01)
    async with open_fake_algorithm([slow, COUNT], describe=WHOLE_IMAGE) as fake, open_room(fake.url) as room:
        async with trio.open_nursery() as job:
            job.start_soon(room.call, INPUTS)
            await until(lambda: room.spool.used > 0)
            job.cancel_scope.cancel()
        await until(lambda: room.spool.used == 0)
        assert slow.sent < 40
        assert room.slots_in_use == 1
        await room.check_nothing_is_left()
        assert slow.sent == 40
        assert values_of(await room.call(INPUTS)) == {"count": 3}


async def test_an_answer_over_its_limit_is_no_trouble_to_nobody() -> None:
    """What is dropped has no limit, so the slot is kept until the algorithm is really done."""
    reply = Hold(AnswerImage(3_000_000))
    async with (
        open_fake_algorithm([reply], describe=WHOLE_IMAGE) as fake,
        open_room(fake.url, max_result_bytes=1_000) as room,
    ):
        await leave_when(room, lambda: fake.wait_for_request(1, "POST"))
        fake.release()
        await room.check_nothing_is_left()
        assert len(fake.seen("POST")) == 1


@pytest.mark.parametrize("end", [Status(500), Status(429), Status(504), Status(400)])
async def test_a_job_that_has_left_is_not_posted_again(end: Reply) -> None:
    """Busy, broken or refused: the algorithm is free, and that is all that counts."""
    async with open_fake_algorithm([Hold(end)]) as fake, open_room(fake.url) as room:
        await leave_when(room, lambda: fake.wait_for_request(1, "POST"))
        assert room.slots_in_use == 1
        fake.release()
        await room.check_nothing_is_left()
        assert len(fake.seen("POST")) == 1


async def test_a_job_that_has_left_does_not_wait_for_an_algorithm_that_has_gone_too() -> None:
    """The connection breaks, nobody listens any more: the slot is free."""
    async with open_fake_algorithm([Hold(COUNT)]) as fake, open_room(fake.url) as room:
        await leave_when(room, lambda: fake.wait_for_request(1, "POST"))
        await fake.refuse_connections()
        await fake.drop_connections()
        await room.check_nothing_is_left()


async def test_a_job_that_leaves_before_its_post_is_never_posted() -> None:
    """Abandoned in the moment of its dispatch: no work is begun that nobody wants."""
    async with open_fake_algorithm() as fake, open_room(fake.url) as room:
        exchange = Exchange(linger_seconds=BACKSTOP)
        exchange.abandon("its job has left")
        with exchange._scope:
            await room.client.process(room.order(INPUTS), room.connections[0], exchange)
        assert exchange._scope.cancelled_caught
        assert fake.seen("POST") == []


# --- (b), (c) A stateful job is polled -------------------------------------------------------------------------------


async def test_a_job_that_is_polled_is_cancelled_on_the_algorithm() -> None:
    """The plain API can: one DELETE with the job's headers, and the slot is free."""
    async with (
        open_fake_algorithm([Stateful(states=("RUNNING",))], describe=STATEFUL) as fake,
        open_room(fake.url) as room,
    ):
        await leave_when(room, lambda: fake.wait_for_request(2, "GET", "/status"))
        await room.check_nothing_is_left()
        assert fake.cancelled == list(fake.jobs)
        (delete,) = fake.seen("DELETE")
        assert delete.headers["x-correlation-id"] == "c-42"


@pytest.mark.parametrize("refusal", [404, 405, 500, 503])
async def test_a_job_that_can_not_be_cancelled_keeps_its_slot_until_it_is_done(
    refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is polled on, and then its results are cleared away."""
    script = Stateful({"mask": AnswerImage(20), "count": Reply(body=b"3")}, states=("RUNNING",))
    async with open_fake_algorithm([script], describe=STATEFUL) as fake, open_room(fake.url) as room:
        with monkeypatch.context() as patches:
            patches.setattr(FakeAlgorithm, "_delete", lambda *_: Status(refusal, {"message": "can't"}))
            await leave_when(room, lambda: fake.wait_for_request(1, "GET", "/status"))
            await fake.wait_for_request(1, "DELETE")
            await fake.wait_for_request(len(fake.seen(path="/status")) + 2, path="/status")
            assert room.slots_in_use == 1
        (job,) = fake.jobs.values()
        job.finish()
        await room.check_nothing_is_left()
        assert fake.deleted == [*(f"jobs/{job.id}/results/{one}" for one in ("mask", "count")), f"jobs/{job.id}"]


async def test_an_algorithm_that_does_one_thing_at_a_time_keeps_its_slot_while_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers neither the deletion nor a poll before its work is done: silence is no cancellation."""
    script = Stateful({"count": Reply(body=b"3")}, states=("RUNNING",))
    async with open_fake_algorithm([script], describe=STATEFUL) as fake, open_room(fake.url) as room:
        with monkeypatch.context() as silent:
            silent.setattr("cador_trio.algorithm.watch.ANSWER_SECONDS", 0.1)
            silent.setattr(FakeAlgorithm, "resource", lambda *_: Hold(Status(503)))
            await leave_when(room, lambda: fake.wait_for_request(1, "GET", "/status"))
            await fake.wait_for_request(1, "DELETE")
            await fake.wait_for_request(2, "GET", "/status")
            assert room.slots_in_use == 1
        next(iter(fake.jobs.values())).finish()
        while fake.held:
            fake.release()
        await room.check_nothing_is_left()
        assert fake.deleted[0].endswith("/results/count")


# --- (d) Results are fetched -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["spec", "pesto"])
async def test_a_job_that_leaves_while_its_results_are_fetched_is_cleared_away(dialect: Any) -> None:
    """What is spooled is given back, and nothing stays on the algorithm."""
    describe = PESTO_STATEFUL if dialect == "pesto" else STATEFUL
    outputs: dict[str, Any] = {"chips": [AnswerImage(200_000)], "mask": Hold(AnswerImage(200_000))}
    async with (
        open_fake_algorithm([Stateful(outputs)], dialect=dialect, describe=describe) as fake,
        open_room(fake.url) as room,
    ):
        await leave_when(room, lambda: fake.wait_for_request(1, "GET", "/results/mask"))
        await room.check_nothing_is_left()
        assert [result for job in fake.jobs.values() for result in job.results] == []


# --- (e) It waits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", [Status(429, retry_after=3_600), Status(504, retry_after=3_600)])
async def test_a_job_that_waits_for_its_next_try_leaves_at_once(reply: Reply) -> None:
    """Nothing is in flight, so the slot is free."""
    async with open_fake_algorithm([reply]) as fake, open_room(fake.url) as room:
        await leave_when(room, lambda: fake.wait_for_request(1, "POST"))
        await room.check_nothing_is_left()
        assert len(fake.seen("POST")) == 1


async def test_a_job_that_waits_for_an_algorithm_that_is_away_leaves_at_once() -> None:
    """The same while it is unreachable."""
    async with open_fake_algorithm() as fake, open_room(fake.url) as room:
        await fake.refuse_connections()

        async def suspected() -> None:
            await until(lambda: room.watch.trouble is not None)

        await leave_when(room, suspected)
        await room.check_nothing_is_left()


# --- (f), (g) No end in sight ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_abandoned_work_that_never_ends_frees_its_slot_after_a_while(asynchronous: bool) -> None:
    """The linger time is over: the connection is closed, and the slot is somebody else's."""
    async with (
        open_fake_algorithm([Hang()], describe=minimal_describe(asynchronous=asynchronous)) as fake,
        open_room(fake.url, linger_seconds=0.05) as room,
    ):
        await leave_when(room, lambda: fake.wait_for_request(1, "POST"))
        await room.check_nothing_is_left()
        await fake.wait_until(lambda: fake.open_connections == 1)  # the watcher's


async def test_abandoned_work_that_is_polled_for_ever_frees_its_slot_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same for a stateful job that can't be cancelled."""
    monkeypatch.setattr(FakeAlgorithm, "_delete", lambda *_: Status(405))
    script = Stateful(states=("RUNNING",))
    async with (
        open_fake_algorithm([script], describe=STATEFUL) as fake,
        open_room(fake.url, linger_seconds=0.05) as room,
    ):
        await leave_when(room, lambda: fake.wait_for_request(1, "GET", "/status"))
        await room.check_nothing_is_left()


@pytest.mark.parametrize("has_left", [False, True])
async def test_a_daemon_that_stops_waits_for_no_post(has_left: bool) -> None:
    """Leftover work is dropped at once; whoever still waits for it is told why."""
    async with open_fake_algorithm([Hang()], describe=WHOLE_IMAGE) as fake, open_room(fake.url) as room:
        async with trio.open_nursery() as job:

            async def run() -> None:
                with pytest.raises(NotNow, match="stopping"):
                    await room.call(INPUTS)

            job.start_soon(run)
            await fake.wait_for_request(1, "POST")
            if has_left:
                job.cancel_scope.cancel()
            else:
                room.capacity.end_all("the daemon stops")
        room.capacity.end_all("the daemon stops")
        await room.check_nothing_is_left()
        await fake.wait_until(lambda: fake.open_connections == 1)


@pytest.mark.parametrize("has_left", [False, True])
async def test_a_daemon_that_stops_still_cancels_a_stateful_job(has_left: bool) -> None:
    """There is time for one DELETE, and for no more than that."""
    async with (
        open_fake_algorithm([Stateful(states=("RUNNING",))], describe=STATEFUL) as fake,
        open_room(fake.url) as room,
    ):
        async with trio.open_nursery() as job:

            async def run() -> None:
                with pytest.raises(NotNow, match="stopping"):
                    await room.call(INPUTS)

            job.start_soon(run)
            await fake.wait_for_request(1, "GET", "/status")
            if has_left:
                job.cancel_scope.cancel()
            room.capacity.end_all("the daemon stops")
        await room.check_nothing_is_left()
        assert len(fake.cancelled) == 1


async def test_last_words_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that can't be cancelled does not hold up the daemon's end."""
    monkeypatch.setattr("cador_trio.algorithm.client.LAST_WORDS_SECONDS", 0.05)
    monkeypatch.setattr(FakeAlgorithm, "_delete", lambda *_: Status(405))
    async with (
        open_fake_algorithm([Stateful(states=("RUNNING",))], describe=STATEFUL) as fake,
        open_room(fake.url) as room,
    ):
        await leave_when(room, lambda: fake.wait_for_request(1, "GET", "/status"))
        await fake.wait_for_request(1, "DELETE")
        assert room.slots_in_use == 1
        room.capacity.end_all("the daemon stops")
        await room.check_nothing_is_left()


async def leave_when(room: Room, begun: Any) -> None:
    """Start a job, and let it leave as soon as `begun` returns."""
    async with trio.open_nursery() as job:
        job.start_soon(room.call, INPUTS)
        await begun()
        job.cancel_scope.cancel()
