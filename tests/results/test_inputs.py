"""What tags say of input images: URIs without secrets, sizes and hashes of inline ones."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.results import inputs as module
from cador_trio.results.inputs import input_references

PIXELS = bytes(range(256)) * 5


def reference(image: Any) -> dict[str, Any]:
    (only,) = input_references({"image": image}, {"image": False})
    return only


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("file:///data/in/scene.tif", "file:///data/in/scene.tif"),
        ("s3://key:secret@bucket/a%20b.tif?versionId=3", "s3://bucket/a%20b.tif?versionId=3"),
        ("https://user@host:8443/a.tif#page=2", "https://host:8443/a.tif#page=2"),
        ("https://u:p@w@host/a@b.tif", "https://host/a@b.tif"),
        ("zip:https://u:p@host/a.zip!/b.tif", "zip:https://host/a.zip!/b.tif"),
        (
            "https://h/a?x=1&X-Amz-Credential=A%2F1&X-Amz-Signature=ff&X-Amz-Expires=9&bands=1,2",
            "https://h/a?x=1&bands=1,2",
        ),
        ("https://h/a?X-Goog-Signature=ff&X-Goog-Credential=g", "https://h/a"),
        ("https://h/a?sv=2023&sig=a%3D&sp=r", "https://h/a?sv=2023&sp=r"),
        ("https://h/a?AWSAccessKeyId=A&Signature=b&Expires=1", "https://h/a?Expires=1"),
        ("https://h/a?GoogleAccessId=A&token=b&access_token=c&api_key=d&%74oken=e#token=f", "https://h/a"),
        ("https://h/a?signal=1&design=x&keyword=y&flag", "https://h/a?signal=1&design=x&keyword=y&flag"),
    ],
)
def test_uris_without_what_opens_the_door(given: str, shown: str) -> None:
    """User info and secret parameters are cut; everything else stays to the letter."""
    assert reference(given) == {"uri": shown}


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(PIXELS).decode(),
        base64.encodebytes(PIXELS).decode(),
        "data:image/png;base64," + base64.b64encode(PIXELS).decode(),
    ],
    ids=["plain", "with line breaks", "data URI"],
)
def test_inline_images_are_named_by_size_and_hash(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image in the request is described by its decoded bytes, in whatever steps they are decoded."""
    expected = {"uri": None, "name": "image", "size": len(PIXELS), "sha256": hashlib.sha256(PIXELS).hexdigest()}
    assert reference(text) == expected
    monkeypatch.setattr(module, "_CHARACTERS_PER_STEP", 8)
    assert reference(text) == expected


@pytest.mark.parametrize(
    "text", ["scene.tif", "/data/in/scene.tif", "YQ", "YQ==YQ==", "Ä?", "\ud800", "a b: c", "c:\\x"]
)
def test_other_texts_are_named_by_their_own_bytes(text: str) -> None:
    """What is neither a URI nor base64 is hashed as it is, half a character included."""
    data = text.encode("utf-8", "surrogatepass")
    expected = {"uri": None, "name": "image", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert reference(text) == expected


def test_padding_ends_base64_wherever_a_step_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base64 that goes on after its padding is none, also if the padding closes a step."""
    monkeypatch.setattr(module, "_CHARACTERS_PER_STEP", 8)
    assert reference("YWJjZA==YWJj")["size"] == 12


def test_one_entry_an_image() -> None:
    """Lists have an entry each; absent and null images have none; other inputs are not looked at."""
    inputs = {"sigma": "s3://no", "scenes": ["file:///a", None, "file:///b"], "mask": None, "image": "file:///c"}
    names = {"image": False, "scenes": True, "mask": False, "absent": False}
    assert input_references(inputs, names) == [{"uri": "file:///c"}, {"uri": "file:///a"}, {"uri": "file:///b"}]


def test_pixels_as_json_are_named_by_their_text() -> None:
    """An image that is no text is hashed as JSON."""
    data = json.dumps([[1, 2]]).encode()
    assert reference([[1, 2]])["sha256"] == hashlib.sha256(data).hexdigest()


@given(st.binary(max_size=300))
def test_no_pixel_gets_out(data: bytes) -> None:
    """Whatever the bytes, base64 is told by its size and hash alone."""
    encoded = base64.b64encode(data).decode()
    assert reference(encoded) == {
        "uri": None,
        "name": "image",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


@given(st.text() | st.from_regex(r"[a-z]{2,5}:[/@?#&=a-z%:\[\]]{0,30}", fullmatch=True))
def test_any_text_is_described(text: str) -> None:
    """No text whatever makes it fail."""
    assert set(reference(text)) in ({"uri"}, {"uri", "name", "size", "sha256"})
