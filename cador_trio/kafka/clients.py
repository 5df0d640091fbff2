"""librdkafka's clients as we make them: with their words in our log, which lets through each kind once in a while.

A client that has lost its broker complains twenty times a second and mends itself; nothing here acts on that.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Producer

from cador_trio.kafka.properties import Properties
from cador_trio.observe.metrics import KAFKA_CLIENT_ERRORS

_logger: Final = logging.getLogger("cador_trio.librdkafka")


def is_fatal(error: KafkaError) -> bool:
    """The client is of no use any more. The library says `fatal` of few such errors, but they all have this code."""
    # librdkafka's names for its own errors start with an underscore.
    return bool(error.fatal() or error.code() == KafkaError._FATAL)  # noqa: SLF001


def make_consumer(properties: Properties) -> Consumer:
    """A Consumer; for the thread that calls this."""
    return Consumer(_complete(properties), logger=_logger)


def make_producer(properties: Properties) -> Producer:
    """A Producer."""
    return Producer(_complete(properties), logger=_logger)


def _complete(properties: Properties) -> dict[str, Any]:
    return {**properties, "error_cb": _note}


def _note(error: KafkaError) -> None:
    KAFKA_CLIENT_ERRORS.labels(error.name()).inc()
    _logger.warning("%s %s", error.name(), error.str())
