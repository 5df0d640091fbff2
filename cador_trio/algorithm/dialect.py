"""Where the Geo Process API as written and PESTO as it speaks differ: documents in, frozen values out.

Pure: no network, no clock, no logging; the client asks here what an answer means, then acts. Nothing an algorithm says
is trusted: every document may have any shape, and every link is put on the configured origin. What can't be understood
raises AlgorithmBroken, and nothing else is ever raised. Paragraph numbers are those of the wire contract.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, Literal
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from cador_trio.algorithm import schema, sniff
from cador_trio.errors import (
    MAX_ERROR_TEXT,
    AlgorithmBroken,
    AlgorithmBusy,
    AlgorithmDied,
    AlgorithmFailed,
    AlgorithmRefused,
    CadorError,
    SettingsError,
)
from cador_trio.job import Json, JsonObject

DEFAULT_BASE_PATH: Final = "/api/v1"
MAX_LINK: Final = 8_000  # characters; servers refuse longer request lines anyway
MAX_RETRY_AFTER: Final = 3_600.0  # seconds; nobody who asks for more means it

_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~"  # RFC 3986, 3.3; `%` because links come encoded
_QUERY_SAFE: Final = _PATH_SAFE + "?"

_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+*-]+", re.ASCII)
_TRAILING_DIGITS = re.compile(r"(?<![0-9])[0-9]+$")
_MAX_INDEX_DIGITS: Final = 9


# --- Links -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the algorithm is configured to be. Requests go nowhere else, whatever its links say."""

    scheme: str
    host: str
    port: int
    base_path: str

    @classmethod
    def from_url(cls, url: str) -> Origin:
        """Read `PROCESSING_SERVER`; `/api/v1` is added when the path is empty.

        Raises:
            SettingsError: it is no plain http or https URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise SettingsError([f"PROCESSING_SERVER is not a URL: {error}"]) from error
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not url.isprintable():
            raise SettingsError(["PROCESSING_SERVER must look like http://host:port or https://host:port"])
        if parts.username is not None or parts.query or parts.fragment:
            raise SettingsError(["PROCESSING_SERVER must hold no user name, no query and no fragment"])
        path = _clean_path(parts.path).rstrip("/")
        return cls(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], path or DEFAULT_BASE_PATH)

    @property
    def url(self) -> str:
        """Scheme, host and port; no path, no slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def base(self) -> str:
        """The URL under which the fixed paths lie, such as `<base>/describe`; no slash at the end."""
        return self.url + self.base_path

    def pin(self, link: Json, base: str) -> str:
        """Path and query of a link, put on this origin. `base`: the URL of the document that the link came in.

        Raises:
            AlgorithmBroken: it can't be a link: no text, empty, too long, control characters, not http or https.
        """
        parts = _split(link, base)
        if parts is None:
            raise AlgorithmBroken("the algorithm gave a link that is none", hint="its links must be http or https URLs")
        query = f"?{quote(parts.query, safe=_QUERY_SAFE)}" if parts.query else ""
        return self.url + _clean_path(parts.path) + query

    def differs(self, link: Json) -> bool:
        """Whether an absolute link names another scheme, host or port than ours: worth one line in the log."""
        parts = _split(link, self.base)
        if parts is None:
            return False
        try:
            port = parts.port or _DEFAULT_PORTS[parts.scheme]
        except ValueError:  # PESTO writes `None` there when it was asked without a port
            return True
        return (parts.scheme, parts.hostname, port) != (self.scheme, self.host, self.port)


def _split(link: Json, base: str) -> SplitResult | None:
    """The parts of an absolute or relative link; None if it can't be one."""
    if not isinstance(link, str) or not link.strip() or len(link) > MAX_LINK or not link.isprintable():
        return None
    try:
        parts = urlsplit(urljoin(base, link))
    except ValueError:
        return None
    return parts if parts.scheme in _DEFAULT_PORTS else None


def _clean_path(path: str) -> str:
    """Dot segments resolved, also encoded ones, and what may not stand in a path encoded. Starts with a slash."""
    kept: list[str] = []
    segments = path.removeprefix("/").split("/")
    for segment in segments:
        match unquote(segment):
            case "..":
                del kept[-1:]
            case ".":
                pass
            case _:
                kept.append(segment)
    if unquote(segments[-1]) in (".", ".."):
        kept.append("")
    return "/" + quote("/".join(kept), safe=_PATH_SAFE)


def _link_of(reference: Json) -> str | None:
    """The link in a Reference: `href`, PESTO's `link`, or the bare text."""
    if isinstance(reference, dict):
        return _first_text(reference, "href", "link")
    return reference if isinstance(reference, str) and reference else None


def _link_among(body: Json, *relations: str) -> str | None:
    """A link that an object gives directly, in `_link`, or in `_links` under the first of these relations it has."""
    if not isinstance(body, dict):
        return None
    links = body.get("_links")
    if isinstance(links, list):
        links = {link.get("relation", link.get("rel")): link for link in reversed(links) if _is_named(link)}
    related = [links.get(relation) for relation in relations] if isinstance(links, dict) else []
    found = (_link_of(reference) for reference in (body, body.get("_link"), *related))
    return next((link for link in found if link is not None), None)


def _is_named(link: Json) -> bool:
    return isinstance(link, dict) and isinstance(link.get("relation", link.get("rel")), str)


def _first_text(document: JsonObject, *keys: str) -> str | None:
    """The value of the first of these keys that holds a text that is not empty."""
    values = (document.get(key) for key in keys)
    return next((value for value in values if isinstance(value, str) and value), None)


# --- Describe (1.3) ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Describe:
    """What the daemon needs of a describe document. All URLs are absolute and on the configured origin.

    Attributes:
        asynchronous: stateful execution, by the document; false unless it says true.
        execution: where a job is posted.
        announces_another_origin: its execution link names a host or port that is not the configured one.
        input_images, output_images: the properties that are images; name -> whether it is a list of them.
        output_names: the properties of the output schema (PESTO); empty where the document has none (the plain API).
        output_numbers: those of them that are numbers: PESTO sends these as plain text.
        output_content: the media types of the output (the plain API), in lower case.
        whole_answer_is_image: a stateless answer is one bare image: the output has images as content, no properties.
        input_schema: as received, for `schema.compile_inputs`; None if there is none.
        document: as received.
    """

    name: str
    version: str
    organization: str
    asynchronous: bool
    execution: str
    announces_another_origin: bool
    config: str
    version_url: str
    health: str
    metrics: str
    openapi: str
    input_images: Mapping[str, bool]
    output_images: Mapping[str, bool]
    output_names: frozenset[str]
    output_numbers: frozenset[str]
    output_content: tuple[str, ...]
    whole_answer_is_image: bool
    input_schema: Json = field(repr=False)
    document: JsonObject = field(repr=False)

    @property
    def tagger(self) -> str:
        """`organization.name.version`, without what is missing."""
        return ".".join(part for part in (self.organization, self.name, self.version) if part)


def read_describe(document: Json, origin: Origin) -> Describe:
    """Read a describe document of either dialect. Missing and odd members count as absent.

    Raises:
        AlgorithmBroken: it is no object, or its execution link can't be a link.
    """
    if not isinstance(document, dict):
        raise AlgorithmBroken("the algorithm's describe document is not a JSON object")
    links = document.get("_links")
    links = links if isinstance(links, dict) else {}
    here = f"{origin.base}/describe"
    execution = _link_of(links.get("execution"))
    output = document.get("output")
    content = _content_types(output)
    output_names = frozenset(schema.properties(output))
    return Describe(
        name=_words(document.get("name")),
        version=_words(document.get("version")),
        organization=_words(document.get("organization")),
        asynchronous=document.get("asynchronous") is True,
        execution=f"{origin.base}/jobs" if execution is None else origin.pin(execution, here),
        announces_another_origin=origin.differs(execution),
        config=_announced(links, "config", origin),
        version_url=_announced(links, "version", origin),
        health=_announced(links, "health", origin),
        metrics=_announced(links, "metrics", origin),
        openapi=_announced(links, "openapi", origin),
        input_images=schema.image_properties(document.get("input")),
        output_images=schema.image_properties(output),
        output_names=output_names,
        output_numbers=schema.number_properties(output),
        output_content=content,
        whole_answer_is_image=bool(content) and not output_names and all(kind.startswith("image/") for kind in content),
        input_schema=document.get("input"),
        document=document,
    )


def _announced(links: JsonObject, relation: str, origin: Origin) -> str:
    """The announced URL of a helpful document; where the plain API has it if none, or nonsense, is announced."""
    link = _link_of(links.get(relation))
    here = f"{origin.base}/describe"
    if _split(link, here) is None:
        return f"{origin.base}/{relation}"
    return origin.pin(link, here)


def _content_types(output: Json) -> tuple[str, ...]:
    """The media types in `output.content`. PESTO authors write plain text there, one type or a sentence."""
    content = output.get("content") if isinstance(output, dict) else None
    kinds = [content] if isinstance(content, str) else content if isinstance(content, dict) else []
    return tuple(sniff.essence(kind) for kind in kinds if _MEDIA_TYPE.fullmatch(sniff.essence(kind)))


def _words(value: Json) -> str:
    """A text member that careless authors write as a number (`"version": 1.0`)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value.strip() if isinstance(value, str) else str(value) if is_number else ""


# --- Stateful execution (1.6) ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AlgorithmStatus:
    """How far a job is on the algorithm.

    `progress` is a percentage, 0 to 100. `results` is the link to the results as given, not pinned; None if the status
    gave none. `text` says why a job ended badly, in the algorithm's words if it had any.
    """

    state: Literal["working", "done", "failed", "cancelled"]
    progress: int = 0
    results: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class ResultRef:
    """One result that can be fetched and deleted.

    `output` and `index` are its name by describe and its place in a list (None: no list). `link` is as given, not
    pinned; `id` its last segment or the id it came with. `media_type` is what the index announced, or empty.
    """

    output: str
    index: int | None
    id: str
    link: str
    media_type: str = ""


_STATES: Final[Mapping[str, Literal["done", "failed", "cancelled"]]] = {
    "DONE": "done",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
}


def status_link(body: Json, headers: Mapping[str, str]) -> str | None:
    """The link to the status in the answer to a stateful POST, as given; None if there is none.

    Taken from `href`, `link`, `_link`, `_links` of the body or from the `Location` header, in this order.
    """
    link = _link_among(body, "status", "self")
    location = (value for name, value in headers.items() if name.lower() == "location" and value)
    return link if link is not None else next(location, None)


def read_status(body: Json) -> AlgorithmStatus:
    """Read the body of a 2xx answer to a status request. Words other than the four final ones mean: ask again.

    Raises:
        AlgorithmBroken: it is no object.
    """
    if not isinstance(body, dict):
        raise AlgorithmBroken("the algorithm's job status is not a JSON object")
    word = body.get("status")
    state = _STATES.get(word.strip().upper()) if isinstance(word, str) else None
    if state == "done":
        return AlgorithmStatus("done", 100, _link_among(body, "results"))
    progress = _percent(body.get("progress"))
    if state is not None:
        unsaid = "the algorithm's job has failed" if state == "failed" else "the algorithm's job was cancelled"
        said = _said(body) or _first_text(body, "errMsg", "errorMsg") or unsaid
        return AlgorithmStatus(state, progress, text=said)
    return AlgorithmStatus("working", progress)


def results_link(status_url: str, status: AlgorithmStatus) -> str:
    """Where the index of results is: the link of the status, as given, else the status URL with another end."""
    return status.results if status.results is not None else f"{job_link(status_url)}/results"


def job_link(status_url: str) -> str:
    """The URL of the job itself, for DELETE: the status URL without its last segment `status`, and without a query."""
    return status_url.partition("?")[0].rstrip("/").removesuffix("/status")


def read_index(body: Json, describe: Describe) -> list[ResultRef]:
    """The results of a finished job, of either shape, lists in numerical order, other outputs in the order given.

    Raises:
        AlgorithmBroken: neither shape, an entry without link or id, two results with one name and place.
    """
    if isinstance(body, dict):
        refs = list(_named_results(body, describe.output_names))
    elif isinstance(body, list):
        refs = [_listed_result(entry, describe.output_names) for entry in body]
    else:
        raise AlgorithmBroken("the algorithm's index of results is neither an object nor an array")
    return _in_order(refs)


def _named_results(body: JsonObject, names: frozenset[str]) -> Iterator[ResultRef]:
    """PESTO: an object, name -> link or list of links. Its names are folded, so the id in the link decides."""
    for key, value in body.items():
        entries = enumerate(value) if isinstance(value, list) else [(None, value)]
        for place, reference in entries:
            link = _required_link(reference, key)
            result_id = _last_segment(link)
            output, index = _unfold(result_id, names) or _unfold_list(result_id, key, place)
            yield ResultRef(output, index, result_id, link, _announced_type(reference))


def _listed_result(entry: Json, names: frozenset[str]) -> ResultRef:
    """The plain API: an array of `{id, _link}`."""
    if not isinstance(entry, dict):
        raise AlgorithmBroken("the algorithm's index of results has an entry that is not an object")
    reference = entry.get("_link", entry)
    link = _required_link(reference, str(entry.get("id"))[:80])
    result_id = _words(entry.get("id")) or _last_segment(link)
    output, index = _unfold(result_id, names) or (result_id, None)
    return ResultRef(output, index, result_id, link, _announced_type(reference))


def _required_link(reference: Json, name: str) -> str:
    link = _link_of(reference)
    if link is None:
        raise AlgorithmBroken(f"the algorithm's index of results has no link for {name[:80]!r}")
    return link


def _last_segment(link: str) -> str:
    parts = _split(link, "http://algorithm/")  # any base will do: only the end of the path counts
    segment = unquote(parts.path.rstrip("/").rpartition("/")[2]) if parts is not None else ""
    if not segment:
        raise AlgorithmBroken("the algorithm's index of results has a link without an id")
    return segment


def _unfold(result_id: str, names: frozenset[str]) -> tuple[str, int | None] | None:
    """Output and place, by the names that describe has: `p99` is itself if there is one, else item 99 of `p`.

    A list may itself end in digits: `band20` is item 0 of `band2` where there is a `band2` and no `band`.
    """
    if result_id in names:
        return result_id, None
    digits = _TRAILING_DIGITS.search(result_id)
    if digits is None:
        return None
    for start in range(digits.start(), len(result_id)):
        if result_id[:start] in names and len(result_id) - start <= _MAX_INDEX_DIGITS:
            return result_id[:start], int(result_id[start:])
    return None


def _unfold_list(result_id: str, key: str, place: int | None) -> tuple[str, int | None]:
    """Output and place by the index alone, where describe has no such name."""
    number = result_id.removeprefix(key)
    if place is not None and number.isdecimal() and number.isascii() and len(number) <= _MAX_INDEX_DIGITS:
        return key, int(number)
    return key, place


def _announced_type(reference: Json) -> str:
    kind = reference.get("type") if isinstance(reference, dict) else None
    return sniff.essence(kind) if isinstance(kind, str) else ""


def _in_order(refs: list[ResultRef]) -> list[ResultRef]:
    outputs: dict[str, dict[int | None, ResultRef]] = {}
    for ref in refs:
        places = outputs.setdefault(ref.output, {})
        if ref.index in places or (places and (ref.index is None or None in places)):
            raise AlgorithmBroken(f"the algorithm's index of results names {ref.output[:80]!r} twice")
        places[ref.index] = ref
    return [ref for places in outputs.values() for ref in sorted(places.values(), key=lambda ref: ref.index or 0)]


def _percent(value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float) and math.isnan(value):
        return 0
    return int(min(max(value, 0), 100))


# --- Errors (1.7) ------------------------------------------------------------------------------------------------


def error_text(status: int, media_type: str, body: bytes, reason: str) -> str:
    """What an error answer says, at most `MAX_ERROR_TEXT` characters, never empty and never HTML.

    In this order: `message`, `detail` (text, or FastAPI's list), `error`, first line of a text body, reason phrase.
    `body` may be cut short.
    """
    said = _said_by_json(body) or _first_line(media_type, body) or reason.strip() or _phrase(status)
    return said[:MAX_ERROR_TEXT]


def _said_by_json(body: bytes) -> str:
    if not body.lstrip().startswith((b"{", b'"')):
        return ""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return document.strip() if isinstance(document, str) else _said(document)


def _said(document: JsonObject) -> str:
    parts = (_sentence(document.get(key)) for key in ("message", "detail", "error"))
    return next((part for part in parts if part), "")


def _sentence(value: Json) -> str:
    """A text, an object that holds one, or a list of either, as FastAPI's validation errors are."""
    items: Iterable[Json] = value if isinstance(value, list) else [value]
    texts = (_first_text(item, "msg", "message") if isinstance(item, dict) else item for item in items)
    return "; ".join(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _first_line(media_type: str, body: bytes) -> str:
    kind = sniff.essence(media_type)
    text = body[: 4 * MAX_ERROR_TEXT].decode("utf-8", errors="replace").strip()
    is_text = kind == "" or kind.startswith("text/")
    if not is_text or sniff.is_html(kind) or text.startswith("<"):
        return ""
    return text.splitlines()[0] if text else ""


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"


def classify(status: int, text: str, *, retry_after: float | None = None, follow_up: bool = False) -> CadorError | None:
    """The error that an HTTP status of the algorithm means; None for 2xx. `text` comes from `error_text`.

    `follow_up`: it answers a question about a job it has taken (status, index, result). A 4xx then is no verdict on
    the request; the job is lost.
    """
    if 200 <= status < 300:
        return None
    message = f"the algorithm answered {status}: {text}"
    match status:
        case 429 | 503:
            return AlgorithmBusy(message, retry_after=retry_after)
        case 408 | 502 | 504:  # 408: the request did not get through in time, so it is a matter of the connection
            return AlgorithmDied(message, retry_after=retry_after)
        case _ if 400 <= status < 500:
            return AlgorithmFailed(message) if follow_up else AlgorithmRefused(message)
        case _ if 500 <= status < 600:
            return AlgorithmFailed(message)
        case _:
            return AlgorithmBroken(message, hint="redirects are not followed; PROCESSING_SERVER must be the algorithm")


def read_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a `Retry-After` header (seconds or an HTTP date), 0 to `MAX_RETRY_AFTER`; None if unreadable.

    `now` is epoch seconds, for the date.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)  # `-0000` means UTC of unknown place
    return min(max(date.timestamp() - now, 0.0), MAX_RETRY_AFTER)
