"""The links that we give out: where a job, its status and its results are, and describe's links rebuilt as ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from cador_trio.job import Json, JsonObject, Result
from cador_trio.registry import JobRecord

API: Final = "/api/v1"
# What our describe links to, with the media types of the answers (wire contract, 2.2).
_OURS: Final = {
    "self": ("/describe", "application/json", "GET"),
    "execution": ("/jobs", "application/json", "POST"),
    "config": ("/config", "application/json", "GET"),
    "version": ("/version", "application/json", "GET"),
    "health": ("/health", "text/plain", "GET"),
    "metrics": ("/metrics", "application/json", "GET"),
}
# Links of the algorithm's own that lead to documents, not to its API.
_THEIRS: Final = ("icon", "license", "documentation")


@dataclass(frozen=True)
class Links:
    """Links below one public base URL (scheme, host, maybe a path of a proxy)."""

    base: str

    def status(self, record: JobRecord) -> str:
        """The job's status resource."""
        return f"{self._job(record)}/status"

    def results(self, record: JobRecord) -> str:
        """The job's results resource."""
        return f"{self._job(record)}/results"

    def page(self, limit: int, offset: int, state: str | None) -> str:
        """A page of the list of jobs."""
        only = f"&status={state}" if state is not None else ""
        return f"{self.base}{API}/jobs?limit={limit}&offset={offset}{only}"

    def result(self, record: JobRecord, result: Result) -> str:
        """One result."""
        return f"{self.results(record)}/{quote(result.result_id, safe='')}"

    def status_reference(self, record: JobRecord) -> JsonObject:
        """The Reference of the Geo Process API and PESTO's link in one."""
        url = self.status(record)
        return {**_reference("status", url, "application/json"), "link": url}

    def result_reference(self, record: JobRecord, result: Result) -> JsonObject:
        """The Reference of one result."""
        media_type = "application/json" if result.reference is not None else result.media_type
        return _reference("result", self.result(record, result), media_type)

    def describe(self, document: JsonObject, *, claims_synchronous: bool) -> JsonObject:
        """The algorithm's describe document with `_links` that lead to us; everything else is as it was."""
        theirs = document.get("_links")
        kept = {name: theirs[name] for name in _THEIRS if name in theirs} if isinstance(theirs, dict) else {}
        ours = {
            relation: _reference(relation, f"{self.base}{API}{path}", media_type, method)
            for relation, (path, media_type, method) in _OURS.items()
        }
        answer: dict[str, Json] = {**document, "_links": {**ours, **kept}}
        if claims_synchronous:
            answer["asynchronous"] = False
        return answer

    def _job(self, record: JobRecord) -> str:
        return f"{self.base}{API}/jobs/{record.job.job_id}"


def _reference(relation: str, href: str, media_type: str, method: str = "GET") -> JsonObject:
    return {"relation": relation, "href": href, "type": media_type, "method": method}
