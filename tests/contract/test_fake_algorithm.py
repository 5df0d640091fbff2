"""The fake algorithm does what its script says: tests that lean on it may trust it.

Asked with httpx over loopback, on the real clock, without any of the product's code. Nothing here sleeps: order comes
from `Hold`, and what the fake notices is waited for.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    AnswerText,
    Behaviour,
    CloseBeforeAnswer,
    CloseMidAnswer,
    FakeAlgorithm,
    Hang,
    Hold,
    Html,
    Pattern,
    Reply,
    SeenRequest,
    SlowTrickle,
    Stateful,
    Status,
    Step,
    WrongLength,
    minimal_describe,
    open_fake_algorithm,
    sample_answer,
    sample_outputs,
)

BACKSTOP = 30  # seconds; only a test that hangs meets it
FIRST_SPEC_JOB = "00000000-0000-0000-0000-000000000001"


@asynccontextmanager
async def algorithm(
    script: Iterable[Step] = (), **options: Any
) -> AsyncIterator[tuple[FakeAlgorithm, httpx.AsyncClient]]:
    """A fake and a client of it."""
    with trio.fail_after(BACKSTOP):
        async with (
            open_fake_algorithm(script, **options) as fake,
            httpx.AsyncClient(base_url=fake.url, timeout=None, trust_env=False) as client,
        ):
            yield fake, client


async def collect(answer: httpx.Response, body: bytearray) -> None:
    async for chunk in answer.aiter_raw():
        body += chunk


@asynccontextmanager
async def post(fake: FakeAlgorithm) -> AsyncIterator[trio.SocketStream]:
    """An execution without an HTTP client: what comes back is the wire itself."""
    async with await trio.open_tcp_stream("127.0.0.1", fake.port) as stream:
        await stream.send_all(b"POST /api/v1/jobs HTTP/1.1\r\nHost: algo\r\nContent-Length: 0\r\n\r\n")
        yield stream


# --- Answers -----------------------------------------------------------------------------------------------------


async def test_a_request_is_recorded_and_answered() -> None:
    """Without a script every execution is answered with the sample outputs, and what came in can be looked at."""
    async with algorithm() as (fake, client):
        answer = await client.post("/jobs?debug=1", json={"image": "x"}, headers={"X-Correlation-ID": "c-1"})
        assert (answer.status_code, answer.json()) == (200, sample_answer())
        assert base64.b64decode(answer.json()["mask"]) == b"".join(Pattern(3_000).blocks())
        (seen,) = fake.requests
        assert (seen.method, seen.path) == ("POST", "/api/v1/jobs?debug=1")
        assert (seen.json(), seen.size) == ({"image": "x"}, len(seen.body))
        assert seen.headers["x-correlation-id"] == "c-1"


async def test_of_a_large_request_only_the_size_is_kept() -> None:
    """A body past the limit is counted and thrown away."""
    async with algorithm() as (fake, client):
        await client.post("/jobs", content=bytes(2_000_000))
        assert (fake.requests[0].size, fake.requests[0].body) == (2_000_000, b"")


async def test_the_script_comes_first_and_then_the_default() -> None:
    """Each execution takes one step of the script; when it is used up, the default is met for ever."""
    async with algorithm([Answer(1), Answer(2)], default=Answer(0)) as (_, client):
        assert [(await client.post("/jobs")).json() for _ in range(4)] == [1, 2, 0, 0]


async def test_a_step_may_look_at_the_request() -> None:
    """A function in the script chooses the behaviour by what was asked."""

    def echo(request: SeenRequest) -> Behaviour:
        return Answer({"seen": request.json()})

    async with algorithm(default=echo) as (_, client):
        assert (await client.post("/jobs", json=[1, 2])).json() == {"seen": [1, 2]}


@pytest.mark.parametrize(
    ("reply", "media_type", "body"),
    [
        (Answer({"features": []}, media_type="application/geo+json"), "application/geo+json", b'{"features": []}'),
        (Answer([1, 2], chunked=True), "application/json", b"[1, 2]"),
        (Answer(2.5), "application/json", b"2.5"),
        (AnswerText("one vessel"), "text/plain; charset=utf-8", b"one vessel"),
        (Reply(body=b"\0\1", media_type="application/octet-stream"), "application/octet-stream", b"\0\1"),
    ],
)
async def test_an_answer_without_names(reply: Reply, media_type: str, body: bytes) -> None:
    """A GeoJSON object, an array, a number, a text or bytes can be the whole answer."""
    async with algorithm([reply]) as (_, client):
        answer = await client.post("/jobs")
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, media_type, body)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 5, 65_536, 10_000_001])
async def test_an_image_of_any_size_has_a_known_digest(size: int, chunked: bool) -> None:
    """A bare image is generated while it is sent, and its digest can be computed without it."""
    async with algorithm([AnswerImage(size, "image/tiff", chunked=chunked)]) as (_, client):
        answer = await client.post("/jobs")
        assert ("content-length" in answer.headers) is not chunked
        assert len(answer.content) == size
        assert hashlib.sha256(answer.content).hexdigest() == Pattern(size, "image/tiff").sha256


@pytest.mark.parametrize(("media_type", "start"), [("image/png", b"\x89PNG"), ("image/tiff", b"II*\0")])
async def test_an_image_begins_like_one(media_type: str, start: bytes) -> None:
    """The first bytes tell the same format as the media type."""
    async with algorithm([AnswerImage(100, media_type)]) as (_, client):
        answer = await client.post("/jobs")
        assert answer.headers["content-type"] == media_type
        assert answer.content.startswith(start)


async def test_requests_share_a_connection() -> None:
    """A connection is kept for the next request, however large the answer was, until its client closes it."""
    async with algorithm([Answer(1), AnswerImage(300_000), Answer(2)]) as (fake, client):
        for _ in range(3):
            await client.post("/jobs")
            assert fake.open_connections == 1
        await client.aclose()
        await fake.wait_until(lambda: fake.open_connections == 0)


# --- Work that takes its time ------------------------------------------------------------------------------------


async def test_held_requests_are_released_in_any_order() -> None:
    """A request is held until the test says so, and the others stay held."""

    async def ask(client: httpx.AsyncClient, expected: str) -> None:
        assert (await client.post("/jobs")).json() == expected

    async with algorithm([Hold(Answer("first")), Hold(Answer("second"))]) as (fake, client), trio.open_nursery() as one:
        one.start_soon(ask, client, "first")
        await fake.wait_for_request(1, "POST")
        async with trio.open_nursery() as other:
            other.start_soon(ask, client, "second")
            await fake.wait_for_request(2, "POST")
            assert fake.held == 2
            fake.release(1)
        assert fake.held == 1
        fake.release()


async def test_a_client_that_leaves_does_not_stop_the_work() -> None:
    """PESTO is busy until the work is done, whoever still waits for it, and then takes the next request."""
    async with algorithm([Hold(Answer(1)), Answer(2)], dialect="pesto") as (fake, client):
        async with trio.open_nursery() as caller:
            caller.start_soon(client.post, "/process")
            await fake.wait_for_request(1, "POST")
            caller.cancel_scope.cancel()
        await fake.wait_until(lambda: fake.open_connections == 0)
        busy = await client.post("/process")
        assert (busy.status_code, busy.json()) == (429, {"detail": "busy with another job"})
        assert "retry-after" not in busy.headers
        fake.release()
        assert (await client.post("/process")).json() == 2


async def test_further_requests_are_told_that_all_slots_are_taken() -> None:
    """The Geo Process API's word for busy is 503."""
    async with algorithm() as (fake, client):
        fake.slots = 0
        answer = await client.post("/jobs")
        assert (answer.status_code, answer.json()) == (503, {"message": "busy with another job"})


async def test_a_hanging_request_is_never_answered() -> None:
    """Nothing comes, the connection stays open, and a client that gives up is noticed."""
    async with algorithm([Hang()]) as (fake, client):
        async with trio.open_nursery() as caller:
            caller.start_soon(client.post, "/jobs")
            await fake.wait_for_request(1, "POST")
            assert (fake.open_connections, fake.held) == (1, 0)
            caller.cancel_scope.cancel()
        await fake.wait_until(lambda: fake.open_connections == 0)


async def test_a_trickle_sends_piece_by_piece() -> None:
    """The first bytes arrive long before the rest."""
    async with algorithm([SlowTrickle(AnswerText("trickle"), piece=2, every=3_600)]) as (fake, _), post(fake) as stream:
        received = b""
        while not received.endswith(b"tr"):
            received += await stream.receive_some()
    assert b"content-length: 7\r\n" in received.lower()
    assert received.endswith(b"\r\n\r\ntr")


# --- Misbehaviour ------------------------------------------------------------------------------------------------


async def test_it_can_close_before_it_answers() -> None:
    """The request is taken, and then there is nobody."""
    async with algorithm([CloseBeforeAnswer()]) as (fake, client):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/jobs")
        assert len(fake.requests) == 1


@pytest.mark.parametrize("reply", [Answer({"count": 3}), AnswerImage(200_000), AnswerImage(200_000, chunked=True)])
@pytest.mark.parametrize("after", [0, 5])
async def test_it_can_die_in_the_middle_of_an_answer(reply: Reply, after: int) -> None:
    """Exactly so many bytes of the body come, and then there is nobody."""
    body = bytearray()
    async with algorithm([CloseMidAnswer(after, reply)]) as (_, client), client.stream("POST", "/jobs") as answer:
        with pytest.raises(httpx.RemoteProtocolError):
            await collect(answer, body)
    assert body == b"".join(reply.pieces())[:after]


async def test_it_can_announce_more_than_it_sends() -> None:
    """The whole body comes, and its end never does."""
    body, reply = bytearray(), WrongLength(100, AnswerText("short"))
    async with algorithm([reply]) as (_, client), client.stream("POST", "/jobs") as answer:
        assert answer.headers["content-length"] == "100"
        with pytest.raises(httpx.RemoteProtocolError):
            await collect(answer, body)
    assert body == b"short"


async def test_it_can_send_more_than_it_announces() -> None:
    """All bytes are on the wire, although a client of good faith reads only what was announced."""
    async with algorithm([WrongLength(3, AnswerText("longer"))]) as (fake, _), post(fake) as stream:
        answer = b"".join([chunk async for chunk in stream])
    assert b"content-length: 3\r\n" in answer.lower()
    assert answer.endswith(b"\r\n\r\nlonger")


async def test_it_can_answer_html() -> None:
    """A page of some proxy comes where data was expected."""
    async with algorithm([Html(502)]) as (_, client):
        answer = await client.post("/jobs")
        assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html; charset=utf-8")


async def test_it_can_answer_any_status() -> None:
    """A code comes with a JSON body, a text or nothing, and with Retry-After as given."""
    steps = [Status(400, {"message": "no"}), Status(500, text="no"), Status(503, retry_after=7), Status(204)]
    async with algorithm(steps) as (_, client):
        answers = [await client.post("/jobs") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [400, 500, 503, 204]
    assert [answer.content for answer in answers] == [b'{"message": "no"}', b"no", b"", b""]
    assert [answer.headers.get("retry-after") for answer in answers] == [None, None, "7", None]


async def test_what_is_no_http_ends_the_connection() -> None:
    """Garbage harms nobody else."""
    async with algorithm() as (fake, client):
        async with await trio.open_tcp_stream("127.0.0.1", fake.port) as stream:
            await stream.send_all(b"\0\0\0\r\n\r\n")
            assert await stream.receive_some() == b""
        assert (await client.get("/health")).text == "OK"


# --- Describe and its neighbours ---------------------------------------------------------------------------------


async def test_describe_links_to_what_exists() -> None:
    """The links of the Geo Process API's dialect lead to answers."""
    async with algorithm() as (_, client):
        links = (await client.get("/describe")).json()["_links"]
        assert links["execution"]["href"] == str(client.base_url.join("jobs"))
        assert (await client.put(links["config"]["href"], json={"zoom": 3})).status_code == 200
        assert (await client.get(links["config"]["href"])).json() == {"zoom": 3}
        assert (await client.put(links["config"]["href"], content=b"zoom")).status_code == 400
        texts = [(await client.get(links[name]["href"])).text for name in ("version", "health", "metrics")]
        assert texts == ["1.0.0", "OK", '{"jobs": 0}']
        assert (await client.get("/openapi")).text.startswith("openapi: 3.0.0")
        assert (await client.get("/nowhere")).status_code == 404


async def test_pesto_announces_what_it_does_not_have() -> None:
    """PESTO executes at `/process`, says its version in JSON, and its link to config leads nowhere."""
    async with algorithm(dialect="pesto") as (_, client):
        links = (await client.get("/describe")).json()["_links"]
        assert links["execution"]["href"].endswith("/api/v1/process")
        assert (await client.get(links["version"]["href"])).json() == {"version": "1.0.0"}
        assert (await client.get(links["config"]["href"])).status_code == 404
        assert (await client.get("/metrics")).json() == {"detail": "Not Found"}


async def test_links_have_the_origin_that_was_asked_for() -> None:
    """Links follow the Host header (PESTO writes an absent port as `None`), unless an origin was set."""
    async with algorithm(dialect="pesto") as (fake, client):

        async def execution(host: str) -> str:
            describe = (await client.get("/describe", headers={"Host": host})).json()
            return str(describe["_links"]["execution"]["href"])

        assert await execution("algo:80") == "http://algo:80/api/v1/process"
        assert await execution("algo") == "http://algo:None/api/v1/process"
        fake.link_origin = "http://elsewhere.example"
        assert await execution("algo") == "http://elsewhere.example/api/v1/process"
        fake.link_origin = ""
        assert await execution("algo") == "/api/v1/process"


async def test_describe_can_be_replaced_and_can_fail() -> None:
    """A new document is served at once; its own links stay; a behaviour in its place is met instead."""
    async with algorithm() as (fake, client):
        fake.describe = minimal_describe(whole="image/png") | {"version": "2.0.0", "_links": {}}
        describe = (await client.get("/describe")).json()
        assert (describe["version"], describe["_links"]) == ("2.0.0", {})
        assert describe["output"]["content"] == {"image/png": {}}
        fake.describe = Status(500, {"message": "no"})
        assert (await client.get("/describe")).status_code == 500


def test_a_minimal_describe_tells_outputs_in_its_dialect() -> None:
    """PESTO's output is a schema, the Geo Process API's a table of media types."""
    pesto = minimal_describe(pesto=True, asynchronous=True, outputs=["mask", "chips"])
    assert pesto["asynchronous"]
    assert pesto["output"]["properties"] == {
        "mask": {"$ref": "#/definitions/Image"},
        "chips": {"$ref": "#/definitions/Images"},
    }
    spec = minimal_describe(outputs=["count"])
    assert spec["output"]["content"]["application/json"]["properties"] == {"count": {"type": "integer"}}


# --- Stateful jobs -----------------------------------------------------------------------------------------------


async def test_a_job_as_the_geo_process_api_has_it() -> None:
    """Reference, states one a poll, an array of results, results by media type, deletions with 204."""
    outputs: dict[str, Behaviour] = {"mask": AnswerImage(50), "summary": AnswerText("one")}
    async with algorithm([Stateful(outputs, states=("ACCEPTED", "RUNNING", "SUCCEEDED"), code=202)]) as (fake, client):
        posted = await client.post("/jobs")
        status_url = posted.json()["href"]
        assert (posted.status_code, status_url) == (202, f"{fake.url}/jobs/{FIRST_SPEC_JOB}/status")
        states = [(await client.get(status_url)).json() for _ in range(4)]
        assert [state["status"] for state in states] == ["ACCEPTED", "RUNNING", "SUCCEEDED", "SUCCEEDED"]
        assert [state["progress"] for state in states] == [0, 0, 100, 100]

        job_url = status_url.removesuffix("/status")
        index = (await client.get(f"{job_url}/results")).json()
        assert [entry["id"] for entry in index] == ["mask", "summary"]
        mask, summary = [await client.get(entry["_link"]["href"]) for entry in index]
        assert (mask.headers["content-type"], summary.text) == ("image/png", "one")
        assert hashlib.sha256(mask.content).hexdigest() == Pattern(50).sha256

        assert (await client.delete(f"{job_url}/results/mask")).status_code == 204
        assert (await client.get(f"{job_url}/results/mask")).status_code == 404
        assert (await client.delete(f"{job_url}/results/mask")).status_code == 404
        assert (await client.delete(f"{job_url}/results")).status_code == 204
        assert (await client.delete(job_url)).status_code == 204
        assert (await client.delete(job_url)).status_code == 404
        assert (await client.get(status_url)).status_code == 500
        name = f"jobs/{FIRST_SPEC_JOB}"
        assert (fake.deleted, fake.jobs) == ([f"{name}/results/mask", f"{name}/results", name], {})
        assert fake.cancelled == []


async def test_a_running_job_is_cancelled_by_deleting_it() -> None:
    """Its state is CANCELLED from then on, and nothing counts as deleted."""
    async with algorithm([Stateful(states=("RUNNING",))]) as (fake, client):
        await client.post("/jobs")
        assert (await client.delete(f"/jobs/{FIRST_SPEC_JOB}")).status_code == 204
        assert (await client.get(f"/jobs/{FIRST_SPEC_JOB}/status")).json()["status"] == "CANCELLED"
        assert (fake.cancelled, fake.deleted) == ([FIRST_SPEC_JOB], [])


async def test_a_running_job_ends_when_the_test_says_so() -> None:
    """A job that runs for ever is finished, well or badly, from the next poll on."""
    async with algorithm([Stateful(states=("RUNNING",))]) as (fake, client):
        status_url = (await client.post("/jobs")).json()["href"]
        assert (await client.get(status_url)).json()["status"] == "RUNNING"
        fake.jobs[FIRST_SPEC_JOB].finish("FAILED")
        assert (await client.get(status_url)).json()["status"] == "FAILED"


async def test_a_job_can_misbehave_at_every_step() -> None:
    """The link in a header, any status document or reply, any index, and a result of any behaviour."""
    progress = {"status": "RUNNING", "progress": 40}
    script = Stateful(
        {"mask": CloseBeforeAnswer()}, states=(Html(), progress, "SUCCEEDED"), by_location=True, index=Answer(5)
    )
    async with algorithm([script]) as (_, client):
        posted = await client.post("/jobs")
        status_url = posted.headers["location"]
        assert posted.content == b""
        assert "html" in (await client.get(status_url)).text
        assert (await client.get(status_url)).json() == progress
        assert (await client.get(status_url)).json()["status"] == "SUCCEEDED"
        assert (await client.get(status_url.replace("/status", "/results"))).json() == 5
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(status_url.replace("/status", "/results/mask"))


async def test_a_job_as_pesto_has_it() -> None:
    """Link, DONE, a map with folded names sorted as text, `{}` for every deletion, and a job that stays."""
    describe = minimal_describe(pesto=True, asynchronous=True)
    async with algorithm(dialect="pesto", describe=describe) as (fake, client):
        status_url = (await client.post("/process")).json()["link"]
        (job_id,) = fake.jobs
        assert job_id.isdecimal()
        assert (await client.get("/jobs")).json() == {job_id: {"link": status_url}}
        status = (await client.get(status_url)).json()
        assert (status["status"], status["progress"]) == ("DONE", 100)

        results_url = status["link"]
        index = (await client.get(results_url)).json()
        assert list(index) == ["chips", "count", "detections", "mask", "p", "summary"]
        order = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
        assert index["chips"] == [f"{results_url}/chips{number}" for number in order]
        assert index["p"] == [f"{results_url}/p99"]
        assert len((await client.get(f"{results_url}/chips10")).content) == 110

        unknown = await client.get(f"{results_url}/chips")
        assert (unknown.status_code, unknown.headers["content-type"]) == (500, "application/json")
        for name in ("chips", *fake.jobs[job_id].results.copy()):
            deletion = await client.delete(f"{results_url}/{name}")
            assert (deletion.status_code, deletion.json()) == (200, {})
        assert len(fake.deleted) == 17
        assert (await client.get(status_url)).json() == {"status": "RUNNING", "progress": 0}
        assert (await client.delete(results_url)).status_code == 405
        assert (await client.delete(status_url.removesuffix("/status"))).status_code == 404


async def test_pesto_knows_no_job_without_results() -> None:
    """A job that produced nothing and a job that never was look the same."""
    async with algorithm([Stateful()], dialect="pesto") as (_, client):
        status_url = (await client.post("/process")).json()["link"]
        for url in (status_url, "/jobs/1/status", "/jobs/1/results"):
            answer = await client.get(url)
            assert (answer.status_code, answer.text) == (500, "Internal Server Error")


async def test_a_pesto_job_blocks_its_caller() -> None:
    """The Reference comes when the work is done, and until then no job is to be seen."""
    async with algorithm([Hold(Stateful(sample_outputs()))], dialect="pesto") as (fake, client):
        async with trio.open_nursery() as caller:

            async def ask() -> None:
                assert (await client.post("/process")).status_code == 200

            caller.start_soon(ask)
            await fake.wait_for_request(1, "POST")
            assert (await client.get("/jobs")).json() == {}
            fake.release()
        assert len(fake.jobs) == 1


# --- Coming and going --------------------------------------------------------------------------------------------


async def test_idle_connections_are_closed() -> None:
    """After its idle time (five seconds in PESTO) a connection is closed, and the next request makes a new one."""
    assert FakeAlgorithm(dialect="pesto").idle_seconds == 5.0
    async with algorithm(dialect="pesto") as (fake, client):
        fake.idle_seconds = 0.001
        await client.get("/health")
        await fake.wait_until(lambda: fake.open_connections == 0)
        assert (await client.get("/health")).text == "OK"


async def test_it_restarts_on_the_same_port() -> None:
    """Between `refuse_connections` and `accept_again` nobody listens and no old connection serves, twice in a row."""
    async with algorithm() as (fake, client):
        for _ in range(2):
            assert (await client.get("/health")).text == "OK"
            await fake.refuse_connections()
            assert fake.open_connections == 0
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")
            await fake.accept_again()
        assert (await client.get("/health")).text == "OK"


async def test_a_running_request_outlives_the_listener() -> None:
    """As on SIGTERM, what was begun is answered, and its connection closed."""
    async with algorithm([Hold(Answer(1))]) as (fake, client):
        async with trio.open_nursery() as caller:

            async def ask() -> None:
                assert (await client.post("/jobs")).json() == 1

            caller.start_soon(ask)
            await fake.wait_for_request(1, "POST")
            await fake.refuse_connections()
            fake.release()
        await fake.wait_until(lambda: fake.open_connections == 0)


async def test_a_killed_algorithm_drops_everything() -> None:
    """As on SIGKILL, no answer comes, and the work is gone."""
    async with algorithm([Hold(Answer(1)), Answer(2)], dialect="pesto") as (fake, client):
        async with trio.open_nursery() as caller:

            async def ask() -> None:
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.post("/process")

            caller.start_soon(ask)
            await fake.wait_for_request(1, "POST")
            await fake.drop_connections()
        assert (fake.open_connections, fake.held) == (0, 0)
        assert (await client.post("/process")).json() == 2


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["--mode", "stateless"], "jobs"),
        (["--mode", "image", "--size", "1234"], "jobs"),
        (["--mode", "stateful", "--dialect", "pesto", "--size", "1234"], "process"),
    ],
)
async def test_it_runs_as_a_process(arguments: list[str], path: str) -> None:
    """Its first line on stdout is the address under which it does what its options say."""
    with trio.fail_after(BACKSTOP):
        command = [sys.executable, "-m", "tests.peers.fake_algorithm", *arguments]
        async with trio.open_nursery() as processes:
            process = await processes.start(partial(trio.run_process, command, stdout=subprocess.PIPE))
            url = await first_line(process)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                answer = await client.post(path)
                if "link" in answer.text:
                    answer = await client.get(answer.json()["link"].replace("/status", "/results/mask"))
            processes.cancel_scope.cancel()
    assert answer.content == b'{"count": 3}' or len(answer.content) == 1234


async def first_line(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        line += await process.stdout.receive_some(1)
    return line.decode().strip()
