"""`cador-trio submit`: which door a request goes through, and everything that is wrong before it is sent.

The doors are `submit_http.py` and `submit_kafka.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from cador_trio.commands import requests
from cador_trio.commands.endings import UsageWrong, told
from cador_trio.commands.output import check_writable
from cador_trio.commands.surroundings import BROKERS, REQUEST_TOPIC, STATUS_TOPIC, settings_of
from cador_trio.settings import Settings


@dataclass(frozen=True, slots=True)
class Options:
    """What the user wrote; None or empty where nothing. `seconds` is how long to wait for the job's end."""

    http: str | None = None
    kafka: str | None = None
    request_topic: str | None = None
    status_topic: str | None = None
    file: Path | None = None
    task_id: str | None = None
    inputs: Sequence[str] = ()
    headers: Sequence[str] = ()
    output: Path | None = None
    follow: bool = True
    seconds: float | None = None
    token_file: Path | None = None


def run_submit(options: Options, variables: Mapping[str, str]) -> int:
    """Send a request and follow its job to the end. `variables` are the daemon's own, for what no option says.

    Blocks until then; belongs to the main thread, for the signals' sake.

    Returns:
        The process's exit code: 0 the job succeeded, 2 wrong usage, 3 it failed, was cancelled by others, or something
        does not work (standard error says what), 130 interrupted.
    """
    return told(lambda: _submit(options, variables))


def _submit(options: Options, variables: Mapping[str, str]) -> int:
    if options.http is not None and (options.kafka or options.request_topic or options.status_topic):
        raise UsageWrong("a request goes by --http or by --kafka and its topics, not by both", hint="choose one")
    check_writable(options.output)
    if options.http is not None:
        return _by_http(options, settings_of(variables, {}, with_kafka=False))
    places = {BROKERS: options.kafka, REQUEST_TOPIC: options.request_topic, STATUS_TOPIC: options.status_topic}
    settings = settings_of(variables, places)
    if settings.has_kafka:
        return _by_kafka(options, settings)
    if options.request_topic or options.status_topic:
        raise UsageWrong("a topic without brokers", hint="name them by --kafka or KAFKA_BROKERS_REQUEST")
    return _by_http(options, settings)


def _by_http(options: Options, settings: Settings) -> int:
    from cador_trio.commands.submit_http import HttpDoor, submit  # noqa: PLC0415 - only the door that is used is loaded

    door = HttpDoor.of(options.http or f"http://127.0.0.1:{settings.port}", _token(options, settings))
    request = _request(options, is_task_id_needed=False)

    async def run() -> int:
        return await submit(door, request, follow=options.follow, seconds=options.seconds, output=options.output)

    return trio.run(run)


def _by_kafka(options: Options, settings: Settings) -> int:
    from cador_trio.commands.submit_kafka import KafkaDoor, submit  # noqa: PLC0415 - as above

    if options.token_file is not None:
        raise UsageWrong("--token-file is for --http", hint="credentials of brokers go into CADOR_KAFKA_PROPERTIES")
    door = KafkaDoor.of(settings, follow=options.follow)
    request = _request(options, is_task_id_needed=True)
    return submit(door, request, seconds=options.seconds, output=options.output)


def _request(options: Options, *, is_task_id_needed: bool) -> requests.Request:
    return requests.read(
        options.file,
        options.inputs,
        options.headers,
        task_id=options.task_id,
        is_task_id_needed=is_task_id_needed,
    )


def _token(options: Options, settings: Settings) -> str | None:
    if options.token_file is None:
        return settings.api_token.get_secret_value() if settings.api_token else None
    try:
        token = options.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageWrong(f"--token-file {options.token_file} can't be read: {reason}") from error
    if not token or not token.isascii() or not token.isprintable():
        raise UsageWrong(f"--token-file {options.token_file} holds no token", hint="one line of ASCII")
    return token
