"""Names and policy: what a request may say, and where that leads."""

from __future__ import annotations

import json
import posixpath
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import RequestRefused, ResultRefused
from cador_trio.job import WHOLE_ANSWER, StorageRequest
from cador_trio.storage.credentials import Credentials, ProfileCredentials, Value
from cador_trio.storage.destinations import (
    MAX_OBJECT_ID_BYTES,
    BucketDestination,
    Policy,
    PosixDestination,
    check_storage,
    name_destination,
    object_id,
    resolve,
)
from cador_trio.storage.endpoints import Endpoint
from cador_trio.storage.profiles import BucketProfile, FolderProfile, Profile

VECTORS = Path(__file__).parent / "vectors"
DATA = Policy(("/data",))
S3 = {"url": "http://127.0.0.1:9000", "containerPath": "bucket-a/b", "key": "k", "secret": "s"}
GCS = {"containerPath": "bucket-a/b", "key": "k", "secret": "s"}

TASK_LETTERS = "abcXYZ019._:-"
task_names = st.text(st.sampled_from(TASK_LETTERS), min_size=1, max_size=200).filter(lambda name: name[0] != ".")
segments = st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40
).filter(lambda segment: segment not in {".", ".."})


def vector(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def storage_of(request: str) -> Any:
    return vector(request)["technicalMetadata"]["outputStorage"]


# --- Vectors -----------------------------------------------------------------------------------------------------


def destination_of_vector(case: dict[str, Any]) -> PosixDestination | BucketDestination:
    place = {key: case[key] for key in ("containerPath", "folder") if key in case}
    request = check_storage({case["storage"]: S3 | place})
    assert request is not None
    return name_destination(request, case["taskId"], Policy())


@pytest.mark.parametrize("case", [case for case in vector("storage-name-vectors") if not case.get("refused")], ids=str)
def test_name_vectors(case: dict[str, Any]) -> None:
    """Each vector of the contract leads to its bucket and key, or path, and its object id."""
    destination = destination_of_vector(case)
    reference = destination.reference(
        case["output"] or WHOLE_ANSWER, case.get("index"), media_type="image/png", size=1, sha256="00"
    )
    expected = {key: case[key] for key in ("bucket", "key", "path", "objectId") if key in case}
    assert expected.items() <= reference.items()


@pytest.mark.parametrize("case", [case for case in vector("storage-name-vectors") if case.get("refused")], ids=str)
def test_refused_name_vectors(case: dict[str, Any]) -> None:
    """Each vector that must be refused is, before dispatch."""
    with pytest.raises(RequestRefused):
        destination_of_vector(case).reference(case["output"], None, media_type="image/png", size=1, sha256="00")


@pytest.mark.parametrize(
    ("request_name", "output_name"),
    [("request-posix-tags-referential", "output-posix-referential"), ("request-s3", "output-s3")],
)
def test_reference_vectors(request_name: str, output_name: str) -> None:
    """The reference of an output message has the contract's fields, in the contract's order."""
    expected = vector(output_name)["mask"]
    request = check_storage(storage_of(request_name))
    assert request is not None
    destination = name_destination(request, vector(request_name)["technicalMetadata"]["taskId"], Policy())
    reference = destination.reference(
        "mask", None, media_type="image/png", size=expected["size"], sha256=expected["sha256"]
    )
    assert list(reference.items()) == list(expected.items())


def test_gcs_reference() -> None:
    """GCS references are as those of S3, with their own scheme."""
    request = check_storage(storage_of("request-gcs"))
    assert request is not None
    reference = name_destination(request, "t-1", Policy()).reference(
        "mask", 3, media_type="image/png", size=1, sha256="00"
    )
    assert reference["uri"] == "gs://bucket-a/folder-b/t-1_mask_3"


def test_file_uris_are_encoded() -> None:
    """A `file` URI is a proper one, whatever the names hold; the path beside it is plain."""
    destination = PosixDestination("/data/Été 1", "t:1")
    reference = destination.reference("50%20#?", None, media_type="image/png", size=1, sha256="00")
    assert reference["path"] == "/data/Été 1/t:1_50%20#?"
    assert reference["uri"] == "file:///data/%C3%89t%C3%A9%201/t:1_50%2520%23%3F"


# --- The form of outputStorage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, {}])
def test_no_storage(value: object) -> None:
    """Null and an empty object ask for nothing."""
    assert check_storage(value) is None


@pytest.mark.parametrize("name", ["request-s3", "request-gcs", "request-posix-tags-referential"])
def test_settings_are_kept_as_written(name: str) -> None:
    """What the request spells is what the store gets."""
    [(variant, settings)] = storage_of(name).items()
    assert check_storage({variant: settings}) == StorageRequest(variant, settings)


def test_unknown_keys_are_kept() -> None:
    """Keys that the contract doesn't name do no harm."""
    request = check_storage({"POSIX": {"folder": "/data", "comment": 1}})
    assert request is not None
    assert request.settings["comment"] == 1


def test_container_path_alias() -> None:
    """`container_path` is read as `containerPath`, and only the latter is handed on."""
    settings = {**GCS, "container_path": GCS["containerPath"]}
    del settings["containerPath"]
    request = check_storage({"GCS": settings})
    assert request is not None
    assert request.settings == GCS


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "must be an object"),
        ("POSIX", "must be an object"),
        (False, "must be an object"),
        ({"FTP": {}}, "Unsupported object store type 'FTP'"),
        ({"posix": {"folder": "/data"}}, "Unsupported object store type 'posix'"),
        ({"POSIX": {"folder": "/data"}, "FTP": {}}, "Unsupported object store type 'FTP'"),
        ({"S3": S3, "GCS": GCS}, "more than one store: S3, GCS"),
        ({"profile": None}, "must be the name of a storage profile"),
        ({"profile": ""}, "must be the name of a storage profile"),
        ({"profile": "archive", "S3": S3}, "names a profile and 'S3'"),
        ({"profile": "archive", "key": "hush-hush"}, "names a profile and 'key'"),
        ({"profile": "archive", "folder": 7}, "must be one text"),
        ({"profile": "archive", "folder": "a", "containerPath": "b"}, "must be one text"),
        ({"profile": "archive", "folder": "/a"}, "empty segment"),
        ({"profile": "archive", "containerPath": "a/../../b"}, "'..'"),
        ({"profile": "archive", "containerPath": "a\nb"}, "character"),
        ({"S3": {**S3, "url": "http://user:hush@host"}}, "user name"),
        ({"S3": {**S3, "url": "http://host?X-Amz-Signature=hush"}}, "no query"),
        ({"S3": {**S3, "url": "http://host/a/../b"}}, "'..'"),
        ({"S3": {**S3, "url": "http://host:99999"}}, "http or https"),
        ({"S3": {**S3, "region": 7}}, "region must be"),
        ({"S3": {**S3, "region": "a/b"}}, "region must be"),
        ({"S3": {**S3, "token": 7}}, "token must be a text"),
        ({"S3": {**S3, "containerPath": "b/" + "x" * 769}}, "too long"),
        ({"POSIX": None}, "POSIX must be an object"),
        ({"POSIX": {}}, "folder is missing"),
        ({"POSIX": {"folder": ""}}, "not empty"),
        ({"POSIX": {"folder": 7}}, "must be a text"),
        ({"POSIX": {"folder": "data"}}, "absolute"),
        ({"POSIX": {"folder": "/data/../etc"}}, "'..'"),
        ({"POSIX": {"folder": "/data/./x"}}, "'.'"),
        ({"POSIX": {"folder": "//data"}}, "empty segment"),
        ({"POSIX": {"folder": "/data//"}}, "empty segment"),
        ({"POSIX": {"folder": "/data\0"}}, "character"),
        ({"POSIX": {"folder": "/data\ud800"}}, "character"),
        ({"POSIX": {"folder": "/data/" + "x" * 256}}, "too long"),
        ({"POSIX": {"folder": "/data" + "/x" * 2_000}}, "too long"),
        ({"S3": {**S3, "url": None}}, "url must be a text"),
        ({"S3": {**S3, "url": "ftp://host"}}, "http or https"),
        ({"S3": {**S3, "url": "http://"}}, "http or https"),
        ({"S3": {**S3, "url": "http://host:port"}}, "http or https"),
        ({"S3": {**S3, "url": "http://[::1"}}, "http or https"),
        ({"S3": {**S3, "ssl": "false"}}, "ssl must be true or false"),
        ({"S3": {**S3, "key": None}}, "key must be a text"),
        ({"S3": {**S3, "containerPath": "/b"}}, "empty segment"),
        ({"S3": {**S3, "containerPath": "b/../c"}}, "'..'"),
        ({"S3": {**S3, "container_path": "other"}}, "given twice"),
        ({"GCS": {"containerPath": "b", "key": "k"}}, "secret must be a text"),
    ],
)
def test_refused_settings(value: object, words: str) -> None:
    """Each wrong setting is refused with what is wrong about it."""
    with pytest.raises(RequestRefused) as caught:
        check_storage(value)
    assert words in caught.value.message


@pytest.mark.parametrize("url", ["http://host", "https://host:9000/prefix", "host", "host:9000", "[::1]:9000"])
def test_s3_addresses(url: str) -> None:
    """A URL or a bare host will do: `ssl` then decides."""
    assert check_storage({"S3": {**S3, "url": url}}) is not None


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_json_is_taken_or_refused(value: object) -> None:
    """No settings at all, and no variant's settings, get past with another error than a refusal."""
    for wrapped in (value, {"S3": value}, {"GCS": value}, {"POSIX": value}, {"POSIX": {"folder": value}}):
        with suppress(RequestRefused):
            check_storage(wrapped)


@pytest.mark.parametrize(
    "settings", [{"S3": {**S3, "key": 0, "secret": "hush-hush"}}, {"S3": {**S3, "url": "u:hush-hush@:"}}]
)
def test_refusals_quote_no_credentials(settings: dict[str, Any]) -> None:
    """A refused request's secrets are not in the error."""
    with pytest.raises(RequestRefused) as caught:
        check_storage(settings)
    assert "hush" not in caught.value.message + caught.value.hint


# --- Policy ------------------------------------------------------------------------------------------------------


def posix_request(folder: str) -> StorageRequest:
    return StorageRequest("POSIX", {"folder": folder})


def test_no_roots_no_posix() -> None:
    """Without roots POSIX storage is refused, and the error names the setting."""
    with pytest.raises(RequestRefused, match="CADOR_POSIX_ROOTS is not set"):
        resolve(posix_request("/data"), "t-1", Policy())


@pytest.mark.parametrize("folder", ["/data", "/data/", "/data/out", "/mnt/b/c"])
def test_folder_inside(folder: str) -> None:
    """A root itself and what is below any root are allowed."""
    destination = resolve(posix_request(folder), "t-1", Policy(("/data", "/mnt/./b/")))
    assert destination == PosixDestination(folder, "t-1")


@pytest.mark.parametrize("folder", ["/", "/etc", "/database", "/dat"])
def test_folder_outside(folder: str) -> None:
    """What isn't below a root is refused, a name that only begins alike among it."""
    with pytest.raises(RequestRefused, match="outside of the allowed folders"):
        resolve(posix_request(folder), "t-1", DATA)


def bucket_of(settings: dict[str, Any], policy: Policy, variant: str = "S3") -> BucketDestination:
    request = check_storage({variant: settings})
    assert request is not None
    destination = resolve(request, "t-1", policy)
    assert isinstance(destination, BucketDestination)
    return destination


def test_any_endpoint_and_bucket_by_default() -> None:
    """Without lists a request may name any endpoint and bucket; GCS is where the operator says."""
    access = bucket_of(S3, Policy()).access
    assert access.endpoint == Endpoint("http", "127.0.0.1", 9000)
    assert access.credentials.read() == Credentials("k", "s")
    assert bucket_of(GCS, Policy(), "GCS").access.endpoint == Endpoint("https", "storage.googleapis.com", 443)
    private = Endpoint("https", "gcs.example", 443)
    assert bucket_of(GCS, Policy(gcs=private), "GCS").access.endpoint == private


@pytest.mark.parametrize(
    ("url", "ssl", "endpoint"),
    [
        ("host", False, Endpoint("http", "host", 80)),
        ("host", True, Endpoint("https", "host", 443)),
        ("host:9000", True, Endpoint("https", "host", 9000)),
        ("http://host", True, Endpoint("http", "host", 80)),
        ("https://host:80", False, Endpoint("https", "host", 80)),
        ("https://HOST.:443/api/v1/s3/", False, Endpoint("https", "host", 443, "/api/v1/s3")),
        ("[::1]:9000", False, Endpoint("http", "::1", 9000)),
    ],
)
def test_scheme_wins_over_ssl(url: str, ssl: bool, endpoint: Endpoint) -> None:
    """`ssl` decides only where the URL has no scheme; ports and prefixes are as written."""
    assert bucket_of({**S3, "url": url, "ssl": ssl}, Policy()).access.endpoint == endpoint


@pytest.mark.parametrize(
    ("settings", "region"),
    [
        (S3, None),
        ({**S3, "region": "garage"}, "garage"),
        ({**S3, "url": "https://s3.eu-west-3.amazonaws.com"}, "eu-west-3"),
        ({**S3, "url": "https://s3.dualstack.us-gov-west-1.amazonaws.com"}, "us-gov-west-1"),
        ({**S3, "url": "https://s3.amazonaws.com"}, None),
    ],
)
def test_regions(settings: dict[str, Any], region: str | None) -> None:
    """The region is the request's, else what the host of AWS says, else unsaid."""
    assert bucket_of(settings, Policy()).access.region == region


@pytest.mark.parametrize("pattern", ["127.0.0.1", "127.0.0.1:9000", "*.example, 127.0.0.1"])
def test_listed_endpoint(pattern: str) -> None:
    """An endpoint that is on the list is fine."""
    bucket_of(S3, Policy(endpoints=tuple(pattern.split(", "))))


@pytest.mark.parametrize("pattern", ["127.0.0.1:9001", "localhost", "*.0.0.1:80", "example"])
def test_endpoint_that_is_not_listed(pattern: str) -> None:
    """An endpoint that is not on the list is refused before dispatch, and the error names the setting."""
    with pytest.raises(RequestRefused, match=r"127\.0\.0\.1:9000 is not allowed") as caught:
        bucket_of(S3, Policy(endpoints=(pattern,)))
    assert "CADOR_STORAGE_ENDPOINTS" in caught.value.hint


def test_gcs_must_be_listed_too() -> None:
    """A list of endpoints is a list of all: without Google's in it nothing goes to Google."""
    with pytest.raises(RequestRefused, match=r"storage\.googleapis\.com"):
        bucket_of(GCS, Policy(endpoints=("127.0.0.1",)), "GCS")
    bucket_of(GCS, Policy(endpoints=("storage.googleapis.com:443",)), "GCS")


@pytest.mark.parametrize(
    ("patterns", "is_allowed"), [(("bucket-*",), True), (("x", "bucket-a"), True), (("ucket-a",), False)]
)
def test_buckets(patterns: tuple[str, ...], is_allowed: bool) -> None:
    """Buckets are allowed by their whole name, `*` standing for any letters."""
    with nullcontext() if is_allowed else pytest.raises(RequestRefused, match="'bucket-a' is not allowed"):
        bucket_of(S3, Policy(buckets=patterns))


# --- Profiles ----------------------------------------------------------------------------------------------------

SECRETS = ProfileCredentials("archive", {"key": Value("k"), "secret": Value("s")})
PROFILES: dict[str, Profile] = {
    "archive": BucketProfile("archive", "S3", "bucket-a/b", Endpoint("https", "h", 443), None, SECRETS, None),
    "google": BucketProfile("google", "GCS", "bucket-a", None, None, SECRETS, None),
    "disk": FolderProfile("disk", "/data/out"),
}


def resolve_profile(settings: dict[str, Any]) -> PosixDestination | BucketDestination:
    request = check_storage(settings)
    assert request is not None
    # Lists that allow nothing: a profile is the operator's own word.
    destination = resolve(request, "t-1", Policy(endpoints=("x",), buckets=("x",), profiles=PROFILES))
    assert isinstance(destination, PosixDestination | BucketDestination)
    return destination


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"profile": "archive"}, "b/t-1_mask"),
        ({"profile": "archive", "containerPath": "c/d/"}, "b/c/d/t-1_mask"),
        ({"profile": "archive", "container_path": "c"}, "b/c/t-1_mask"),
        ({"profile": "google"}, "t-1_mask"),
        ({"profile": "google", "containerPath": "c"}, "c/t-1_mask"),
    ],
)
def test_bucket_profiles(settings: dict[str, Any], key: str) -> None:
    """A profile names bucket and folders, the request a path below; the reference has the profile, and no endpoint."""
    reference = resolve_profile(settings).reference("mask", None, media_type="image/png", size=1, sha256="00")
    assert (reference["bucket"], reference["key"], reference["profile"]) == ("bucket-a", key, settings["profile"])
    assert reference["containerPath"].partition("/")[0] == "bucket-a"
    assert "url" not in reference


@pytest.mark.parametrize(("settings", "path"), [({}, "/data/out/t-1_mask"), ({"folder": "c"}, "/data/out/c/t-1_mask")])
def test_folder_profiles(settings: dict[str, Any], path: str) -> None:
    """A profile's folder needs no root: it is one."""
    destination = resolve_profile({"profile": "disk", **settings})
    assert isinstance(destination, PosixDestination)
    assert destination.root == "/data/out"
    reference = destination.reference("mask", None, media_type="image/png", size=1, sha256="00")
    assert (reference["path"], reference["profile"]) == (path, "disk")


def test_unknown_profile() -> None:
    """A profile that isn't there is the caller's mistake, and the hint has those that are."""
    with pytest.raises(RequestRefused, match="no storage profile 'nowhere'") as caught:
        resolve_profile({"profile": "nowhere"})
    assert "archive, disk, google" in caught.value.hint


def test_path_below_a_profile_has_a_limit() -> None:
    """Profile and request together must not lead to a key that no store takes."""
    with pytest.raises(RequestRefused, match="too long"):
        resolve_profile({"profile": "archive", "containerPath": "x" * 768})


def test_destinations_show_no_credentials() -> None:
    """What may end up in a log has neither key nor secret nor token."""
    destination = bucket_of({**S3, "key": "hush-key", "secret": "hush-secret", "token": "hush-token"}, Policy())
    assert "hush" not in repr(destination)
    profile = ProfileCredentials("p", {"key": Value("hush-key"), "secret": Value("hush-secret")})
    assert "hush" not in repr(profile)


# --- Names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_name", ["", ".", "..", ".hidden", "../x", "a/b", "a b", "é", "x\n", "a" * 201, "a\0"])
def test_unsafe_task_ids(task_name: str) -> None:
    """A task id that can't be part of an object's name is the caller's mistake, found before dispatch."""
    with pytest.raises(RequestRefused, match="task id"):
        resolve(posix_request("/data"), task_name, DATA)
    with pytest.raises(RequestRefused, match="task id"):
        object_id(task_name, "mask", None)


@given(task_names, st.text(), st.none() | st.integers(0, 10_000))
def test_object_ids_are_safe(task_name: str, output: str, index: int | None) -> None:
    """Whatever the algorithm calls an output, the object's name is one plain segment, or the result (not the
    request) is refused."""
    try:
        name = object_id(task_name, output, index)
    except ResultRefused:
        return
    assert name.startswith(f"{task_name}_{output}")
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith(".")
    assert len(name.encode()) <= MAX_OBJECT_ID_BYTES


@given(st.lists(segments, min_size=1, max_size=5), segments, st.booleans())
def test_paths_stay_in_their_folder(folders: list[str], output: str, slash: bool) -> None:
    """The path of an object is its folder, one slash and its name, and the URI leads to the same path."""
    folder = "/" + "/".join(folders)
    request = check_storage({"POSIX": {"folder": folder + "/" * slash}})
    assert request is not None
    reference = name_destination(request, "t", Policy()).reference(
        output, None, media_type="image/png", size=0, sha256=""
    )
    assert reference["path"] == posixpath.normpath(reference["path"]) == f"{folder}/{reference['objectId']}"
    assert unquote(reference["uri"]) == f"file://{reference['path']}"


@given(st.lists(segments, min_size=1, max_size=5), segments, st.booleans())
def test_keys_stay_in_their_bucket(path: list[str], output: str, slash: bool) -> None:
    """Bucket and key are the container path and the object's name, cut at the first slash."""
    container_path = "/".join(path)
    request = check_storage({"S3": {**S3, "containerPath": container_path + "/" * slash}})
    assert request is not None
    reference = name_destination(request, "t", Policy()).reference(
        output, None, media_type="image/png", size=0, sha256=""
    )
    assert f"{reference['bucket']}/{reference['key']}" == f"{container_path}/{reference['objectId']}"
    assert "/" not in reference["bucket"]
    assert "" not in reference["key"].split("/")
