"""Errors say who must act, and never hold a secret."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cador_trio import errors
from cador_trio.errors import (
    MAX_ERROR_TEXT,
    AlgorithmDied,
    CadorError,
    MethodNotAllowed,
    NotNow,
    SettingsError,
    SpoolFull,
    StoreFailed,
    StoreTimedOut,
    public_text,
)

# --- Redaction ----------------------------------------------------------------------------------------------------

REDACTED: Final = {
    "user info": ("http://user:hunter2@host/x failed", "http://***@host/x failed"),
    "user info without a password": ("s3://hunter2@host", "s3://***@host"),
    "an @ in the password": ("ftp://user:hun@ter2@host/x", "ftp://***@host/x"),
    "two URLs": ("a://u:p@h and b://u:p@h", "a://***@h and b://***@h"),
    "scheme after a digit": ("7http://user:hunter2@host", "7http://***@host"),
    "bearer token": ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer ***"),
    "basic credentials": ("authorization: basic aHVudGVyMg==", "authorization: basic ***"),
    "bearer over two lines": ("Bearer\n  hunter2hunter2", "Bearer ***"),
    "bearer after a tab": ("Bearer\thunter2hunter2", "Bearer ***"),
    "assignment": ("secret=hunter2 was wrong", "secret=*** was wrong"),
    "assignment with spaces": ("AWS_SECRET_ACCESS_KEY = hunter2", "AWS_SECRET_ACCESS_KEY = ***"),
    "query parameter": ("http://h/x?X-Amz-Signature=abc123&a=1", "http://h/x?X-Amz-Signature=***&a=1"),
    "quoted value": ("token='hun ter2' is old", "token=*** is old"),
    "JSON member": ('{"secret": "hun ter2", "a": 1}', '{"secret": ***, "a": 1}'),
    "JSON member with an escaped quote": (r'{"key":"a\"hunter2","b":1}', '{"key":***,"b":1}'),
    "JSON in JSON": (r"{\"secret\":\"hunter2\",\"b\":1}", r"{\"secret\":***,\"b\":1}"),
    "Python's repr": ("{'password': 'hunter2'}", "{'password': ***}"),
    "a pair instead of a value": ('secret= "token": "hunter2", a', "secret= ***, a"),
    "unterminated": ('"secret": "hunter2', '"secret": ***'),
}
KEPT: Final = {
    "prose about a token": "token: can't be read",
    "prose about a key": "the key 'taskId' is there twice",
    "a plain URL": "http://127.0.0.1:8080/api/v1/jobs?limit=5",
    "a mail address": "write to someone@example.org",
    "a wanted token": "a bearer token is needed",
    "switches": "set CADOR_SELF_SIGNED=true or CADOR_ORDER_BY_KEY=false, or the key=true",
    "what is not a signature": "CADOR_SIGNED=hunter2",
    "an equation": "bytes=100, limit=50",
}


@pytest.mark.parametrize("case", REDACTED)
def test_secrets_are_cut_out(case: str) -> None:
    """The rest of the sentence stays, so that it is still of use."""
    text, expected = REDACTED[case]
    assert public_text(text) == expected


@pytest.mark.parametrize("case", KEPT)
def test_plain_sentences_stay_as_they_are(case: str) -> None:
    """What only looks a little like a secret is none."""
    assert public_text(KEPT[case]) == KEPT[case]


secrets = st.text(st.sampled_from("hunterHUNTER0123456789-._~+"), min_size=8, max_size=60).map(
    lambda text: f"hq7{text}"
)
prose = st.text(st.sampled_from("abc xyz ,.:\n\t"), max_size=40)
carriers = st.sampled_from(
    [
        "https://user:{}@host/path",
        "s3://{}@host",
        "Bearer {}",
        "authorization: BASIC {}",
        "secret={}",
        "AWS_SECRET_ACCESS_KEY={}",
        "?X-Amz-Credential={}&x=1",
        '"secret": "{}"',
        '{{"password":"{}"}}',
        "'key': '{}'",
        "token = '{}'",
    ]
)


@given(prose, carriers, secrets, prose)
def test_a_secret_never_gets_through(before: str, carrier: str, secret: str, after: str) -> None:
    """Wherever it stands in the text, in every form that it usually has."""
    assert secret not in public_text(f"{before} {carrier.format(secret)} {after}")


@given(st.integers(0, 900), carriers, secrets)
@example(0, '"secret": "{}"', "hq700000000")  # the pair reads as the value of the empty `secret=` before it
def test_no_secret_gets_through_where_a_text_is_cut(length: int, carrier: str, secret: str) -> None:
    """A long text is cut, and redacting makes it shorter: half a secret from the cut may come into view."""
    shrinking = f"secret={'x' * 892} " * 8 + f"secret={'x' * length} "
    text = public_text(f"{shrinking}{carrier.format(secret * 40)} {'y' * 4 * MAX_ERROR_TEXT}")
    assert secret[:12] not in text


@given(st.text(max_size=100) | st.text(min_size=1, max_size=20).map(lambda text: text * 1_500))
def test_public_texts_are_short_and_in_one_line(text: str) -> None:
    """At most 2,000 characters, single spaces, no line breaks; and a second pass changes nothing."""
    public = public_text(text)
    assert len(public) <= MAX_ERROR_TEXT
    assert public == " ".join(public.split())
    assert "\n" not in public


@pytest.mark.parametrize("length", [MAX_ERROR_TEXT - 1, MAX_ERROR_TEXT, MAX_ERROR_TEXT + 1, 100_000])
def test_a_cut_shows(length: int) -> None:
    """The reader sees that there was more."""
    public = public_text("x" * length)
    assert len(public) == min(length, MAX_ERROR_TEXT)
    assert public.endswith("…") is (length > MAX_ERROR_TEXT)


@pytest.mark.parametrize(
    "unit", ["a", "key", "key=", "key=\\", "a-", "://", "://@", "bearer ", "secret: ", "'key':", "\\", '"', "=@:"]
)
def test_no_text_takes_long_to_redact(unit: str) -> None:
    """Backtracking that grows with the square would stop the event loop; here a megabyte of the worst is nothing."""
    for _ in range(20):
        public_text(unit * (1_000_000 // len(unit)))


# --- The tree -----------------------------------------------------------------------------------------------------

# HTTP status, spends an attempt, waits: the error tree on one screen.
TREE: Final = {
    "CadorError": (500, False, False),
    "SettingsError": (500, False, False),
    "RequestRefused": (400, False, False),
    "NotAuthenticated": (401, False, False),
    "NotFound": (404, False, False),
    "MethodNotAllowed": (405, False, False),
    "RequestTimedOut": (408, False, False),
    "Conflict": (409, False, False),
    "BodyTooLarge": (413, False, False),
    "UnsupportedMediaType": (415, False, False),
    "NotNow": (503, False, False),
    "AlgorithmRefused": (400, False, False),
    "AlgorithmFailed": (500, False, False),
    "AlgorithmBroken": (502, False, False),
    "AlgorithmDied": (502, True, False),
    "AlgorithmBusy": (503, False, True),
    "AlgorithmUnreachable": (503, False, True),
    "DeadlinePassed": (504, False, False),
    "ResultTooLarge": (502, False, False),
    "ResultRefused": (502, False, False),
    "SpoolFull": (503, False, False),
    "StoreFailed": (502, False, False),
    "StoreTimedOut": (502, False, False),
    "DeliveredTooOften": (500, False, False),
    "KafkaUnavailable": (503, False, True),
    "InstanceFenced": (500, False, False),
}


def all_errors() -> dict[str, type[CadorError]]:
    found = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    return {name: kind for name, kind in found.items() if issubclass(kind, CadorError)}


def test_every_error_is_in_the_table() -> None:
    """Who adds one says here what it means to a caller and to a retry."""
    assert {name: (kind.http_status, kind.spends_attempt, kind.waits) for name, kind in all_errors().items()} == TREE


def test_kinds_of_kinds() -> None:
    """What may be caught by its broader name."""
    assert issubclass(SpoolFull, NotNow)
    assert issubclass(StoreTimedOut, StoreFailed)


def test_messages_and_hints_are_redacted_when_an_error_is_made() -> None:
    """So that no one who shows them has to think of it."""
    error = CadorError("http://user:hunter2@host is down", hint="check secret=hunter2")
    assert "hunter2" not in f"{error}{error!r}{error.message}{error.hint}{error.args}"


def test_settings_errors_name_every_finding() -> None:
    """One text each, and all of them in the message."""
    error = SettingsError(["CADOR_PORT: no", "CADOR_HOST: secret=hunter2"])
    assert error.findings == ["CADOR_PORT: no", "CADOR_HOST: secret=***"]
    assert str(error) == "CADOR_PORT: no; CADOR_HOST: secret=***"


@pytest.mark.parametrize(
    "error",
    [
        AlgorithmDied("gone", hint="look", retry_after=3),
        SettingsError(["a", "b"]),
        MethodNotAllowed("no", allow=("GET",), hint="use GET"),
    ],
)
def test_an_error_again_is_equal_but_bare(error: CadorError) -> None:
    """Same kind, same words; no traceback, no cause, and what happens to it does not happen to the first."""
    try:
        raise error from ValueError("cause")
    except CadorError as caught:
        again = caught.again()
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert (again.__traceback__, again.__cause__, again.__context__) == (None, None, None)
    assert error.__traceback__ is not None
