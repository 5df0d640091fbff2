"""Was a message committed? Asked when the outcome of a transaction is not known, and no offset tells.

The one consumer besides that of the requests; blocking, for a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from cador_trio.errors import KafkaUnavailable
from cador_trio.kafka.clients import make_consumer
from cador_trio.kafka.messages import Coordinates
from cador_trio.kafka.properties import Properties

LOOK_SECONDS: Final = 10.0  # one look; whoever wants to know looks again
TURN_SECONDS: Final = 0.5
_FORBIDDEN: Final = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED}
# librdkafka's names for its own errors start with an underscore.
_EMPTIED: Final = KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001
_END: Final = KafkaError._PARTITION_EOF  # noqa: SLF001


def is_visible(
    properties: Properties,
    place: Coordinates,
    is_wanted: Callable[[], bool] = lambda: True,
    *,
    seconds: float = LOOK_SECONDS,
) -> bool | None:
    """Whether readers of what is committed see the message that was acknowledged there.

    Args:
        properties: those of the consumer of the requests. The group is not joined.
        place: of a message whose transaction has ended, or ends soon.
        is_wanted: asked again and again; once it says no, there is no answer.
        seconds: how long to wait for the brokers, and for that end.

    Returns:
        None if it can't be known: there is no right to read there, or the topic was emptied or deleted meanwhile.

    Raises:
        KafkaUnavailable: no answer in time.
    """
    consumer = make_consumer(
        {**properties, "enable.partition.eof": True, "auto.offset.reset": "error"}, on_outage=lambda: None
    )
    give_up_at = time.monotonic() + seconds
    with closing(consumer):
        consumer.assign([TopicPartition(place.topic, place.partition, place.offset)])
        while time.monotonic() < give_up_at and is_wanted():
            message = consumer.poll(TURN_SECONDS)
            if message is None:
                continue
            error, offset = message.error(), message.offset()
            if error is None:
                return offset == place.offset
            if error.code() in {_EMPTIED, *_FORBIDDEN}:
                return None
            # Of what is committed. Not past our message: its transaction is still open.
            if error.code() == _END and offset is not None and offset > place.offset:
                return False
        if is_wanted() and _is_out_of_sight(consumer, place):
            return None
    raise KafkaUnavailable(f"{place.topic}, partition {place.partition}, can't be read at the moment")


def _is_out_of_sight(consumer: Consumer, place: Coordinates) -> bool:
    """Whether the brokers don't tell this user of the partition at all; a consumer waits for it without a word."""
    try:
        known = consumer.list_topics(place.topic, timeout=TURN_SECONDS).topics[place.topic]
    except KafkaException:
        return False
    if known.error is not None:
        return known.error.code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, *_FORBIDDEN}
    return place.partition not in known.partitions
