"""What every exchange has, whatever the path: paths, methods, errors, correlation, the token, HEAD, connections."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from werkzeug.datastructures import Headers

from cador_trio.intake.http import connection
from tests.intake.running import JOB, check_error, end_one_job, open_daemon, vector
from tests.peers.fake_algorithm import FakeAlgorithm, Hold, sample_answer
from tests.peers.fake_algorithm.script import Answer

NOBODY = "00000000-0000-0000-0000-000000000000"
DOCUMENTS = ["/describe", "/version", "/openapi", "/config", "/health", "/jobs"]
READABLE = [
    *DOCUMENTS,
    "/api/v1/metrics",
    "/livez",
    "/readyz",
    "/swagger",
    "/swagger/swagger-ui.css",
    "/openapi/spec.json",
    "/asyncapi",
    "/asyncapi/schemas/status.json",
]


@pytest.fixture
async def guarded(fake: FakeAlgorithm) -> AsyncIterator[httpx.AsyncClient]:
    """A client, without the token, of a daemon that asks for one."""
    async with open_daemon(fake, api_token="clé") as client:
        yield client


# --- Paths and methods -------------------------------------------------------------------------------------------


async def test_root_spelling(client: httpx.AsyncClient) -> None:
    """The README's paths answer as those under `/api/v1` do, with or without a slash at the end, without redirects."""
    for path in DOCUMENTS:
        answers = [await client.get(spelling) for spelling in (f"/api/v1{path}", f"/api/v1{path}/", path, f"{path}/")]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1


async def test_posting_at_every_spelling(client: httpx.AsyncClient) -> None:
    """Jobs are taken at `/jobs`, and at PESTO's `/process`."""
    for path in ("/api/v1/jobs", "/api/v1/process", "/jobs", "/process", "/jobs/", "/api/v1/process/"):
        answer = await client.post(path, json=JOB)
        assert (answer.status_code, answer.json()) == (200, sample_answer())


async def test_unknown_paths(client: httpx.AsyncClient) -> None:
    """Where nothing is, there is an Error, never a redirect."""
    for path in ("/", "/nothing", "/api/v1", "/api/v2/jobs", "/api/v1/jobs//status", "/..%2fetc"):
        check_error(await client.get(path), 404)


async def test_other_methods(client: httpx.AsyncClient) -> None:
    """405 says what is possible instead."""
    for method, path, allow in (
        ("POST", "/api/v1/describe", "GET, HEAD"),
        ("GET", "/process", "POST"),
        ("PUT", "/api/v1/config", "GET, HEAD"),
        ("DELETE", "/jobs", "GET, HEAD, POST"),
        ("OPTIONS", "/jobs", "GET, HEAD, POST"),
        ("PATCH", f"/jobs/{NOBODY}", "DELETE"),
        ("POST", f"/jobs/{NOBODY}/results", "DELETE, GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
        ("QUERY", "/readyz", "GET, HEAD"),
    ):
        answer = await client.request(method, path)
        check_error(answer, 405)
        assert answer.headers["Allow"] == allow


async def test_unknown_jobs(client: httpx.AsyncClient) -> None:
    """A job that is not known, or can't be one, is not found."""
    for job_id in (NOBODY, "x", "%00", "é", "a" * 5000):
        for path in ("status", "events", "results", "results/mask"):
            check_error(await client.get(f"/jobs/{job_id}/{path}"), 404)
        for path in ("", "/results", "/results/mask"):
            check_error(await client.delete(f"/jobs/{job_id}{path}"), 404)


async def test_head(client: httpx.AsyncClient) -> None:
    """HEAD gives GET's status and head, and no body."""
    for path in READABLE:
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        changing = {"date", "x-correlation-id"}
        assert [item for item in head.headers.items() if item[0] not in changing] == [
            item for item in get.headers.items() if item[0] not in changing
        ]


async def test_head_of_a_job(client: httpx.AsyncClient) -> None:
    """HEAD works for what a job has, too: a result keeps its length and digest, a stream of events does not start."""
    job_id = await end_one_job(client)
    for path in ("status", "results", "results/detections", "results/mask", "results/summary"):
        head, get = await client.head(f"/jobs/{job_id}/{path}"), await client.get(f"/jobs/{job_id}/{path}")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["Content-Length"]) == len(get.content) > 0
        assert head.headers.get("ETag") == get.headers.get("ETag")
    events = await client.head(f"/jobs/{job_id}/events")
    assert (events.headers["Content-Type"], events.content) == ("text/event-stream", b"")


async def test_head_of_events_does_not_wait(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """HEAD of the events of a job that runs is answered at once."""
    fake.script.append(Hold(Answer({})))
    job = await client.post("/jobs", json=JOB, headers={"Prefer": "respond-async"})
    path = job.headers["Location"].replace("/status", "/events")
    assert (await client.head(path)).status_code == 200


# --- Errors ------------------------------------------------------------------------------------------------------


async def test_error_example_400(client: httpx.AsyncClient) -> None:
    """The contract's example of a refused request, to the letter."""
    expected = vector("error-400")
    answer = await client.post("/jobs", json={}, headers={"X-Correlation-ID": expected["correlationId"]})
    error = check_error(answer, 400)
    assert error | {"timestamp": expected["timestamp"]} == expected
    assert len(error["timestamp"]) == len(expected["timestamp"])


async def test_error_example_503(fake: FakeAlgorithm) -> None:
    """The contract's example of a full house, to the letter, with the time after which to come again."""
    expected = vector("error-503")
    fake.default = Hold(Answer({}))
    async with open_daemon(fake, max_waiting_jobs=8) as client:
        for _ in range(9):
            assert (await client.post("/jobs", json=JOB, headers={"Prefer": "respond-async"})).status_code == 202
        answer = await client.post("/jobs", json=JOB, headers={"X-Correlation-ID": expected["correlationId"]})
    assert check_error(answer, 503) | {"timestamp": expected["timestamp"]} == expected
    assert int(answer.headers["Retry-After"]) >= 1


async def test_415(client: httpx.AsyncClient) -> None:
    """A body that says that it is a form is not read as JSON, and the hint says what to send."""
    answer = await client.post("/jobs", data={"image": "x"})
    assert "application/json" in check_error(answer, 415)["hint"]


async def test_no_content_type_is_json(client: httpx.AsyncClient) -> None:
    """Without a Content-Type the body is taken for JSON."""
    answer = await client.post("/jobs", content=b'{"image": "x"}')
    assert "Content-Type" not in answer.request.headers
    assert answer.status_code == 200


class Pieces(httpx.AsyncByteStream):
    """A body of 5,000 bytes that does not say how many they are."""

    async def __aiter__(self) -> AsyncIterator[bytes]:  # noqa: ASYNC900 - httpx reads it to its end
        for _ in range(5):
            yield b"x" * 1000


@pytest.mark.parametrize("announced", [True, False])
async def test_413(fake: FakeAlgorithm, announced: bool) -> None:
    """A body over the limit is refused with the limit, and the connection can be used again."""
    async with open_daemon(fake, max_body_bytes=4000) as client:
        answer = await client.post("/jobs", content=b"x" * 5000 if announced else Pieces())
        assert "4000 bytes" in check_error(answer, 413)["message"]
        assert ("Transfer-Encoding" in answer.request.headers) is not announced
        assert (await client.post("/jobs", json=JOB)).status_code == 200


async def test_body_at_the_limit(fake: FakeAlgorithm) -> None:
    """The limit itself is allowed."""
    body = b'{"image": "x"}'
    async with open_daemon(fake, max_body_bytes=len(body)) as client:
        assert (await client.post("/jobs", content=body)).status_code == 200
        check_error(await client.post("/jobs", content=body + b" "), 413)


async def test_too_many_bytes_wait(fake: FakeAlgorithm) -> None:
    """Bodies that wait for a slot count together; the one that would be too much is told to come again."""
    fake.default = Hold(Answer({}))
    job = JOB | {"filler": "x" * 1000}
    async with open_daemon(fake, max_waiting_bytes=2500) as client:
        for _ in range(3):  # the first one is at the algorithm and no longer waits
            assert (await client.post("/jobs", json=job, headers={"Prefer": "respond-async"})).status_code == 202
            await fake.wait_for_request(1, "POST")
        answer = await client.post("/jobs", json=job)
    assert "CADOR_MAX_WAITING_BYTES" in check_error(answer, 503)["hint"]
    assert "Retry-After" in answer.headers


async def test_wrong_queries(client: httpx.AsyncClient) -> None:
    """A parameter that can't be read is refused by its name."""
    for query in (
        "limit=0",
        "limit=1001",
        "limit=1&limit=2",
        "offset=-1",
        "offset=x",
        "status=DONE",
        "status=",
    ):
        name = query.partition("=")[0]
        assert name in check_error(await client.get(f"/jobs?{query}"), 400)["message"]


async def test_wrong_headers(client: httpx.AsyncClient) -> None:
    """A header that can't be kept or sent on is refused by its name."""
    for name in ("Idempotency-Key", "X-ADS-Debug"):
        answer = await client.post("/jobs", json=JOB, headers={name.encode(): b"\xff"})
        assert name in check_error(answer, 400)["message"]


# --- Correlation and the token -----------------------------------------------------------------------------------


async def test_correlation_id(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """The caller's id and debug flag go along to the algorithm, and the id comes back."""
    answer = await client.post("/jobs", json=JOB, headers={"X-Correlation-ID": "abc-1", "X-ADS-Debug": "true"})
    assert answer.headers["X-Correlation-ID"] == "abc-1"
    seen = fake.seen("POST")[0].headers
    assert (seen["x-correlation-id"], seen["x-ads-debug"]) == ("abc-1", "true")


async def test_correlation_id_by_us(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Without a usable id each exchange gets one of its own, which the algorithm gets, too."""
    first = await client.post("/jobs", json=JOB, headers={b"X-Correlation-ID": b"\xe9"})
    second = await client.post("/jobs", json=JOB)
    ids = [first.headers["X-Correlation-ID"], second.headers["X-Correlation-ID"]]
    assert [request.headers["x-correlation-id"] for request in fake.seen("POST")] == ids
    assert len({*ids, "é"}) == 3


async def test_open_paths(guarded: httpx.AsyncClient) -> None:
    """Probes ask without the token, and so does a browser that opens the page."""
    for path in ("/livez", "/readyz", "/health", "/api/v1/health", "/readyz/", "/swagger", "/swagger/page.js"):
        assert (await guarded.get(path)).status_code == 200


async def test_wrong_token(guarded: httpx.AsyncClient) -> None:
    """Everything else is 401 without the token, even what is not there."""
    for path in ("/jobs", "/api/v1/describe", "/nothing", "/livez/x", "/api/v1/metrics"):
        for shown in (b"", b"Bearer", b"Bearer no", b"Basic cl\xc3\xa9", b"cl\xc3\xa9", b"\xff"):
            answer = await guarded.get(path, headers={b"Authorization": shown})
            check_error(answer, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_right_token(guarded: httpx.AsyncClient) -> None:
    """The token opens; it need not be ASCII, and the scheme's case does not matter."""
    for scheme in ("Bearer", "bearer"):
        headers = {b"Authorization": f"{scheme} clé".encode()}
        assert (await guarded.post("/jobs", json=JOB, headers=headers)).status_code == 200


# --- Connections -------------------------------------------------------------------------------------------------


EARLY = b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 5\r\n\r\n"


async def read_415(stream: trio.SocketStream) -> None:
    answer = b""
    while not answer.endswith(b"}"):
        received = await stream.receive_some()
        assert received, "the connection was closed"
        answer += received
    assert answer.startswith(b"HTTP/1.1 415")


async def test_early_answer_leaves_the_connection_usable(client: httpx.AsyncClient) -> None:
    """A sender that has its answer before its body is out may send the body, and the next request on its heels."""
    async with await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 80) as stream:
        for _ in range(3):
            await stream.send_all(EARLY)
            await read_415(stream)
            await wait_all_tasks_blocked(0.01)  # the daemon, which runs here, too, is done with it
            await stream.send_all(b"1,2,3")


async def test_early_answer_whose_sender_stops(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that has its answer, and never sends its body, finds the connection closed after a while."""
    monkeypatch.setattr(connection, "REST_SECONDS", 0.01)
    async with await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 80) as stream:
        await stream.send_all(EARLY + b"1,2")
        await read_415(stream)
        assert await stream.receive_some() == b""


async def test_body_that_nobody_reads(client: httpx.AsyncClient) -> None:
    """A GET with a body is answered, and so is the next request."""
    for _ in range(2):
        answer = await client.request("GET", "/jobs", content=b"x" * 100_000)
        assert answer.status_code == 200


@pytest.mark.parametrize(("method", "kept"), [("GET", 1), ("DELETE", 1), ("POST", 3), ("PUT", 3)])
async def test_body_that_nobody_reads_is_not_gathered(method: str, kept: int) -> None:
    """Of a body that has no business being there the first piece is kept at most, however long the answer takes."""
    request = connection.Request(
        method, "http", "/", b"", Headers(), "", "1.1", {}, send_push_promise=nothing, max_content_length=1000
    )
    for _ in range(3):
        request.body.append(b"x" * 100)
    assert len(request.body._data) == kept * 100


async def nothing(*_: object) -> None:
    """HTTP/1.1 pushes nothing."""


async def exchange(client: httpx.AsyncClient, request: bytes, until: bytes) -> bytes:
    """What comes back, up to something."""
    received = b""
    async with await trio.open_tcp_stream(client.base_url.host, client.base_url.port or 80) as stream:
        await stream.send_all(request)
        while until not in received:
            piece = await stream.receive_some()
            assert piece, received
            received += piece
    return received


async def test_wish_for_http_2_is_ignored(client: httpx.AsyncClient) -> None:
    """A client that would like HTTP/2 gets its answer by HTTP/1.1; one that insists gets none; the daemon can end."""
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    answer = await exchange(client, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + wish + b"\r\n", b"reasons")
    assert answer.startswith(b"HTTP/1.1 200")
    answer = await exchange(client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404")


async def test_websockets_are_refused(client: httpx.AsyncClient) -> None:
    """The handshake is answered with an Error, and the connection closed."""
    wish = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AA==\r\n"
    answer = await exchange(client, b"GET /jobs HTTP/1.1\r\nHost: x\r\n" + wish + b"\r\n", b"}")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert set(json.loads(body)) == {"message", "hint", "correlationId", "timestamp"}


@pytest.mark.parametrize("head", [b"HTTP/1.0\r\n", b'HTTP/1.1\r\nHost: "><b>\r\n', b"HTTP/1.1\r\nHost:\r\n"])
async def test_links_without_a_usable_host(client: httpx.AsyncClient, head: bytes) -> None:
    """A caller that names no host gets links to where it came in."""
    answer = await exchange(client, b"GET /describe " + head + b"\r\n", b"_links")
    assert f'"href":"{str(client.base_url).rstrip("/")}/api/v1/'.encode() in answer


async def test_204_has_neither_body_nor_type(client: httpx.AsyncClient) -> None:
    """204 ends with its head, and the connection goes on."""
    job_id = await end_one_job(client)
    answer = await client.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not {"content-type", "content-length", "transfer-encoding"} & set(answer.headers)
    assert (await client.get("/livez")).status_code == 200
