"""What is found out about clusters: on a real broker, on a mock cluster that knows little, and where nobody listens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._resource import ResourceType

from cador_trio.check import check_neighbours
from cador_trio.errors import KafkaUnavailable, SettingsError
from cador_trio.kafka.cluster import (
    Cluster,
    Watermarks,
    guarantee,
    look,
    look_closely,
    may_join_group,
    places,
    survey,
    try_transactions,
    verify_properties,
)
from cador_trio.kafka.effects import Role
from cador_trio.settings import Settings, load_settings
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.mock import MockKafka
from tests.peers.kafka_fixtures import OwnKafka, Topics

SECONDS: Final = 30.0  # a cap: every answer here comes at once
NOBODY: Final = "127.0.0.1:9"  # the discard port, where nothing listens


def settings_of(brokers: str = "home:9092", **more: str) -> Settings:
    return load_settings(
        {
            "KAFKA_BROKERS_REQUEST": brokers,
            "EOPAAS_JOB_REQUEST_TOPIC": "requests",
            "KAFKA_CONSUMER_GROUP": "group",
            "CADOR_INSTANCE_ID": "one",
            "CADOR_PORT": "0",
            "PROCESSING_SERVER": f"http://{NOBODY}",
            **more,
        }
    )


async def kafka_findings(settings: Settings) -> list[str]:
    """What `check` says of Kafka."""
    return [str(finding) for finding in await check_neighbours(settings) if "Kafka" in finding.text]


# --- Places and guarantee -----------------------------------------------------------------------------------------

ALL: Final = {
    "EOPAAS_JOB_OUTPUT_TOPIC": "out",
    "EOPAAS_STATUS_UPDATE_TOPIC": "status",
    "CADOR_DEAD_LETTER_TOPIC": "dead",
}


def test_places_are_the_topics_in_use() -> None:
    """Tags go to the output topic unless they have one of their own."""
    assert places(Settings()) == ()
    assert [(place.topic, place.role) for place in places(settings_of())] == [("requests", None)]
    found = places(settings_of(**ALL, KAFKA_BROKERS_OUTPUT="other:1"))
    assert [(str(place), place.brokers) for place in found] == [
        ("request topic requests", "home:9092"),
        ("output topic out", "other:1"),
        ("tag topic out", "other:1"),
        ("status topic status", "home:9092"),
        ("dead letter topic dead", "home:9092"),
    ]
    assert [place.needed_right for place in found] == ["READ", "WRITE", "WRITE", "WRITE", "WRITE"]


def test_exactly_once_on_one_cluster() -> None:
    """All in the request's transaction, whatever of them there is."""
    found = guarantee(settings_of(**ALL), {"home:9092": "A"})
    assert found.sentence == (
        "exactly once: one transaction holds output, tags, statuses, dead letters and the request's offset"
    )
    assert (found.kind, found.elsewhere, found.has_transactions) == ("exactly-once", frozenset(), True)
    assert guarantee(settings_of(), {}).sentence == "exactly once: one transaction holds the request's offset"


def test_clusters_are_compared_by_their_ids() -> None:
    """Two names may be one cluster; brokers without an id are taken for what they are called."""
    settings = settings_of(**ALL, KAFKA_BROKERS_STATUS="alias:1", CADOR_DELIVERY="exactly-once")
    assert guarantee(settings, {"home:9092": "A", "alias:1": "A"}).kind == "exactly-once"
    for ids in ({"home:9092": "A", "alias:1": "B"}, {"home:9092": "", "alias:1": ""}, {}):
        with pytest.raises(SettingsError) as wrong:
            guarantee(settings, ids)
        (finding,) = wrong.value.findings
        assert finding.startswith("CADOR_DELIVERY: exactly-once can't be held: the status topic status is on another")


def test_what_is_elsewhere_is_at_least_once() -> None:
    """And the sentence names it."""
    found = guarantee(settings_of(**ALL, KAFKA_BROKERS_STATUS="other:1"), {"home:9092": "A", "other:1": "B"})
    assert (found.kind, found.has_transactions) == ("mixed", True)
    assert found.elsewhere == frozenset({Role.STATUS})
    assert found.sentence == (
        "output, tags and dead letters exactly once; statuses at least once, being on another cluster than the requests"
    )
    settings = settings_of(EOPAAS_JOB_OUTPUT_TOPIC="out", KAFKA_BROKERS_OUTPUT="other:1")
    found = guarantee(settings, {"home:9092": "A", "other:1": "B"})
    assert (found.kind, found.has_transactions) == ("at-least-once", True)
    assert found.elsewhere == frozenset({Role.OUTPUT, Role.TAG})


def test_at_least_once_by_choice() -> None:
    """Without transactions then."""
    found = guarantee(settings_of(**ALL, CADOR_DELIVERY="at-least-once"), {"home:9092": "A"})
    assert (found.kind, found.has_transactions) == ("at-least-once", False)
    assert "CADOR_DELIVERY" in found.sentence


# --- Properties that librdkafka judges ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_our_own_properties_are_taken(protocol: str) -> None:
    """By every kind of client, and with what operators usually add."""
    verify_properties(
        settings_of(
            CADOR_GROUP_PROTOCOL=protocol,
            CADOR_INLINE_RESULT_LIMIT="50MiB",
            CADOR_KAFKA_PROPERTIES="security.protocol=sasl_ssl;sasl.mechanism=SCRAM-SHA-512;sasl.username=u;"
            "sasl.password=p;client.rack=a",
            CADOR_KAFKA_PROPERTIES_PRODUCER="transaction.timeout.ms=10000;linger.ms=3;compression.codec=none",
        )
    )


@pytest.mark.parametrize(
    ("end", "text", "finding"),
    [
        ("", "nonsense.x=hunter2", "nonsense.x: no such property"),
        ("", "security.protocol=hunter2", "security.protocol: not a value that it may have"),
        ("", "socket.timeout.ms=hunter2", "socket.timeout.ms: not a value that it may have"),
        ("_PRODUCER", "socket.timeout.ms=1", "socket.timeout.ms: not within 10..300000"),
        ("_CONSUMER", "fetch.min.bytes=99999999999", "fetch.min.bytes: not within 1..100000000"),
        ("", "sasl.mechanism=PLAIN;security.protocol=sasl_ssl", "sasl.username and sasl.password must be set"),
        ("", 'debug=" for configuration property "hunter2', "debug: not a value that it may have"),
    ],
)
def test_what_librdkafka_refuses_is_named_without_its_value(end: str, text: str, finding: str) -> None:
    """By variable and property; its own words often quote the value."""
    with pytest.raises(SettingsError) as wrong:
        verify_properties(settings_of(**{f"CADOR_KAFKA_PROPERTIES{end}": text}))
    assert wrong.value.findings == [f"CADOR_KAFKA_PROPERTIES{end}: {finding}"]
    assert wrong.value.__cause__ is None


def test_a_certificate_that_is_missing(tmp_path: Path) -> None:
    """Its path is a value too; the property's name is enough to find it."""
    path = tmp_path / "hunter2.pem"
    with pytest.raises(SettingsError) as wrong:
        verify_properties(settings_of(CADOR_KAFKA_PROPERTIES=f"security.protocol=ssl;ssl.ca.location={path}"))
    assert "ssl.ca.location" in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


# --- A real broker ------------------------------------------------------------------------------------------------


async def looked(settings: Settings, brokers: str, *names: str) -> Cluster:
    return await trio.to_thread.run_sync(partial(look_closely, settings, brokers, names, seconds=SECONDS))


async def test_topics_rights_and_sizes_are_found_out(kafka: RealKafka, topics: Topics) -> None:
    """And no topic comes to be by asking, though the broker would create it for a message."""
    out = topics("out")
    kafka.create_topics({out: 3}, {"max.message.bytes": "2000000"})
    cluster = await looked(settings_of(kafka.bootstrap), kafka.bootstrap, out, topics("missing"))
    assert cluster.cluster_id
    found = cluster.topics[out]
    assert (found.partitions, found.problem, found.largest_message) == (3, "", 2_000_000)
    # A broker without ACLs allows everything, or does not tell.
    assert found.rights is None or found.rights >= {"READ", "WRITE"}
    assert cluster.topics[topics("missing")].problem == "does not exist"
    again = await looked(settings_of(kafka.bootstrap), kafka.bootstrap, topics("missing"))
    assert again.topics[topics("missing")].problem == "does not exist"


async def test_a_survey_tells_ids_and_what_is_missing(kafka: RealKafka, mock_kafka: MockKafka, topics: Topics) -> None:
    """Of all clusters; whether that stops anything is for others to decide."""
    kafka.create_topics({topics("requests"): 1})
    settings = settings_of(
        kafka.bootstrap,
        EOPAAS_JOB_REQUEST_TOPIC=topics("requests"),
        EOPAAS_STATUS_UPDATE_TOPIC="status",
        KAFKA_BROKERS_STATUS=mock_kafka.bootstrap,
    )
    found = await trio.to_thread.run_sync(partial(survey, settings, seconds=SECONDS))
    assert found.problems == [
        f"status topic status at {mock_kafka.bootstrap}: does not exist (EOPAAS_STATUS_UPDATE_TOPIC)"
    ]
    assert found.cluster_ids.keys() == {kafka.bootstrap, mock_kafka.bootstrap}
    assert guarantee(settings, found.cluster_ids).elsewhere == frozenset({Role.STATUS})


async def test_check_says_that_all_is_well(kafka: RealKafka, topics: Topics) -> None:
    """Topics, group, transactions, and the guarantee that follows; one cluster by two names is one."""
    kafka.create_topics({topics("requests"): 2, topics("out"): 1})
    settings = settings_of(
        kafka.bootstrap,
        EOPAAS_JOB_REQUEST_TOPIC=topics("requests"),
        EOPAAS_JOB_OUTPUT_TOPIC=topics("out"),
        KAFKA_BROKERS_OUTPUT=kafka.bootstrap.replace("127.0.0.1", "localhost"),
        KAFKA_CONSUMER_GROUP=topics("group"),
        CADOR_INSTANCE_ID=topics("instance"),
    )
    findings = await kafka_findings(settings)
    assert [finding for finding in findings if finding.startswith("FAILED")] == []
    assert "2 partitions" in findings[0]
    assert "ok: Kafka: transactions: the brokers take our transactional id" in findings
    assert findings[-1].startswith("ok: Kafka: delivery: exactly once")


async def test_check_names_what_is_missing_or_too_small(kafka: RealKafka, topics: Topics) -> None:
    """With the setting that names it."""
    kafka.create_topics({topics("out"): 1}, {"max.message.bytes": "50000"})
    settings = settings_of(
        kafka.bootstrap,
        EOPAAS_JOB_REQUEST_TOPIC=topics("requests"),
        EOPAAS_JOB_OUTPUT_TOPIC=topics("out"),
        CADOR_DELIVERY="at-least-once",
    )
    failed = [finding for finding in await kafka_findings(settings) if finding.startswith("FAILED")]
    assert len(failed) == 2
    assert failed[0].endswith("does not exist (EOPAAS_JOB_REQUEST_TOPIC)")
    assert "messages up to 50000 bytes, fewer than CADOR_INLINE_RESULT_LIMIT (900000)" in failed[1]


async def test_check_names_missing_rights(own_kafka: OwnKafka) -> None:
    """Read what may only be described, use a group or a transactional id of others': each is a finding."""
    broker = own_kafka(
        {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
        }
    )
    broker.create_topics({"requests": 1, "out": 1})
    # With an ACL of its own, a resource is closed to all whom that does not name.
    broker.allow("ANONYMOUS", ResourceType.TOPIC, "requests", AclOperation.DESCRIBE)
    broker.allow("somebody", ResourceType.TOPIC, "out", AclOperation.WRITE)
    broker.allow("somebody", ResourceType.GROUP, "group", AclOperation.READ)
    broker.allow("somebody", ResourceType.TRANSACTIONAL_ID, "cador.group.one.check", AclOperation.WRITE)
    findings = await kafka_findings(settings_of(broker.bootstrap, EOPAAS_JOB_OUTPUT_TOPIC="out"))
    assert all(finding.startswith("FAILED") for finding in findings)
    text = "\n".join(findings)
    assert "no right to READ (EOPAAS_JOB_REQUEST_TOPIC)" in text
    assert "may not be seen by this user, or does not exist (EOPAAS_JOB_OUTPUT_TOPIC)" in text
    assert "no right to READ (KAFKA_CONSUMER_GROUP)" in text
    assert "transactional ids that begin with cador." in text
    assert "no transactions" in findings[-1]


# --- A broker that knows little, and none at all ------------------------------------------------------------------


async def test_what_a_broker_does_not_tell_is_not_known(mock_kafka: MockKafka) -> None:
    """Neither rights nor sizes: no reason to fail."""
    mock_kafka.produce("requests", [b"{}"])
    settings = settings_of(mock_kafka.bootstrap)
    cluster = await looked(settings, mock_kafka.bootstrap, "requests", "missing")
    found = cluster.topics["requests"]
    assert (found.problem, found.rights, found.largest_message) == ("", None, None)
    assert found.partitions > 0
    assert cluster.topics["missing"].problem == "does not exist"
    assert may_join_group(settings, seconds=SECONDS) is None


async def test_check_goes_on_where_little_is_known(mock_kafka: MockKafka) -> None:
    """And says what it does not know."""
    mock_kafka.produce("requests", [b"{}"])
    findings = await kafka_findings(settings_of(mock_kafka.bootstrap, CADOR_DELIVERY="at-least-once"))
    assert "rights not known, largest message not known" in findings[0]
    assert findings[1] == "ok: Kafka: consumer group group: rights not known"
    assert findings[2].startswith("ok: Kafka: delivery: at least once")


def test_nobody_listens() -> None:
    """The error says what was tried, and that waiting may help."""
    settings = settings_of(NOBODY)
    with pytest.raises(KafkaUnavailable, match=r"Kafka at 127\.0\.0\.1:9: .*Connection refused") as away:
        look(settings, NOBODY, ["requests"], seconds=3)  # the first refusal comes at once, its report soon
    assert away.value.waits
    with pytest.raises(KafkaUnavailable, match=r"transactions as cador\.group\.one\.check"):
        try_transactions(settings, seconds=0.5)


def test_wrong_credentials_are_not_waited_for(kafka: RealKafka) -> None:
    """A broker that refuses us is there; the hint says where to look, and no password is shown."""
    properties = "security.protocol=sasl_plaintext;sasl.mechanism=PLAIN;sasl.username=u;sasl.password=hunter2"
    settings = settings_of(kafka.bootstrap, CADOR_KAFKA_PROPERTIES=properties)
    with pytest.raises(KafkaUnavailable) as refused:
        look(settings, kafka.bootstrap, ["requests"], seconds=10 * SECONDS)  # would be too long to wait for
    assert "sasl.*" in refused.value.hint
    assert "hunter2" not in f"{refused.value.message}{refused.value.hint}"


async def test_check_ends_where_a_cluster_is_away(mock_kafka: MockKafka) -> None:
    """One line for it, and no guess at the guarantee."""
    mock_kafka.produce("requests", [b"{}"])
    settings = settings_of(
        mock_kafka.bootstrap,
        EOPAAS_JOB_OUTPUT_TOPIC="out",
        KAFKA_BROKERS_OUTPUT=NOBODY,
        CADOR_TIMEOUT_SECONDS="1",
        CADOR_DELIVERY="at-least-once",
    )
    findings = await kafka_findings(settings)
    assert len([finding for finding in findings if NOBODY in finding]) == 1
    assert findings[-1] == "FAILED: Kafka: delivery: not known, since not every cluster has answered"


async def test_check_without_kafka() -> None:
    """Said, so that nobody wonders."""
    findings = await kafka_findings(Settings(port=0, processing_server=f"http://{NOBODY}"))
    assert findings == ["ok: Kafka: off (KAFKA_BROKERS_REQUEST names no brokers)"]


def test_watermarks(kafka: RealKafka, topics: Topics) -> None:
    """The high watermark of each partition; what is not there is left out."""
    kafka.create_topics({topics("requests"): 2})
    kafka.produce(topics("requests"), [b"1", b"2", b"3"], partition=1)
    watermarks = Watermarks(settings_of(kafka.bootstrap, EOPAAS_JOB_REQUEST_TOPIC=topics("requests")))
    assert watermarks.read([0, 1]) == {0: 0, 1: 3}
    assert watermarks.read([1, 7]) == {1: 3}


def test_watermarks_of_brokers_that_are_away() -> None:
    """Nobody answers: that is said, and not waited out."""
    with pytest.raises(KafkaUnavailable, match="watermarks"):
        Watermarks(settings_of(NOBODY)).read([0])
