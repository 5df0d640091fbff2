"""What JSON answers become, without a connection: outputs by name or as a whole, images inline or taken out."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cador_trio.algorithm.dialect import Describe, Origin, read_describe
from cador_trio.algorithm.receive import answer_of, json_of, list_output, text_of, value_of
from cador_trio.errors import AlgorithmBroken, SpoolFull
from cador_trio.job import Image, Value
from cador_trio.json_text import THREAD_BYTES
from cador_trio.spool import Spool, open_spool

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
TIFF = b"II*\0" + bytes(100)
TEXT = base64.b64encode(PNG).decode()
IMAGES = {"mask": {"$ref": "#/definitions/Image"}, "chips": {"$ref": "#/definitions/Images"}}


@pytest.fixture
async def spool() -> AsyncIterator[Spool]:
    async with open_spool(None, 1_000_000) as opened:
        yield opened


def describe(properties: dict[str, Any] | None = None) -> Describe:
    output = {"properties": IMAGES if properties is None else properties}
    return read_describe({"output": output}, Origin.from_url("http://algo"))


async def test_a_large_json_text_is_read_like_a_small_one(spool: Spool) -> None:
    """A thread does it, with the same result and the same refusals."""
    large = b"[" + b"1, " * THREAD_BYTES + b"2]"
    assert len(await value_of(large)) == THREAD_BYTES + 1
    with pytest.raises(AlgorithmBroken, match="not JSON"):
        await value_of(large[:-1])
    body = await spool.keep(large)
    assert not body.in_memory
    assert len(await json_of(body)) == THREAD_BYTES + 1
    assert spool.used == 0


@pytest.mark.parametrize("data", [b"{oops", b"\xff", b"[" * 100_000, b"NaN"])
async def test_what_is_no_json_gives_its_bytes_back(spool: Spool, data: bytes) -> None:
    """An error leaves nothing in the spool."""
    with pytest.raises(AlgorithmBroken):
        await json_of(await spool.keep(data))
    assert spool.used == 0


async def test_a_text_that_is_not_utf8_says_where(spool: Spool) -> None:
    """And leaves nothing either."""
    with pytest.raises(AlgorithmBroken, match="not UTF-8 at byte 2"):
        await text_of(await spool.keep(b"ab\xff"))
    assert spool.used == 0


@pytest.mark.parametrize(
    ("text", "media_type"),
    [
        (TEXT, "image/png"),
        (f"data:image/tiff;base64,{base64.b64encode(TIFF).decode()}", "image/tiff"),
        ("\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76)), "image/png"),
    ],
    ids=["bare", "data URL", "in lines"],
)
async def test_an_image_inline_or_taken_out_has_the_type_of_its_bytes(spool: Spool, text: str, media_type: str) -> None:
    """Left where it is, it is still known to be an image; taken out, it is its bytes."""
    inline = (await answer_of({"mask": text}, 1, describe(), take_out_into=None)).outputs["mask"]
    assert inline == Value(text, media_type, "base64")
    answer = await answer_of({"mask": text}, 1, describe(), take_out_into=spool)
    image = answer.outputs["mask"]
    assert isinstance(image, Image)
    assert image.media_type == media_type
    assert image.body.read_all() in (PNG, TIFF)
    answer.close()
    assert spool.used == 0


@pytest.mark.parametrize("take_out", [False, True])
@pytest.mark.parametrize("value", [None, "https://elsewhere.example/mask.png", 5, {"a": 1}, []])
async def test_what_should_be_an_image_and_is_none_stays_a_value(spool: Spool, value: Any, take_out: bool) -> None:
    """Null, a URI or an empty list is what the algorithm wants to say."""
    answer = await answer_of({"mask": value}, 1, describe(), take_out_into=spool if take_out else None)
    assert answer.outputs == {"mask": Value(value)}


async def test_images_that_describe_does_not_tell_of_are_found_by_their_first_bytes(spool: Spool) -> None:
    """The plain API has no names of outputs."""
    answer = await answer_of({"a": TEXT, "b": "a text", "c": [TEXT, TEXT]}, 1, describe({}), take_out_into=spool)
    assert [image.result_id for image in answer.images()] == ["a", "c_0", "c_1"]
    assert answer.outputs["b"] == Value("a text")
    answer.close()


async def test_a_spool_without_room_gives_back_what_it_took() -> None:
    """The second of two images does not fit."""
    async with open_spool(None, 150) as spool:
        with pytest.raises(SpoolFull):
            await answer_of({"chips": [TEXT, TEXT]}, 1, describe(), take_out_into=spool)
        assert spool.used == 0


async def test_the_media_type_of_a_value_tells_geojson(spool: Spool) -> None:
    """A member that is GeoJSON is announced as such; one without `type` is JSON."""
    collection = {"type": "FeatureCollection", "features": []}
    answer = await answer_of({"a": collection, "b": {"features": []}}, 1, describe(), take_out_into=None)
    assert answer.outputs == {"a": Value(collection, "application/geo+json"), "b": Value({"features": []})}


def test_a_list_that_was_fetched_is_images_or_values() -> None:
    """Texts and JSON together are values, an empty list is an empty list of images."""
    assert list_output("a", [Value(1), Value("x", "text/plain", "text")]) == Value([1, "x"])
    assert list_output("a", []) == []
