"""Bodies of answers on their way into the spool, and what JSON, texts and images become of them.

The first bytes of a body, with its media type and what describe tells, decide what it is, and so how large it may be.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from cador_trio.algorithm import sniff
from cador_trio.algorithm.dialect import Describe
from cador_trio.algorithm.transport import Response
from cador_trio.errors import AlgorithmBroken
from cador_trio.job import WHOLE_ANSWER, Answer, Image, Json, JsonObject, Output, Value
from cador_trio.json_text import THREAD_BYTES, NotJson, read_answer
from cador_trio.spool import Spool, SpooledBody, SpoolWriter


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """Bytes: of a JSON answer with the base64 images inside it, and of a result that is streamed."""

    answer: int
    result: int


@dataclass(frozen=True)
class Received:
    """A body in the spool, and what its answer said about it. Its owner closes the body."""

    body: SpooledBody
    media_type: str
    kind: sniff.Kind


class Receiver:
    """Takes one body chunk by chunk, within its limit. `what` names it in errors."""

    def __init__(self, spool: Spool, limits: SizeLimits, what: str, *, is_image: bool) -> None:
        self._spool = spool
        self._limits = limits
        self._what = what
        self._is_image = is_image
        self._head = bytearray()
        self._kind: sniff.Kind | None = None

    async def receive(
        self, response: Response, announced_type: str, is_wanted: Callable[[], bool] = lambda: True
    ) -> Received | None:
        """The whole body. If `is_wanted` turns false it is still read to its end, but dropped, and None comes back.

        Raises:
            ResultTooLarge: over its limit, with both sizes.
            AlgorithmBroken: a page for people.
            AlgorithmDied, SpoolFull: as the transport and the spool say.
        """
        media_type = response.media_type or announced_type
        writer: SpoolWriter | None = None

        async def take(chunk: bytes) -> None:
            nonlocal writer
            if not is_wanted():
                if writer is not None:
                    writer.abandon()
            elif writer is not None:
                await writer.write(chunk)
            else:
                self._head.extend(chunk)
                if len(self._head) >= sniff.HEAD_BYTES:
                    writer = self._writer(media_type, response.announced_size)
                    await writer.write(bytes(self._head))

        try:
            await response.pour(take)
            if not is_wanted():
                return None
            if writer is None:
                writer = self._writer(media_type, response.announced_size)
                await writer.write(bytes(self._head))
            return Received(await writer.finish(), self._media_type(media_type), self._decided(media_type))
        finally:
            if writer is not None:
                writer.abandon()

    def _writer(self, media_type: str, announced_size: int | None) -> SpoolWriter:
        if self._decided(media_type) in {"json", "text"}:
            writer = self._spool.writer(self._limits.answer, self._what, "CADOR_MAX_ANSWER_BYTES")
        else:
            writer = self._spool.writer(self._limits.result, self._what, "CADOR_MAX_RESULT_BYTES")
        if announced_size is not None:
            writer.announce(announced_size)
        return writer

    def _decided(self, media_type: str) -> sniff.Kind:
        if self._kind is None:
            self._kind = sniff.decide(media_type, bytes(self._head), is_image=self._is_image)
        return self._kind

    def _media_type(self, media_type: str) -> str:
        is_bytes = self._decided(media_type) in {"image", "bytes"}
        return sniff.image_media_type(media_type, bytes(self._head)) if is_bytes else media_type


# --- Bodies to values --------------------------------------------------------------------------------------------


async def value_of(data: bytes) -> Json:
    """A JSON text as a value, a large one read in a thread.

    Raises:
        AlgorithmBroken: it is no JSON.
    """
    try:
        return read_answer(data) if len(data) <= THREAD_BYTES else await trio.to_thread.run_sync(read_answer, data)
    except NotJson as error:
        raise AlgorithmBroken(f"the algorithm's answer is not JSON: {error}") from error


async def json_of(body: SpooledBody) -> Json:
    """A JSON body as a value. The body goes back to the spool. Raises as `value_of`."""
    try:
        return await value_of(body.read_all() if body.in_memory else await trio.to_thread.run_sync(body.read_all))
    finally:
        body.close()


async def text_of(body: SpooledBody) -> str:
    """A text body; it goes back to the spool.

    Raises:
        AlgorithmBroken: it is not UTF-8.
    """
    try:
        data = body.read_all() if body.in_memory else await trio.to_thread.run_sync(body.read_all)
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AlgorithmBroken(f"the algorithm sent a text that is not UTF-8 at byte {error.start}") from error
    finally:
        body.close()


# --- JSON answers to outputs -------------------------------------------------------------------------------------


async def answer_of(value: Json, size: int, describe: Describe, *, take_out_into: Spool | None) -> Answer:
    """The outputs in a JSON answer of `size` bytes: those of an object, or the value as a whole.

    Base64 images become images in `take_out_into`, or stay where they are.

    Raises:
        AlgorithmBroken: an image that is not base64.
        SpoolFull: as the spool says.
    """
    if not isinstance(value, dict) or _is_geojson_alone(value, describe.output_names):
        return Answer({WHOLE_ANSWER: Value(value, _json_type(value))}, whole=True, size=size)
    inline = sniff.inline_images(value, describe.output_images)
    outputs: dict[str, Output] = {}
    with ExitStack() as taken:
        for name, member in value.items():
            if name not in inline:
                outputs[name] = Value(member, _json_type(member))
            elif take_out_into is None:
                outputs[name] = Value(member) if isinstance(member, list) else _inline_image(member)
            else:
                outputs[name] = await _take_out(name, member, take_out_into, taken)
        taken.pop_all()
    return Answer(outputs, size=size)


def list_output(name: str, items: list[Image | Value]) -> Output:
    """The items of a list that were fetched one by one, in order.

    Raises:
        AlgorithmBroken: some are images and some are not.
    """
    images = [item for item in items if isinstance(item, Image)]
    if len(images) == len(items):
        # Numbered by their place, so that ids and object names have no holes.
        return [Image(name, place, image.media_type, image.body) for place, image in enumerate(images)]
    if images:
        raise AlgorithmBroken(f"the output {name} mixes images with other results")
    return Value([item.json for item in items if isinstance(item, Value)])


async def _take_out(name: str, member: Json, spool: Spool, taken: ExitStack) -> Output:
    texts = member if isinstance(member, list) else [member]
    images: list[Image] = []
    for place, text in enumerate(texts):
        image = await _decoded(name, place if isinstance(member, list) else None, text, spool)
        taken.callback(image.body.close)
        images.append(image)
    return images if isinstance(member, list) else images[0]


async def _decoded(name: str, index: int | None, text: str, spool: Spool) -> Image:
    if len(text) <= THREAD_BYTES:
        pixels = sniff.decode_base64_image(text)
    else:
        pixels = await trio.to_thread.run_sync(sniff.decode_base64_image, text)
    media_type = sniff.image_media_type(sniff.data_url_media_type(text), pixels[: sniff.HEAD_BYTES])
    return Image(name, index, media_type, await spool.keep(pixels))


def _inline_image(text: str) -> Value:
    """A base64 image that stays where it is; its media type is told to those who ask for it alone."""
    start = "".join(text[: 4 * sniff.HEAD_BYTES].split())
    start = start.partition("base64,")[2] or start
    try:
        head = base64.b64decode(start[: len(start) - len(start) % 4], validate=True)
    except binascii.Error:
        return Value(text)  # it only should have been an image
    return Value(text, sniff.image_media_type(sniff.data_url_media_type(text), head), "base64")


def _is_geojson_alone(value: JsonObject, output_names: frozenset[str]) -> bool:
    """A GeoJSON object as the whole answer: its members are not outputs. PESTO's template leaves `type` out."""
    is_collection = isinstance(value.get("features"), list) or _is_geojson(value)
    return is_collection and output_names.isdisjoint(value)


def _is_geojson(value: JsonObject) -> bool:
    members = {"features", "geometry", "coordinates", "geometries"}
    return isinstance(value.get("type"), str) and not members.isdisjoint(value)


def _json_type(value: Json) -> str:
    return "application/geo+json" if isinstance(value, dict) and _is_geojson(value) else "application/json"
