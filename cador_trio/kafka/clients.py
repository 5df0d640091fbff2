"""librdkafka's clients as we make them: with their words in our log, which lets through each kind once in a while.

A client that has lost its broker complains twenty times a second and mends itself: that is counted, and makes us look.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, KafkaError, Producer

from cador_trio.kafka.properties import Properties
from cador_trio.observe.metrics import KAFKA_CLIENT_ERRORS

_logger: Final = logging.getLogger("cador_trio.librdkafka")


def is_fatal(error: KafkaError) -> bool:
    """The client is of no use any more. The library says `fatal` of few such errors, but they all have this code."""
    # librdkafka's names for its own errors start with an underscore.
    return bool(error.fatal() or error.code() == KafkaError._FATAL)  # noqa: SLF001


def make_consumer(properties: Properties, on_outage: Callable[[], None]) -> Consumer:
    """A Consumer; for the thread that calls this, which will call `on_outage` when no broker is there any more."""

    def note(error: KafkaError) -> None:
        _note(error)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - so are its own errors called
            on_outage()

    return Consumer({**properties, "error_cb": note}, logger=_logger)


def make_producer(properties: Properties) -> Producer:
    """A Producer."""
    return Producer({**properties, "error_cb": _note}, logger=_logger)


def _note(error: KafkaError) -> None:
    KAFKA_CLIENT_ERRORS.labels(error.name()).inc()
    _logger.warning("%s %s", error.name(), error.str())
