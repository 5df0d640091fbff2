"""librdkafka's clients as we make them: with their words in our log, each kind of them once in a while.

A client that has lost its broker complains twenty times a second and mends itself; nothing here acts on that.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, Producer

from cador_trio.kafka.properties import Properties
from cador_trio.observe.metrics import KAFKA_CLIENT_ERRORS

REPEAT_SECONDS: Final = 30.0  # between two lines of one kind


class _OnceInAWhile(logging.Filter):
    """Lets through the first line of a kind, and later ones now and then, with the number of those left out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # librdkafka's lines are `FACILITY [client] text`: the first is what makes a kind.
        kind = record.args[0] if isinstance(record.args, tuple) and record.args else record.msg
        now = time.monotonic()
        last, left_out = self._seen.get(kind, (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS:
            self._seen[kind] = (last, left_out + 1)
            return False
        self._seen[kind] = (now, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like this)"
        return True


_logger: Final = logging.getLogger("cador_trio.librdkafka")
_logger.addFilter(_OnceInAWhile())


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
