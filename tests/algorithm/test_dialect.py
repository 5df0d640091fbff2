"""What the algorithm's documents, links, errors and bytes mean, in both dialects."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.algorithm import sniff
from cador_trio.algorithm.dialect import (
    AlgorithmStatus,
    Describe,
    Origin,
    ResultRef,
    classify,
    error_text,
    job_link,
    read_describe,
    read_index,
    read_retry_after,
    read_status,
    results_link,
    status_link,
)
from cador_trio.errors import (
    AlgorithmBroken,
    AlgorithmBusy,
    AlgorithmDied,
    AlgorithmFailed,
    AlgorithmRefused,
    CadorError,
    SettingsError,
)

VECTORS = Path(__file__).parent / "vectors"
ORIGIN = Origin.from_url("http://127.0.0.1:8080")
HERE = "http://127.0.0.1:8080/api/v1/describe"
STATUS_URL = "http://127.0.0.1:8080/api/v1/jobs/2658562856/status"

PESTO_OUTPUT = {
    "properties": {
        "detections": {"type": "object"},
        "mask": {"$ref": "#/definitions/Image"},
        "chips": {"$ref": "#/definitions/Images"},
        "count": {"type": "integer"},
        "summary": {"type": "string"},
        "p99": {"type": "number"},
    },
}


def vector(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def describe(**members: Any) -> Describe:
    return read_describe(members, ORIGIN)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
# Arbitrary values under the keys that the readers look at, so that they get past the first look.
known_keys = st.sampled_from(
    [
        "_links",
        "_link",
        "execution",
        "config",
        "href",
        "link",
        "id",
        "type",
        "status",
        "progress",
        "input",
        "output",
        "properties",
        "content",
        "asynchronous",
        "name",
        "version",
        "$ref",
        "items",
        "message",
        "detail",
        "error",
        "msg",
    ]
)
odd_documents = st.recursive(
    json_values
    | st.sampled_from(["DONE", "failed", "http://h/a", "//x", "ftp://x", "http://[", "#/definitions/Image"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(known_keys | st.text(max_size=3), inner, max_size=6),
    max_leaves=30,
)


class TestOrigin:
    """Requests go to the configured origin and nowhere else."""

    @pytest.mark.parametrize(
        ("configured", "base"),
        [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/api/v1"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/api/v1"),
            ("http://algo:8080/api/v1", "http://algo:8080/api/v1"),
            ("https://Algo/tiles/api/v1/", "https://algo:443/tiles/api/v1"),
            ("http://[::1]:8080", "http://[::1]:8080/api/v1"),
        ],
    )
    def test_base_path_is_added_only_to_an_empty_path(self, configured: str, base: str) -> None:
        """`/api/v1` is added when the path is empty, and a given path stays."""
        assert Origin.from_url(configured).base == base

    @pytest.mark.parametrize(
        "configured",
        [
            "",
            "algo",
            "algo:8080",
            "ftp://algo",
            "http://",
            "http://algo:x",
            "http://[",
            "http://u:p@algo",
            "http://a?b=1",
            "http://algo#x",
            "http://algo/\udc80",
        ],
    )
    def test_a_server_that_is_no_plain_url_is_a_settings_error(self, configured: str) -> None:
        """What can't be requested is refused at the start, not at the first job."""
        with pytest.raises(SettingsError, match="PROCESSING_SERVER"):
            Origin.from_url(configured)

    @pytest.mark.parametrize(
        ("link", "pinned"),
        [
            ("http://algo:None/api/v1/process", "/api/v1/process"),
            ("https://evil.example/api/v1/jobs?x=1&y=%20#frag", "/api/v1/jobs?x=1&y=%20"),
            ("http://u:p@evil.example", "/"),
            ("//evil.example/x", "/x"),
            ("http://h//evil.example/x", "//evil.example/x"),
            ("/other/process", "/other/process"),
            ("process", "/api/v1/process"),
            ("./jobs/", "/api/v1/jobs/"),
            ("../../../../etc/passwd", "/etc/passwd"),
            ("http://h/a/../../b/./c/..", "/b/"),
            ("http://h/a/%2e%2E/b", "/b"),
            ("http://h/my mask/é?q= é", "/my%20mask/%C3%A9?q=%20%C3%A9"),
            ("http://h/jobs\\..\\x@y", "/jobs%5C..%5Cx@y"),
        ],
    )
    def test_only_path_and_query_of_a_link_are_taken(self, link: str, pinned: str) -> None:
        """Scheme, host, port, user info, dot segments and fragments of a link are not followed."""
        assert ORIGIN.pin(link, HERE) == "http://127.0.0.1:8080" + pinned

    @pytest.mark.parametrize(
        "link",
        [
            None,
            5,
            {},
            [],
            "",
            "  ",
            "ftp://h/x",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "algo:8080/x",
            "http://[",
            "/a\nb",
            "/a\x00",
            "/\ud800",
            "/" + "a" * 9_000,
        ],
    )
    def test_what_cannot_be_a_link_is_refused(self, link: Any) -> None:
        """A link that is no text, empty, of another scheme or with control characters breaks the answer."""
        with pytest.raises(AlgorithmBroken, match="link"):
            ORIGIN.pin(link, HERE)

    @pytest.mark.parametrize(
        ("link", "differs"),
        [
            ("http://127.0.0.1:8080/x", False),
            ("/x", False),
            (None, False),
            ("ftp://h/x", False),
            ("http://algo:None/x", True),
            ("http://127.0.0.1/x", True),
            ("https://127.0.0.1:8080/x", True),
        ],
    )
    def test_another_announced_origin_is_noticed(self, link: Any, differs: bool) -> None:
        """Links to another scheme, host or port are worth a line in the log; relative ones are not."""
        assert ORIGIN.differs(link) is differs

    def test_the_default_port_is_the_same_written_or_not(self) -> None:
        """`http://algo` and `http://algo:80` are one origin."""
        assert not Origin.from_url("http://algo").differs("http://ALGO:80/x")

    @given(st.text() | json_values)
    def test_any_link_is_pinned_or_refused(self, link: Any) -> None:
        """Whatever a link is, it ends on the origin or in AlgorithmBroken."""
        try:
            pinned = ORIGIN.pin(link, HERE)
        except AlgorithmBroken:
            return
        assert pinned.startswith("http://127.0.0.1:8080/")
        assert pinned.isascii()
        assert "/../" not in pinned.partition("?")[0]


class TestDescribe:
    """What is read from the describe document."""

    def test_a_document_of_the_plain_api(self) -> None:
        """Names, links and content of the vector are read; links go to the configured origin."""
        read = read_describe(vector("describe-facade"), ORIGIN)
        assert read.tagger == "Example Organisation.bright-target.0.3.1"
        assert read.asynchronous is False
        assert read.execution == "http://127.0.0.1:8080/api/v1/jobs"
        assert read.announces_another_origin
        assert read.health == "http://127.0.0.1:8080/api/v1/health"
        assert read.openapi == "http://127.0.0.1:8080/api/v1/openapi"
        assert read.output_content == ("application/geo+json",)
        assert read.output_names == frozenset()
        assert not read.whole_answer_is_image

    def test_a_document_of_pesto(self) -> None:
        """Images are found by `$ref`, outputs by their properties, the execution link leads to /process."""
        read = describe(
            asynchronous=True,
            input={"properties": {"image": {"$ref": "#/definitions/Image"}, "sigma": {"type": "number"}}},
            output=PESTO_OUTPUT | {"content": "a picture and some detections"},
            _links={
                "execution": {"href": "http://algo:None/api/v1/process", "type": "the inputs as JSON"},
                "config:": {"href": "http://algo/elsewhere"},
            },
        )
        assert read.asynchronous is True
        assert read.execution == "http://127.0.0.1:8080/api/v1/process"
        assert read.config == "http://127.0.0.1:8080/api/v1/config"
        assert read.input_images == {"image": False}
        assert read.output_images == {"mask": False, "chips": True}
        assert read.output_names == {"detections", "mask", "chips", "count", "summary", "p99"}
        assert read.output_numbers == {"count", "p99"}
        assert read.output_content == ()

    def test_links_that_are_missing_have_the_plain_apis_places(self) -> None:
        """Without links everything is below the base path, and executions go to /jobs."""
        read = describe()
        assert read.execution == "http://127.0.0.1:8080/api/v1/jobs"
        assert read.version_url == "http://127.0.0.1:8080/api/v1/version"
        assert read.metrics == "http://127.0.0.1:8080/api/v1/metrics"
        assert not read.announces_another_origin

    def test_a_nonsensical_helpful_link_is_replaced_and_an_execution_link_is_not(self) -> None:
        """Nobody guesses where to post a job; a page of health or version may be guessed."""
        assert describe(_links={"health": {"href": "ftp://x"}}).health == "http://127.0.0.1:8080/api/v1/health"
        with pytest.raises(AlgorithmBroken):
            describe(_links={"execution": {"href": "ftp://x"}})

    @pytest.mark.parametrize("value", [None, "true", 1, [], {}])
    def test_asynchronous_is_false_unless_it_is_true(self, value: Any) -> None:
        """Anything but the boolean true means stateless execution."""
        assert describe(asynchronous=value).asynchronous is False

    @pytest.mark.parametrize(
        ("output", "whole"),
        [
            ({"content": {"image/png": {}, "IMAGE/Tiff; x=1": "text"}}, True),
            ({"content": "image/png"}, True),
            ({"content": {"image/png": {}, "application/json": {}}}, False),
            ({"content": {"image/png": {}}, "properties": {"mask": {}}}, False),
            ({"content": {}}, False),
            ({"content": "an image"}, False),
            ([], False),
        ],
    )
    def test_a_whole_answer_is_an_image_by_content_alone(self, output: Any, whole: bool) -> None:
        """Only image/* as content and no named outputs: then an answer is one bare image."""
        assert describe(output=output).whole_answer_is_image is whole

    def test_a_tagger_leaves_out_what_is_missing(self) -> None:
        """No empty parts in `organization.name.version`, and a version that is a number is a text."""
        assert describe(name="ships", version=1.5, keywords="text", organization=None).tagger == "ships.1.5"

    @pytest.mark.parametrize("document", [None, [], "x", 5])
    def test_a_document_that_is_no_object_is_broken(self, document: Any) -> None:
        """There is nothing to read in it."""
        with pytest.raises(AlgorithmBroken, match="describe"):
            read_describe(document, ORIGIN)

    @given(odd_documents)
    def test_any_document_is_read_or_broken(self, document: Any) -> None:
        """No shape of the document raises anything but a CadorError."""
        try:
            read = read_describe(document, ORIGIN)
        except CadorError:
            return
        assert read.execution.startswith("http://127.0.0.1:8080/")


class TestStatefulExecution:
    """From the answer to the POST to the list of results."""

    @pytest.mark.parametrize(
        ("body", "headers", "link"),
        [
            (vector("algorithm-reference-pesto"), {}, "http://algo:8080/api/v1/jobs/2658562856/status"),
            (vector("algorithm-reference-spec"), {}, "http://algo:8080/api/v1/jobs/2658562856/status"),
            ({"_link": {"href": "/s"}}, {}, "/s"),
            ({"_links": {"self": {"href": "/j"}, "status": "/s"}}, {}, "/s"),
            ({"_links": [{"relation": "self", "href": "/j"}, {"rel": "status", "href": "/s"}, 5]}, {}, "/s"),
            (None, {"location": "/s"}, "/s"),
            ({"link": 5}, {"Location": "/s"}, "/s"),
            ({"link": ""}, {"X": "/s"}, None),
            ([], {}, None),
            ("text", {}, None),
        ],
    )
    def test_the_status_link_is_found_in_body_or_header(
        self, body: Any, headers: dict[str, str], link: str | None
    ) -> None:
        """`href`, `link`, `_link`, `_links`, then `Location`."""
        assert status_link(body, headers) == link

    def test_the_status_of_pesto(self) -> None:
        """RUNNING works, DONE is done and has a link."""
        running, done = map(read_status, vector("algorithm-status-pesto"))
        assert running == AlgorithmStatus("working", 0)
        assert done == AlgorithmStatus("done", 100, "http://algo:8080/api/v1/jobs/2658562856/results")

    def test_the_status_of_the_plain_api(self) -> None:
        """Three of the seven words are final."""
        states = [(status.state, status.progress) for status in map(read_status, vector("algorithm-status-spec"))]
        assert states == [
            ("working", 0),
            ("working", 0),
            ("working", 40),
            ("working", 40),
            ("done", 100),
            ("failed", 40),
            ("cancelled", 40),
        ]

    @pytest.mark.parametrize(
        ("progress", "read"),
        [
            (-5, 0),
            (250, 100),
            (39.9, 39),
            (10**400, 100),
            (float("nan"), 0),
            (float("inf"), 100),
            (True, 0),
            ("40", 0),
            (None, 0),
        ],
    )
    def test_progress_is_a_percentage_whatever_is_sent(self, progress: Any, read: int) -> None:
        """Cut to 0 to 100, and 0 for what is no number."""
        assert read_status({"status": "RUNNING", "progress": progress}).progress == read

    def test_words_are_read_in_any_case(self) -> None:
        """`Done`, `succeeded` and `failed` are as good as their capitals; unknown words mean ask again."""
        assert read_status({"status": "Done"}).state == "done"
        assert read_status({"status": " succeeded"}).state == "done"
        assert read_status({"status": "fAiled"}).state == "failed"
        assert read_status({"status": "UNHEARD-OF"}).state == "working"
        assert read_status({}).state == "working"

    def test_a_failure_says_why(self) -> None:
        """The text of a bad end is the algorithm's, or ours when it has none."""
        assert read_status({"status": "FAILED", "message": "no sensor"}).text == "no sensor"
        assert read_status({"status": "FAILED", "errorMsg": "no lens"}).text == "no lens"
        assert read_status({"status": "CANCELLED"}).text == "the algorithm's job was cancelled"

    @pytest.mark.parametrize(
        ("status_url", "results", "job"),
        [
            (
                "http://status:1/status/jobs/1/status",
                "http://status:1/status/jobs/1/results",
                "http://status:1/status/jobs/1",
            ),
            ("http://h/jobs/1/status/?x=1", "http://h/jobs/1/results", "http://h/jobs/1"),
            ("http://h/jobs/1", "http://h/jobs/1/results", "http://h/jobs/1"),
        ],
    )
    def test_links_are_derived_by_the_last_segment_only(self, status_url: str, results: str, job: str) -> None:
        """A `status` in the host or further up in the path stays."""
        assert results_link(status_url, AlgorithmStatus("done")) == results
        assert job_link(status_url) == job

    def test_the_link_of_the_status_is_preferred(self) -> None:
        """A status that says where its results are is believed."""
        assert results_link(STATUS_URL, AlgorithmStatus("done", 100, "/elsewhere")) == "/elsewhere"

    def test_the_index_of_pesto_is_unfolded(self) -> None:
        """List items come in numerical order, and `p99` is an output, not item 99 of `p`."""
        refs = read_index(vector("algorithm-results-pesto"), describe(output=PESTO_OUTPUT))
        base = "http://algo:8080/api/v1/jobs/2658562856/results"
        chips = [ResultRef("chips", n, f"chips{n}", f"{base}/chips{n}") for n in range(12)]
        names = ["count", "detections", "mask", "p99", "summary"]
        assert refs == chips + [ResultRef(name, None, name, f"{base}/{name}") for name in names]

    def test_the_index_of_the_plain_api(self) -> None:
        """Ids, links and media types are read."""
        refs = read_index(vector("algorithm-results-spec"), describe())
        assert [(ref.output, ref.index, ref.media_type) for ref in refs] == [
            ("detections", None, "application/geo+json"),
            ("mask", None, "image/png"),
        ]

    @pytest.mark.parametrize(
        ("index", "names", "found"),
        [
            # Two outputs fold into one key of the index.
            ({"p": ["/r/p1", "/r/p99"]}, ["p1", "p99"], [("p1", None), ("p99", None)]),
            # The name of a list ends in a digit.
            ({"band": ["/r/band20", "/r/band21"]}, ["band2"], [("band2", 0), ("band2", 1)]),
            ({"chips": ["/r/chips10", "/r/chips9"]}, ["chips"], [("chips", 9), ("chips", 10)]),
            # Describe has no names: the index itself has to do.
            ({"chips": ["/r/chips10", "/r/chips9"]}, [], [("chips", 9), ("chips", 10)]),
            ({"chips": ["/r/b", "/r/a"], "mask": "/r/77"}, [], [("chips", 0), ("chips", 1), ("mask", None)]),
            ({"my mask": {"href": "/r/my%20mask?x=1"}}, ["my mask"], [("my mask", None)]),
            ([{"id": 5, "_link": "/r/5"}, {"id": "chips0", "href": "/r/x"}], ["chips"], [("5", None), ("chips", 0)]),
            ({}, [], []),
            ([], [], []),
        ],
    )
    def test_names_are_found(self, index: Any, names: list[str], found: list[tuple[str, int | None]]) -> None:
        """Describe's names decide, then the index's keys."""
        refs = read_index(index, describe(output={"properties": {name: {} for name in names}}))
        assert [(ref.output, ref.index) for ref in refs] == found

    @pytest.mark.parametrize(
        "index",
        [
            None,
            "x",
            5,
            {"a": 5},
            {"a": None},
            {"a": {}},
            {"a": "http://h/"},
            [5],
            [{"id": "a"}],
            [{"id": "a", "_link": {"href": 5}}],
            {"a": "/r/a", "b": "/r/mask", "c": "/r/mask"},
            {"a": "/r/chips", "b": ["/r/chips0"]},
            {"a": ["/r/chips0"], "b": "/r/chips"},
            {"a": ["/r/chips0", "/r/chips00"]},
        ],
    )
    def test_an_index_that_makes_no_sense_is_broken(self, index: Any) -> None:
        """No link, no id, or one name twice: nobody guesses which result is meant."""
        with pytest.raises(AlgorithmBroken, match="index of results"):
            read_index(index, describe(output=PESTO_OUTPUT))

    @given(odd_documents)
    def test_any_status_and_index_is_read_or_broken(self, document: Any) -> None:
        """No shape raises anything but a CadorError, and no two results have one name and place."""
        for read in (lambda: read_status(document), lambda: status_link(document, {})):
            with contextlib.suppress(CadorError):
                read()
        try:
            refs = read_index(document, describe(output=PESTO_OUTPUT))
        except CadorError:
            return
        assert len({(ref.output, ref.index) for ref in refs}) == len(refs)


class TestErrors:
    """What an error answer says, and who must act."""

    @pytest.mark.parametrize(
        ("media_type", "body", "text"),
        [
            ("application/json", b'{"error": "c", "detail": "b", "message": "a"}', "a"),
            ("application/json", b'{"error": "c", "detail": "b", "message": ""}', "b"),
            ("application/json", b'{"error": "c", "detail": []}', "c"),
            (
                "application/json",
                b'{"detail": [{"loc": ["body"], "msg": "one"}, {"msg": "two"}, 5, "three"]}',
                "one; two; three",
            ),
            ("application/json", b'{"error": {"code": 5, "message": "inner"}}', "inner"),
            ("application/json", b'"just text"', "just text"),
            ("application/json", b'{"detail": "cut off he', "Reason"),
            ("application/json", b"{}", "Reason"),
            ("application/json", b'{"a":' * 100_000, "Reason"),
            ("text/plain; charset=utf-8", b"\n Internal Server Error\nTraceback", "Internal Server Error"),
            ("text/plain", b'{"detail": "typed wrongly"}', "typed wrongly"),
            ("text/plain", b"\xff\xfe", "\ufffd\ufffd"),
            ("", b"[gdal] no such file", "[gdal] no such file"),
            ("text/html", b"<html><h1>Bad Gateway</h1></html>", "Reason"),
            ("text/html", b"Bad Gateway page", "Reason"),
            ("text/plain", b"<!doctype html>", "Reason"),
            ("image/png", b"\x89PNG", "Reason"),
            ("", b"", "Reason"),
        ],
    )
    def test_the_text_of_an_error_answer(self, media_type: str, body: bytes, text: str) -> None:
        """`message`, `detail`, `error`, the first line of a text, the reason phrase; HTML is never quoted."""
        assert error_text(500, media_type, body, "Reason") == text

    def test_there_is_always_a_text(self) -> None:
        """Without a reason phrase the standard one is taken, and unknown codes have one too."""
        assert error_text(502, "", b"", "") == "Bad Gateway"
        assert error_text(599, "", b"", " ") == "no reason given"

    def test_a_long_text_is_cut(self) -> None:
        """PESTO quotes whole schemas; what leaves the process is at most 2,000 characters."""
        assert len(error_text(500, "application/json", json.dumps({"detail": "x" * 6_000}).encode(), "")) == 2_000

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (300, AlgorithmBroken),
            (307, AlgorithmBroken),
            (400, AlgorithmRefused),
            (404, AlgorithmRefused),
            (408, AlgorithmDied),
            (422, AlgorithmRefused),
            (429, AlgorithmBusy),
            (500, AlgorithmFailed),
            (501, AlgorithmFailed),
            (502, AlgorithmDied),
            (503, AlgorithmBusy),
            (504, AlgorithmDied),
            (100, AlgorithmBroken),
            (600, AlgorithmBroken),
        ],
    )
    def test_every_status_says_who_must_act(self, status: int, error: type[CadorError]) -> None:
        """One error of the tree for each status."""
        assert type(classify(status, "text")) is error

    @pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
    def test_success_is_no_error(self, status: int) -> None:
        """All of 2xx is fine."""
        assert classify(status, "") is None

    def test_a_lost_job_is_not_the_requests_fault(self) -> None:
        """A 404 for a status or result fails the job; only a 4xx for the request itself refuses it."""
        assert type(classify(404, "text", follow_up=True)) is AlgorithmFailed
        assert type(classify(429, "text", follow_up=True)) is AlgorithmBusy

    def test_the_message_is_the_contracts(self) -> None:
        """Status and the algorithm's own words, as in the vector of a failed job."""
        detail = "Error while processing, see logs for more details : sensor exploded"
        text = error_text(500, "application/json", json.dumps({"detail": detail}).encode(), "Internal Server Error")
        error = classify(500, text)
        assert error is not None
        assert error.message == vector("status-failed")["errMsg"]

    def test_busy_carries_the_algorithms_patience(self) -> None:
        """`Retry-After` goes into the error."""
        error = classify(503, "text", retry_after=7.0)
        assert error is not None
        assert error.retry_after == 7.0

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("120", 120.0),
            (" 0 ", 0.0),
            ("9" * 400, 3_600.0),
            ("Tue, 24 Nov 2026 14:00:30 GMT", 30.0),
            ("Tue, 24 Nov 2026 14:00:30 -0000", 30.0),
            ("Tue, 24 Nov 2026 13:00:00 GMT", 0.0),
            ("Tue, 24 Nov 2036 13:00:00 GMT", 3_600.0),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("٣", None),
            ("", None),
            (None, None),
        ],
    )
    def test_retry_after_is_seconds_or_a_date(self, value: str | None, seconds: float | None) -> None:
        """Both forms are read, cut to an hour; anything else counts as absent."""
        assert read_retry_after(value, now=1_795_528_800.0) == seconds  # Tue, 24 Nov 2026 14:00:00 GMT

    def test_a_date_without_a_zone_is_not_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`-0000` is UTC, wherever the daemon runs."""
        monkeypatch.setenv("TZ", "JST-9")
        time.tzset()
        try:
            assert read_retry_after("Tue, 24 Nov 2026 14:00:30 -0000", now=1_795_528_800.0) == 30.0
        finally:
            monkeypatch.undo()
            time.tzset()

    @given(
        st.integers(0, 1_000), st.text(), st.binary() | odd_documents.map(lambda v: json.dumps(v).encode()), st.text()
    )
    def test_any_error_answer_has_a_text(self, status: int, media_type: str, body: bytes, reason: str) -> None:
        """No body, media type or reason raises, and the text is never empty."""
        assert 0 < len(error_text(status, media_type, body, reason)) <= 2_000

    @given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
    def test_any_retry_after_is_bounded(self, value: str, now: float) -> None:
        """Whatever the header holds, nobody waits longer than an hour."""
        seconds = read_retry_after(value, now)
        assert seconds is None or 0 <= seconds <= 3_600


class TestBytes:
    """What an answer is, by its media type, by describe, by its first bytes."""

    @pytest.mark.parametrize(
        ("media_type", "head", "is_image", "kind"),
        [
            ("application/json; charset=utf-8", b"{}", False, "json"),
            ("application/geo+json", b"{}", True, "json"),
            ("Application/Vnd.X+JSON", b"", False, "json"),
            ("image/png", b"II*\x00", False, "image"),
            ("image/x-unheard-of", b"", False, "image"),
            ("text/plain", b"104.5", False, "text"),
            ("text/plain", b"[1]", True, "text"),
            ("text/plain", b"II*\x00", True, "image"),
            ("text/plain", b"II*\x00", False, "text"),
            ("application/octet-stream", b"II+\x00", False, "image"),
            ("application/octet-stream", b"?", True, "image"),
            ("application/octet-stream", b" \n{", False, "json"),
            ("", b"[1]", False, "json"),
            ("", b"", False, "bytes"),
            ("application/zip", b"{", False, "bytes"),
            ("application/x-hdf5", b"\x89HDF\r\n\x1a\n", False, "image"),
        ],
    )
    def test_the_kind_of_an_answer(self, media_type: str, head: bytes, is_image: bool, kind: str) -> None:
        """The media type first, then describe, then the bytes."""
        assert sniff.decide(media_type, head, is_image=is_image) == kind

    def test_a_page_is_no_answer(self) -> None:
        """HTML comes from a proxy or a wrong address, and is never a result."""
        with pytest.raises(AlgorithmBroken, match="HTML"):
            sniff.decide("text/html; charset=utf-8", b"<html>", is_image=False)

    @pytest.mark.parametrize(
        ("head", "media_type"),
        [
            (b"\x89PNG\r\n\x1a\n....", "image/png"),
            (b"\xff\xd8\xff\xe0", "image/jpeg"),
            (b"MM\x00*", "image/tiff"),
            (b"II+\x00\x08\x00", "image/tiff"),
            (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "image/jp2"),
            (b"GIF89a", "image/gif"),
            (b"RIFF\x10\x00\x00\x00WEBP", "image/webp"),
            (b"CDF\x02", "application/x-netcdf"),
            (b"\x89HDF\r\n\x1a\n", "application/x-hdf5"),
            (b"", None),
            (b"PNG", None),
        ],
    )
    def test_first_bytes_name_the_media_type(self, head: bytes, media_type: str | None) -> None:
        """The usual raster formats are known by their signatures."""
        assert sniff.sniff_media_type(head) == media_type

    def test_bytes_are_believed_before_the_header(self) -> None:
        """PESTO announces image/png for TIFF bytes."""
        assert sniff.image_media_type("image/png", b"II*\x00") == "image/tiff"
        assert sniff.image_media_type("Image/X-New; q=1", b"?") == "image/x-new"
        assert sniff.image_media_type("", b"?") == "application/octet-stream"

    def test_numbers_sent_as_text_are_numbers(self) -> None:
        """PESTO sends a `number` as plain text; a text stays a text even if it looks like a number."""
        assert sniff.text_value("104.5", is_number=True) == 104.5
        assert sniff.text_value("7\n", is_number=True) == 7
        assert sniff.text_value("7", is_number=False) == "7"

    @pytest.mark.parametrize(
        "text", ["nan", "NaN", "Infinity", "1e999", "true", "null", '"5"', "[5]", "", "5 px", "[" * 9_999]
    )
    def test_a_number_that_is_none_is_broken(self, text: str) -> None:
        """What is no finite number can't be passed on as one."""
        with pytest.raises(AlgorithmBroken, match="number"):
            sniff.text_value(text, is_number=True)

    def test_the_mask_of_the_vector_is_found_without_describe(self) -> None:
        """A base64 text that starts like a PNG is an image, and decodes to the vector's 36 bytes."""
        answer = vector("algorithm-stateless-answer")
        assert sniff.inline_images(answer, {}) == ["mask"]
        pixels = sniff.decode_base64_image(answer["mask"])
        assert len(pixels) == 36
        assert sniff.sniff_media_type(pixels) == "image/png"

    def test_images_inside_an_answer(self) -> None:
        """Describe tells, or the first characters do; what describe calls an image but is no text stays."""
        png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
        answer = {
            "told": "AAAA",
            "told_list": ["AAAA", "BBBB"],
            "told_null": None,
            "told_empty": [],
            "told_uri": "s3://bucket/mask.tif",
            "told_object": {"href": "x"},
            "list": [png, png],
            "mixed": [png, "no"],
            "url": f"data:image/png;name=x;base64,{png}",
            "lines": png[:20] + "\r\n" + png[20:],
            "short": png[:28],
            "text": "iVBORw0KGgo! is how every PNG starts in base64",
            "number": 5,
            "empty": [],
            "nested": {"mask": png},
        }
        told = {name: name == "told_list" for name in answer if name.startswith("told")}
        assert sniff.inline_images(answer, told) == ["told", "told_list", "list", "url", "lines"]

    def test_base64_is_decoded_with_line_breaks_and_as_a_data_url(self) -> None:
        """MIME line breaks and `data:` URLs are usual ways to send an image."""
        assert sniff.decode_base64_image("aGVs\r\nbG8=\n") == b"hello"
        assert sniff.decode_base64_image("data:image/png;base64,aGVsbG8=") == b"hello"
        assert sniff.data_url_media_type("data:Image/PNG;base64,aGVsbG8=") == "image/png"
        assert sniff.data_url_media_type("aGVsbG8=") == ""

    @pytest.mark.parametrize(
        "text", ["", "\n", "aGVsbG8", "aGVsb_8=", "aGVs!bG8=", "é", "aGVs=bG8", "data:image/png,x", "data:;base64,"]
    )
    def test_what_is_not_base64_is_broken(self, text: str) -> None:
        """An image that was cut short or garbled is not made into other bytes."""
        with pytest.raises(AlgorithmBroken, match="image"):
            sniff.decode_base64_image(text)

    @given(st.binary(min_size=1, max_size=200), st.integers(1, 80))
    def test_what_was_encoded_comes_back(self, pixels: bytes, width: int) -> None:
        """Decoding is the inverse of encoding, wherever the lines are broken."""
        text = base64.b64encode(pixels).decode()
        lines = "\n".join(text[start : start + width] for start in range(0, len(text), width))
        assert sniff.decode_base64_image(lines) == pixels

    @given(st.dictionaries(st.text(), json_values, max_size=4), st.text())
    def test_any_answer_is_looked_through(self, answer: dict[str, Any], text: str) -> None:
        """No value makes the search raise, and a text decodes or is broken."""
        sniff.inline_images(answer, {})
        sniff.inline_images(answer, dict.fromkeys(answer, False))
        with contextlib.suppress(AlgorithmBroken):
            sniff.decode_base64_image(text)
