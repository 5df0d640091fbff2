"""The one who knows whether the algorithm is there and what it says of itself, against the fake."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from cador_trio.algorithm import watch as watch_module
from cador_trio.algorithm.documents import Documents
from cador_trio.errors import AlgorithmBroken, AlgorithmBusy, AlgorithmDied, AlgorithmUnreachable, ResultTooLarge
from tests.contract.algorithm_peers import values_of
from tests.contract.algorithm_room import HEADERS, open_room, until
from tests.peers.fake_algorithm import (
    Answer,
    AnswerText,
    Behaviour,
    CloseBeforeAnswer,
    Hang,
    Hold,
    Html,
    Pattern,
    Reply,
    Status,
    minimal_describe,
    open_fake_algorithm,
)

INPUTS = {"image": "aW1hZ2U="}
COUNT = Answer({"count": 3})


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow one another closely."""
    monkeypatch.setattr(watch_module, "CHECK_SECONDS", 0.005)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed soon."""
    monkeypatch.setattr(watch_module, "ANSWER_SECONDS", 0.1)


# --- Coming and going ------------------------------------------------------------------------------------------------


async def test_an_algorithm_that_starts_late_is_found_and_its_absence_logged_once() -> None:
    """Until then the reason says where nobody listens; a look every half second is no line every half second."""
    async with open_fake_algorithm() as fake:
        await fake.refuse_connections()
        with capture_logs() as logs:
            async with open_room(fake.url, is_awaited=False) as room:
                looks = count_looks(room.watch)
                await until(lambda: len(looks) >= 5)
                assert isinstance(room.watch.trouble, AlgorithmUnreachable)
                assert str(fake.port) in room.watch.trouble.message
                assert not room.watch.is_described
                with pytest.raises(AlgorithmUnreachable):
                    _ = room.watch.described
                await fake.accept_again()
                await room.watch.wait_reachable()
                assert room.client.tagger == "Example Organisation.targets.1.0.0"
        assert [line["event"] for line in logs] == [
            "the algorithm is not usable",
            "the algorithm describes itself",
            "the algorithm is reachable",
        ]


async def test_a_new_version_is_seen_when_the_algorithm_comes_back() -> None:
    """Another describe document, another schema: both count from then on."""
    async with open_fake_algorithm(default=COUNT) as fake, open_room(fake.url) as room:
        assert room.client.check_inputs(INPUTS) == INPUTS
        await fake.refuse_connections()
        describe = minimal_describe()
        describe["version"] = "2.0.0"
        describe["input"]["required"] = ["image", "threshold"]
        fake.describe = describe
        async with trio.open_nursery() as jobs:
            jobs.start_soon(room.call, INPUTS)
            await until(lambda: room.watch.trouble is not None)
            await fake.accept_again()
        assert room.client.tagger.endswith(".2.0.0")
        with pytest.raises(Exception, match="schema"):
            room.client.check_inputs(INPUTS)


@pytest.mark.usefixtures("brisk")
async def test_a_document_that_does_not_change_is_compiled_once() -> None:
    """Looks are cheap."""
    async with open_fake_algorithm() as fake, open_room(fake.url) as room:
        described = room.watch.described
        await fake.wait_for_request(len(fake.requests) + 5, "GET", "/describe")
        assert room.watch.described is described


# --- No answer, or no good one ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("brisk", "hasty")
async def test_silence_is_no_absence_while_a_job_is_worked_on() -> None:
    """A single-threaded algorithm answers nothing while it works; its other jobs wait, they don't fail."""
    async with open_fake_algorithm([Hold(COUNT)]) as fake, open_room(fake.url) as room, trio.open_nursery() as jobs:
        jobs.start_soon(room.call, INPUTS)
        await fake.wait_for_request(1, "POST")
        fake.describe = Hang()
        looks = count_looks(room.watch)
        await until(lambda: len(looks) >= 3)
        assert room.watch.trouble is None
        fake.describe = minimal_describe()
        fake.release()


@pytest.mark.usefixtures("brisk", "hasty")
@pytest.mark.parametrize("silence", [Hang(), CloseBeforeAnswer()])
async def test_silence_without_work_is_absence(silence: Behaviour) -> None:
    """Nothing keeps it busy, and it does not answer: it is as good as gone, until it speaks again."""
    async with open_fake_algorithm() as fake, open_room(fake.url) as room:
        fake.describe = silence
        await until(lambda: room.watch.trouble is not None)
        assert isinstance(room.watch.trouble, AlgorithmUnreachable)
        assert room.watch.trouble.hint == "is the algorithm stuck?"
        fake.describe = minimal_describe()
        await room.watch.wait_reachable()


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("code", [429, 503])
async def test_busy_is_there(code: int) -> None:
    """An algorithm that has no time to describe itself is reachable once it has done so before."""
    async with open_fake_algorithm(describe=Status(code)) as fake, open_room(fake.url, is_awaited=False) as room:
        await fake.wait_for_request(3, "GET", "/describe")
        assert isinstance(room.watch.trouble, AlgorithmBusy)
        fake.describe = minimal_describe()
        await room.watch.wait_reachable()
        fake.describe = Status(code)
        looks = count_looks(room.watch)
        await until(lambda: len(looks) >= 3)
        assert room.watch.trouble is None


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize(
    "nonsense",
    [Html(), Html(502), Status(500), Status(404), AnswerText("hello"), Answer([1]), Reply(body=b'{"a": NaN}')],
)
async def test_a_describe_document_that_makes_no_sense_is_trouble(nonsense: Reply) -> None:
    """The reason says so; what was known before is still known, and the next good document ends it."""
    async with open_fake_algorithm() as fake, open_room(fake.url) as room:
        described = room.watch.described
        fake.describe = nonsense
        await until(lambda: room.watch.trouble is not None)
        assert isinstance(room.watch.trouble, AlgorithmBroken)
        assert room.watch.described is described
        fake.describe = minimal_describe()
        await room.watch.wait_reachable()


async def test_a_foreign_origin_in_its_links_is_logged_once_and_not_followed() -> None:
    """Whatever it calls itself, requests go to the configured address."""
    async with open_fake_algorithm(default=COUNT) as fake:
        fake.link_origin = "http://elsewhere.example:1234"
        with capture_logs() as logs:
            async with open_room(fake.url) as room:
                assert values_of(await room.call(INPUTS)) == {"count": 3}
                fake.describe = minimal_describe() | {"version": "2"}
                await room.watch.describe(HEADERS)
        warnings = [line for line in logs if line["log_level"] == "warning"]
        assert [line["event"].partition(";")[0] for line in warnings] == ["the algorithm's links name another origin"]


# --- Small requests --------------------------------------------------------------------------------------------------


async def test_its_documents_are_passed_on_as_they_are() -> None:
    """Version, specification, metrics and configuration, with the caller's headers; describe falls back on memory."""
    async with open_fake_algorithm() as fake, open_room(fake.url) as room:
        documents = Documents(room.watch)
        version = await documents.version(HEADERS)
        assert (version.status, version.media_type, version.body) == (200, "text/plain; charset=utf-8", b"1.0.0")
        assert (await documents.openapi(HEADERS)).body.startswith(b"openapi")
        assert (await documents.metrics(HEADERS)).status == 200
        assert (await documents.config("PUT", HEADERS, b'{"a": 1}')).body == b'{"a": 1}'
        assert (await documents.config("GET", HEADERS, b"")).body == b'{"a": 1}'
        put = fake.seen("PUT")[0]
        assert (put.headers["content-type"], put.headers["x-correlation-id"]) == ("application/json", "c-42")
        fresh = await documents.describe(HEADERS)
        assert fresh["name"] == "targets"
        await fake.refuse_connections()
        assert await documents.describe(HEADERS) == fresh
        with pytest.raises(AlgorithmUnreachable):
            await documents.version(HEADERS)


async def test_small_requests_are_answered_within_seconds_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm that hangs holds up no caller, and the connection that it holds is given up."""
    async with open_fake_algorithm(default=Hang()) as fake, open_room(fake.url) as room:
        with monkeypatch.context() as hasty:
            hasty.setattr(watch_module, "ANSWER_SECONDS", 0.1)
            with pytest.raises(AlgorithmDied, match="did not answer POST"):
                await room.watch.ask("POST", f"{fake.url}/jobs", {}, b"{}")
        assert (await room.watch.ask("GET", f"{fake.url}/health", {})).body == b"OK"


async def test_small_requests_share_a_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """More callers than connections wait for one another, and each gets its answer."""
    async with open_fake_algorithm(default=Hold(COUNT)) as fake, open_room(fake.url) as room:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await room.watch.ask("POST", f"{fake.url}/jobs", {}, b"{}"))

        async with trio.open_nursery() as callers:
            for _ in range(6):
                callers.start_soon(ask)
            await fake.wait_for_request(watch_module.PARALLEL_REQUESTS, "POST")
            for count in range(6):
                await fake.wait_until(lambda: fake.held > 0)
                assert len(fake.seen("POST")) <= watch_module.PARALLEL_REQUESTS + count
                fake.release()
        assert [answer.status for answer in answers] == [200] * 6


async def test_a_small_answer_that_is_large_is_refused_with_both_sizes() -> None:
    """Nobody's version has seventeen million bytes."""
    reply = Reply(body=Pattern(17_000_000, "text/plain"), media_type="text/plain")
    async with open_fake_algorithm([reply]) as fake, open_room(fake.url) as room:
        with pytest.raises(ResultTooLarge, match=r"at least \d+ bytes, more than the limit of 16777216 bytes"):
            await room.watch.ask("POST", f"{fake.url}/jobs", {}, b"{}")


def count_looks(watch: Any) -> list[None]:
    """Grows by one whenever a look has ended."""
    looks: list[None] = []
    look = watch._check

    async def counted() -> None:
        await look()
        looks.append(None)

    watch._check = counted
    return looks
