"""What the bytes of an answer are: JSON, an image, text, something else; and the images inside a JSON answer.

Pure, and cheap on large answers: decisions look at a media type, at what the describe document says and at the first
bytes; only `decode_base64_image` walks through everything it is given.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Final, Literal, NoReturn

from cador_trio.errors import AlgorithmBroken
from cador_trio.job import Json, JsonObject

Kind = Literal["json", "image", "text", "bytes"]

HEAD_BYTES: Final = 16  # first bytes that every decision here is content with

UNKNOWN_MEDIA_TYPE: Final = "application/octet-stream"

# A text shorter than this is never taken for an image that describe does not tell of. (The smallest GIF has 35 bytes.)
MIN_INLINE_IMAGE: Final = 32  # characters

# Offset, bytes, media type. All are long or odd enough that neither a text nor base64 of one starts like this.
_SIGNATURES: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"II+\x00", "image/tiff"),  # BigTIFF
    (0, b"MM\x00+", "image/tiff"),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image/jp2"),
    (0, b"\xff\x4f\xff\x51", "image/j2c"),  # a bare JPEG 2000 codestream
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),  # after "RIFF" and a length
    (4, b"ftypavif", "image/avif"),
    (0, b"\x89HDF\r\n\x1a\n", "application/x-hdf5"),  # NetCDF 4 too
    (0, b"CDF\x01", "application/x-netcdf"),
    (0, b"CDF\x02", "application/x-netcdf"),
    (0, b"CDF\x05", "application/x-netcdf"),
    (0, b"SIMPLE  =", "image/fits"),
)

_DATA_URL = re.compile(r"data:(?P<media_type>[^;,]{0,100})(?:;[^;,]{1,100})*?;base64,", re.IGNORECASE)
_BASE64_HEAD = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_LEADING_BLANKS = b" \t\r\n"


# --- Whole answers -----------------------------------------------------------------------------------------------


def essence(media_type: str) -> str:
    """A Content-Type without its parameters, in lower case; empty if there is none."""
    return media_type.partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """`application/json`, `text/json`, or anything `+json` such as GeoJSON; parameters are ignored."""
    name = essence(media_type)
    return name in ("application/json", "text/json") or name.endswith("+json")


def is_html(media_type: str) -> bool:
    """A page for people: from an algorithm it is always a sign that something else has answered."""
    return essence(media_type) in ("text/html", "application/xhtml+xml")


def sniff_media_type(head: bytes) -> str | None:
    """The media type of the image (or raster container) that starts with these bytes; None if it is none we know."""
    for offset, signature, media_type in _SIGNATURES:
        if head.startswith(signature, offset):
            return media_type
    return None


def decide(media_type: str, head: bytes, *, is_image: bool) -> Kind:
    """What an answer or result is: by its media type, then by describe, then by its first bytes.

    Args:
        media_type: the Content-Type as received; may be empty.
        head: the first `HEAD_BYTES` or more; fewer only if there are no more.
        is_image: whether describe says that this output is an image.

    Raises:
        AlgorithmBroken: it is an HTML page.
    """
    if is_html(media_type):
        raise AlgorithmBroken("the algorithm answered with an HTML page", hint="is PROCESSING_SERVER the algorithm?")
    name = essence(media_type)
    if is_json(name):
        return "json"
    if name.startswith("image/"):
        return "image"
    if name.startswith("text/"):
        return "image" if is_image and sniff_media_type(head) else "text"
    if is_image or sniff_media_type(head):
        return "image"
    if name in ("", UNKNOWN_MEDIA_TYPE) and head.lstrip(_LEADING_BLANKS).startswith((b"{", b"[")):
        return "json"
    return "bytes"


def image_media_type(announced: str, head: bytes) -> str:
    """The media type to hand on with an image: what its bytes say wins, since PESTO calls every image a PNG."""
    return sniff_media_type(head) or essence(announced) or UNKNOWN_MEDIA_TYPE


def text_value(text: str, *, is_number: bool) -> Json:
    """The JSON value of a text result. PESTO sends outputs of type number as digits in plain text.

    Raises:
        AlgorithmBroken: describe says number, and this is none, or not a finite one.
    """
    if not is_number:
        return text
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise AlgorithmBroken(f"the algorithm announced a number and sent {text[:40]!r}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (float("inf"), float("-inf")):
        raise AlgorithmBroken(f"the algorithm announced a number and sent {text[:40]!r}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


# --- Images inside a JSON answer ---------------------------------------------------------------------------------


def inline_images(answer: JsonObject, image_outputs: Mapping[str, bool]) -> list[str]:
    """The outputs of a stateless JSON answer that are base64 images, or non-empty lists of them, in its order.

    `image_outputs` is what describe tells (name -> is it a list). Other outputs count if they start like an image. An
    output that should be an image but is null, a URI or no text is left as it is.
    """
    return [name for name, value in answer.items() if _is_inline_image(value, told=name in image_outputs)]


def decode_base64_image(text: str) -> bytes:
    """The bytes of a base64 text, with or without line breaks, also as a `data:` URL.

    Padding is required: an answer that was cut short must not become a picture that is cut short.

    Raises:
        AlgorithmBroken: empty, or not base64.
    """
    match = _DATA_URL.match(text)
    try:
        data = (text[match.end() :] if match else text).encode("ascii")
        pixels = base64.b64decode(data.translate(None, _LEADING_BLANKS), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise AlgorithmBroken("the algorithm sent an image that is not base64") from error
    if not pixels:
        raise AlgorithmBroken("the algorithm sent an empty image")
    return pixels


def data_url_media_type(text: str) -> str:
    """The media type that a `data:` URL announces; empty for plain base64."""
    match = _DATA_URL.match(text)
    return essence(match["media_type"]) if match else ""


def _is_inline_image(value: Json, *, told: bool) -> bool:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) for item in items):
        return False
    if told:
        return not any("://" in item[:20] for item in items)
    return all(_starts_like_an_image(item) for item in items)


def _starts_like_an_image(text: str) -> bool:
    if len(text) < MIN_INLINE_IMAGE:
        return False
    match = _DATA_URL.match(text)
    start = match.end() if match else 0
    head = "".join(text[start : start + 2 * MIN_INLINE_IMAGE].split())
    head = head[: len(head) - len(head) % 4]
    return _BASE64_HEAD.fullmatch(head) is not None and sniff_media_type(base64.b64decode(head)) is not None
