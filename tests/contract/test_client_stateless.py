"""Stateless execution: whatever a POST can bring, from the fake in both dialects and from a real PESTO."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from cador_trio.errors import AlgorithmBroken, RequestRefused, ResultTooLarge
from cador_trio.job import WHOLE_ANSWER, Value
from cador_trio.json_text import THREAD_BYTES
from tests.contract.algorithm_peers import (
    KINDS,
    Kind,
    direct_stateless,
    images_of,
    inline_sha256,
    open_peer,
    the_image,
    values_of,
)
from tests.contract.algorithm_room import HEADERS, Seen, open_room
from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    AnswerText,
    Pattern,
    Reply,
    minimal_describe,
    open_fake_algorithm,
    sample_answer,
)

INPUTS = {"image": "aW1hZ2U="}
FEATURES: Any = sample_answer()["detections"]
POINT = {"type": "Point", "coordinates": [1, 2]}


# --- One JSON object of outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_images_of_an_object_stay_where_they_are_if_no_store_wants_them(
    kind: Kind, request: pytest.FixtureRequest
) -> None:
    """Every output is a value just as the algorithm sent it; a single base64 image knows its media type."""
    async with open_peer(kind, request, asynchronous=False) as peer, open_room(peer.url) as room:
        direct = await direct_stateless(peer)
        answer = await room.call(peer.inputs)
        assert values_of(answer) == direct
        assert not answer.whole
        assert answer.leftovers == ()
        mask = answer.outputs["mask"]
        assert isinstance(mask, Value)
        assert (mask.media_type, mask.encoding) == ("image/png", "base64")
        await room.check_nothing_is_left()


@pytest.mark.parametrize("kind", KINDS)
async def test_images_of_an_object_are_taken_out_for_a_store(kind: Kind, request: pytest.FixtureRequest) -> None:
    """They become bytes in the spool, lists in order, and equal what a plain client decodes; the rest are values."""
    async with open_peer(kind, request, asynchronous=False) as peer, open_room(peer.url) as room:
        direct = await direct_stateless(peer)
        answer = await room.call(peer.inputs, take_out=True)
        assert values_of(answer) == peer.values
        assert images_of(answer) == {
            "mask": [inline_sha256(direct["mask"])],
            "chips": [inline_sha256(text) for text in direct["chips"]],
        }
        assert [image.index for image in answer.images() if image.output == "chips"] == list(range(12))
        assert {image.media_type for image in answer.images()} == {"image/png"}
        assert list(answer.outputs) == list(direct)
        answer.close()
        await room.check_nothing_is_left()


async def test_a_large_payload_arrives_as_it_was_sent() -> None:
    """One that is written in a thread, in slices, is the same JSON."""
    inputs = {"image": "é" * THREAD_BYTES, "sigma": 0.5}
    async with open_fake_algorithm() as fake, open_room(fake.url) as room:
        await room.call(inputs)
        (post,) = fake.seen("POST")
        assert post.size == len(json.dumps(inputs, separators=(",", ":")))
        await room.check_nothing_is_left()


@pytest.mark.parametrize("kind", KINDS)
async def test_inputs_are_checked_before_the_algorithm_hears_of_them(
    kind: Kind, request: pytest.FixtureRequest
) -> None:
    """What the describe document's schema refuses is refused here, a null for an optional input is left out."""
    async with open_peer(kind, request, asynchronous=False) as peer, open_room(peer.url) as room:
        with pytest.raises(RequestRefused):
            room.client.check_inputs({"image": 5})
        with pytest.raises(RequestRefused):
            room.client.check_inputs({})
        option = "seconds" if peer.pesto else "threshold"
        assert room.client.check_inputs({**peer.inputs, option: None}) == peer.inputs


async def test_an_image_that_is_not_base64_is_a_broken_answer_with_a_store_and_a_text_without() -> None:
    """Nobody stores what can't be decoded; nobody minds it in a document that is passed on."""
    answer = Answer({"mask": "not base64!", "count": 1})
    async with (
        open_fake_algorithm([answer, answer], dialect="pesto") as fake,
        open_room(fake.url) as room,
    ):
        assert values_of(await room.call(INPUTS)) == {"mask": "not base64!", "count": 1}
        with pytest.raises(AlgorithmBroken, match="base64"):
            await room.call(INPUTS, take_out=True)
        await room.check_nothing_is_left()


async def test_a_broken_image_behind_good_ones_gives_their_bytes_back() -> None:
    """When the fourth chip can't be decoded the first three leave the spool."""
    chips = [*sample_answer()["chips"][:3], "AAA"]
    async with open_fake_algorithm([Answer({"chips": chips})], dialect="pesto") as fake, open_room(fake.url) as room:
        with pytest.raises(AlgorithmBroken, match="base64"):
            await room.call(INPUTS, take_out=True)
        await room.check_nothing_is_left()


# --- One answer without names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "media_type", "value"),
    [
        (Answer(FEATURES, media_type="application/geo+json"), "application/geo+json", FEATURES),
        (Answer({"features": []}), "application/json", {"features": []}),
        (Answer(POINT), "application/geo+json", POINT),
        (Answer([1, {"a": 2}], chunked=True), "application/json", [1, {"a": 2}]),
        (Answer([]), "application/json", []),
        (Answer(2.5), "application/json", 2.5),
        (Answer(None), "application/json", None),
        (Answer("text"), "application/json", "text"),
        (AnswerText("détection ✓"), "text/plain; charset=utf-8", "détection ✓"),
        (AnswerText("7"), "text/plain; charset=utf-8", "7"),
        (Reply(body=b'{"a"', media_type="text/plain"), "text/plain; charset=utf-8", '{"a"'),
        (Reply(body=b" [1]", media_type=""), "application/json", [1]),
        (Reply(body=b"[1]", headers=(("Content-Encoding", "identity"),)), "application/json", [1]),
        (Reply(body=gzip.compress(b"[1, 2]"), headers=(("Content-Encoding", "gzip"),)), "application/json", [1, 2]),
    ],
    ids=lambda case: None if isinstance(case, Reply) else repr(case)[:30],
)
async def test_an_answer_without_names_is_one_output(reply: Reply, media_type: str, value: Any) -> None:
    """A collection, a geometry, an array, a number, a text, also compressed unasked, is the whole answer."""
    async with (
        open_fake_algorithm([reply], describe=minimal_describe(whole="application/json")) as fake,
        open_room(fake.url) as room,
    ):
        answer = await room.call(INPUTS, take_out=True)
        assert answer.whole
        (output,) = answer.outputs.values()
        assert isinstance(output, Value)
        assert (output.json, output.media_type) == (value, media_type)
        await room.check_nothing_is_left()


async def test_members_that_describe_names_are_outputs_even_if_they_look_like_geojson() -> None:
    """An algorithm may have outputs that are called `type` and `features`."""
    describe = minimal_describe(pesto=True)
    describe["output"]["properties"] = {"type": {"type": "string"}, "features": {"type": "array"}}
    async with (
        open_fake_algorithm([Answer({"type": "a", "features": []})], dialect="pesto", describe=describe) as fake,
        open_room(fake.url) as room,
    ):
        answer = await room.call(INPUTS)
        assert values_of(answer) == {"type": "a", "features": []}
        assert not answer.whole


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("media_type", "announced"),
    [("image/png", "image/png"), ("image/tiff", "image/png"), ("image/tiff", "application/octet-stream")],
)
@pytest.mark.parametrize("size", [20, 5_000_000])
async def test_a_bare_image_is_streamed_to_the_spool(media_type: str, announced: str, chunked: bool, size: int) -> None:
    """Its bytes, their digest and the media type that they show, whatever they are announced as."""
    image = Pattern(size, media_type)
    async with (
        open_fake_algorithm(
            [Reply(body=image, media_type=announced, chunked=chunked)], describe=minimal_describe(whole="image/*")
        ) as fake,
        open_room(fake.url) as room,
    ):
        answer = await room.call(INPUTS)
        assert answer.whole
        assert (the_image(answer).media_type, the_image(answer).result_id) == (media_type, WHOLE_ANSWER)
        assert images_of(answer) == {WHOLE_ANSWER: [image.sha256]}
        assert room.spool.used == size
        answer.close()
        await room.check_nothing_is_left()


@pytest.mark.parametrize("size", [0, 3, 15])
async def test_bytes_fewer_than_any_signature_are_kept_as_they_are(size: int) -> None:
    """An answer of a few bytes, or none, is an answer."""
    reply = Reply(body=b"\0" * size, media_type="application/octet-stream")
    async with open_fake_algorithm([reply]) as fake, open_room(fake.url) as room:
        answer = await room.call(INPUTS)
        assert the_image(answer).body.read_all() == b"\0" * size
        answer.close()
        await room.check_nothing_is_left()


# --- Limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_json_answer_over_its_limit_names_both_sizes(chunked: bool) -> None:
    """The limit holds for what is announced and for what comes unannounced; base64 images count as JSON."""
    async with (
        open_fake_algorithm([Answer({"mask": "A" * 200_000}, chunked=chunked)]) as fake,
        open_room(fake.url, max_answer_bytes=100_000) as room,
    ):
        with pytest.raises(ResultTooLarge) as caught:
            await room.call(INPUTS, take_out=True)
        assert "200012 bytes" in caught.value.message or "at least" in caught.value.message
        assert "100000 bytes" in caught.value.message
        assert "CADOR_MAX_ANSWER_BYTES" in caught.value.hint
        await room.check_nothing_is_left()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_bare_image_over_its_limit_names_both_sizes(chunked: bool) -> None:
    """A streamed result has a limit of its own, and the JSON limit is none of its business."""
    async with (
        open_fake_algorithm(
            [AnswerImage(3_000_000, chunked=chunked), AnswerImage(2_000_000, chunked=chunked)],
            describe=minimal_describe(whole="image/png"),
        ) as fake,
        open_room(fake.url, max_answer_bytes=1_000, max_result_bytes=2_000_000) as room,
    ):
        with pytest.raises(ResultTooLarge) as caught:
            await room.call(INPUTS)
        assert ("3000000 bytes" in caught.value.message) is not chunked
        assert "2000000 bytes" in caught.value.message
        assert "CADOR_MAX_RESULT_BYTES" in caught.value.hint
        answer = await room.call(INPUTS)
        assert the_image(answer).body.size == 2_000_000
        answer.close()
        await room.check_nothing_is_left()


async def test_a_compressed_answer_is_counted_as_it_unfolds() -> None:
    """Fifty thousand bytes that become fifty million are stopped at the limit."""
    bomb = Reply(body=gzip.compress(b" " * 50_000_000), headers=(("Content-Encoding", "gzip"),))
    async with open_fake_algorithm([bomb]) as fake, open_room(fake.url, max_answer_bytes=2_000_000) as room:
        with pytest.raises(ResultTooLarge, match=r"at least \d{7} bytes"):
            await room.call(INPUTS)
        await room.check_nothing_is_left()


# --- Headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["spec", "pesto"])
async def test_a_post_carries_the_jobs_headers_and_its_payload(dialect: Any) -> None:
    """The caller's headers go along unchanged, JSON is announced, anything is accepted, nothing compressed wanted."""
    async with open_fake_algorithm(dialect=dialect) as fake, open_room(fake.url) as room:
        seen = Seen()
        await room.call({**INPUTS, "pesto": {"roi": [0, 0, 1, 1]}}, seen=seen)
        post = await fake.wait_for_request(1, "POST")
        assert post.json() == {**INPUTS, "pesto": {"roi": [0, 0, 1, 1]}}
        assert {name: post.headers[name.lower()] for name in HEADERS} == HEADERS
        assert post.headers["content-type"] == "application/json"
        assert post.headers["accept"] == "*/*"
        assert post.headers["accept-encoding"] == "identity"
        assert post.headers["host"] == f"127.0.0.1:{fake.port}"
        assert seen.dispatches == 1
