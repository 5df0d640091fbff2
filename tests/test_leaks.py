"""The search for secrets in what comes out of daemons under test finds what is there, and only that."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trio
from trio.testing import memory_stream_one_way_pair

from tests.daemon.process import Daemon
from tests.kafka.street import watch_record
from tests.leaks import take_found, watch, watch_answer, watch_sections
from tests.peers.kafka.records import TestRecord
from tests.peers.otlp import Collector
from tests.secrets import HUSHED, KAFKA_PASSWORD, PASSWORD, SECRETS

ROOT = Path(__file__).parents[1]
LONG = sorted(SECRETS - {HUSHED})  # in base64, a short one may be in any picture


@pytest.fixture(autouse=True)
def leaks_of_this_test() -> Iterator[None]:
    """What is found here was put there on purpose."""
    yield
    take_found()


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_every_secret_is_found(secret: str) -> None:
    """As it is, in JSON, in a URL, among bytes that are no text."""
    for haystack in (
        f"x {secret} y",
        json.dumps({"a": secret}),
        f"http://u:{quote(secret)}@h",
        secret.encode() + b"\xff",
    ):
        watch("here", haystack)
        (found,) = take_found()[:1]
        assert repr(secret) in found
        assert "in here" in found


@pytest.mark.parametrize("secret", LONG)
@pytest.mark.parametrize("before", ["", "u", "u:", "u:p"])
def test_base64_hides_nothing(secret: str, before: str) -> None:
    """Wherever in the encoded text it begins, as in an Authorization header."""
    watch("here", base64.b64encode(f"{before}{secret}!".encode()))
    assert take_found()


def test_what_is_none_is_not_found() -> None:
    """Neither in nothing, nor in what sounds like one."""
    watch("here", None)
    watch("here", "")
    watch("here", "another secret, the key, a token: ***")
    assert take_found() == []


async def test_logs_of_daemons_are_searched() -> None:
    """Every line that a process writes to standard error."""
    ours, theirs = memory_stream_one_way_pair()
    daemon = Daemon(Path("unused"))
    daemon.process = await trio.lowlevel.open_process(["true"])
    await ours.send_all(f'{{"event": "{PASSWORD}"}}\n'.encode())
    await ours.aclose()
    await daemon.read_output(theirs)
    assert len(take_found()) == 1


@pytest.mark.parametrize(
    ("kind", "header", "is_watched"),
    [
        ("outputs", "x-correlation-id", (True, True)),
        ("statuses", "cador-task-id", (True, True)),
        ("tags", "x", (True, True)),
        ("dead", "cador-error", (False, True)),
        ("dead", "theirs", (False, False)),
    ],
)
def test_messages_are_searched(kind: str, header: str, is_watched: tuple[bool, bool]) -> None:
    """Values and headers; of a dead letter only what we add to it."""
    for value, text in ((PASSWORD.encode(), b""), (b"", PASSWORD.encode())):
        watch_record(kind, TestRecord("t", 0, 0, None, value, ((header, text),), 0))
        assert bool(take_found()) is is_watched[bool(text)]


@pytest.mark.parametrize(
    ("path", "status", "is_watched"), [("/metrics", 200, True), ("/jobs", 400, True), ("/jobs", 200, False)]
)
async def test_answers_are_searched(path: str, status: int, is_watched: bool) -> None:
    """Scrapes and errors; results are their author's words."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=PASSWORD))
    async with httpx.AsyncClient(transport=transport, event_hooks={"response": [watch_answer]}) as client:
        await client.get(f"http://host{path}")
    assert bool(take_found()) is is_watched


def test_spans_are_searched() -> None:
    """Whatever a collector is sent, decoded or not."""
    with pytest.raises(Exception, match=r"."):
        Collector("", is_slow=False).take(b"\xff" + KAFKA_PASSWORD.encode())
    assert len(take_found()) == 1


def test_what_a_test_prints_is_searched() -> None:
    """Of the phase that has just ended."""
    watch_sections(
        "call", [("Captured stdout call", PASSWORD), ("Captured stderr setup", PASSWORD), ("else", PASSWORD)]
    )
    assert len(take_found()) == 1


def test_a_leak_fails_the_test_that_shows_it(tmp_path: Path) -> None:
    """That one, and no other; what a test prints that has failed anyhow is its own affair."""
    script = (
        f"def test_leaky(): print('{PASSWORD}')\ndef test_tight(): pass\ndef test_bad(): assert print('{PASSWORD}')\n"
    )
    (tmp_path / "test_any.py").write_text(script)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-rfE", "--rootdir", tmp_path, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("secrets that came out") == 1
    assert f"'{PASSWORD}' in Captured stdout call" in done.stdout
