"""Log lines: one JSON object each, with the ids of their job and without secrets.

Each test is a process of its own, since logging is set up once for a whole process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
SET_UP: Final = """
import logging, pathlib, sys, warnings
import structlog
from cador_trio.observe.logs import set_up_logs
set_up_logs({level!r}, {form!r})
log = structlog.get_logger("test")
"""


def stderr_of(script: str, level: str = "info", form: str = "json") -> str:
    """What a process writes to standard error."""
    program = SET_UP.format(level=level, form=form) + script
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.stderr


def lines_of(script: str, level: str = "info") -> list[dict[str, Any]]:
    """Every line, read as JSON."""
    return [json.loads(line) for line in stderr_of(script, level).splitlines()]


def test_a_line_is_one_json_object() -> None:
    """Event, level, time in UTC, and what was said; line breaks and quotes stay inside."""
    (line,) = lines_of('log.info("a \\"job\\"\\nended", count=3, ratio=0.5, none=None, yes=True, task_id="é\\ud800")')
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": 'a "job"\nended',
        "level": "info",
        "count": 3,
        "ratio": 0.5,
        "none": None,
        "yes": True,
        "task_id": "é\ud800",
    }


def test_lines_of_libraries_look_the_same() -> None:
    """The standard library's logging and warnings go the same way; chatter of libraries stays out."""
    lines = lines_of(
        "logging.getLogger('lib').warning('down: %s', 'http://u:hunter2@h')\n"
        "logging.getLogger('lib').info('chatter')\n"
        "warnings.warn('old\\nway')\n"
    )
    assert [(line["level"], line["event"].split(":")[0]) for line in lines] == [
        ("warning", "down"),
        ("warning", "<string>"),
    ]
    assert "hunter2" not in str(lines)
    assert "old" in lines[1]["event"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_is_the_least_that_is_logged(level: str, expected: list[str]) -> None:
    """Ours as asked for."""
    script = "for name in ('debug', 'info', 'warning', 'error'): getattr(log, name)('x')"
    assert [line["level"] for line in lines_of(script, level)] == expected


def test_no_secret_gets_into_a_line() -> None:
    """Whatever carries it: a text, a list, an object, an exception, a bound id; and a traceback keeps its lines."""
    lines = lines_of(
        "url = 'http://user:hunter2@host'\n"
        "structlog.contextvars.bind_contextvars(task_id=url)\n"
        "class Thing:\n"
        "    def __str__(self): return url\n"
        "error, path = ValueError(url), pathlib.Path('/x')\n"
        "log.info(url, text=url, list=[url, {'a': url}], thing=Thing(), path=path, error=error)\n"
        "try: raise ValueError('secret=hunter2')\n"
        "except ValueError: log.exception('failed')\n"
        "logging.getLogger('lib').error('x', exc_info=ValueError(url))\n"
    )
    assert len(lines) == 3
    assert "hunter2" not in str(lines)
    assert lines[0]["list"] == ["http://***@host", {"a": "http://***@host"}]
    assert lines[0]["path"] == "/x"
    assert lines[1]["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert lines[1]["exception"].splitlines()[-1] == "ValueError: secret=***"
    assert "http://***@host" in lines[2]["exception"]


def test_lines_of_a_job_carry_its_ids() -> None:
    """Those of the job itself, and those of its work at the algorithm, which is another task."""
    lines = lines_of(
        "import trio\n"
        "from tests.doubles import make_job, open_street\n"
        "async def main():\n"
        "    async with open_street(pathlib.Path('unused')) as street:\n"
        "        process = street.algorithm.process\n"
        "        async def talking(*arguments):\n"
        "            log.info('at the algorithm')\n"
        "            return await process(*arguments)\n"
        "        street.algorithm.process = talking\n"
        "        for task_id in ('first', 'second'):\n"
        "            await street.run(make_job(task_id=task_id))\n"
        "        log.info('afterwards')\n"
        "trio.run(main)\n"
    )
    told = [(line["event"], line.get("task_id"), line.get("correlation_id")) for line in lines]
    assert told == [
        ("at the algorithm", "first", "correlation"),
        ("job succeeded", "first", "correlation"),
        ("at the algorithm", "second", "correlation"),
        ("job succeeded", "second", "correlation"),
        ("afterwards", None, None),
    ]
    assert lines[0]["job_id"] == lines[1]["job_id"] != lines[2]["job_id"]


def test_people_get_plain_lines() -> None:
    """On a terminal, or when asked for: no JSON, and no secret either."""
    text = stderr_of("log.info('serving', url='http://u:hunter2@h')", form="console")
    assert "serving" in text
    assert "hunter2" not in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_a_pipe_gets_json_unasked() -> None:
    """`auto` looks whether a person is there."""
    assert json.loads(stderr_of("log.info('serving')", form="auto"))["event"] == "serving"


def test_lines_of_many_threads_do_not_mix() -> None:
    """Ours and the libraries', from threads that all write at once: every line is whole."""
    lines = lines_of(
        "import threading\n"
        "sys.setswitchinterval(1e-6)\n"
        "def ours():\n"
        "    for number in range(500): log.info('ours', number=number)\n"
        "def theirs():\n"
        "    for number in range(500): logging.getLogger('lib').warning('theirs')\n"
        "threads = [threading.Thread(target=one) for one in (ours, theirs, ours, theirs)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    assert [line["event"] for line in lines].count("ours") == 1000
    assert [line["event"] for line in lines].count("theirs") == 1000
