"""Was a message committed? Asked of a real broker, about transactions of the tests."""

from __future__ import annotations

from typing import Any, Final

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._resource import ResourceType

from cador_trio.errors import KafkaUnavailable
from cador_trio.kafka.lookup import is_visible
from cador_trio.kafka.messages import Coordinates
from cador_trio.kafka.properties import consumer_properties
from tests.kafka.test_cluster import settings_of
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka.clients import quiet
from tests.peers.kafka_fixtures import OwnKafka, Topics
from tests.secrets import KAFKA_PASSWORD

CAP_SECONDS: Final = 30.0


def properties_of(bootstrap: str, **variables: str) -> Any:
    """Those of a daemon's consumer."""
    return consumer_properties(settings_of(bootstrap, **variables))


def transaction(kafka: RealKafka, topics: Topics, value: bytes) -> tuple[Producer, Coordinates]:
    """An open one, and where its message is."""
    producer = Producer({**quiet(kafka.bootstrap), "transactional.id": topics("id")})
    producer.init_transactions(CAP_SECONDS)
    producer.begin_transaction()
    places: list[Coordinates] = []

    def note(_: object, message: Any) -> None:
        places.append(Coordinates(message.topic(), message.partition(), message.offset()))

    producer.produce(topics("statuses"), value, on_delivery=note)
    producer.flush(CAP_SECONDS)
    return producer, places[0]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_committed_aborted_and_open(kafka: RealKafka, topics: Topics, protocol: str) -> None:
    """What was committed is visible, what was aborted is not, whatever follows; in between nobody knows yet."""
    kafka.create_topics({topics("statuses"): 1})
    properties = properties_of(kafka.bootstrap, CADOR_GROUP_PROTOCOL=protocol)
    producer, aborted = transaction(kafka, topics, b"aborted")
    with pytest.raises(KafkaUnavailable):
        is_visible(properties, aborted, seconds=1)
    producer.abort_transaction(CAP_SECONDS)
    assert is_visible(properties, aborted) is False
    producer, committed = transaction(kafka, topics, b"committed")
    producer.commit_transaction(CAP_SECONDS)
    assert is_visible(properties, committed) is True
    assert is_visible(properties, aborted) is False


def test_what_is_not_there(kafka: RealKafka, topics: Topics) -> None:
    """A topic, a partition or an offset that does not exist (any more) tells nothing."""
    kafka.create_topics({topics("any"): 1})
    properties = properties_of(kafka.bootstrap)
    for place in (Coordinates(topics("none"), 0, 0), Coordinates(topics("any"), 3, 0)):
        assert is_visible(properties, place, seconds=1) is None
    assert is_visible(properties, Coordinates(topics("any"), 0, 5)) is None


def test_nobody_wants_to_know_any_more(kafka: RealKafka) -> None:
    """It ends at once."""
    with pytest.raises(KafkaUnavailable):
        is_visible(properties_of(kafka.bootstrap), Coordinates("none", 0, 0), lambda: False, seconds=3_600)


def test_without_the_right_to_read(own_kafka: OwnKafka, topics: Topics) -> None:
    """Then it can't be known."""
    kafka = own_kafka(users={"alice": KAFKA_PASSWORD})
    kafka.create_topics({topics("statuses"): 1})
    kafka.produce(topics("statuses"), [b"x"])
    login = "security.protocol=sasl_plaintext;sasl.mechanism=PLAIN;sasl.username=alice"
    properties = properties_of(kafka.sasl_bootstrap, CADOR_KAFKA_PROPERTIES=f"{login};sasl.password={KAFKA_PASSWORD}")
    place = Coordinates(topics("statuses"), 0, 0)
    assert is_visible(properties, place, seconds=1) is None  # the topic can't even be seen
    kafka.allow("alice", ResourceType.TOPIC, topics("statuses"), AclOperation.WRITE)
    assert is_visible(properties, place) is None
    kafka.allow("alice", ResourceType.TOPIC, topics("statuses"), AclOperation.READ)
    kafka.allow("alice", ResourceType.GROUP, "group", AclOperation.READ)
    assert is_visible(properties, place) is True


def test_nobody_listens() -> None:
    """It is asked again later."""
    with pytest.raises(KafkaUnavailable):
        is_visible(properties_of("127.0.0.1:9"), Coordinates("statuses", 0, 0), seconds=0.5)
