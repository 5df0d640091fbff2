"""The operator's named destinations: the TOML file of `CADOR_STORAGE_PROFILES`, checked completely at start.

    [archive]
    type = "S3"                        # or "GCS", "POSIX"
    url = "https://minio.example:9000"
    containerPath = "archive/masks"
    keyFile = "archive.key"            # or `key`, or `keyVariable`; files are read again when they change
    secretFile = "archive.secret"

A profile's tables hold the variant's own keys. Paths are relative to the TOML file's folder.
"""

from __future__ import annotations

import re
import ssl
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from cador_trio.errors import SettingsError
from cador_trio.storage.credentials import ProfileCredentials, SecretFile, Source, Value, Variable, reason
from cador_trio.storage.endpoints import Endpoint

T = TypeVar("T")

VARIABLE: Final = "CADOR_STORAGE_PROFILES"

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_BAD_LETTER: Final = re.compile(r"[\x00-\x1f\x7f]")
_CREDENTIAL_KEYS: Final = frozenset(
    f"{name}{suffix}" for name in ("key", "secret", "token") for suffix in ("", "File", "Variable")
)
_KEYS: Final = {
    "S3": {"url", "ssl", "region", "containerPath", "caFile"} | _CREDENTIAL_KEYS,
    "GCS": {"containerPath", "caFile"} | _CREDENTIAL_KEYS,
    "POSIX": {"folder"},
}


@dataclass(frozen=True, slots=True)
class BucketProfile:
    """A bucket, and folders in it if any. `endpoint` is None for GCS: `CADOR_GCS_ENDPOINT` says where that is."""

    name: str
    variant: Literal["S3", "GCS"]
    container_path: str
    endpoint: Endpoint | None
    region: str | None
    credentials: ProfileCredentials
    ca: Path | None


@dataclass(frozen=True, slots=True)
class FolderProfile:
    """A folder on a file system, absolute."""

    name: str
    folder: str


Profile = BucketProfile | FolderProfile


def load_profiles(path: Path) -> Mapping[str, Profile]:
    """Read and check the file, and every file that it names.

    Raises:
        SettingsError: one finding for each wrong line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, ValueError) as error:  # tomllib's names line and column, and quotes nothing
        raise SettingsError([f"{VARIABLE}: {path}: {reason(error)}"]) from error
    reader = _Reader(path, text)
    profiles = {name: reader.profile(name, table) for name, table in tables.items()}
    if reader.findings:
        raise SettingsError(reader.findings)
    return {name: profile for name, profile in profiles.items() if profile is not None}


class _Reader:
    """Reads tables and gathers what is wrong with them, with the line where it stands."""

    def __init__(self, path: Path, text: str) -> None:
        self.findings: list[str] = []
        self._path = path
        self._lines = text.splitlines()

    def profile(self, name: str, table: Any) -> Profile | None:
        before = len(self.findings)
        if not isinstance(table, dict):
            self._wrong("", name, "stands outside of a profile's [table]")
            return None
        if not _NAME.fullmatch(name):
            self._wrong(name, "", "a profile's name has letters, digits or '._-'")
        variant = table.get("type")
        if variant not in _KEYS:
            self._wrong(name, "type", "must be S3, GCS or POSIX")
            return None
        for key in table.keys() - _KEYS[variant] - {"type"}:
            self._wrong(name, key, f"is no key of a {variant} profile")
        built = self._folder(name, table) if variant == "POSIX" else self._bucket(name, variant, table)
        return built if len(self.findings) == before else None

    def _folder(self, name: str, table: dict[str, Any]) -> FolderProfile:
        folder = self._text(name, table, "folder")
        if folder and (not folder.startswith("/") or folder == "/" or _has_bad_segment(folder[1:])):
            self._wrong(name, "folder", "must be an absolute path below /, without '.' and '..'")
        return FolderProfile(name, folder)

    def _bucket(self, name: str, variant: Literal["S3", "GCS"], table: dict[str, Any]) -> BucketProfile:
        container_path = self._text(name, table, "containerPath")
        if container_path and _has_bad_segment(container_path):
            self._wrong(name, "containerPath", "has an empty segment, '.' or '..'")
        region = self._text(name, table, "region") if "region" in table else None
        if region is not None and not _REGION.fullmatch(region):
            self._wrong(name, "region", "must be the name of a region")
        return BucketProfile(
            name,
            variant,
            container_path,
            self._endpoint(name, table) if variant == "S3" else None,
            region,
            self._credentials(name, table),
            self._ca(name, table),
        )

    def _endpoint(self, name: str, table: dict[str, Any]) -> Endpoint | None:
        ssl = table.get("ssl", False)
        if not isinstance(ssl, bool):
            self._wrong(name, "ssl", "must be true or false")
            return None
        url = self._text(name, table, "url")
        return self._made(name, "url", lambda: Endpoint.from_url(url, ssl=ssl)) if url else None

    def _ca(self, name: str, table: dict[str, Any]) -> Path | None:
        if "caFile" not in table:
            return None
        path = self._beside(self._text(name, table, "caFile"))
        self._made(name, "caFile", lambda: ssl.create_default_context(cafile=str(path)))
        return path

    def _credentials(self, name: str, table: dict[str, Any]) -> ProfileCredentials:
        sources: dict[str, Source] = {}
        for wanted in ("key", "secret", "token"):
            given = [key for key in (wanted, f"{wanted}File", f"{wanted}Variable") if key in table]
            if len(given) > 1:
                self._wrong(name, given[1], f"is given beside {given[0]}: one of them will do")
            elif given and (text := self._text(name, table, given[0])):
                source = self._source(given[0], text)
                self._made(name, given[0], source.read)
                sources[wanted] = source
            elif not given and wanted != "token":
                self._wrong(name, wanted, f"is missing (or {wanted}File, {wanted}Variable)")
        return ProfileCredentials(name, sources)

    def _source(self, key: str, text: str) -> Source:
        if key.endswith("File"):
            return SecretFile(self._beside(text))
        return Variable(text) if key.endswith("Variable") else Value(text)

    def _beside(self, text: str) -> Path:
        return self._path.parent / text

    def _text(self, name: str, table: dict[str, Any], key: str) -> str:
        value = table.get(key)
        if not isinstance(value, str) or not value or _BAD_LETTER.search(value):
            self._wrong(name, key, "is missing" if value is None else "must be a text that is not empty")
            return ""
        return value

    def _made(self, name: str, key: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except (OSError, ValueError) as error:
            self._wrong(name, key, reason(error))
            return None

    def _wrong(self, profile: str, key: str, words: str) -> None:
        where = ".".join(filter(None, (profile, key)))
        line = self._line_of(profile, key)
        place = f"{self._path}, line {line}" if line else str(self._path)
        self.findings.append(f"{VARIABLE}: {place}: {where} {words}")

    def _line_of(self, profile: str, key: str) -> int | None:
        """The line of a key, or of the profile's header; None where the file is written in another manner."""
        header = None
        current = ""
        for number, line in enumerate(self._lines, 1):
            if found := re.match(r"\s*\[\s*[\"']?([^\]\"']+?)[\"']?\s*\]", line):
                current = found[1]
                header = number if current == profile else header
            elif current == profile and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return header


def _has_bad_segment(path: str) -> bool:
    return any(segment in ("", ".", "..") for segment in path.removesuffix("/").split("/"))
