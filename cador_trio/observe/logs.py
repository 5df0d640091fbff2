"""One stream of log lines on standard error: JSON for machines, colours for a terminal; other libraries' logs included.

Every line of a job carries the ids bound by `run_job`; every value passes the redaction of errors.py.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog

from cador_trio.errors import public_text

LogFormat = Literal["auto", "json", "console"]


class _StandardError(io.TextIOBase):
    """Whatever standard error is at the moment: loggers are kept for good, and it may be put elsewhere meanwhile.

    Each write is a whole line, and lines of all threads come one after the other.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_STANDARD_ERROR = cast("TextIO", _StandardError())


def set_up_logs(level: str, log_format: LogFormat) -> None:
    """Route structlog and the standard library's logging to standard error, from this level on."""
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        _redact,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if is_console else structlog.processors.JSONRenderer()
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(_STANDARD_ERROR),
    )
    handler = logging.StreamHandler(_STANDARD_ERROR)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer))
    logging.root.handlers = [handler]
    logging.captureWarnings(True)
    # Libraries speak up when something is wrong; their chatter is for a debugging session.
    logging.root.setLevel(logging.DEBUG if level == "debug" else max(number, logging.WARNING))


def _redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if not name.startswith("_"):  # structlog's own, taken out before the line is written
            event[name] = _redacted(value)
    return event


def _redacted(value: object) -> object:
    match value:
        case str():
            return _redacted_lines(value) if "\n" in value else public_text(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(name): _redacted(member) for name, member in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(member) for member in value]
        case _:
            return public_text(str(value))


def _redacted_lines(text: str) -> str:
    """A traceback keeps its lines."""
    return "\n".join(line[: len(line) - len(line.lstrip())] + public_text(line) for line in text.splitlines())
