"""Stateful execution: post, poll, index, results and their deletion, in every form that the two dialects give them."""

from __future__ import annotations

from typing import Any

import pytest

from cador_trio.errors import AlgorithmBroken, AlgorithmFailed, ResultTooLarge
from cador_trio.job import Image, Value
from tests.contract.algorithm_peers import (
    KINDS,
    Kind,
    direct_stateful_images,
    images_of,
    open_peer,
    the_image,
    values_of,
)
from tests.contract.algorithm_room import HEADERS, Seen, open_room
from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    AnswerText,
    Behaviour,
    FakeAlgorithm,
    Pattern,
    Reply,
    Stateful,
    Status,
    minimal_describe,
    open_fake_algorithm,
)

INPUTS = {"image": "aW1hZ2U="}


def stateful_fake(script: list[Behaviour], *, pesto: bool = True, **options: Any) -> Any:
    """A fake that describes itself as asynchronous."""
    options.setdefault("describe", minimal_describe(asynchronous=True, pesto=pesto))
    return open_fake_algorithm(script, dialect="pesto" if pesto else "spec", **options)


# --- From the post to the last byte ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_is_followed_to_its_results_and_they_are_deleted_when_told(
    kind: Kind, request: pytest.FixtureRequest
) -> None:
    """Values, texts, folded names and a list of twelve in numeric order; nothing is deleted before `forget`."""
    async with open_peer(kind, request, asynchronous=True) as peer, open_room(peer.url) as room:
        direct = await direct_stateful_images(peer)
        before = peer.leftovers()
        answer = await room.call(peer.inputs)
        if peer.has_output_names:
            assert values_of(answer) == peer.values
            assert images_of(answer) == direct
            assert [image.result_id for image in answer.images() if image.output == "chips"] == [
                f"chips_{index}" for index in range(12)
            ]
        else:  # without them a number is a text, and what belongs to a list can't be known
            assert values_of(answer) == {**peer.values, "p99": "0.99"}
            flat = {"mask": direct["mask"], **{f"chips{index}": [one] for index, one in enumerate(direct["chips"])}}
            assert images_of(answer) == flat
        summary = answer.outputs["summary"]
        assert isinstance(summary, Value)
        assert (summary.media_type, summary.encoding) == ("text/plain; charset=utf-8", "text")
        count = len(peer.values) + 13
        assert len(peer.leftovers()) == len(before) + count
        assert len(answer.leftovers) == count + 1
        assert all(link.startswith(f"{peer.url}/jobs/") for link in answer.leftovers)
        await room.forget(answer)
        assert peer.leftovers() == before
        answer.close()
        await room.check_nothing_is_left()


async def test_every_call_of_a_job_carries_its_headers() -> None:
    """Post, status, index, results and deletions."""
    async with stateful_fake([Stateful({"mask": AnswerImage(20)})], pesto=False) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        await room.forget(answer)
        answer.close()
        calls = fake.seen("POST") + fake.seen(path="/jobs/")
        kinds = {(call.method, call.path.rpartition("/")[2]) for call in calls}
        assert {("POST", "jobs"), ("GET", "status"), ("GET", "results"), ("GET", "mask"), ("DELETE", "mask")} < kinds
        for call in calls:
            assert {name: call.headers.get(name.lower()) for name in HEADERS} == HEADERS


@pytest.mark.parametrize("code", [200, 201, 202])
@pytest.mark.parametrize("by_location", [False, True])
@pytest.mark.parametrize("pesto", [False, True])
async def test_the_status_is_found_in_the_body_or_in_location(pesto: bool, by_location: bool, code: int) -> None:
    """`href`, PESTO's `link`, or a `Location` header over an empty body, under any of three codes."""
    script = Stateful({"count": Answer(3)}, code=code, by_location=by_location)
    async with stateful_fake([script], pesto=pesto) as fake, open_room(fake.url) as room:
        assert values_of(await room.call(INPUTS)) == {"count": 3}


@pytest.mark.parametrize("reference", ["_link", "_links", "text"])
async def test_other_forms_of_a_reference(reference: str) -> None:
    """The link may hide in `_link`, in `_links` under `status`, or be a bare text there."""
    async with stateful_fake([Stateful({"count": Answer(3)})], pesto=False) as fake, open_room(fake.url) as room:
        script = fake.script.popleft()
        assert isinstance(script, Stateful)
        fake.open_job(fake.requests[0], script)
        url = f"{fake.url}/jobs/{next(iter(fake.jobs))}/status"
        body = {
            "_link": {"_link": {"href": url}},
            "_links": {"_links": {"status": {"href": url}}},
            "text": {"_link": url},
        }
        fake.script.append(Answer(body[reference]))
        assert values_of(await room.call(INPUTS)) == {"count": 3}


async def test_an_asynchronous_algorithm_may_answer_at_once() -> None:
    """An answer that holds no link is the answer."""
    async with stateful_fake([Answer({"count": 3}), AnswerImage(50)]) as fake, open_room(fake.url) as room:
        assert values_of(await room.call(INPUTS)) == {"count": 3}
        answer = await room.call(INPUTS)
        assert the_image(answer).body.size == 50
        answer.close()
        assert fake.seen(path="/status") == []
        await room.check_nothing_is_left()


# --- Status ----------------------------------------------------------------------------------------------------------


async def test_progress_is_told_while_the_job_is_polled() -> None:
    """Any word but the final ones means that it goes on; the end may be spelt in any case."""
    states = (
        {"status": "ACCEPTED", "progress": 0},
        {"status": "RUNNING", "progress": 30},
        {"status": "PAUSED", "progress": 60},
        {"status": "something new", "progress": 250},
        {"status": "succeeded", "progress": 100},
    )
    async with (
        stateful_fake([Stateful({"count": Answer(3)}, states=states)], pesto=False) as fake,
        open_room(fake.url) as room,
    ):
        seen = Seen()
        assert values_of(await room.call(INPUTS, seen=seen)) == {"count": 3}
        assert seen.progress == [0, 30, 60, 100]
        assert seen.dispatches == 1


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"status": "FAILED", "progress": 10, "message": "no water found"}, "no water found"),
        ({"status": "failed", "progress": 10}, "the algorithm's job has failed"),
        ({"status": "CANCELLED", "progress": 10}, "the algorithm's job was cancelled"),
        (Status(500, text="Internal Server Error"), "the algorithm answered 500: Internal Server Error"),
        (Status(404, {"message": "no such job"}), "the algorithm answered 404: no such job"),
    ],
)
async def test_a_job_that_ends_badly_has_failed(state: Any, text: str) -> None:
    """By its status, or by a job that the algorithm does not know; with its own words where it has any."""
    async with stateful_fake([Stateful(states=("RUNNING", state))], pesto=False) as fake, open_room(fake.url) as room:
        with pytest.raises(AlgorithmFailed) as caught:
            await room.call(INPUTS)
        assert caught.value.message == text
        assert len(fake.seen("POST")) == 1
        await room.check_nothing_is_left()


@pytest.mark.parametrize("reply", [Answer([1]), AnswerText("DONE"), Reply(body=b'{"progress": NaN}'), Reply()])
async def test_a_status_that_makes_no_sense_is_a_broken_answer(reply: Reply) -> None:
    """An array, a text, NaN or nothing where a status belongs."""
    async with stateful_fake([Stateful(states=(reply,))]) as fake, open_room(fake.url) as room:
        with pytest.raises(AlgorithmBroken):
            await room.call(INPUTS)
        await room.check_nothing_is_left()


# --- Index -----------------------------------------------------------------------------------------------------------


async def test_no_results_are_no_outputs() -> None:
    """A finished job may have produced nothing."""
    async with stateful_fake([Stateful(index=Answer([]))], pesto=False) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        assert answer.outputs == {}
        assert len(answer.leftovers) == 1


async def test_an_index_over_its_limit_names_both_sizes() -> None:
    """Nobody has sixteen million bytes of links."""
    index = Reply(body=Pattern(17_000_000, "text/plain"), media_type="application/json", chunked=True)
    async with stateful_fake([Stateful(index=index)], pesto=False) as fake, open_room(fake.url) as room:
        with pytest.raises(ResultTooLarge, match=r"at least [0-9]+ bytes, more than the limit of 16777216 bytes"):
            await room.call(INPUTS)
        await room.check_nothing_is_left()


@pytest.mark.parametrize(
    "index",
    [
        Answer("results"),
        Answer([{"id": "mask"}]),
        Answer({"mask": 5}),
        Answer({"mask": "ftp://algo/x"}),
        Reply(body=b"<"),
    ],
)
async def test_an_index_that_makes_no_sense_is_a_broken_answer(index: Reply) -> None:
    """Neither shape, no link, a link to somewhere that is not HTTP, no JSON."""
    async with stateful_fake([Stateful({"mask": AnswerImage(20)}, index=index)]) as fake, open_room(fake.url) as room:
        with pytest.raises(AlgorithmBroken):
            await room.call(INPUTS)
        await room.check_nothing_is_left()


# --- Results ---------------------------------------------------------------------------------------------------------


async def test_an_image_is_what_its_bytes_are() -> None:
    """PESTO calls a TIFF a PNG; its describe document says that a text is an image; bytes decide the type."""
    mask = Reply(body=Pattern(5_000, "image/tiff"), media_type="image/png")
    chips = [Reply(body=Pattern(50, "image/jpeg"), media_type="text/plain"), AnswerImage(60)]
    async with stateful_fake([Stateful({"mask": mask, "chips": chips})]) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        assert [image.media_type for image in answer.images()] == ["image/jpeg", "image/png", "image/tiff"]
        answer.close()
        await room.check_nothing_is_left()


async def test_a_list_with_holes_is_numbered_without() -> None:
    """Item ids and object names are places in the list."""
    script = Stateful({"chips3": AnswerImage(33), "chips20": AnswerImage(34)})
    async with stateful_fake([script]) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        images = [(image.result_id, image.body.size) for image in answer.images()]
        assert images == [("chips_0", 33), ("chips_1", 34)]
        assert answer.leftovers[0].endswith("/results/chips3")
        answer.close()


async def test_a_list_of_images_and_others_is_a_broken_answer() -> None:
    """A list is one thing or the other; the image that was fetched leaves the spool."""
    script = Stateful({"chips": [AnswerImage(100_000), Answer(5)]})
    async with stateful_fake([script]) as fake, open_room(fake.url) as room:
        with pytest.raises(AlgorithmBroken, match="mixes"):
            await room.call(INPUTS)
        await room.check_nothing_is_left()


async def test_a_list_of_values_is_one_value() -> None:
    """What is fetched piece by piece and is no image becomes an array."""
    async with stateful_fake([Stateful({"chips": [Answer(5), Answer({"a": 1})]})]) as fake, open_room(fake.url) as room:
        assert values_of(await room.call(INPUTS)) == {"chips": [5, {"a": 1}]}


@pytest.mark.parametrize("text", ["", "NaN", "Infinity", "12 pixels", "true", "1e999"])
async def test_a_number_that_is_none_is_a_broken_answer(text: str) -> None:
    """Describe says number, so the text must be a finite one."""
    async with stateful_fake([Stateful({"p99": AnswerText(text)})]) as fake, open_room(fake.url) as room:
        with pytest.raises(AlgorithmBroken, match="number"):
            await room.call(INPUTS)
        await room.check_nothing_is_left()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_result_over_its_limit_names_both_sizes_and_stays_on_the_algorithm(chunked: bool) -> None:
    """The results before it leave the spool; nothing is deleted at the algorithm, since nothing is safe with us."""
    script = Stateful({"chips": [AnswerImage(100_000)], "mask": AnswerImage(300_000, chunked=chunked)})
    async with stateful_fake([script]) as fake, open_room(fake.url, max_result_bytes=200_000) as room:
        with pytest.raises(ResultTooLarge) as caught:
            await room.call(INPUTS)
        assert "the result mask" in caught.value.message
        assert "200000 bytes" in caught.value.message
        assert ("300000 bytes" in caught.value.message) is not chunked
        assert fake.deleted == []
        await room.check_nothing_is_left()


async def test_a_json_result_over_the_answer_limit_names_both_sizes() -> None:
    """JSON is held in memory, so it has the smaller limit."""
    script = Stateful({"detections": Answer({"features": ["x" * 5_000]})})
    async with stateful_fake([script]) as fake, open_room(fake.url, max_answer_bytes=1_000) as room:
        with pytest.raises(ResultTooLarge, match=r"the result detections has \d+ bytes.* 1000 bytes"):
            await room.call(INPUTS)
        await room.check_nothing_is_left()


# --- Deletion --------------------------------------------------------------------------------------------------------


async def test_results_are_deleted_one_by_one_by_their_ids_and_then_the_job() -> None:
    """In that order: who forgets the job first can't be told of its results."""
    script = Stateful({"mask": AnswerImage(20), "chips": [AnswerImage(21), AnswerImage(22)]})
    async with stateful_fake([script], pesto=False) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        assert fake.deleted == []
        await room.forget(answer)
        (job,) = {path.split("/")[1] for path in fake.deleted}
        results = [f"jobs/{job}/results/{one}" for one in ("mask", "chips0", "chips1")]
        assert fake.deleted == [*results, f"jobs/{job}"]
        assert fake.jobs == {}
        answer.close()


@pytest.mark.parametrize("code", [404, 405, 500, 503])
async def test_what_can_not_be_deleted_stays_and_nobody_minds(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of one deletion keeps none of the others from being asked."""
    script = Stateful({"mask": AnswerImage(20), "count": Answer(3)})
    async with stateful_fake([script], pesto=False) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        monkeypatch.setattr(FakeAlgorithm, "_delete", lambda *_: Status(code, {"message": "no"}))
        await room.forget(answer)
        assert len(fake.seen("DELETE")) == 3
        answer.close()


async def test_nobody_to_delete_at_is_no_error() -> None:
    """An algorithm that has gone takes its results along."""
    async with stateful_fake([Stateful({"mask": AnswerImage(20)})]) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        await fake.refuse_connections()
        await room.forget(answer)
        assert fake.seen("DELETE") == []
        answer.close()


# --- Links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://169.254.169.254", "https://elsewhere.example:8443", "http://algo:None", ""])
@pytest.mark.parametrize("pesto", [False, True])
async def test_links_lead_nowhere_but_to_the_configured_origin(pesto: bool, origin: str) -> None:
    """Other hosts, PESTO's port `None` and relative links all mean a path at the address that the operator gave."""
    script = Stateful({"mask": AnswerImage(2_000), "count": Answer(3)})
    async with stateful_fake([script], pesto=pesto) as fake:
        fake.link_origin = origin
        async with open_room(fake.url) as room:
            answer = await room.call(INPUTS)
            assert isinstance(answer.outputs["mask"], Image)
            assert values_of(answer) == {"count": 3}
            assert all(link.startswith(fake.url) for link in answer.leftovers)
            await room.forget(answer)
            assert len(fake.deleted) == (2 if pesto else 3)
            answer.close()
