"""A job by HTTP, as any client would send it: posted, followed by its events, fetched; cancelled at Ctrl-C.

Every address is built from the URL that the user gave, never taken from an answer: behind a proxy the links may lead
elsewhere, and the token goes to nobody but the daemon.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from cador_trio.commands.endings import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    CommandFailed,
    UsageWrong,
    printable,
    say,
)
from cador_trio.commands.following import ENDS, Display, open_display
from cador_trio.commands.output import give_json, unwritable
from cador_trio.commands.requests import Request
from cador_trio.job import Json, JsonObject

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 60.0  # for any answer, and between two signs of life of a stream (they come every 15 s)
CANCEL_SECONDS: Final = 10.0  # for the daemon to confirm a cancellation
PATIENCE_SECONDS: Final = 30.0  # without any answer, after which the daemon is given up
PAUSE_SECONDS: Final = 1.0  # before the daemon is asked again

_JOB_ID: Final = re.compile(r"/jobs/([^/?]+)/status$")


@dataclass(frozen=True, slots=True)
class HttpDoor:
    """Where the daemon is, and what it wants to see."""

    url: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, token: str | None) -> HttpDoor:
        """From what a user writes: with or without `/api/v1`. Raises UsageWrong if it is no URL of a server."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageWrong(f"--http is no URL: {error}", hint="for example --http http://127.0.0.1:9090") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise UsageWrong("--http is no http:// or https:// URL", hint="for example --http http://127.0.0.1:9090")
        if parsed.userinfo:
            raise UsageWrong("--http holds a user name or password", hint="a token goes into a file: --token-file")
        return cls(url.rstrip("/").removesuffix("/api/v1"), token)

    def client(self) -> httpx.AsyncClient:
        """A client of the daemon; proxies and certificates as the environment says (HTTPS_PROXY, SSL_CERT_FILE)."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        return httpx.AsyncClient(base_url=f"{self.url}/api/v1", headers=headers, timeout=timeout)


async def submit(door: HttpDoor, request: Request, *, follow: bool, seconds: float | None, output: Path | None) -> int:
    """Send the request and follow its job; the results go to standard output or to `output`.

    SIGINT or SIGTERM cancels the job. A passed `seconds` (from the start) does not: the job goes on.

    Returns:
        The exit code: 0 the job succeeded (or was taken in, without `follow`), 3 it did not, 130 a signal came.

    Raises:
        CommandFailed: the daemon is not reachable, refuses, or time is up; perhaps in a group.
    """
    run = _Run(door, request, output)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop, signals, nursery.cancel_scope)
            await run.go(follow=follow, seconds=seconds)
            nursery.cancel_scope.cancel("the job has ended")
    if run.code is None:
        await run.cancel()
        return EXIT_INTERRUPTED
    return run.code


async def _stop(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        scope.cancel(signal.Signals(number).name)


class _Run:
    """One job. `code` is None until it has come to its end."""

    def __init__(self, door: HttpDoor, request: Request, output: Path | None) -> None:
        self._door = door
        self._request = request
        self._output = output
        self._job_id: str | None = None
        self._has_ended = False
        self.code: int | None = None

    async def go(self, *, follow: bool, seconds: float | None) -> None:
        async with self._door.client() as client:
            try:
                with trio.fail_after(float("inf") if seconds is None else seconds):
                    status = await self._post_and_follow(client, follow=follow)
            except trio.TooSlowError as error:
                raise CommandFailed(f"{self._name} has not ended within {seconds:g} s", hint=self._goes_on()) from error
            if status is None:
                self.code = EXIT_OK
                return
            self._has_ended = True
            if status["status"] == "SUCCEEDED":
                await _give_results(client, str(self._job_id), self._output)
                self.code = EXIT_OK
            else:
                _tell_failure(self._name, status)
                self.code = EXIT_FAILED

    async def _post_and_follow(self, client: httpx.AsyncClient, *, follow: bool) -> JsonObject | None:
        """The job's last status; None if nobody wants to follow it."""
        self._job_id = await _post(client, self._door, self._request)
        if not follow:
            give_json({"jobId": self._job_id, "status": f"{self._job_url}/status"}, self._output)
            return None
        say(f"{self._name} is taken in: {printable(self._job_url)}/status")
        with open_display(self._name) as display:
            return await _Watch(client, self._door, self._job_id, display).wait_end()

    async def cancel(self) -> None:
        """Cancel the job in the daemon, and say what came of it."""
        if self._job_id is None:
            say(f"interrupted before {self._door.url} answered: look there whether it has taken the job in")
        elif self._has_ended:
            say(f"interrupted: {self._name} had ended, its results are at {self._job_url}/results for a while")
        else:
            try:
                with trio.fail_after(CANCEL_SECONDS):
                    async with self._door.client() as client:
                        say(f"interrupted: {await self._cancel(client, self._job_id)}")
            except (trio.TooSlowError, httpx.HTTPError) as error:
                say(f"interrupted, but {self._name} was not cancelled: {_reason(error)}; {self._goes_on()}")

    async def _cancel(self, client: httpx.AsyncClient, job_id: str) -> str:
        answer = await client.delete(f"/jobs/{job_id}")
        if answer.status_code != 204:
            return f"{self._name} was not cancelled: {_error_of(answer).message}"
        # A job that had just ended is forgotten by the same request.
        status = await client.get(f"/jobs/{job_id}/status")
        return f"{self._name} {'had just ended' if status.status_code == 404 else 'was cancelled'}"

    @property
    def _name(self) -> str:
        return _short(self._job_id) if self._job_id else "the request"

    @property
    def _job_url(self) -> str:
        return f"{self._door.url}/api/v1/jobs/{self._job_id}"

    def _goes_on(self) -> str:
        if self._job_id is None:
            return f"{self._door.url} has not answered yet"
        return f"it may go on: GET {self._job_url}/status tells, DELETE {self._job_url} ends it"


def _short(job_id: str) -> str:
    """A job's name for people; all of its id stands in the first line."""
    return f"job {printable(job_id[:8])}"


async def _post(client: httpx.AsyncClient, door: HttpDoor, request: Request) -> str:
    """Send it; the job's id."""
    headers = {"prefer": "respond-async", **request.headers}
    try:
        answer = await client.post("/jobs", content=request.body, headers=headers)
    except httpx.HTTPError as error:
        raise CommandFailed(
            f"the daemon at {door.url} can't be reached: {_reason(error)}", hint="is it running, is --http right?"
        ) from error
    if answer.status_code != 202:
        raise _error_of(answer)
    found = _JOB_ID.search(answer.headers.get("location", ""))
    if found is None:
        raise CommandFailed(f"what listens at {door.url} gives no link to the job", hint="is it a cador-trio daemon?")
    return found[1]


class _Watch:
    """A job that is followed; it outlives broken connections, for as long as somebody answers now and then."""

    def __init__(self, client: httpx.AsyncClient, door: HttpDoor, job_id: str, display: Display) -> None:
        self._client = client
        self._door = door
        self._path = f"/jobs/{job_id}"
        self._display = display
        self._heard_at = trio.current_time()

    async def wait_end(self) -> JsonObject:
        """The job's last status. Raises CommandFailed if the daemon falls silent, or does not know the job any more."""
        while True:
            try:
                # A proxy may swallow the stream, so the status is asked for as well.
                status = await self._read_events() or await self._ask()
            except httpx.TransportError as error:
                status = None
                self._check_patience(error)
            if status is not None and status["status"] in ENDS:
                return status
            await trio.sleep(PAUSE_SECONDS)

    async def _read_events(self) -> JsonObject | None:
        """Show the events until the stream ends; the last one, if there was any."""
        status = None
        async with self._client.stream("GET", f"{self._path}/events") as stream:
            if stream.status_code != 200:
                return None
            async for line in stream.aiter_lines():
                self._heard_at = trio.current_time()
                if line.startswith("data:") and _is_status(event := _event(line.removeprefix("data:"))):
                    status = self._shown(event)
        return status

    async def _ask(self) -> JsonObject | None:
        """The status as it is now; None if the daemon can't say at the moment."""
        answer = await self._client.get(f"{self._path}/status")
        if answer.status_code in {429, 502, 503, 504}:
            self._check_patience(_error_of(answer))
            return None
        self._heard_at = trio.current_time()
        status = _json(answer)
        if not _is_status(status):
            raise CommandFailed(f"what {self._door.url} tells of the job is no status", hint="is it cador-trio?")
        return self._shown(status)

    def _shown(self, status: JsonObject) -> JsonObject:
        self._display.show(str(status["status"]), int(status.get("progress", 0)))
        return status

    def _check_patience(self, error: Exception) -> None:
        if trio.current_time() - self._heard_at > PATIENCE_SECONDS:
            raise CommandFailed(
                f"the daemon at {self._door.url} has fallen silent: {_reason(error)}",
                hint="a job by HTTP does not survive its process: look at the daemon, then send it again",
            ) from error


def _is_status(value: Json) -> bool:
    return isinstance(value, dict) and "status" in value


def _event(text: str) -> Json:
    """The JSON of an event, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


# --- What came out -----------------------------------------------------------------------------------------------


async def _give_results(client: httpx.AsyncClient, job_id: str, output: Path | None) -> None:
    """One JSON object with all outputs; a single image that has a file to go to goes there as it is."""
    try:
        named = _json(await client.get(f"/jobs/{job_id}/results", params={"format": "map"}))
        if output is not None and await _save_only_image(client, job_id, named, output):
            return
        found: JsonObject = {}
        for name, links in named.items():
            one_or_more = [await _result(client, job_id, link) for link in _as_list(links)]
            found[name] = one_or_more if isinstance(links, list) else one_or_more[0]
    except httpx.HTTPError as error:
        raise CommandFailed(
            f"{_short(job_id)} succeeded, but its results can't be fetched: {_reason(error)}",
            hint=f"they are kept for a while: GET {client.base_url}jobs/{job_id}/results",
        ) from error
    give_json(found, output)


def _as_list(links: Json) -> list[Json]:
    return links if isinstance(links, list) else [links]


async def _save_only_image(client: httpx.AsyncClient, job_id: str, named: JsonObject, output: Path) -> bool:
    """Write the only result to the file as it comes, if it is no JSON and no text; whether it is."""
    links = list(named.values())
    if len(links) != 1 or isinstance(links[0], list):
        return False
    async with client.stream("GET", _result_path(job_id, links[0])) as answer:
        if answer.status_code != 200 or _is_text(answer):
            return False
        try:
            async with await trio.open_file(output, "wb") as file:
                async for chunk in answer.aiter_bytes():
                    await file.write(chunk)
        except OSError as error:
            raise unwritable(output, error) from error
    return True


async def _result(client: httpx.AsyncClient, job_id: str, link: str) -> Json:
    """A result's JSON or text; of an image, where it is, since JSON can't hold its bytes."""
    path = _result_path(job_id, link)
    async with client.stream("GET", path) as answer:
        if answer.status_code == 200 and not _is_text(answer):
            size = int(answer.headers.get("content-length", -1))
            return {"href": str(answer.url), "type": answer.headers.get("content-type", ""), "size": size}
        await answer.aread()
    return answer.text if answer.headers.get("content-type", "").startswith("text/") else _json(answer)


def _result_path(job_id: str, link: str) -> str:
    return f"/jobs/{job_id}/results/{str(link).rpartition('/')[2]}"


def _is_text(answer: httpx.Response) -> bool:
    media_type: str = answer.headers.get("content-type", "").partition(";")[0].strip()
    return media_type.startswith("text/") or media_type == "application/json" or media_type.endswith("+json")


def _tell_failure(name: str, status: JsonObject) -> None:
    message, hint = str(status.get("message", "")), str(status.get("hint", ""))
    say(printable(f"{name}: {status['status']}: {message}" + (f" ({hint})" if hint else "")))


# --- What the daemon says ----------------------------------------------------------------------------------------


def _json(answer: httpx.Response) -> Any:
    """The JSON of a good answer. Raises CommandFailed with the daemon's own words on any other."""
    if answer.status_code != 200:
        raise _error_of(answer)
    try:
        return answer.json()
    except ValueError as error:
        raise CommandFailed(f"GET {answer.url.path} was answered with no JSON", hint="is it cador-trio?") from error


def _error_of(answer: httpx.Response) -> CommandFailed:
    """The API's Error object as an error of ours; anything else by its first words."""
    try:
        error = answer.json()
        message, hint = str(error["message"]), str(error.get("hint") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, hint = answer.text[:200] or answer.reason_phrase, "is it a cador-trio daemon?"
    if answer.status_code == 401:
        hint = "give the token by --token-file or CADOR_API_TOKEN"
    elif retry_after := answer.headers.get("retry-after"):
        hint = f"{hint}; try again in {retry_after} s".lstrip("; ")
    return CommandFailed(f"the daemon answered {answer.status_code}: {message}", hint=hint)


def _reason(error: Exception) -> str:
    """In words, whatever the library calls it."""
    if isinstance(error, httpx.ReadTimeout | trio.TooSlowError):
        return "no answer in time"
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:.0f} s"
    if isinstance(error, httpx.ConnectError) and "all attempts" in str(error):
        return "nobody listens there"
    return str(error) or type(error).__name__
