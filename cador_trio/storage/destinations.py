"""Which folder, endpoint, bucket and object name a job's images may use.

Pure: no disk, no network, no trio. What a request says is checked here, before the algorithm is called; what only the
file system or the name service knows (where a symbolic link leads, which address a host has) is checked when it is
used, in `posix.py` and `buckets.py`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal, Protocol
from urllib.parse import quote

from cador_trio.errors import RequestRefused, ResultRefused
from cador_trio.job import Json, JsonObject, StorageRequest
from cador_trio.storage.credentials import Credentials, CredentialSource
from cador_trio.storage.endpoints import Endpoint, is_listed, matches_bucket
from cador_trio.storage.profiles import FolderProfile, Profile

Variant = Literal["S3", "GCS", "POSIX"]
VARIANTS: Final[tuple[Variant, ...]] = ("S3", "GCS", "POSIX")

MAX_OBJECT_ID_BYTES: Final = 255  # NAME_MAX of Linux file systems; object stores take more
MAX_FOLDER_BYTES: Final = 4_096 - 1 - MAX_OBJECT_ID_BYTES - 1  # so that `path` stays under PATH_MAX, NUL included
MAX_KEY_BYTES: Final = 1_024  # of S3 and GCS alike

_TASK_NAME: Final = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,199}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_AWS_HOST: Final = re.compile(r"s3[.-](?:dualstack\.)?([a-z]{2,}(?:-[a-z]+)+-\d)\.amazonaws\.com(?:\.cn)?")
_SHOWN: Final = 200  # characters of a refused value that an error quotes


GOOGLE: Final = Endpoint("https", "storage.googleapis.com", 443)
# Google's servers take any region in a V4 signature, and call this one theirs.
GCS_REGION: Final = "auto"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows a request to name. A profile is the operator's own word, and needs no other leave.

    Attributes:
        posix_roots: absolute folders that a `folder` may lie in (`CADOR_POSIX_ROOTS`). None: no POSIX storage.
        endpoints: patterns of hosts (`CADOR_STORAGE_ENDPOINTS`), that of GCS among them. None: any.
        buckets: names with `*` (`CADOR_STORAGE_BUCKETS`). None: any.
        gcs: where GCS is (`CADOR_GCS_ENDPOINT`).
        profiles: named destinations (`CADOR_STORAGE_PROFILES`).
    """

    posix_roots: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    gcs: Endpoint = GOOGLE
    profiles: Mapping[str, Profile] = field(default_factory=dict)


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
    """A folder on a file system: absolute, as the request spells it, perhaps with a slash at the end.

    `root` is the folder of `profile`, which `folder` must not lead out of; None where the policy's roots count.
    """

    folder: str
    task_name: str
    variant: Literal["POSIX"] = "POSIX"
    profile: str | None = None
    root: str | None = None

    def path(self, object_id: str) -> str:
        """The absolute path of an object."""
        return posixpath.join(self.folder, object_id)

    def reference(self, output: str, index: int | None, *, media_type: str, size: int, sha256: str) -> JsonObject:
        """See `Destination`."""
        name = object_id(self.task_name, output, index)
        path = self.path(name)
        return {
            **({} if self.profile is None else {"profile": self.profile}),
            "folder": self.folder,
            "objectId": name,
            "path": path,
            "uri": f"file://{quote(path, safe='/:')}",
            "mediaType": media_type,
            "size": size,
            "sha256": sha256,
        }


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a bucket, and as whom. `region` is None where nobody has said it; `ca` where the daemon's counts."""

    endpoint: Endpoint
    credentials: CredentialSource = field(repr=False)
    region: str | None = None
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class BucketDestination:
    """A bucket of an object store. `container_path` is as the request spells it: the bucket, then folders if any."""

    container_path: str
    task_name: str
    variant: Literal["S3", "GCS"]
    access: Access
    profile: str | None = None

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
            **({} if self.profile is None else {"profile": self.profile}),
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
        return _check_profile(output_storage)
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


_ONE_OF: Final = f"Give exactly one of {', '.join(VARIANTS)}, or a profile."
_BELOW: Final = ("containerPath", "container_path", "folder")


def _check_profile(settings: JsonObject) -> StorageRequest:
    name = settings["profile"]
    if not isinstance(name, str) or not name:
        raise RequestRefused("outputStorage.profile must be the name of a storage profile")
    for other in settings.keys() - {"profile", *_BELOW}:
        raise RequestRefused(
            f"outputStorage names a profile and {_shown(other)}",
            hint="A profile is complete; only a containerPath or folder below its own may stand beside it.",
        )
    below = {settings[key] for key in _BELOW if isinstance(settings.get(key), str)}
    if len(below) > 1 or any(key in settings and not isinstance(settings[key], str) for key in _BELOW):
        raise RequestRefused("outputStorage: the path below a profile's own must be one text")
    path = below.pop() if below else ""
    if path:
        _check_path("outputStorage.containerPath", path)
        _check_segments("outputStorage.containerPath", path)
    return StorageRequest("profile", {"profile": name, "path": path.removesuffix("/")})


def _check_s3(settings: JsonObject) -> JsonObject:
    checked = _check_container("S3", settings)
    url = _text("S3", settings, "url")
    if not isinstance(settings.get("ssl", False), bool):
        raise RequestRefused("outputStorage.S3.ssl must be true or false")
    region = settings.get("region")
    if region is not None and not (isinstance(region, str) and _REGION.fullmatch(region)):
        raise RequestRefused("outputStorage.S3.region must be the name of a region")
    if not isinstance(settings.get("token", ""), str):
        raise RequestRefused("outputStorage.S3.token must be a text")
    try:
        Endpoint.from_url(url)
    except ValueError as error:
        raise RequestRefused(f"outputStorage.S3.url {error}") from None
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
    _check_folder_length(where, folder)
    return settings


def _check_folder_length(where: str, folder: str) -> None:
    if len(folder.encode()) > MAX_FOLDER_BYTES or any(len(part.encode()) > 255 for part in folder.split("/")):
        raise RequestRefused(f"{where} is too long: {MAX_FOLDER_BYTES} bytes are possible, and 255 between slashes")


def _check_container(variant: Variant, settings: JsonObject) -> JsonObject:
    """What S3 and GCS have in common; gives the settings back without the alias."""
    container_path = _text(variant, settings, "containerPath", alias="container_path")
    where = f"outputStorage.{variant}.containerPath"
    _check_path(where, container_path)
    _check_segments(where, container_path)
    _check_key_length(where, container_path)
    # Empty texts pass: a server that wants no credentials is for the store to find out.
    for name in ("key", "secret"):
        if not isinstance(settings.get(name), str):
            raise RequestRefused(f"outputStorage.{variant}.{name} must be a text")
    kept = {name: value for name, value in settings.items() if name != "container_path"}
    return {**kept, "containerPath": container_path}


def _check_key_length(where: str, container_path: str) -> None:
    if len(container_path.partition("/")[2].encode()) > MAX_KEY_BYTES - 1 - MAX_OBJECT_ID_BYTES:
        raise RequestRefused(f"{where} is too long: keys of an object store have {MAX_KEY_BYTES} bytes at most")


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

    `request` comes from `check_storage`. Raises RequestRefused where the task id can't be an object's name, there is no
    such profile, or the policy doesn't allow the folder, endpoint or bucket. No symbolic link is followed here, and no
    name resolved.
    """
    _check_task_name(task_name)
    destination = name_destination(request, task_name, policy)
    if destination.profile is not None:
        return destination
    if isinstance(destination, BucketDestination):
        _check_bucket(destination, policy)
    else:
        _check_folder(destination.folder, policy)
    return destination


def name_destination(request: StorageRequest, task_name: str, policy: Policy) -> PosixDestination | BucketDestination:
    """The names that a request leads to, whether it is allowed to use them or not. Raises RequestRefused."""
    settings: Mapping[str, Json] = request.settings
    if request.variant == "profile":
        return _of_profile(settings["profile"], settings["path"], task_name, policy)
    if request.variant == "POSIX":
        return PosixDestination(settings["folder"], task_name)
    credentials = Credentials(settings["key"], settings["secret"], settings.get("token") or "")
    if request.variant == "GCS":
        access = Access(policy.gcs, credentials, GCS_REGION)
    else:
        endpoint = Endpoint.from_url(settings["url"], ssl=settings.get("ssl", False))
        access = Access(endpoint, credentials, settings.get("region") or _region_of(endpoint))
    return BucketDestination(settings["containerPath"], task_name, request.variant, access)


def _of_profile(name: str, below: str, task_name: str, policy: Policy) -> PosixDestination | BucketDestination:
    profile = policy.profiles.get(name)
    if profile is None:
        raise RequestRefused(
            f"there is no storage profile {_shown(name)}",
            hint=f"CADOR_STORAGE_PROFILES has: {', '.join(sorted(policy.profiles)) or 'none'}.",
        )
    if isinstance(profile, FolderProfile):
        folder = posixpath.join(profile.folder, below)
        _check_folder_length("outputStorage.folder", folder)
        return PosixDestination(folder, task_name, profile=name, root=profile.folder)
    endpoint = policy.gcs if profile.endpoint is None else profile.endpoint
    region = profile.region or (GCS_REGION if profile.variant == "GCS" else _region_of(endpoint))
    access = Access(endpoint, profile.credentials, region, profile.ca)
    container_path = posixpath.join(profile.container_path, below)
    _check_key_length("outputStorage.containerPath", container_path)
    return BucketDestination(container_path, task_name, profile.variant, access, name)


def _region_of(endpoint: Endpoint) -> str | None:
    """The region that a host of AWS names."""
    found = _AWS_HOST.fullmatch(endpoint.host)
    return found[1] if found else None


def _check_bucket(destination: BucketDestination, policy: Policy) -> None:
    endpoint = destination.access.endpoint
    if policy.endpoints and not is_listed(endpoint, policy.endpoints):
        raise RequestRefused(
            f"storing at {endpoint.address} is not allowed",
            hint="The operator's CADOR_STORAGE_ENDPOINTS names the hosts that jobs may store at.",
        )
    if policy.buckets and not matches_bucket(destination.bucket, policy.buckets):
        raise RequestRefused(
            f"storing in bucket {_shown(destination.bucket)} is not allowed",
            hint="The operator's CADOR_STORAGE_BUCKETS names the buckets that jobs may store in.",
        )


def _check_folder(folder: str, policy: Policy) -> None:
    if not policy.posix_roots:
        raise RequestRefused(
            "POSIX storage is refused: CADOR_POSIX_ROOTS is not set",
            hint="The operator must set CADOR_POSIX_ROOTS to the folders that jobs may write to.",
        )
    if not any(is_inside(folder, root) for root in policy.posix_roots):
        raise folder_outside(folder, policy.posix_roots)


def is_inside(folder: str, root: str) -> bool:
    """Whether a folder is the root or lies in it, going by the letters alone."""
    return PurePosixPath(folder).is_relative_to(root)


def folder_outside(folder: str, roots: tuple[str, ...]) -> RequestRefused:
    """The refusal of a folder that lies, or leads, outside of what is allowed."""
    return RequestRefused(
        f"folder {_shown(folder)} is outside of the allowed folders",
        hint=f"Use a folder in {', '.join(roots)}: CADOR_POSIX_ROOTS, or the profile, allows no other.",
    )


def _is_utf8(text: str) -> bool:
    """False for a lone surrogate, which JSON can spell and no file system or store can take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
