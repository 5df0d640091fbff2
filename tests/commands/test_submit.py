"""`cador-trio submit`: by HTTP to a whole daemon, by Kafka to a mock cluster, as people run it, and its parts alone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from cador_trio.commands import requests
from cador_trio.commands.endings import CommandFailed, UsageWrong, printable
from cador_trio.commands.following import open_display
from cador_trio.commands.submit_http import PATIENCE_SECONDS, HttpDoor, _Watch
from cador_trio.commands.surroundings import settings_of
from cador_trio.json_text import write
from tests.intake.running import open_daemon
from tests.leaks import watch
from tests.peers import output
from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    FakeAlgorithm,
    Hold,
    Stateful,
    Status,
    minimal_describe,
    open_fake_algorithm,
)
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.clients import quiet
from tests.peers.kafka.mock import MockKafka, running_mock_kafka
from tests.peers.kafka.peer import KafkaPeer
from tests.peers.kafka.records import TestRecord
from tests.secrets import API_TOKEN, OTHER_PASSWORD

CAP_SECONDS: Final = 60  # for a process to end by itself: this long only if something is wrong
INPUT: Final = ("--input", "image=aGVsbG8=")
OUTPUTS: Final = {"count": Answer(3), "summary": Answer("three"), "mask": AnswerImage(1_000)}
TOPICS: Final = ("--request-topic", "requests", "--status-topic", "statuses")


def environment(**variables: str) -> dict[str, str]:
    """This process's own, without what would change where a request goes."""
    ours = ("CADOR_", "KAFKA_", "EOPAAS_", "PROCESSING_SERVER")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")} | variables


@contextmanager
def started(*arguments: str, stderr: int = subprocess.PIPE, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`cador-trio submit` with these arguments; at the end of the block it is killed if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "cador_trio", "submit", *arguments],
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def finish(process: subprocess.Popen[str], stdin: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error (what of it was not read yet)."""
    out, err = await trio.to_thread.run_sync(process.communicate, stdin, CAP_SECONDS)
    watch("cador-trio submit", f"{out}{err}")
    return process.returncode, out, err


async def run(*arguments: str, stdin: str = "", **variables: str) -> tuple[int, str, str]:
    """The command from start to end, while the event loop serves its peers."""
    with started(*arguments, stderr=subprocess.PIPE, **variables) as process:
        return await finish(process, stdin)


async def read_until(process: subprocess.Popen[str], mark: str) -> str:
    """Wait for a line with the mark on its standard error; that and those before it."""
    with trio.fail_after(CAP_SECONDS):
        return await trio.to_thread.run_sync(output.read_until, process.stderr, mark)


def by_http(client: httpx.AsyncClient) -> tuple[str, str]:
    return "--http", str(client.base_url)


@pytest.fixture
async def fake() -> AsyncIterator[FakeAlgorithm]:
    """A stateful algorithm with a number, a text and an image."""
    states: list[Any] = [{"status": "RUNNING", "progress": 40}, "SUCCEEDED"]
    describe = minimal_describe(asynchronous=True, outputs=list(OUTPUTS))
    async with open_fake_algorithm(describe=describe, default=Stateful(OUTPUTS, states=states)) as fake:
        yield fake


@pytest.fixture
async def client(fake: FakeAlgorithm) -> AsyncIterator[httpx.AsyncClient]:
    async with open_daemon(fake, hangs=CAP_SECONDS) as client:
        yield client


# --- By HTTP -----------------------------------------------------------------------------------------------------


async def test_a_job_is_followed_to_its_results(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """States go to standard error, a line each; the outputs go to standard output as one JSON object; exit code 0."""
    fake.default = Stateful(OUTPUTS, states=[{"status": "RUNNING", "progress": 40}])
    with started(*by_http(client), *INPUT) as process:
        seen = await read_until(process, "RUNNING, 40 %")
        next(iter(fake.jobs.values())).finish()
        code, out, err = await finish(process)
    assert code == 0, err
    first, *states = (seen + err).splitlines()
    assert first.endswith("/status")
    name = first.split(" is taken in")[0]
    assert states[-2:] == [f"{name}: RUNNING, 40 %", f"{name}: SUCCEEDED"]
    results = json.loads(out)
    mask = results.pop("mask")
    assert results == {"count": 3, "summary": "three"}
    assert (mask["type"], mask["size"]) == ("image/png", 1_000)
    assert len((await client.get(mask["href"])).content) == 1_000


async def test_a_list_of_images_stays_a_list() -> None:
    """Each item is where it is."""
    outputs = {"chips": [AnswerImage(10), AnswerImage(20)]}
    describe = minimal_describe(asynchronous=True, outputs=["chips"], pesto=True)
    async with (
        open_fake_algorithm(dialect="pesto", describe=describe, default=Stateful(outputs)) as fake,
        open_daemon(fake) as client,
    ):
        _, out, _ = await run(*by_http(client), *INPUT)
    assert [item["size"] for item in json.loads(out)["chips"]] == [10, 20]


async def test_a_request_from_standard_input(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Options are laid over what is piped in; the algorithm sees both, the daemon the task id, a header goes along."""
    request = {"image": "aGVsbG8=", "threshold": 1, "technicalMetadata": {"taskId": "old", "inputTimestamp": 5}}
    options = ("-", "--input", "threshold=2", "--task-id", "new", "--header", "X-Correlation-ID:mine")
    code, _, err = await run(*by_http(client), *options, stdin=json.dumps(request))
    assert code == 0, err
    (job,) = (await client.get("/api/v1/jobs")).json().values()
    assert job["taskId"] == "new"
    posted = next(seen for seen in fake.requests if seen.method == "POST")
    assert json.loads(posted.body) == {"image": "aGVsbG8=", "threshold": 2}
    assert posted.headers["x-correlation-id"] == "mine"


async def test_the_result_goes_to_a_file(client: httpx.AsyncClient, tmp_path: Path) -> None:
    """With --output there is nothing on standard output."""
    code, out, _ = await run(*by_http(client), *INPUT, "--output", str(tmp_path / "out.json"))
    assert (code, out) == (0, "")
    assert json.loads((tmp_path / "out.json").read_text())["count"] == 3


async def test_a_single_image_goes_to_the_file_as_it_is(tmp_path: Path) -> None:
    """Its bytes, not a description of where they are."""
    async with (
        open_fake_algorithm(describe=minimal_describe(whole="image/png"), default=AnswerImage(5_000)) as fake,
        open_daemon(fake) as client,
    ):
        code, out, _ = await run(*by_http(client), *INPUT, "--output", str(tmp_path / "mask.png"))
    assert (code, out) == (0, "")
    content = (tmp_path / "mask.png").read_bytes()
    assert (len(content), content[:4]) == (5_000, b"\x89PNG")


async def test_sent_and_left_alone(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """With --no-follow it says at once where the job is, and the job goes on."""
    fake.default = Hold(Answer({"count": 1}))
    code, out, err = await run(*by_http(client), *INPUT, "--no-follow")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (await client.get(told["status"])).json()["jobId"] == told["jobId"]


async def test_a_job_that_fails(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Exit code 3, why on standard error, nothing on standard output."""
    fake.default = Status(500, {"detail": "no bands"})
    code, out, err = await run(*by_http(client), *INPUT)
    assert (code, out) == (3, "")
    assert "FAILED: the algorithm answered 500: no bands" in err.splitlines()[-1]


async def test_a_request_that_is_refused(client: httpx.AsyncClient) -> None:
    """Exit code 3 with the daemon's own words."""
    code, out, err = await run(*by_http(client), "--input", "image=3", "--input", "threshold=many")
    assert (code, out) == (3, "")
    assert err.startswith("cador-trio: the daemon answered 400: ")
    assert "threshold" in err


async def test_the_token(fake: FakeAlgorithm, tmp_path: Path) -> None:
    """It comes from a file or the environment; without it the message says how; it is never printed."""
    (tmp_path / "token").write_text(f"{API_TOKEN}\n")
    async with open_daemon(fake, hangs=CAP_SECONDS, api_token=API_TOKEN) as client:
        ends = [
            await run(*by_http(client), *INPUT),
            await run(*by_http(client), *INPUT, CADOR_API_TOKEN=OTHER_PASSWORD),
            await run(*by_http(client), *INPUT, CADOR_API_TOKEN=API_TOKEN),
            await run(
                *by_http(client), *INPUT, "--token-file", str(tmp_path / "token"), CADOR_API_TOKEN=OTHER_PASSWORD
            ),
        ]
    assert [code for code, _, _ in ends] == [3, 3, 0, 0]
    assert "--token-file" in ends[0][2]
    assert not any("hunter" in text for _, out, err in ends for text in (out, err))


async def test_interrupting_cancels(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Ctrl-C: the daemon cancels the job, the user is told so, the exit code is the shell's."""
    fake.default = Hold(Answer({}))
    with started(*by_http(client), *INPUT) as process:
        await read_until(process, "RUNNING")
        process.send_signal(signal.SIGINT)
        code, out, err = await finish(process)
    assert (code, out) == (130, "")
    assert err.endswith("was cancelled\n")
    (job,) = (await client.get("/api/v1/jobs")).json().values()
    assert job["status"] == "CANCELLED"


async def test_time_is_up(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Exit code 3; the job goes on, and the message says how to look at it and how to end it."""
    fake.default = Hold(Answer({}))
    code, out, err = await run(*by_http(client), *INPUT, "--timeout", "3")
    assert (code, out) == (3, "")
    assert "has not ended within 3 s" in err
    (job,) = (await client.get("/api/v1/jobs")).json().values()
    assert job["status"] == "RUNNING"
    assert f"GET {job['href']}" in err


async def test_nobody_listens(unused_port: int) -> None:
    """Exit code 3, in a sentence."""
    code, out, err = await run("--http", f"http://127.0.0.1:{unused_port}", *INPUT)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert f"the daemon at http://127.0.0.1:{unused_port} can't be reached" in err


@pytest.fixture
async def unused_port() -> int:
    """A port that nobody listens on."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


@pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="the bar needs rich")
async def test_a_terminal_gets_a_bar(client: httpx.AsyncClient) -> None:
    """On a terminal one line changes instead; the results still go to standard output, alone."""
    ours, theirs = os.openpty()
    with started(*by_http(client), *INPUT, stderr=theirs, TERM="xterm") as process:
        os.close(theirs)
        _, out, _ = await finish(process)
    shown = read_all(ours)
    os.close(ours)
    assert json.loads(out)["count"] == 3
    assert "SUCCEEDED" in shown
    assert "100%" in shown
    assert "\r" in shown


def read_all(terminal: int) -> str:
    """What was written to the other end, which is closed: reads give some thousand bytes each, then an error."""
    shown = b""
    with suppress(OSError):
        while piece := os.read(terminal, 65_536):
            shown += piece
    return shown.decode()


def test_a_terminal_without_rich_gets_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bar is a nicety of an extra; the command needs nothing but the daemon's own dependencies."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with open_display("job 1") as display:
        display.show("RUNNING", 0)
        display.show("RUNNING", 0)
        display.show("RUNNING", 7)
    assert capsys.readouterr().err == "job 1: RUNNING\njob 1: RUNNING, 7 %\n"


# --- A daemon that is hard to follow -----------------------------------------------------------------------------


class Shown:
    """A display that remembers."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int]] = []

    def show(self, state: str, progress: int) -> None:
        self.states.append((state, progress))

    def note(self, text: str) -> None:
        raise AssertionError(text)


@asynccontextmanager
async def watching(handler: Callable[[httpx.Request], httpx.Response]) -> AsyncIterator[tuple[_Watch, Shown]]:
    """A watch over job `j` at a daemon that answers as the handler says."""
    shown = Shown()
    transport = httpx.MockTransport(handler)
    async with httpx.AsyncClient(transport=transport, base_url="http://daemon/api/v1") as client:
        yield _Watch(client, HttpDoor("http://daemon"), "j", shown), shown


def status(state: str, progress: int = 0) -> dict[str, Any]:
    return {"status": state, "progress": progress}


async def test_without_events_the_status_is_asked_for(autojump_clock: MockClock) -> None:
    """A proxy that lets no stream through does not keep a job from being followed."""
    statuses = iter([status("RUNNING"), status("RUNNING", 50), status("SUCCEEDED", 100)])

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(502) if request.url.path.endswith("/events") else httpx.Response(200, json=next(statuses))

    async with watching(answer) as (watch, shown):
        assert (await watch.wait_end())["status"] == "SUCCEEDED"
    assert shown.states == [("RUNNING", 0), ("RUNNING", 50), ("SUCCEEDED", 100)]


async def test_a_stream_that_breaks_is_opened_again(autojump_clock: MockClock) -> None:
    """It begins with the status as it is then."""
    streams = iter([b'event: status\ndata: {"status":"RUNNING","progress":1}\n\n', b'data: {"status":"FAILED"}\n\n'])
    async with watching(lambda _: httpx.Response(200, content=next(streams))) as (watch, _):
        assert (await watch.wait_end())["status"] == "FAILED"


async def test_a_daemon_that_comes_back_in_time(autojump_clock: MockClock) -> None:
    """Refused connections are waited out."""
    calls = iter(range(100))

    def answer(request: httpx.Request) -> httpx.Response:
        if next(calls) < PATIENCE_SECONDS / 2:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, content=b'data: {"status":"CANCELLED"}\n\n')

    async with watching(answer) as (watch, _):
        assert (await watch.wait_end())["status"] == "CANCELLED"


@pytest.mark.parametrize("code", [None, 503])
async def test_a_daemon_that_falls_silent(autojump_clock: MockClock, code: int | None) -> None:
    """After half a minute without a sensible answer it is given up, with a hint that the job is lost."""

    def answer(request: httpx.Request) -> httpx.Response:
        if code is None:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(code)

    async with watching(answer) as (watch, _):
        with pytest.raises(CommandFailed, match="has fallen silent") as told:
            await watch.wait_end()
    assert "send it again" in told.value.hint
    assert trio.current_time() == pytest.approx(PATIENCE_SECONDS, abs=2)


async def test_a_job_that_the_daemon_has_forgotten(autojump_clock: MockClock) -> None:
    """A daemon that was started anew answers, but does not know the job: no use to go on asking."""
    error = {"message": "no job j", "hint": "jobs are kept for a while"}
    async with watching(lambda _: httpx.Response(404, json=error)) as (watch, _):
        with pytest.raises(CommandFailed, match="404: no job j"):
            await watch.wait_end()


@pytest.mark.parametrize("text", ["nonsense", "[1]", "{}"])
async def test_what_is_no_status(autojump_clock: MockClock, text: str) -> None:
    """Whatever listens there, the user gets a sentence."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=f"data: {text}\n\n" if request.url.path.endswith("/events") else text)

    async with watching(answer) as (watch, _):
        with pytest.raises(CommandFailed, match=r"no status|no JSON"):
            await watch.wait_end()


# --- Wrong usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "stdin", "complaint"),
    [
        (["--http", "http://h", "--kafka", "b:1"], "{}", "not by both"),
        (["--http", "http://h", "--status-topic", "s"], "{}", "not by both"),
        (["--request-topic", "t"], "{}", "a topic without brokers"),
        (["--http", "nonsense"], "{}", "no http:// or https:// URL"),
        (["--http", "http://user:pa55word@h"], "{}", "--token-file"),
        (["/no/such/file"], "", "can't be read"),
        ([], "", "standard input is empty"),
        ([], '{"a": ', "not a JSON request"),
        ([], '{"a": 1, "a": 2}', "twice"),
        ([], "[1]", "no object"),
        ([], '{"technicalMetadata": null}', "technicalMetadata is not an object"),
        (["--input", "image"], "{}", "not name=value"),
        (["--header", "a b:c"], "{}", "not name:value"),
        (["--header", "Authorization:pa55\tword"], "{}", "not plain ASCII"),
        (["--output", "/no/such/folder/file"], "{}", "no folder"),
        (["--token-file", "/no/such/file"], "{}", "can't be read"),
        (["--kafka", "b:1", "--status-topic", "s"], "{}", "EOPAAS_JOB_REQUEST_TOPIC"),
        (["--kafka", "b:1", "--request-topic", "t"], "{}", "--no-follow"),
        (["--kafka", "b:1", *TOPICS, "--token-file", "f"], "{}", "--token-file is for --http"),
        (["--timeout", "0"], "{}", "--timeout"),
    ],
)
async def test_wrong_usage(arguments: list[str], stdin: str, complaint: str, unused_port: int) -> None:
    """Exit code 2 with what is wrong, before anything is sent; no secret is repeated."""
    code, out, err = await run(*arguments, stdin=stdin, CADOR_PORT=str(unused_port))
    assert (code, out) == (2, "")
    assert complaint in err
    assert "pa55" not in err
    assert "Traceback" not in err


# --- The request -------------------------------------------------------------------------------------------------


def read(file: Path | None, *inputs: str, task_id: str | None = None, needs_id: bool = False) -> requests.Request:
    return requests.read(file, inputs, (), task_id=task_id, is_task_id_needed=needs_id)


def test_a_file_goes_as_it_is(tmp_path: Path) -> None:
    """Not one byte of it changes if no option asks for that."""
    content = b'{ "image":\t"x",  "n": 1.00, "technicalMetadata": {"taskId": 7} }\n'
    (tmp_path / "r.json").write_bytes(content)
    request = read(tmp_path / "r.json", needs_id=True)
    assert (request.body, request.task_id) == (content, "7")


def test_a_task_id_is_made_where_statuses_need_one() -> None:
    """It is in the request, beside whatever else is there, and known to the sender."""
    request = read(None, 'technicalMetadata={"inputTimestamp": 5}', needs_id=True)
    metadata = json.loads(request.body)["technicalMetadata"]
    assert metadata == {"inputTimestamp": 5, "taskId": request.task_id}
    assert read(None, "a=1").task_id is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=JSON)
def test_inputs_may_be_any_json(value: Any) -> None:
    """What is written as JSON arrives as that value."""
    assert json.loads(read(None, f"a={write(value).decode()}").body) == {"a": value}


@pytest.mark.parametrize("text", ["file:///a=b.tif", "", "{broken", "NaN", "é"])
def test_inputs_that_are_no_json_are_text(text: str) -> None:
    """So that a path needs no quotes within quotes."""
    assert json.loads(read(None, f"a={text}").body) == {"a": text}


def test_repr_shows_no_content() -> None:
    """A request may hold credentials of a store."""
    assert "hunter2" not in repr(read(None, "secret=hunter2"))


def test_what_others_say_moves_no_cursor() -> None:
    """Control characters are shown, printable text of any script stays."""
    assert printable("a\x1b[2Jb\r\né水") == r"a\x1b[2Jb\r\né水"


def test_brokers_of_an_option_hold_for_all_topics() -> None:
    """Who names a cluster does not mean another one for the statuses; without the option the variables hold."""
    variables = {
        "KAFKA_BROKERS_REQUEST": "a:1",
        "KAFKA_BROKERS_STATUS": "b:1",
        "EOPAAS_JOB_REQUEST_TOPIC": "requests",
        "CADOR_SPOOL_DIR": "/no/such/folder",
    }
    assert settings_of(variables, {}).status_brokers == "b:1"
    assert settings_of(variables, {"KAFKA_BROKERS_REQUEST": "c:1"}).status_brokers == "c:1"


def test_a_wrong_header_is_refused_without_its_value() -> None:
    """It may be a secret."""
    with pytest.raises(UsageWrong) as told:
        requests.read(None, ["a=1"], ["Authorization: é-hunter2"], task_id=None, is_task_id_needed=False)
    assert "hunter2" not in str(told.value)


# --- By Kafka ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[MockKafka]:
    """A mock cluster: it has no transactions, and makes topics on first use."""
    with running_mock_kafka() as kafka:
        yield kafka


@dataclass(frozen=True)
class Topics:
    """The topics of one test in the cluster."""

    kafka: KafkaPeer
    requests: str
    statuses: str

    @property
    def options(self) -> tuple[str, ...]:
        return ("--kafka", self.kafka.bootstrap, "--request-topic", self.requests, "--status-topic", self.statuses)

    async def request(self) -> TestRecord:
        """The request, once it is in its topic."""
        (record,) = await self.kafka.wait_for_records(self.requests, bool)
        return record

    async def answer(self, request: TestRecord, *statuses: dict[str, Any], **headers: str) -> None:
        """Send statuses about a request, as a daemon does; `headers` stand in for its own."""
        task_id = json.loads(request.value or b"")["technicalMetadata"]["taskId"]
        usual = {"cador_kind": "status", "x_correlation_id": (request.header("x-correlation-id") or b"").decode()}
        sent = [(name.replace("_", "-"), value.encode()) for name, value in (usual | headers).items() if value]
        values = [json.dumps({"taskId": task_id, "errMsg": "", **status}).encode() for status in statuses]
        await trio.to_thread.run_sync(lambda: self.kafka.produce(self.statuses, values, headers=sent, partition=0))


@pytest.fixture
def topics(cluster: MockKafka, request: pytest.FixtureRequest) -> Topics:
    """Topics that are there, and this test's own."""
    name = re.sub(r"\W", ".", request.node.name)
    made = Topics(cluster, f"{name}.requests", f"{name}.statuses")
    client = Producer(quiet(cluster.bootstrap))
    for topic in (made.requests, made.statuses):
        client.list_topics(topic, CAP_SECONDS)  # the mock cluster makes what a producer asks for
    return made


async def test_a_request_by_kafka_is_followed(topics: Topics) -> None:
    """Produced under its task id with the contract's headers; its own statuses are shown, those of others are not."""
    end = {**status("SUCCEEDED", 100), "producedKafkaMessages": []}
    with started(*topics.options, *INPUT, "--header", "traceparent:00-aa-bb-01") as process:
        request = await topics.request()
        task_id = json.loads(request.value or b"")["technicalMetadata"]["taskId"]
        await topics.answer(request, status("FAILED"), x_correlation_id="another")
        await topics.answer(request, status("FAILED"), cador_kind="output")
        await topics.answer(request, status("ACCEPTED"), status("RUNNING", 30), end)
        code, out, err = await finish(process)
    assert code == 0, err
    assert err.splitlines() == [
        f"task {task_id} is sent: {topics.requests}/{request.partition}/{request.offset}",
        f"task {task_id}: ACCEPTED",
        f"task {task_id}: RUNNING, 30 %",
        f"task {task_id}: SUCCEEDED",
    ]
    assert json.loads(out) == {"taskId": task_id, "errMsg": "", **end}
    assert request.key == task_id.encode()
    assert {name for name, _ in request.headers} == {"content-type", "x-correlation-id", "traceparent"}
    assert json.loads(request.value or b"")["image"] == "aGVsbG8="


async def test_statuses_without_headers_are_known_by_their_task(topics: Topics) -> None:
    """As CADoR itself sends them. A status that is no JSON is none."""
    with started(*topics.options, *INPUT, "--task-id", "7") as process:
        request = await topics.request()
        none = {"cador_kind": "", "x_correlation_id": ""}
        await topics.answer(request, status("SUCCEEDED"), {"taskId": "8", "status": "FAILED"}, **none)
        code, out, _ = await finish(process)
    assert (code, json.loads(out)["taskId"]) == (0, "7")


async def test_old_statuses_are_not_read(topics: Topics) -> None:
    """A task id that was used before does not end the new job."""
    old = json.dumps({"taskId": "7", "status": "FAILED", "errMsg": "old"}).encode()
    await trio.to_thread.run_sync(lambda: topics.kafka.produce(topics.statuses, [old]))
    with started(*topics.options, *INPUT, "--task-id", "7") as process:
        await topics.answer(await topics.request(), status("SUCCEEDED"))
        assert (await finish(process))[0] == 0


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
async def test_a_job_by_kafka_that_fails(topics: Topics, state: str) -> None:
    """Exit code 3, and why."""
    with started(*topics.options, *INPUT, "--task-id", "7") as process:
        await topics.answer(await topics.request(), {**status(state), "errMsg": "no\x1b bands"})
        code, out, err = await finish(process)
    assert (code, out) == (3, "")
    assert err.endswith(f"task 7: {state}: no\\x1b bands\n")


async def test_interrupting_leaves_a_job_by_kafka_alone(topics: Topics) -> None:
    """There is no way to cancel it through Kafka, and the user is told which way there is."""
    with started(*topics.options, *INPUT) as process:
        await read_until(process, "is sent")
        process.send_signal(signal.SIGINT)
        code, out, err = await finish(process)
    assert (code, out) == (130, "")
    assert "goes on" in err
    assert "DELETE" in err


async def test_a_request_that_nobody_reads(topics: Topics) -> None:
    """Exit code 3 when time is up; the request stays where it is."""
    code, out, err = await run(*topics.options, *INPUT, "--timeout", "0.1")
    assert (code, out) == (3, "")
    assert "has not ended within 0.1 s" in err
    await topics.request()


async def test_places_come_from_the_daemons_variables(topics: Topics) -> None:
    """Without --kafka and --http it goes where the daemon's own variables point; unfollowed it needs no status."""
    variables = {"KAFKA_BROKERS_REQUEST": topics.kafka.bootstrap, "EOPAAS_JOB_REQUEST_TOPIC": topics.requests}
    code, out, err = await run(*INPUT, "--no-follow", **variables)
    assert (code, err) == (0, "")
    request = await topics.request()
    assert json.loads(out) == {
        "taskId": (request.key or b"").decode(),
        "topic": request.topic,
        "partition": request.partition,
        "offset": request.offset,
    }


@pytest.mark.parametrize("missing", ["--request-topic", "--status-topic"])
async def test_a_topic_that_is_not_there(topics: Topics, missing: str) -> None:
    """It is named, exit code 3, nothing was sent, and it was not made by asking for it."""
    for _ in range(2):
        code, out, err = await run(*topics.options, *INPUT, missing, "misspelt")
        assert (code, out) == (3, "")
        assert err.startswith("cador-trio: there is no topic misspelt at ")
    assert topics.kafka.read_topic(topics.requests) == []


async def test_brokers_that_are_not_there(unused_port: int) -> None:
    """Exit code 3 with the reason, not with a list of what the client library tried."""
    code, out, err = await run("--kafka", f"127.0.0.1:{unused_port}", *TOPICS, *INPUT)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert f"the brokers at 127.0.0.1:{unused_port} can't be reached: " in err
    assert "refused" in err


@pytest.mark.parametrize("properties", ["acks=hunter2", "linger.ms=hunter2", "nonsense=hunter2", "hunter2"])
async def test_properties_that_are_wrong_show_no_secret(topics: Topics, properties: str) -> None:
    """Exit code 2 whoever finds it, never with the value."""
    code, out, err = await run(*topics.options, *INPUT, CADOR_KAFKA_PROPERTIES=properties)
    assert (code, out) == (2, "")
    assert "CADOR_KAFKA_PROPERTIES" in err
    assert "hunter2" not in err


async def test_a_status_that_was_taken_back_ends_nothing(kafka: RealKafka) -> None:
    """On a real broker: a terminal status in a transaction that is aborted never was; the committed one counts."""
    name = secrets.token_hex(6)
    topics = Topics(kafka, f"requests-{name}", f"statuses-{name}")
    await trio.to_thread.run_sync(kafka.create_topics, {topics.requests: 2, topics.statuses: 2})
    with started(*topics.options, *INPUT, "--task-id", "7") as process:
        correlation_id = (await topics.request()).header("x-correlation-id")
        await trio.to_thread.run_sync(_take_back_and_commit, kafka, name, topics.statuses, correlation_id)
        code, out, err = await finish(process)
    assert (code, json.loads(out)["status"]) == (0, "SUCCEEDED")
    assert "FAILED" not in err


def _take_back_and_commit(kafka: RealKafka, name: str, topic: str, correlation_id: bytes | None) -> None:
    producer = Producer({**quiet(kafka.bootstrap), "transactional.id": name})
    producer.init_transactions(CAP_SECONDS)
    for state, end in (("FAILED", producer.abort_transaction), ("SUCCEEDED", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce(
            topic,
            json.dumps({"taskId": "7", "status": state}).encode(),
            headers=[("x-correlation-id", correlation_id)],
            partition=0,
        )
        producer.flush(CAP_SECONDS)
        end(CAP_SECONDS)
