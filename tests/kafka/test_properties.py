"""Properties of the Kafka clients: how the operator's are read, which are refused, and what ours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.errors import SettingsError
from cador_trio.kafka.properties import (
    ENVELOPE,
    LARGEST_MESSAGE,
    admin_properties,
    check_properties,
    consumer_properties,
    delivery_properties,
    largest_message,
    parse,
    status_properties,
    transactional_properties,
)
from cador_trio.settings import Settings, load_settings

VARIABLE: Final = "CADOR_KAFKA_PROPERTIES"


def settings_of(**more: str) -> Settings:
    return load_settings(
        {
            "KAFKA_BROKERS_REQUEST": "home:9092",
            "EOPAAS_JOB_REQUEST_TOPIC": "requests",
            "KAFKA_CONSUMER_GROUP": "group",
            "CADOR_INSTANCE_ID": "one",
            **more,
        }
    )


def findings_of(text: str) -> list[str]:
    with pytest.raises(SettingsError) as wrong:
        parse(text, VARIABLE)
    return wrong.value.findings


def contradictions_of(**more: str) -> list[str]:
    with pytest.raises(SettingsError) as wrong:
        check_properties(settings_of(**more))
    return wrong.value.findings


# --- Reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "properties"),
    [
        ("", {}),
        ("client.rack=a", {"client.rack": "a"}),
        ("client.rack=a;linger.ms=5", {"client.rack": "a", "linger.ms": "5"}),
        (" client.rack = a \n\n linger.ms = 5 ;", {"client.rack": "a", "linger.ms": "5"}),
        ("# all; of=it\nclient.rack=a # b", {"client.rack": "a # b"}),
        ("client.rack=a; # linger.ms=1; debug=all\ndebug=msg", {"client.rack": "a", "debug": "msg"}),
        ("sasl.password=a=b;client.rack=", {"sasl.password": "a=b", "client.rack": ""}),
        (r"sasl.password=a\;b;client.rack=a", {"sasl.password": "a;b", "client.rack": "a"}),
    ],
)
def test_properties_are_lines_or_separated(text: str, properties: dict[str, str]) -> None:
    """`name=value`, with comments; what separates can be escaped, since passwords hold anything."""
    assert parse(text, VARIABLE) == properties


def test_properties_may_come_from_a_file(tmp_path: Path) -> None:
    """Named by `@/path`, and read each time: it may be renewed."""
    file = tmp_path / "kafka.properties"
    file.write_text("# secrets\nsasl.username=u\nsasl.password=hunter2\n")
    assert parse(f"@{file}", VARIABLE) == {"sasl.username": "u", "sasl.password": "hunter2"}


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    """Missing, or no text: the finding shows nothing of it."""
    assert findings_of(f"@{tmp_path}/missing") == [f"{VARIABLE}: {tmp_path}/missing: No such file or directory"]
    file = tmp_path / "kafka.properties"
    file.write_bytes(b"hunter2\xff")
    assert findings_of(f"@{file}") == [f"{VARIABLE}: the file that it names is not UTF-8 text"]


def test_all_that_is_wrong_is_told_at_once_and_no_value() -> None:
    """What has no name may be half of a password."""
    findings = findings_of("sasl.password=hun;ter2;Debug=hunter2;debug=a;debug=hunter2;acks=hunter2")
    assert [finding.split(":")[1].split()[0] for finding in findings] == ["entry", "entry", "debug", "acks"]
    assert "ter2" not in str(findings)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Never a traceback; what is read can be written down and read again."""
    try:
        properties = parse(text, VARIABLE)
    except SettingsError:
        return
    again = "\n".join(f"{name}={value}".replace(";", "\\;") for name, value in properties.items())
    assert parse(again, VARIABLE) == properties


# --- Refusing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "isolation.level",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "auto.commit.interval.ms",
        "auto.commit.enable",
        "topic.auto.commit.enable",
        "auto.offset.reset",
        "offset.store.method",
        "enable.partition.eof",
        "transactional.id",
        "enable.idempotence",
        "enable.gapless.guarantee",
        "acks",
        "request.required.acks",
        "topic.acks",
        "topic.request.required.acks",
        "group.id",
        "group.protocol",
        "group.instance.id",
        "partition.assignment.strategy",
        "bootstrap.servers",
        "metadata.broker.list",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "message.timeout.ms",
        "delivery.timeout.ms",
        "retries",
        "queuing.strategy",
        "test.mock.num.brokers",
        "error_cb",
        "oauth_cb",
        "logger",
        "log_level",
    ],
)
@pytest.mark.parametrize("end", ["", "_CONSUMER", "_PRODUCER"])
def test_what_would_break_the_guarantee_is_refused(name: str, end: str) -> None:
    """With a reason, by all three variables."""
    (finding,) = contradictions_of(**{f"{VARIABLE}{end}": f"{name}=1"})
    assert finding.startswith(f"{VARIABLE}{end}: {name} can't be set: ")


@pytest.mark.parametrize(
    "name", ["topic.metadata.refresh.interval.ms", "security.protocol", "sasl.password", "session.timeout.ms"]
)
def test_the_rest_is_passed_through(name: str) -> None:
    """What we don't know is librdkafka's to judge."""
    assert parse(f"{name}=x", VARIABLE) == {name: "x"}


@pytest.mark.parametrize("name", ["session.timeout.ms", "heartbeat.interval.ms"])
def test_sessions_are_the_brokers_with_kip_848(name: str) -> None:
    """Said in our terms, with the variable that it stands in."""
    check_properties(settings_of(CADOR_KAFKA_PROPERTIES=f"{name}=5000"))
    (finding,) = contradictions_of(CADOR_KAFKA_PROPERTIES=f"{name}=5000", CADOR_GROUP_PROTOCOL="consumer")
    assert finding.startswith(f"CADOR_KAFKA_PROPERTIES: {name} can't be set with CADOR_GROUP_PROTOCOL=consumer")


def test_the_revoke_grace_stays_under_the_poll_interval() -> None:
    """The consumer does not poll while it waits; the group must not take it for dead."""
    check_properties(settings_of(CADOR_REVOKE_GRACE_SECONDS="150"))
    (finding,) = contradictions_of(CADOR_REVOKE_GRACE_SECONDS="151")
    assert "(150 seconds)" in finding
    interval = {"CADOR_KAFKA_PROPERTIES_CONSUMER": "max.poll.interval.ms=60000"}
    check_properties(settings_of(**interval, CADOR_REVOKE_GRACE_SECONDS="30"))
    (finding,) = contradictions_of(**interval, CADOR_REVOKE_GRACE_SECONDS="31")
    assert finding.startswith("CADOR_REVOKE_GRACE_SECONDS: ")


def test_messages_must_hold_the_results_that_they_should() -> None:
    """A limit of the operator's below that would fail every larger job."""
    (finding,) = contradictions_of(CADOR_KAFKA_PROPERTIES_PRODUCER="message.max.bytes=900000")
    assert finding.startswith("CADOR_KAFKA_PROPERTIES_PRODUCER: message.max.bytes is too small")
    check_properties(settings_of(CADOR_KAFKA_PROPERTIES_PRODUCER=f"message.max.bytes={900_000 + ENVELOPE}"))


# --- What the clients get -----------------------------------------------------------------------------------------


def test_the_consumer() -> None:
    """Commits nothing by itself, sees committed records only, and moves partitions one by one."""
    properties = consumer_properties(settings_of())
    assert properties["bootstrap.servers"] == "home:9092"
    assert properties["client.id"] == "cador-one"
    assert properties["group.id"] == "group"
    assert properties["isolation.level"] == "read_committed"
    assert (properties["enable.auto.commit"], properties["enable.auto.offset.store"]) == (False, False)
    assert (properties["group.protocol"], properties["partition.assignment.strategy"]) == (
        "classic",
        "cooperative-sticky",
    )
    assert properties["auto.offset.reset"] == "earliest"
    properties = consumer_properties(settings_of(CADOR_GROUP_PROTOCOL="consumer", CADOR_START_OFFSET="latest"))
    assert (properties["group.protocol"], properties["auto.offset.reset"]) == ("consumer", "latest")
    assert "partition.assignment.strategy" not in properties


def test_the_producers() -> None:
    """All idempotent; one has transactions, and the others wait for their brokers as long as it takes."""
    settings = settings_of()
    transactional = transactional_properties(settings)
    assert transactional["transactional.id"] == "cador.group.one"
    assert transactional["transaction.timeout.ms"] == 30_000
    assert "message.timeout.ms" not in transactional  # librdkafka takes the transaction's
    for properties in (delivery_properties(settings, "other:1"), status_properties(settings, "other:1")):
        assert properties["bootstrap.servers"] == "other:1"
        assert properties["message.timeout.ms"] == 0
        assert "transactional.id" not in properties
    for properties in (transactional, delivery_properties(settings, "a:1"), status_properties(settings, "a:1")):
        assert properties["enable.idempotence"] is True
        assert properties["compression.type"] == "lz4"


def test_a_looking_client_creates_no_topics() -> None:
    """Even if an operator lets the others do so."""
    settings = settings_of(CADOR_KAFKA_PROPERTIES="allow.auto.create.topics=true")
    assert admin_properties(settings, "home:9092")["allow.auto.create.topics"] is False


def test_the_operator_wins_where_it_is_allowed() -> None:
    """The narrower variable over the one for all."""
    settings = settings_of(
        CADOR_KAFKA_PROPERTIES="sasl.username=all;linger.ms=7;compression.type=none",
        CADOR_KAFKA_PROPERTIES_CONSUMER="sasl.username=reader;fetch.queue.backoff.ms=9",
        CADOR_KAFKA_PROPERTIES_PRODUCER="sasl.username=writer;transaction.timeout.ms=5000",
    )
    consumer = consumer_properties(settings)
    assert (consumer["sasl.username"], consumer["fetch.queue.backoff.ms"]) == ("reader", "9")
    transactional = transactional_properties(settings)
    assert (transactional["sasl.username"], transactional["transaction.timeout.ms"]) == ("writer", "5000")
    for properties in (transactional, delivery_properties(settings, "a:1"), status_properties(settings, "a:1")):
        assert (properties["linger.ms"], properties["compression.type"]) == ("7", "none")
    assert admin_properties(settings, "a:1")["sasl.username"] == "writer"
    assert admin_properties(settings, "a:1", as_consumer=True)["sasl.username"] == "reader"


@pytest.mark.parametrize(
    ("more", "size"),
    [
        ({}, LARGEST_MESSAGE),
        ({"CADOR_INLINE_RESULT_LIMIT": "5000000"}, 5_000_000 + ENVELOPE),
        ({"CADOR_KAFKA_PROPERTIES": "message.max.bytes=3000000"}, 3_000_000),
    ],
)
def test_messages_may_be_as_large_as_results_need(more: dict[str, Any], size: int) -> None:
    """librdkafka's default, more if the limit of results asks for it, or what the operator says."""
    settings = settings_of(**more)
    assert largest_message(settings) == size
    assert int(transactional_properties(settings)["message.max.bytes"]) == size
