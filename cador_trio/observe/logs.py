"""One stream of log lines on standard error: JSON for machines, colours for a terminal; other libraries' logs included.

Every line of a job carries the ids bound by `run_job`; every value passes the redaction of errors.py; a flood of one
kind of line becomes a line now and then.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, Literal, TextIO, cast

import structlog

from cador_trio.errors import is_secret_name, public_text

LogFormat = Literal["auto", "json", "console"]

REPEAT_SECONDS: Final = 30.0  # in which a kind of line has its number of lines, and no more
LIBRARY_LINES: Final = 1  # that number for libraries, which repeat themselves
OUR_LINES: Final = 5  # the same for us: a state that goes back and forth is told
MAX_KINDS: Final = 500  # that are remembered; the one that was quiet for longest is forgotten first
KIND_CHARACTERS: Final = 300  # of a text, that make a kind

# What differs between two lines of one kind: numbers, addresses in memory, names of threads and clients in brackets.
_VARYING: Final = re.compile(r"\[[^\]]*\]|0x[0-9a-f]+|\d+")
# structlog's own, taken out before the line is written.
_INTERNAL: Final = frozenset({"_record", "_from_structlog", "_logger", "_name"})
_LEFT_OUT: Final = "left_out"


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


class _LibraryHandler(logging.StreamHandler[TextIO]):
    """Writes libraries' lines. Of one that can't be made it says so; Python would show its arguments as they are."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        structlog.get_logger(__name__).error(
            "a line of a library could not be written",
            logger=record.name,
            text=str(record.msg),
            reason=repr(sys.exc_info()[1]),
        )


class RateLimit:
    """Which lines go through: of each kind so many in `REPEAT_SECONDS`. For any thread; `now` is in seconds."""

    def __init__(self, lines: int, now: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._now = now
        self._lock = threading.Lock()
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def admit(self, kind: Hashable) -> int | None:
        """How many of this kind were left out before this line, which goes through; None if it doesn't."""
        with self._lock:
            now = self._now()
            seen = self._kinds.setdefault(kind, _Kind(now))
            self._kinds.move_to_end(kind)
            if len(self._kinds) > MAX_KINDS:
                self._kinds.popitem(last=False)
            return seen.admit(now, self._lines)


class _Kind:
    """Lines of one kind: since when they are counted, and how many there were."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._lines = self._left_out = 0

    def admit(self, now: float, lines: int) -> int | None:
        if now - self._since >= REPEAT_SECONDS:
            self._since, self._lines = now, 0
        if self._lines >= lines:
            self._left_out += 1
            return None
        self._lines += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def set_up_logs(level: str, log_format: LogFormat) -> None:
    """Route structlog and the standard library's logging to standard error, from this level on."""
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    with_ids = structlog.contextvars.merge_contextvars
    shared: list[structlog.typing.Processor] = [
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
        processors=[with_ids, _OurLimit(), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(_STANDARD_ERROR),
    )
    handler = _LibraryHandler(_STANDARD_ERROR)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[with_ids, _tell_left_out, *shared], processor=renderer)
    )
    handler.addFilter(_LibraryLimit())
    logging.root.handlers = [handler]
    logging.captureWarnings(True)
    # Libraries speak up when something is wrong; their chatter is for a debugging session.
    logging.root.setLevel(logging.DEBUG if level == "debug" else max(number, logging.WARNING))


def log_stray_errors() -> None:
    """Let exceptions that nobody catches, in any thread, end in the log too: Python would write them as they are."""
    log = structlog.get_logger(__name__)

    def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
        else:
            log.critical("the process ends for a reason that nobody thought of", exc_info=error)

    def in_thread(stray: threading.ExceptHookArgs) -> None:
        if not issubclass(stray.exc_type, SystemExit):
            name = None if stray.thread is None else stray.thread.name
            log.error("a thread ended for a reason that nobody thought of", thread=name, exc_info=stray.exc_value)

    def unraisable(stray: sys.UnraisableHookArgs) -> None:
        log.error("an error could not be raised", where=repr(stray.object), exc_info=stray.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, in_thread, unraisable


# --- Floods ------------------------------------------------------------------------------------------------------


class _LibraryLimit(logging.Filter):
    """The limit for other libraries' lines, whose kind is made by their logger, level and text."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = RateLimit(LIBRARY_LINES)

    def filter(self, record: logging.LogRecord) -> bool:
        # A warning's template is kind enough; of errors, each text is one.
        text = _message_of(record) if record.levelno >= logging.ERROR else str(record.msg)
        left_out = self._limit.admit((record.name, record.levelno, _kind_of(text)))
        setattr(record, _LEFT_OUT, left_out)
        return left_out is not None


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # its arguments don't fit; the handler says so
        return str(record.msg)


def _tell_left_out(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if left_out := getattr(event["_record"], _LEFT_OUT, None):
        event[_LEFT_OUT] = left_out
    return event


class _OurLimit:
    """The limit for our own warnings and errors. What a job says of itself is never left out: it says it once."""

    def __init__(self) -> None:
        self._limit = RateLimit(OUR_LINES)

    def __call__(self, _logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if method not in {"warning", "error", "exception", "critical"} or "job_id" in event:
            return event
        error = event.get("exc_info")
        said = " ".join(str(value) for name, value in event.items() if name != "exc_info")
        kind = (method, _kind_of(said), repr(error) if isinstance(error, BaseException) else None)
        left_out = self._limit.admit(kind)
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event[_LEFT_OUT] = left_out
        return event


def _kind_of(text: str) -> str:
    return _VARYING.sub("#", text[:KIND_CHARACTERS])


# --- Secrets -----------------------------------------------------------------------------------------------------


def _redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if name not in _INTERNAL:
            event[name] = _redacted_field(name, value)
    return event


def _redacted_field(name: str, value: object) -> object:
    """A switch or a count may sound like a secret; anything else that does is one."""
    if is_secret_name(name) and not isinstance(value, bool | int | float | None):
        return "***"
    return _redacted(value)


def _redacted(value: object) -> object:
    match value:
        case str():
            return _redacted_lines(value) if "\n" in value else public_text(value)
        case None | bool() | int() | float():
            return value
        case bytes() | bytearray() | memoryview():
            return _redacted(bytes(value).decode("utf-8", "replace"))
        case Mapping():
            return {public_text(str(name)): _redacted_field(str(name), member) for name, member in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(member) for member in value]
        case _:
            return _redacted(str(value))


def _redacted_lines(text: str) -> str:
    """A traceback keeps its lines."""
    return "\n".join(line[: len(line) - len(line.lstrip())] + public_text(line) for line in text.splitlines())
