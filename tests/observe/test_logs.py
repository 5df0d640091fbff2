"""Log lines: one JSON object each, with the ids of their job and without secrets.

Each test is a process of its own, since logging is set up once for a whole process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.observe.logs import MAX_KINDS, OUR_LINES, REPEAT_SECONDS, RateLimit, _redact
from tests.secrets import PASSWORD

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


def test_what_is_called_a_secret_is_not_shown() -> None:
    """Whatever it looks like, however deep; a switch or a count may have such a name."""
    (line,) = lines_of(
        "log.info('x', secret='hunter2', api_token=b'hunter2', tokens=5, has_password=True, key_of_object='a/b',"
        " settings={'S3': {'secretAccessKey': ['hunter2'], 'url': 'http://h'}}, _key='hunter2',"
        " body=b'{\"password\": \"hunter2\"}', view=memoryview(b'http://u:hunter2@h'))"
    )
    assert "hunter2" not in str(line)
    assert (line["secret"], line["api_token"], line["tokens"], line["has_password"]) == ("***", "***", 5, True)
    assert line["settings"] == {"S3": {"secretAccessKey": "***", "url": "http://h"}}
    assert line["body"] == '{"password": ***}'
    assert line["key_of_object"] == "a/b"


def test_what_libraries_add_to_a_record_is_left_out() -> None:
    """Fields that they give along may be anything; stacks are redacted like all else."""
    (line,) = lines_of("logging.getLogger('lib').error('x', extra={'url': 'http://u:hunter2@h'}, stack_info=True)")
    assert "hunter2" not in str(line)
    assert line["stack_info"].startswith("Stack (most recent call last):\n")


def test_a_line_that_cannot_be_made_shows_nothing_but_its_template() -> None:
    """Its arguments may be anything; and whoever wrote it goes on."""
    (line,) = lines_of("logging.getLogger('lib').error('%s and %s', 'secret hunter2')")
    assert line["event"] == "a line of a library could not be written"
    assert (line["logger"], line["text"]) == ("lib", "%s and %s")
    assert "hunter2" not in str(line)


FORMS: Final = ["http://u:{}@h/x", "secret={}", 'x "token": "{}"', "Bearer {}{}", "password = '{}'\nat line 2"]
HOLDERS: Final = st.recursive(
    st.sampled_from(FORMS).map(lambda form: form.format(PASSWORD, PASSWORD)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.sampled_from(["a", "url", "secret", "https://u:{}@h"]), inner, max_size=3)
        | inner.map(ValueError)
        | inner.map(lambda value: str(value).encode())
    ),
    max_leaves=6,
)


@given(HOLDERS, st.sampled_from(["event", "error", "exception", "_hidden", "token"]))
def test_no_value_hides_a_secret(value: object, name: str) -> None:
    """In texts of any form, as bytes, in errors, lists and mappings, as deep as you like."""
    event = _redact(None, "info", {name: value})
    assert PASSWORD not in json.dumps(event)


def test_errors_that_nobody_catches_are_lines_too() -> None:
    """Of the process, of a thread, of a destructor: one JSON object each, without their secrets."""
    lines = lines_of(
        "from cador_trio.observe.logs import log_stray_errors\n"
        "log_stray_errors()\n"
        "import threading\n"
        "class Thing:\n"
        "    def __del__(self): raise ValueError('token=hunter2')\n"
        "def fail(): raise ValueError('secret=hunter2')\n"
        "thread = threading.Thread(target=fail, name='worker')\n"
        "thread.start(); thread.join()\n"
        "thing = Thing(); del thing\n"
        "raise ExceptionGroup('all', [ValueError('http://u:hunter2@h')])\n"
    )
    assert [(line["level"], line["event"]) for line in lines] == [
        ("error", "a thread ended for a reason that nobody thought of"),
        ("error", "an error could not be raised"),
        ("critical", "the process ends for a reason that nobody thought of"),
    ]
    assert "hunter2" not in str(lines)
    assert lines[0]["thread"] == "worker"
    assert "ValueError: secret=***" in lines[0]["exception"]
    assert "http://***@h" in lines[2]["exception"]


# --- Floods -------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds as the test wants them."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_kind_goes_through_now_and_then() -> None:
    """The first at once, then one an interval, which tells how many were left out; each kind for itself."""
    clock = Clock()
    limit = RateLimit(1, clock)
    assert [limit.admit("a") for _ in range(4)] == [0, None, None, None]
    assert limit.admit("b") == 0
    clock.now += REPEAT_SECONDS
    assert [limit.admit("a"), limit.admit("a"), limit.admit("b")] == [3, None, 0]
    clock.now += REPEAT_SECONDS
    assert limit.admit("a") == 1


def test_the_table_of_kinds_is_bounded() -> None:
    """The kind that was quiet for longest is forgotten, and so goes through once more."""
    limit = RateLimit(1, Clock())
    for number in range(MAX_KINDS):
        assert limit.admit(number) == 0
    assert limit.admit(0) is None
    assert limit.admit("one more") == 0
    assert limit.admit(0) is None
    assert limit.admit(1) == 0
    assert len(limit._kinds) == MAX_KINDS


def test_a_flood_of_a_library_is_a_line() -> None:
    """By logger, level and what is said, numbers and clients aside; errors that say something else are other lines."""
    lines = lines_of(
        "lib, other = logging.getLogger('lib'), logging.getLogger('other')\n"
        "for number in range(100):\n"
        "    lib.warning('retrying in %.2f s', number)\n"
        "    lib.error('%s [client-%d] down since %d', 'FAIL', number, number)\n"
        "    lib.error('%s [client-%d] refused', 'FAIL', number)\n"
        "    other.warning('retrying in %.2f s', number)\n"
        "    warnings.warn_explicit(f'old {number}', UserWarning, 'x.py', number)\n"
    )
    told = [line["event"].partition(":")[0] for line in lines]
    assert sorted(told) == [
        "FAIL [client-0] down since 0",
        "FAIL [client-0] refused",
        "retrying in 0.00 s",
        "retrying in 0.00 s",
        "x.py",
    ]


def test_a_flood_of_ours_is_some_lines() -> None:
    """Warnings and errors without a job; what a job says of itself is never left out, nor is what is no trouble."""
    lines = lines_of(
        "for number in range(100):\n"
        "    log.warning('trouble', error='down', tries=number)\n"
        "    log.error('trouble', error=ValueError('a' if number % 2 else 'b'))\n"
        "    log.info('all is well')\n"
        "    with structlog.contextvars.bound_contextvars(job_id='j', task_id='t'):\n"
        "        log.warning('job failed', error='down')\n"
    )
    counts = Counter((line["level"], line["event"], line.get("error")) for line in lines)
    assert counts == {
        ("warning", "trouble", "down"): OUR_LINES,
        ("error", "trouble", "a"): OUR_LINES,
        ("error", "trouble", "b"): OUR_LINES,
        ("info", "all is well", None): 100,
        ("warning", "job failed", "down"): 100,
    }


def test_a_line_tells_how_many_were_left_out() -> None:
    """When its kind may speak again, ours and a library's alike."""
    lines = lines_of(
        "from cador_trio.observe import logs\n"
        "for _ in range(20): log.warning('ours'); logging.getLogger('lib').warning('theirs')\n"
        "logs.REPEAT_SECONDS = 0\n"
        "log.warning('ours'); logging.getLogger('lib').warning('theirs')\n"
    )
    assert [(line["event"], line["left_out"]) for line in lines if "left_out" in line] == [("ours", 15), ("theirs", 19)]


# --- Jobs ---------------------------------------------------------------------------------------------------------


def test_lines_of_a_job_carry_its_ids() -> None:
    """Those of the job itself, and those of its work at the algorithm: another task, a thread, a library."""
    lines = lines_of(
        "import trio\n"
        "from tests.doubles import make_job, open_street\n"
        "async def main():\n"
        "    async with open_street(pathlib.Path('unused')) as street:\n"
        "        process = street.algorithm.process\n"
        "        async def talking(*arguments):\n"
        "            log.info('at the algorithm')\n"
        "            lib = logging.getLogger(f'lib for {arguments[0].inputs}')\n"
        "            await trio.to_thread.run_sync(lib.warning, 'in a thread')\n"
        "            return await process(*arguments)\n"
        "        street.algorithm.process = talking\n"
        "        for task_id in ('first', 'second'):\n"
        "            job = make_job(task_id=task_id)\n"
        "            job.request.inputs['image'] = task_id\n"
        "            await street.run(job.within({'traceparent': '00-' + 'ab' * 16 + '-' + 'cd' * 8 + '-01'}))\n"
        "        log.info('afterwards')\n"
        "trio.run(main)\n"
    )
    told = [
        (line["event"], line.get("task_id"), line.get("correlation_id"), line.get("trace_id", "")[:4]) for line in lines
    ]
    assert told == [
        ("at the algorithm", "first", "correlation", "abab"),
        ("in a thread", "first", "correlation", "abab"),
        ("job succeeded", "first", "correlation", "abab"),
        ("at the algorithm", "second", "correlation", "abab"),
        ("in a thread", "second", "correlation", "abab"),
        ("job succeeded", "second", "correlation", "abab"),
        ("afterwards", None, None, ""),
    ]
    assert lines[0]["job_id"] == lines[1]["job_id"] == lines[2]["job_id"] != lines[3]["job_id"]


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
        "    for number in range(500): logging.getLogger(f'{threading.get_ident()}.{number}').warning('theirs')\n"
        "threads = [threading.Thread(target=one) for one in (ours, theirs, ours, theirs)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    assert [line["event"] for line in lines].count("ours") == 1000
    assert [line["event"] for line in lines].count("theirs") == 1000
