"""`cador-trio dead-letters`: listed, shown and sent again on a mock cluster, as people run it; and its parts alone."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import pytest
from confluent_kafka import Producer

from cador_trio.commands.endings import UsageWrong
from cador_trio.commands.letters import Filters, Position, Row, table
from cador_trio.errors import AlgorithmFailed, CadorError, DeadlinePassed
from cador_trio.job import Attempt
from cador_trio.kafka.dead_letters import dead_letter
from cador_trio.kafka.messages import Message, Record
from tests.leaks import watch
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.clients import quiet
from tests.peers.kafka.mock import MockKafka, running_mock_kafka
from tests.peers.kafka.peer import KafkaPeer
from tests.peers.kafka.records import TestRecord
from tests.peers.kafka_fixtures import OwnKafka

CAP_SECONDS: Final = 60  # for a process to end by itself: this long only if something is wrong
FAILED_AT: Final = 1_764_000_000_000  # epoch milliseconds: 2025-11-24 16:00:00 UTC
REQUEST: Final = {
    "image": "https://user:hunter2@images.example.org/a.tif",
    "pixels": "A" * 5_000,
    "technicalMetadata": {
        "taskId": "order-1",
        "outputStorage": {"S3": {"key": "AKIA", "secret": "hunter2", "token": "hunter2"}},
    },
}
HEADERS: Final = (("x-correlation-id", b"c-1"), ("authorization", b"Bearer hunter2"), ("empty", None))


@dataclass(frozen=True)
class Topics:
    """The topics of one test: dead letters, and requests."""

    kafka: KafkaPeer
    letters: str
    requests: str

    def run(self, command: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """The command on these topics: exit code, standard output, standard error."""
        return run(*("--kafka", self.kafka.bootstrap, "--topic", self.letters), command, *arguments, **variables)

    def fail(self, **facts: Any) -> Position:
        """Put a dead letter there; `facts` as in `a_letter`."""
        letter = a_letter(self.requests, **facts)
        (made,) = self.kafka.produce(
            self.letters, [letter.value], keys=[letter.key], headers=letter.headers, partition=0
        )
        return Position(made.partition, made.offset)


def a_letter(  # noqa: PLR0913 - each is what one test or another varies
    topic: str,
    *,
    task: str = "order-1",
    error: CadorError | None = None,
    minutes: int = 0,
    value: bytes | None = None,
    limit: int = 1_000_000,
    attempts: Sequence[Attempt] = (),
) -> Message:
    """The dead letter of the request at 2/17 of a topic, failed so many minutes after FAILED_AT."""
    content = json.dumps(REQUEST).encode() if value is None else value
    return dead_letter(
        Record(topic, 2, 17, b"key-1", content, HEADERS, FAILED_AT),
        error=error or AlgorithmFailed("the algorithm answered 500: no bands"),
        attempts=attempts,
        job_id=UUID(int=7),
        task_name=task,
        algorithm="targets/1.0.0",
        failed_at=FAILED_AT + minutes * 60_000,
        traceparent=None,
        limit=limit,
    )


def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
    ours = ("CADOR_", "KAFKA_", "EOPAAS_", "PROCESSING_SERVER")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-m", "cador_trio", "dead-letters", *arguments],
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=CAP_SECONDS,
        check=False,
    )
    watch("cador-trio dead-letters", done.stderr)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[MockKafka]:
    """A mock cluster: it has no transactions, and makes topics when a producer asks for them."""
    with running_mock_kafka() as kafka:
        yield kafka


@pytest.fixture
def topics(cluster: MockKafka, request: pytest.FixtureRequest) -> Topics:
    """Topics that are there, empty, and this test's own."""
    name = re.sub(r"\W", ".", request.node.name)
    made = Topics(cluster, f"{name}.letters", f"{name}.requests")
    client = Producer(quiet(cluster.bootstrap))
    for topic in (made.letters, made.requests):
        client.list_topics(topic, CAP_SECONDS)
    return made


def rows_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- list --------------------------------------------------------------------------------------------------------


def test_the_list(topics: Topics) -> None:
    """A line each under a heading, with what identifies a dead letter and why it is one; the newest last."""
    attempts = [Attempt(FAILED_AT - 5_000, "reset"), Attempt(FAILED_AT, "reset")]
    newer = topics.fail(minutes=90, error=DeadlinePassed("the deadline passed"), attempts=attempts, task="order-2")
    older = topics.fail()
    code, out, err = topics.run("list")
    assert (code, err) == (0, "")
    heading, first, second = out.splitlines()
    assert heading.split("  ")[0] == "position"
    assert first.split()[:3] == [str(older), "2025-11-24", "16:00:00Z"]
    assert "order-1  AlgorithmFailed" in first
    assert first.endswith("the algorithm answered 500: no bands")
    size = f"{len(json.dumps(REQUEST)):,}"
    assert second.split()[:7] == [str(newer), "2025-11-24", "17:30:00Z", "order-2", "DeadlinePassed", "2", size]


def test_the_list_for_programs(topics: Topics) -> None:
    """With --json a JSON object a line, with everything that can be filtered by."""
    position = topics.fail()
    code, out, _ = topics.run("list", "--json")
    assert code == 0
    assert rows_of(out) == [
        {
            "position": str(position),
            "failedAt": FAILED_AT,
            "taskId": "order-1",
            "errorClass": "AlgorithmFailed",
            "attempts": 0,
            "size": len(json.dumps(REQUEST)),
            "error": "the algorithm answered 500: no bands",
            "isComplete": True,
        }
    ]


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ((), ["a", "b", "c"]),
        (("--task-id", "b"), ["b"]),
        (("--error-class", "deadlinepassed"), ["c"]),
        (("--since", "2025-11-24T16:10"), ["b", "c"]),
        (("--since", "2025-11-24T18:10+02:00", "--error-class", "AlgorithmFailed"), ["b"]),
        (("--limit", "2"), ["b", "c"]),
    ],
)
def test_the_list_is_filtered(topics: Topics, options: tuple[str, ...], tasks: list[str]) -> None:
    """By task, error class and time, all of them at once; of more than the limit the newest are shown."""
    topics.fail(task="c", error=DeadlinePassed("late"), minutes=20)
    topics.fail(task="a", minutes=0)
    topics.fail(task="b", minutes=10)
    code, out, err = topics.run("list", "--json", *options)
    assert code == 0
    assert [row["taskId"] for row in rows_of(out)] == tasks
    assert ("newest 2 of 3" in err) == ("--limit" in options)


def test_what_is_no_dead_letter_is_left_out(topics: Topics) -> None:
    """Somebody else's message in the topic is counted, and hides nothing."""
    topics.kafka.produce(topics.letters, [b"hello", None], partition=0)
    topics.fail()
    code, out, err = topics.run("list", "--json")
    assert (code, len(rows_of(out))) == (0, 1)
    assert "2 message(s)" in err


# --- show --------------------------------------------------------------------------------------------------------


def test_all_of_one(topics: Topics) -> None:
    """Who, when, why and each attempt; the request readable: texts cut, nothing secret in it."""
    position = topics.fail(attempts=[Attempt(FAILED_AT - 1_000, "the connection broke")])
    code, out, err = topics.run("show", str(position))
    assert (code, err) == (0, "")
    for text in (
        f"position:    {position}",
        "failed at:   2025-11-24 16:00:00Z",
        "task:        order-1",
        f"came from:   {topics.requests}/2/17",
        "algorithm:   targets/1.0.0",
        "error:       AlgorithmFailed: the algorithm answered 500: no bands",
        "attempt:     2025-11-24 15:59:59Z  the connection broke",
        "header:      x-correlation-id: c-1",
        "key:         key-1",
        "(5,000 characters)",
    ):
        assert text in out
    assert "hunter2" not in out
    assert "AKIA" not in out
    assert "A" * 300 not in out


def test_the_value_byte_for_byte(topics: Topics) -> None:
    """For those who ask for it: what the sender wrote, and not one byte more."""
    position = topics.fail(value=b'{"a":  "\xff')
    options = ("--kafka", topics.kafka.bootstrap, "--topic", topics.letters, "show", "--value", str(position))
    command = [sys.executable, "-m", "cador_trio", "dead-letters", *options]
    done = subprocess.run(command, capture_output=True, timeout=CAP_SECONDS, check=True)
    assert done.stdout == b'{"a":  "\xff'


@pytest.mark.parametrize("value", [b"\x1b[2J\xff not JSON", b"", b"[" * 5_000, b"null"])
def test_poison_is_shown_without_harm(topics: Topics, value: bytes) -> None:
    """Whatever the value is, it can be looked at, and no byte of it reaches the terminal's own language."""
    position = topics.fail(value=value)
    code, out, err = topics.run("show", str(position))
    assert (code, err) == (0, "")
    assert "\x1b" not in out


@pytest.mark.parametrize(("position", "complaint"), [("0/99", "there is nothing at 0/99"), ("77/0", "no partition 77")])
def test_nothing_there(topics: Topics, position: str, complaint: str) -> None:
    """Exit code 3, and what there is instead."""
    topics.fail()
    code, out, err = topics.run("show", position)
    assert (code, out) == (3, "")
    assert complaint in err


def test_a_message_that_is_no_dead_letter(topics: Topics) -> None:
    """Asked for by its position, it is refused with the reason."""
    topics.kafka.produce(topics.letters, [b"hello"], partition=0)
    code, _, err = topics.run("show", "0/0")
    assert code == 3
    assert "is no dead letter" in err


# --- replay ------------------------------------------------------------------------------------------------------


def replayed(topics: Topics, count: int) -> list[TestRecord]:
    records = topics.kafka.read_topic(topics.requests)
    assert len(records) == count
    return records


def test_one_is_sent_again(topics: Topics) -> None:
    """The same bytes, key and headers as at first, and the coordinates that it has now; it stays a dead letter."""
    value = b' {"image" : 1.00}\n'
    position = topics.fail(value=value)
    topics.fail(task="another")
    code, out, err = topics.run("replay", str(position), "--to", topics.requests)
    assert code == 0, err
    (record,) = replayed(topics, 1)
    assert (record.key, record.value, record.headers) == (b"key-1", value, HEADERS)
    assert out == f"{position} → {topics.requests}/{record.partition}/{record.offset}  task order-1, 18 bytes\n"
    assert "1 sent" in err
    assert len(topics.kafka.read_topic(topics.letters)) == 2


def test_all_that_are_chosen(topics: Topics) -> None:
    """Sent to the request topic of the daemon's variables, in their order."""
    for task in ("a", "b", "c"):
        topics.fail(task=task, value=task.encode(), error=DeadlinePassed("late") if task == "b" else None)
    code, _, err = topics.run(
        "replay", "--all", "--error-class", "AlgorithmFailed", EOPAAS_JOB_REQUEST_TOPIC=topics.requests
    )
    assert code == 0, err
    assert [record.value for record in replayed(topics, 2)] == [b"a", b"c"]


def test_without_a_request_topic_each_goes_where_it_came_from(topics: Topics) -> None:
    """A dead letter knows its origin."""
    topics.fail()
    assert topics.run("replay", "--all")[0] == 0
    replayed(topics, 1)


def test_a_dry_run_sends_nothing(topics: Topics) -> None:
    """It says what would go where."""
    position = topics.fail()
    code, out, err = topics.run("replay", "--all", "--dry-run")
    assert (code, err) == (0, "1 would be sent\n")
    assert out.startswith(f"{position} → {topics.requests}  task order-1")
    replayed(topics, 0)


def test_one_that_is_only_represented(topics: Topics) -> None:
    """Its bytes are not in the topic: it is listed and shown; value and replay are refused, that of others isn't."""
    position = topics.fail(value=b"x" * 10_000, limit=2_000)
    (row,) = rows_of(topics.run("list", "--json")[1])
    assert (row["isComplete"], row["size"]) == (False, 10_000)
    code, out, _ = topics.run("show", str(position))
    assert code == 0
    assert "10000" in out
    topics.fail(value=b"small")
    for command in (("show", "--value", str(position)), ("replay", "--all")):
        code, out, err = topics.run(*command)
        assert code == 3
        assert "only represented" in err
        assert f"{topics.requests}/2/17" in err
    assert [record.value for record in replayed(topics, 1)] == [b"small"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["replay"], "name positions, or --all"),
        (["replay", "0/0", "--all"], "name positions, or --all"),
        (["replay", "0/0", "--task-id", "a"], "positions are not filtered"),
        (["replay", "17"], "not PARTITION/OFFSET"),
        (["replay", "--all", "--since", "yesterday"], "is no time"),
        (["show", "a/b"], "not PARTITION/OFFSET"),
        (["list", "--since", "2026-13-01"], "is no time"),
    ],
)
def test_wrong_usage(topics: Topics, arguments: list[str], complaint: str) -> None:
    """Exit code 2 with what is wrong."""
    topics.fail()
    code, out, err = topics.run(*arguments)
    assert (code, out) == (2, "")
    assert complaint in err


def test_replaying_into_the_dead_letters_is_refused(topics: Topics) -> None:
    """By whatever way the topic is named."""
    topics.fail()
    code, _, err = topics.run("replay", "--all", "--to", topics.letters)
    assert code == 2
    assert "the dead-letter topic itself" in err


# --- Places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("list",), ("show", "0/0"), ("replay", "--all")])
def test_an_empty_topic(topics: Topics, command: tuple[str, ...]) -> None:
    """Exit code 3, in words."""
    code, out, err = topics.run(*command)
    assert (code, out) == (3, "")
    assert f"{topics.letters} is empty" in err


@pytest.mark.parametrize("command", [("list",), ("show", "0/0"), ("replay", "--all")])
def test_a_missing_topic(cluster: MockKafka, command: tuple[str, ...]) -> None:
    """Exit code 3, and it is named."""
    code, out, err = run("--kafka", cluster.bootstrap, "--topic", "misspelt", *command)
    assert (code, out) == (3, "")
    assert err.startswith(f"cador-trio: there is no topic misspelt at {cluster.bootstrap}")


def test_a_missing_request_topic(topics: Topics) -> None:
    """A replay makes no topic."""
    topics.fail()
    code, _, err = topics.run("replay", "--all", "--to", "misspelt")
    assert code == 3
    assert "there is no topic misspelt" in err


def test_nobody_listens() -> None:
    """Exit code 3 with the reason, in one line."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    code, out, err = run("--kafka", f"127.0.0.1:{port}", "--topic", "t", "list")
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert "refused" in err


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"CADOR_DEAD_LETTER_TOPIC": "t"}, "KAFKA_BROKERS_REQUEST"),
        ({"KAFKA_BROKERS_REQUEST": "127.0.0.1:1"}, "CADOR_DEAD_LETTER_TOPIC"),
    ],
)
def test_no_place_at_all(variables: dict[str, str], complaint: str) -> None:
    """Exit code 2, and which variable or option would help."""
    code, _, err = run("list", **variables)
    assert code == 2
    assert complaint in err


def test_the_daemons_variables_are_enough(topics: Topics) -> None:
    """In the daemon's own pod no option is needed."""
    topics.fail()
    variables = {"KAFKA_BROKERS_REQUEST": topics.kafka.bootstrap, "CADOR_DEAD_LETTER_TOPIC": topics.letters}
    assert run("list", **variables)[0] == 0


# --- On a real broker --------------------------------------------------------------------------------------------


def test_what_a_transaction_took_back_is_not_there(kafka: RealKafka) -> None:
    """Dead letters come in transactions: aborted ones are not read, and the marks behind them keep nobody waiting."""
    name = secrets.token_hex(6)
    topics = Topics(kafka, f"letters-{name}", f"requests-{name}")
    kafka.create_topics({topics.letters: 1, topics.requests: 1})
    producer = Producer({**quiet(kafka.bootstrap), "transactional.id": name})
    producer.init_transactions(CAP_SECONDS)
    for task, end in (
        ("kept", producer.commit_transaction),
        ("taken-back", producer.abort_transaction),
    ):
        letter = a_letter(topics.requests, task=task)
        producer.begin_transaction()
        producer.produce(topics.letters, letter.value, letter.key, headers=list(letter.headers))
        producer.flush(CAP_SECONDS)
        end(CAP_SECONDS)
    code, out, err = topics.run("list", "--json")
    assert (code, err) == (0, "")
    assert [row["taskId"] for row in rows_of(out)] == ["kept"]
    assert "there is nothing at 0/2" in topics.run("show", "0/2")[2]
    code, out, _ = topics.run("replay", "--all")
    assert (code, out.split("  ")[0]) == (0, f"0/0 → {topics.requests}/0/0")
    assert replayed(topics, 1)[0].headers == HEADERS


@pytest.mark.parametrize(
    ("password", "complaint"), [("hunter2", "gives no right to the topic t"), ("hunter3", "can't be reached: ")]
)
def test_users_without_rights(own_kafka: OwnKafka, password: str, complaint: str) -> None:
    """Exit code 3; a missing right is told from a wrong password, and the password itself is not told."""
    kafka = own_kafka(users={"somebody": "hunter2"})
    kafka.create_topics({"t": 1})
    properties = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "somebody",
        "sasl.password": password,
    }
    written = "\n".join(f"{name}={value}" for name, value in properties.items())
    code, out, err = run("--kafka", kafka.sasl_bootstrap, "--topic", "t", "list", CADOR_KAFKA_PROPERTIES=written)
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert complaint in err
    assert ("uthentication" in err) == (password == "hunter3")
    assert "hunter" not in err


# --- Parts -------------------------------------------------------------------------------------------------------

NOW: Final = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", datetime(2026, 1, 31, 11, 58, 30, tzinfo=UTC)),
        ("30m", datetime(2026, 1, 31, 11, 30, tzinfo=UTC)),
        ("12h", datetime(2026, 1, 31, tzinfo=UTC)),
        ("7d", datetime(2026, 1, 24, 12, tzinfo=UTC)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=UTC)),
        ("2026-01-30T10:00+02:00", datetime(2026, 1, 30, 8, tzinfo=UTC)),
        ("2026-01-30T10:00Z", datetime(2026, 1, 30, 10, tzinfo=UTC)),
    ],
)
def test_since(text: str, moment: datetime) -> None:
    """So long ago, or a date or time, which is UTC if it doesn't say."""
    assert Filters(since=text).at(NOW).since == moment.timestamp() * 1000


@pytest.mark.parametrize("text", ["", "7", "7w", "-3h", "999999999d", "0000-01-01"])
def test_since_that_is_no_time(text: str) -> None:
    """Refused, not guessed."""
    with pytest.raises(UsageWrong):
        Filters(since=text).at(NOW)


@pytest.mark.parametrize("text", ["", "/", "0", "0/", "-1/0", "0/+1", "0/1/2", "٣/١", "0/" + "9" * 30])
def test_positions_that_are_none(text: str) -> None:
    """Refused, not guessed."""
    with pytest.raises(UsageWrong):
        Position.of(text)


def test_a_narrow_table_cuts_the_error_alone() -> None:
    """What identifies a dead letter stays whole whatever the width."""
    row = Row(Position(0, 1), FAILED_AT, "t" * 60, "AlgorithmFailed", 3, 12, "e" * 500, is_complete=True)
    _, line = table([row], 100)
    assert "t" * 60 in line
    assert line.endswith("eee…")
    assert all(len(line) <= 200 for line in table([row], 200))
