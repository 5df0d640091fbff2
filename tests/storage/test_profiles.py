"""The operator's named destinations: read at start, their credentials whenever they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cador_trio.errors import SettingsError, StoreFailed
from cador_trio.settings import Settings
from cador_trio.storage.credentials import Credentials
from cador_trio.storage.endpoints import Endpoint
from cador_trio.storage.profiles import BucketProfile, FolderProfile, Profile, load_profiles
from cador_trio.storage.setup import open_store
from tests.secrets import GOOGLE_SECRET, STORE_SECRET

ARCHIVE = """
[archive]
type = "S3"
url = "https://minio.example:9000/api"
region = "garage"
containerPath = "bucket-a/masks"
keyFile = "archive.key"
secretFile = "archive.secret"
tokenFile = "archive.token"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "profiles.toml"
    path.write_text(text)
    return path


def bucket_profile(profile: Profile) -> BucketProfile:
    assert isinstance(profile, BucketProfile)
    return profile


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder with the files of the archive's credentials."""
    for name, value in ("key", "the-key"), ("secret", f"{STORE_SECRET}\n"), ("token", " the-token "):
        (tmp_path / f"archive.{name}").write_text(value)
    return tmp_path


def test_all_variants(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile of each variant is read, with its credentials from files, variables or the file itself."""
    monkeypatch.setenv("GOOGLE_SECRET", GOOGLE_SECRET)
    text = f"""
{ARCHIVE}
[google]
type = "GCS"
containerPath = "bucket-b"
key = "GOOG1"
secretVariable = "GOOGLE_SECRET"

[disk]
type = "POSIX"
folder = "/data/out"
"""
    profiles = load_profiles(written(secrets, text))
    archive, google = bucket_profile(profiles["archive"]), bucket_profile(profiles["google"])
    assert archive.endpoint == Endpoint("https", "minio.example", 9000, "/api")
    assert (archive.region, archive.container_path) == ("garage", "bucket-a/masks")
    assert archive.credentials.read() == Credentials("the-key", STORE_SECRET, "the-token")
    assert (google.endpoint, google.credentials.read()) == (None, Credentials("GOOG1", GOOGLE_SECRET))
    assert profiles["disk"] == FolderProfile("disk", "/data/out")


def test_credentials_are_read_again_when_they_change(secrets: Path) -> None:
    """A rotated secret holds from the next upload on, also if it is put there by renaming."""
    credentials = bucket_profile(load_profiles(written(secrets, ARCHIVE))["archive"]).credentials
    assert credentials.read().secret == STORE_SECRET
    (secrets / "new").write_text("rotated!!!")
    (secrets / "new").replace(secrets / "archive.secret")
    assert credentials.read() == Credentials("the-key", "rotated!!!", "the-token")


def test_unchanged_files_are_not_read(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each upload looks whether the files have changed, and reads them only then."""
    credentials = bucket_profile(load_profiles(written(secrets, ARCHIVE))["archive"]).credentials
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("it was read"))
    assert credentials.read().key == "the-key"


@pytest.mark.parametrize("damage", ["gone", "empty", "two lines", "no text"])
def test_credentials_that_vanish(secrets: Path, damage: str) -> None:
    """A file that is no use any more fails the upload, and the words hold no secret."""
    credentials = bucket_profile(load_profiles(written(secrets, ARCHIVE))["archive"]).credentials
    path = secrets / "archive.secret"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"\n", "two lines": b"hush\nhush2", "no text": b"\xff\xfehush"}[damage])
    with pytest.raises(StoreFailed, match="storage profile archive: its secret can't be read") as caught:
        credentials.read()
    assert "hush" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("[a", ["at end of document"]),
        ('a = "x"', ["a stands outside"]),
        ("[a]", ["line 1: a.type must be S3, GCS or POSIX"]),
        ('[a]\ntype = "FTP"', ["line 2: a.type must be"]),
        ('["a/b"]\ntype = "POSIX"\nfolder = "/x"', ["line 1: a/b a profile's name"]),
        ('[a]\ntype = "POSIX"', ["line 1: a.folder is missing"]),
        ('[a]\ntype = "POSIX"\nfolder = "x"', ["line 3: a.folder must be an absolute path"]),
        ('[a]\ntype = "POSIX"\nfolder = "/"', ["absolute path below /"]),
        ('[a]\ntype = "POSIX"\nfolder = "/x/../y"', ["without '.' and '..'"]),
        ('[a]\ntype = "POSIX"\nfolder = "/x"\nurl = "u"', ["line 4: a.url is no key of a POSIX profile"]),
        (
            '[a]\ntype = "S3"\nurl = "ftp://h"\nssl = 1\ncontainerPath = "b//c"\nkeyFile = "nowhere"\nregion = "a b"',
            [
                "line 4: a.ssl must be true or false",
                "line 5: a.containerPath has an empty segment",
                "line 6: a.keyFile No such file",
                "line 2: a.secret is missing (or secretFile",
                "line 7: a.region must be the name",
            ],
        ),
        (
            '[a]\ntype = "S3"\nurl = "http://u:hush@h"\ncontainerPath = "b"\nkey = "k"\nkeyFile = "f"\nsecret = ""',
            ["line 3: a.url must not hold", "line 6: a.keyFile is given beside key", "line 7: a.secret must be a text"],
        ),
        (
            '[a]\ntype = "GCS"\ncontainerPath = "b"\nkeyVariable = "NOT_SET"\nsecret = "s"\ncaFile = "no"\nurl = "u"',
            ["line 4: a.keyVariable the variable NOT_SET is not set", "a.caFile No such file", "a.url is no key"],
        ),
    ],
)
def test_every_wrong_line_is_named(tmp_path: Path, text: str, findings: list[str]) -> None:
    """All that is wrong is said at once, with its line, and no value that could be a secret."""
    with pytest.raises(SettingsError) as caught:
        load_profiles(written(tmp_path, text))
    said = "\n".join(caught.value.findings)
    assert all(finding.startswith("CADOR_STORAGE_PROFILES: ") for finding in caught.value.findings)
    assert "hush" not in said
    for finding in findings:
        # A secret that is missing has no line of its own: the table's header stands for it.
        assert finding.replace("line 2: a.secret", "line 1: a.secret") in said


def test_file_that_is_none(tmp_path: Path) -> None:
    """A file that can't be read is a finding, not an accident."""
    with pytest.raises(SettingsError, match="CADOR_STORAGE_PROFILES"):
        load_profiles(tmp_path)
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_profiles(tmp_path / "x")


def test_settings_are_checked_completely(tmp_path: Path) -> None:
    """Lists, profiles and CA are wrong at start, all of them at once."""
    (tmp_path / "ca.pem").write_text("no certificate")
    settings = Settings(
        storage_endpoints=("http://h", "fine.example"),
        storage_buckets=("a/b",),
        storage_profiles=written(tmp_path, "[a]"),
        storage_ca=tmp_path / "ca.pem",
    )
    with pytest.raises(SettingsError) as caught:
        open_store(settings)
    variables = [finding.partition(":")[0] for finding in caught.value.findings]
    assert variables == [
        "CADOR_STORAGE_ENDPOINTS",
        "CADOR_STORAGE_BUCKETS",
        "CADOR_STORAGE_PROFILES",
        "CADOR_STORAGE_CA",
    ]


def test_missing_files_are_settings_errors(tmp_path: Path) -> None:
    """Files that settings name and that aren't there are named with their variables."""
    missing = os.fspath(tmp_path / "nowhere")
    with pytest.raises(SettingsError) as caught:
        Settings.from_variables({"CADOR_STORAGE_PROFILES": missing, "CADOR_STORAGE_CA": missing})
    assert len(caught.value.findings) == 2
