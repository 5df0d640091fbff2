"""What a tag says about the images that a job was given: where they are, or what they were; never their content.

Pure. A reference must show nothing that opens the door to the image, so user names, passwords, tokens and signatures
are cut from URIs; and pixels that came inside the request are named by size and hash.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_plus

from cador_trio.job import Json, JsonObject

# Base64 has no colon, so a text that starts like this is a URI. A single letter would be a drive of Windows.
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}:\S")
_USER_INFO: Final = re.compile(r"(?<=://)[^/?#\s]*@")
# Signed URLs of S3 and Google (a family of parameters each), of Azure, CloudFront and older S3; and the usual names.
_SECRET_PARAMETER: Final = re.compile(
    r"x-(?:amz|goog)-.*|sig|sas|key|key-pair-id|jwt|auth|pwd|googleaccessid"
    r"|.*(?:signature|token|secret|password|passwd|passphrase|credential|authorization|api[_-]?key|access[_-]?key).*",
    re.IGNORECASE,
)
_CHARACTERS_PER_STEP: Final = 256 * 1024  # a multiple of 4, decoded under the interpreter lock in under a millisecond


def input_references(inputs: JsonObject, image_names: Mapping[str, bool]) -> list[JsonObject]:
    """The `inputs` of a tag: one entry an image, in the order of `image_names`.

    Args:
        inputs: the algorithm's payload.
        image_names: its image properties, and whether each is a list of images.

    Returns:
        `{"uri": text}`; for an image inside the request `{"uri": None, "name", "size", "sha256"}`, of the decoded bytes
        if it is base64, else of the text. Inputs that are absent or null have no entry.
    """
    found: list[JsonObject] = []
    for name, is_list in image_names.items():
        value = inputs.get(name)
        images = value if is_list and isinstance(value, list) else [value]
        found.extend(_reference(name, image) for image in images if image is not None)
    return found


def _reference(name: str, image: Json) -> JsonObject:
    text = image if isinstance(image, str) else json.dumps(image)
    if _URI.match(text) and text[:5].lower() != "data:":
        return {"uri": _without_secrets(text)}
    size, digest = _measured(text)
    return {"uri": None, "name": name, "size": size, "sha256": digest}


def _without_secrets(uri: str) -> str:
    rest, hash_mark, fragment = _USER_INFO.sub("", uri).partition("#")
    path, question_mark, query = rest.partition("?")
    return path + _kept(question_mark, query) + _kept(hash_mark, fragment)


def _kept(mark: str, parameters: str) -> str:
    """The parameters without the secret ones, the others to the letter."""
    kept = [one for one in parameters.split("&") if not _SECRET_PARAMETER.fullmatch(unquote_plus(one.split("=")[0]))]
    return mark + "&".join(kept) if kept else ""


def _measured(text: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 of an image in a request: base64 (maybe as a `data:` URI), or any other text."""
    encoded = text.partition(",")[2] if text[:5].lower() == "data:" else text
    try:
        return _decoded(encoded)
    except ValueError:
        data = text.encode("utf-8", "surrogatepass")  # JSON may hold half a character
        return len(data), hashlib.sha256(data).hexdigest()


def _decoded(encoded: str) -> tuple[int, str]:
    """Size and SHA-256 of what is encoded; ValueError if it is no base64. Line breaks are fine."""
    encoded = "".join(encoded.split())
    if "=" in encoded[:-2]:  # padding ends it, and a step may end anywhere
        raise ValueError
    size, digest = 0, hashlib.sha256()
    for start in range(0, len(encoded), _CHARACTERS_PER_STEP):
        data = binascii.a2b_base64(encoded[start : start + _CHARACTERS_PER_STEP], strict_mode=True)
        size += len(data)
        digest.update(data)
    return size, digest.hexdigest()
