"""What `cador-trio submit` sends: read from a file, standard input or options, checked as a user needs it.

What the daemon checks (inputs, storage, referential) is left to the daemon, so that both never disagree. Here are only
the checks without which nothing sensible can be sent.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from cador_trio.commands.endings import UsageWrong
from cador_trio.job import Json, JsonObject
from cador_trio.json_text import NotJson, read_request, write

STANDARD_INPUT: Final = Path("-")

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire. `body` is the sender's own bytes unless an option changed them; `repr` shows none.

    `task_id` is `technicalMetadata.taskId` as text, None if it has none. Header names are in lower case.
    """

    body: bytes
    task_id: str | None
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Request(task_id={self.task_id!r}, {len(self.body)} bytes)"

    @property
    def correlation_id(self) -> str:
        """By which log lines and messages about this request are found."""
        return self.headers["x-correlation-id"]


def read(
    file: Path | None, inputs: Sequence[str], headers: Sequence[str], *, task_id: str | None, is_task_id_needed: bool
) -> Request:
    """Put the request together; where it has no task id, and one is needed, it gets a UUID.

    Blocks on the file or on standard input (`file` is None without inputs, or `-`). Never hangs on a terminal without
    having said that it reads from it.

    Raises:
        UsageWrong: the file can't be read, is no JSON object, or an option is not what it should be.
    """
    body = b"{}" if file is None and inputs else _bytes(file)
    document = _object(body, "standard input" if file in {None, STANDARD_INPUT} else str(file))
    changed = {**document, **_inputs(inputs)}
    metadata = changed.get("technicalMetadata", {})
    if not isinstance(metadata, dict):
        raise UsageWrong("technicalMetadata is not an object", hint="leave it out, or write it as {…}")
    if task_id is None and is_task_id_needed and metadata.get("taskId") is None:
        task_id = str(uuid4())
    if task_id is not None:
        metadata = {**metadata, "taskId": task_id}
        changed["technicalMetadata"] = metadata
    if inputs or task_id is not None:
        body = write(changed)
    known = metadata.get("taskId")
    return Request(body, None if known is None else str(known), _headers(headers))


def _bytes(file: Path | None) -> bytes:
    if file is None or file == STANDARD_INPUT:
        if sys.stdin.isatty():
            if file is None:
                raise UsageWrong("there is no request", hint="name a file, pipe it in, or give --input name=value")
            sys.stderr.write("Reading the request from the terminal; Ctrl-D ends it.\n")
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageWrong(f"the request {file} can't be read: {error.strerror}", hint="is the path right?") from error


def _object(body: bytes, source: str) -> JsonObject:
    if not body.strip():
        raise UsageWrong(f"{source} is empty", hint="a request is a JSON object with the algorithm's inputs")
    try:
        document = read_request(body)
    except NotJson as error:
        raise UsageWrong(f"{source} is not a JSON request: {error}", hint="nothing was sent") from error
    if not isinstance(document, dict):
        raise UsageWrong(
            f"{source} is JSON, but no object", hint="a request is a JSON object with the algorithm's inputs"
        )
    return document


def _inputs(inputs: Sequence[str]) -> JsonObject:
    """`name=value`: a value that is JSON counts as such, anything else as text."""
    found: JsonObject = {}
    for text in inputs:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageWrong(f"--input {text[:80]!r} is not name=value", hint="for example --input image=file:///a.tif")
        found[name] = _value(value)
    return found


def _value(text: str) -> Json:
    try:
        return read_request(text.encode())
    except NotJson:
        return text


def _headers(headers: Sequence[str]) -> dict[str, str]:
    """`name:value`, names in lower case; a correlation id is made where none is given."""
    found = {"content-type": "application/json", "x-correlation-id": str(uuid4())}
    for text in headers:
        name, separator, value = text.partition(":")
        value = value.strip()
        # The value is not repeated: it may be a secret.
        if not separator or not _HEADER_NAME.fullmatch(name):
            raise UsageWrong(f"--header {name[:80]!r} is not name:value", hint="for example --header X-ADS-Debug:true")
        if not value.isascii() or not value.isprintable():
            raise UsageWrong(f"--header {name}: its value is not plain ASCII text", hint="write it in one line")
        found[name.lower()] = value
    return found
