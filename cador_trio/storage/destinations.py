"""Which folder, bucket and object name a job's images may use.

Pure: no disk, no network, no trio. What a request says is checked here, before the algorithm is called; what only the
file system knows, such as where a symbolic link leads, is checked in `posix.py` when it is used.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal, Protocol
from urllib.parse import quote, urlsplit

from cador_trio.errors import RequestRefused, ResultRefused
from cador_trio.job import Json, JsonObject, StorageRequest

Variant = Literal["S3", "GCS", "POSIX"]
VARIANTS: Final[tuple[Variant, ...]] = ("S3", "GCS", "POSIX")

MAX_OBJECT_ID_BYTES: Final = 255  # NAME_MAX of Linux file systems; object stores take more
MAX_FOLDER_BYTES: Final = 4_096 - 1 - MAX_OBJECT_ID_BYTES - 1  # so that `path` stays under PATH_MAX, NUL included

_TASK_NAME: Final = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,199}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN: Final = 200  # characters of a refused value that an error quotes


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows a request to name.

    `posix_roots` are the absolute folders that a `folder` may lie in (`CADOR_POSIX_ROOTS`). None: no POSIX storage.
    """

    posix_roots: tuple[str, ...] = ()


class Destination(Protocol):
    """Where the images of one job go, as decided before dispatch."""

    @property
    def variant(self) -> Variant:
        """The kind of store."""

    def reference(self, output: str, index: int | None, *, media_type: str, size: int, sha256: str) -> JsonObject:
        """What messages hold for one stored image (wire contract, section 4), in the contract's order.

        `size` is in bytes, `sha256` a hex digest. Raises ResultRefused if the output's name can't be an object's name.
        """


@dataclass(frozen=True, slots=True)
class PosixDestination:
    """A folder on a file system. `folder` is as the request spells it: absolute, perhaps with a slash at the end."""

    folder: str
    task_name: str
    variant: Literal["POSIX"] = "POSIX"

    def path(self, object_id: str) -> str:
        """The absolute path of an object."""
        return posixpath.join(self.folder, object_id)

    def reference(self, output: str, index: int | None, *, media_type: str, size: int, sha256: str) -> JsonObject:
        """See `Destination`."""
        name = object_id(self.task_name, output, index)
        path = self.path(name)
        return {
            "folder": self.folder,
            "objectId": name,
            "path": path,
            "uri": f"file://{quote(path, safe='/:')}",
            "mediaType": media_type,
            "size": size,
            "sha256": sha256,
        }


@dataclass(frozen=True, slots=True)
class BucketDestination:
    """A bucket of an object store. `container_path` is as the request spells it: the bucket, then folders if any."""

    container_path: str
    task_name: str
    variant: Literal["S3", "GCS"]

    @property
    def bucket(self) -> str:
        """The first segment of the container path."""
        return self.container_path.partition("/")[0]

    def key(self, object_id: str) -> str:
        """The key of an object within the bucket."""
        return posixpath.join(self.container_path.partition("/")[2], object_id)

    def reference(self, output: str, index: int | None, *, media_type: str, size: int, sha256: str) -> JsonObject:
        """See `Destination`. The `uri` is not percent-encoded: the tools of these stores take keys literally."""
        name = object_id(self.task_name, output, index)
        key = self.key(name)
        scheme = "s3" if self.variant == "S3" else "gs"
        return {
            "containerPath": self.container_path,
            "objectId": name,
            "bucket": self.bucket,
            "key": key,
            "uri": f"{scheme}://{self.bucket}/{key}",
            "mediaType": media_type,
            "size": size,
            "sha256": sha256,
        }


# --- Names -------------------------------------------------------------------------------------------------------


def object_id(task_name: str, output: str, index: int | None) -> str:
    """The name of an object: `<task>_<output>`, and `_<index>` for an item of a list.

    Raises RequestRefused for an unsafe task id (the caller chose it), ResultRefused for an unsafe output name (the
    algorithm chose it).
    """
    _check_task_name(task_name)
    if output in ("", ".", "..") or "/" in output or _CONTROL.search(output) or not _is_utf8(output):
        raise ResultRefused(
            f"output {_shown(output)} can't be stored under its name",
            hint="An output's name in a store has no slash and no control character, and is not '.' or '..'.",
        )
    name = f"{task_name}_{output}" if index is None else f"{task_name}_{output}_{index}"
    if (length := len(name.encode())) > MAX_OBJECT_ID_BYTES:
        raise ResultRefused(
            f"output {_shown(output)} can't be stored under its name: the object's name would have {length} bytes, "
            f"and {MAX_OBJECT_ID_BYTES} are possible"
        )
    return name


def _check_task_name(task_name: str) -> None:
    if not _TASK_NAME.fullmatch(task_name):
        raise RequestRefused(
            f"task id {_shown(task_name)} can't be part of an object's name",
            hint="With outputStorage a taskId has 1 to 200 letters, digits or '._:-', and no leading dot.",
        )


# --- The request's outputStorage ---------------------------------------------------------------------------------


def check_storage(output_storage: Json) -> StorageRequest | None:
    """Check `technicalMetadata.outputStorage` for its form; None where it asks for nothing (absent, null or `{}`).

    Keys beyond those of the contract are kept and ignored. In the result `containerPath` is always spelled so. Raises
    RequestRefused, with no value in its text that could be a credential.
    """
    if output_storage is None or output_storage == {}:
        return None
    if not isinstance(output_storage, dict):
        raise RequestRefused("outputStorage must be an object", hint=_ONE_OF)
    if "profile" in output_storage:
        raise RequestRefused(
            "outputStorage: storage profiles are not available in this version", hint="Spell the destination out."
        )
    for name in output_storage:
        if name not in VARIANTS:
            raise RequestRefused(f"Unsupported object store type {_shown(name)}", hint=_ONE_OF)
    chosen = [variant for variant in VARIANTS if variant in output_storage]
    if len(chosen) > 1:
        raise RequestRefused(f"outputStorage names more than one store: {', '.join(chosen)}", hint=_ONE_OF)
    [variant] = chosen
    settings = output_storage[variant]
    if not isinstance(settings, dict):
        raise RequestRefused(f"outputStorage.{variant} must be an object")
    return StorageRequest(variant, _CHECKS[variant](settings))


_ONE_OF: Final = f"Give exactly one of {', '.join(VARIANTS)}."


def _check_s3(settings: JsonObject) -> JsonObject:
    checked = _check_container("S3", settings)
    if not _is_http_address(_text("S3", settings, "url")):
        raise RequestRefused("outputStorage.S3.url must be a host or a URL of http or https")
    if not isinstance(settings.get("ssl", False), bool):
        raise RequestRefused("outputStorage.S3.ssl must be true or false")
    return checked


def _check_gcs(settings: JsonObject) -> JsonObject:
    return _check_container("GCS", settings)


def _check_posix(settings: JsonObject) -> JsonObject:
    folder = _text("POSIX", settings, "folder")
    where = "outputStorage.POSIX.folder"
    if not folder.startswith("/"):
        raise RequestRefused(f"{where} must be an absolute path")
    _check_path(where, folder)
    if folder != "/":
        _check_segments(where, folder[1:])
    if len(folder.encode()) > MAX_FOLDER_BYTES or any(len(part.encode()) > 255 for part in folder.split("/")):
        raise RequestRefused(f"{where} is too long: {MAX_FOLDER_BYTES} bytes are possible, and 255 between slashes")
    return settings


def _check_container(variant: Variant, settings: JsonObject) -> JsonObject:
    """What S3 and GCS have in common; gives the settings back without the alias."""
    container_path = _text(variant, settings, "containerPath", alias="container_path")
    where = f"outputStorage.{variant}.containerPath"
    _check_path(where, container_path)
    _check_segments(where, container_path)
    # Empty texts pass: a server that wants no credentials is for the store to find out.
    for name in ("key", "secret"):
        if not isinstance(settings.get(name), str):
            raise RequestRefused(f"outputStorage.{variant}.{name} must be a text")
    kept = {name: value for name, value in settings.items() if name != "container_path"}
    return {**kept, "containerPath": container_path}


_CHECKS: Final = {"S3": _check_s3, "GCS": _check_gcs, "POSIX": _check_posix}


def _text(variant: Variant, settings: JsonObject, name: str, *, alias: str | None = None) -> str:
    """A text that must be there and not be empty, under its name or its alias (but not different under both)."""
    found = [settings[key] for key in (name, alias) if key in settings]
    if not found or any(value != found[0] for value in found):
        trouble = "is given twice" if found else "is missing"
        raise RequestRefused(f"outputStorage.{variant}.{name} {trouble}")
    if not isinstance(found[0], str) or not found[0]:
        raise RequestRefused(f"outputStorage.{variant}.{name} must be a text that is not empty")
    return found[0]


def _check_path(where: str, path: str) -> None:
    if _CONTROL.search(path) or not _is_utf8(path):
        raise RequestRefused(f"{where} holds a character that a path can't have")


def _check_segments(where: str, path: str) -> None:
    """Refuse segments that a file system or an object store would interpret; one slash at the end is fine."""
    if any(segment in ("", ".", "..") for segment in path.removesuffix("/").split("/")):
        raise RequestRefused(f"{where} {_shown(path)} has an empty segment, '.' or '..'")


# --- The destination ---------------------------------------------------------------------------------------------


def resolve(request: StorageRequest, task_name: str, policy: Policy) -> Destination:
    """Decide where the images of a job go, before it is dispatched.

    `request` comes from `check_storage`. Raises RequestRefused where the task id can't be an object's name, the policy
    doesn't allow the folder, or the store isn't available. No symbolic link is followed here.
    """
    _check_task_name(task_name)
    destination = name_destination(request, task_name)
    if isinstance(destination, BucketDestination):
        raise RequestRefused(
            f"{destination.variant} storage is not available in this version yet", hint="Use POSIX storage."
        )
    _check_folder(destination.folder, policy)
    return destination


def name_destination(request: StorageRequest, task_name: str) -> PosixDestination | BucketDestination:
    """The names that a request leads to, whether it is allowed to use them or not."""
    settings: Mapping[str, Json] = request.settings
    if request.variant == "POSIX":
        return PosixDestination(settings["folder"], task_name)
    return BucketDestination(settings["containerPath"], task_name, request.variant)


def _check_folder(folder: str, policy: Policy) -> None:
    if not policy.posix_roots:
        raise RequestRefused(
            "POSIX storage is refused: CADOR_POSIX_ROOTS is not set",
            hint="The operator must set CADOR_POSIX_ROOTS to the folders that jobs may write to.",
        )
    if not any(is_inside(folder, root) for root in policy.posix_roots):
        raise folder_outside(folder, policy)


def is_inside(folder: str, root: str) -> bool:
    """Whether a folder is the root or lies in it, going by the letters alone."""
    return PurePosixPath(folder).is_relative_to(root)


def folder_outside(folder: str, policy: Policy) -> RequestRefused:
    """The refusal of a folder that lies, or leads, outside of what is allowed."""
    return RequestRefused(
        f"folder {_shown(folder)} is outside of the allowed folders",
        hint=f"Use a folder in {', '.join(policy.posix_roots)} (CADOR_POSIX_ROOTS).",
    )


def _is_utf8(text: str) -> bool:
    """False for a lone surrogate, which JSON can spell and no file system or store can take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_http_address(url: str) -> bool:
    """Whether it has a host, and http, https or nothing for a scheme."""
    try:
        # Without a scheme, `host:9000` would be read as one called `host`.
        parts = urlsplit(url if "://" in url else f"//{url}")
        return bool(parts.hostname) and parts.scheme in ("", "http", "https") and parts.port != 0
    except ValueError:  # brackets that don't match, a port that is no number
        return False


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
