"""What the fake algorithm answers at every path but execution, and the jobs behind it, in both dialects.

Decisions only: a request becomes a behaviour. Sockets, waiting and time belong to the server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from tests.peers.fake_algorithm.documents import minimal_describe
from tests.peers.fake_algorithm.script import (
    Answer,
    AnswerText,
    Behaviour,
    Json,
    JsonObject,
    Reply,
    SeenRequest,
    Stateful,
    Status,
)

Dialect = Literal["spec", "pesto"]

PREFIX: Final = "/api/v1"
ENDS: Final = frozenset({"SUCCEEDED", "DONE", "FAILED", "CANCELLED"})
PESTO_FIRST_JOB: Final = 2_658_562_856  # PESTO's job ids are decimal 32-bit numbers


@dataclass
class FakeJob:
    """A stateful job; its results by their ids."""

    id: str
    script: Stateful
    states: deque[str | JsonObject | Reply]
    results: dict[str, Behaviour]
    has_ended: bool = False  # as far as its client was told

    def finish(self, state: str = "SUCCEEDED") -> None:
        """From the next poll on, this is its state."""
        self.states = deque([state])


class Resources:
    """The Geo Process API without execution.

    Attributes:
        describe: the document (`_links` are added for each request, unless it has some), or a behaviour.
        link_origin: what stands before the path in links; None is the request's Host header, "" makes them relative.
        jobs: stateful jobs by id.
        cancelled: ids of jobs that were deleted before their end was told.
        deleted: results and ended jobs that were there and were deleted, as `jobs/<id>/results/mask`.
    """

    def __init__(self, dialect: Dialect, describe: JsonObject | Behaviour | None) -> None:
        self.is_pesto = dialect == "pesto"
        self.execution = "process" if self.is_pesto else "jobs"
        self.describe = minimal_describe(pesto=self.is_pesto) if describe is None else describe
        self.link_origin: str | None = None
        self.config: Json = {}
        self.jobs: dict[str, FakeJob] = {}
        self.cancelled: list[str] = []
        self.deleted: list[str] = []
        self._jobs_opened = 0

    def resource(self, request: SeenRequest, path: str) -> Behaviour:  # noqa: C901, PLR0911 - a table of paths
        """What is at this path (without prefix and query)."""
        match request.method, *path.split("/"):
            case "GET", "describe":
                return self._described(request)
            case "GET", "openapi":
                return AnswerText("openapi: 3.0.0\ninfo: {title: targets, version: '1'}\npaths: {}\n")
            case "GET", "version":
                return Answer({"version": "1.0.0"}) if self.is_pesto else AnswerText("1.0.0")
            case "GET", "health":
                return AnswerText("OK")
            case "GET", "metrics" if not self.is_pesto:
                return Answer({"jobs": self._jobs_opened})
            case (("GET" | "PUT"), "config") if not self.is_pesto:
                return self._configure(request)
            case "GET", "jobs" if self.is_pesto:
                return Answer({one: {"link": self._link(request, f"jobs/{one}/status")} for one in self.jobs})
            case "GET", "jobs", job_id, "status":
                return self._status(request, self.jobs.get(job_id))
            case "GET", "jobs", job_id, "results":
                return self._index(request, self.jobs.get(job_id))
            case "GET", "jobs", job_id, "results", result_id:
                return self._result(self.jobs.get(job_id), result_id)
            case "DELETE", "jobs", job_id, *rest:
                return self._delete(path, self.jobs.get(job_id), rest)
        return self.error(404, "Not Found")

    def open_job(self, request: SeenRequest, script: Stateful) -> Reply:
        """A new job, and the Reference to its status."""
        self._jobs_opened += 1
        number = self._jobs_opened
        job_id = str(PESTO_FIRST_JOB + number) if self.is_pesto else str(UUID(int=number))
        self.jobs[job_id] = FakeJob(job_id, script, deque(script.states), _results_by_id(script.outputs))
        reference = self._reference(request, f"jobs/{job_id}/status", "status")
        if script.by_location:
            return Reply(script.code, headers=(("Location", reference["href"]),))
        return Status(script.code, {"link": reference["href"]} if self.is_pesto else reference)

    def error(self, code: int, text: str) -> Reply:
        """An error as the dialect words it."""
        return Status(code, {"detail" if self.is_pesto else "message": text})

    # Links

    def _link(self, request: SeenRequest, path: str) -> str:
        if self.link_origin is not None:
            return f"{self.link_origin}{PREFIX}/{path}"
        host = request.headers["host"]
        if self.is_pesto and ":" not in host:
            host += ":None"  # that is how PESTO spells an absent port
        return f"http://{host}{PREFIX}/{path}"

    def _reference(self, request: SeenRequest, path: str, relation: str) -> JsonObject:
        method = "POST" if relation == "execution" else "GET"
        return {"relation": relation, "href": self._link(request, path), "type": "application/json", "method": method}

    def _described(self, request: SeenRequest) -> Behaviour:
        if not isinstance(self.describe, dict):
            return self.describe
        paths = {"self": "describe", "execution": self.execution}
        # PESTO announces its config, too, and has none.
        paths |= {name: name for name in ("config", "version", "health", *(() if self.is_pesto else ("metrics",)))}
        links = {name: self._reference(request, path, name) for name, path in paths.items()}
        return Answer({"_links": links} | self.describe)

    def _configure(self, request: SeenRequest) -> Reply:
        try:
            self.config = request.json() if request.method == "PUT" else self.config
        except ValueError:
            return self.error(400, "the configuration is not JSON")
        return Answer(self.config)

    # Jobs

    def _status(self, request: SeenRequest, job: FakeJob | None) -> Reply:
        if job is None:
            return self._unknown_job(500)
        state = job.states.popleft() if len(job.states) > 1 else job.states[0]
        if isinstance(state, Reply):
            return state
        document = state if isinstance(state, dict) else self._status_document(request, job, state)
        if document is None:
            return self._unknown_job(500)
        job.has_ended = document["status"] in ENDS
        return Answer(document)

    def _status_document(self, request: SeenRequest, job: FakeJob, state: str) -> JsonObject | None:
        if state != "SUCCEEDED":
            return {"status": state, "progress": 0}
        if not self.is_pesto:
            return {"status": state, "progress": 100}
        # PESTO looks into the job's folder: never made, emptied, or holding results.
        if not job.script.outputs:
            return None
        if not job.results:
            return {"status": "RUNNING", "progress": 0}
        return {"status": "DONE", "progress": 100, "link": self._link(request, f"jobs/{job.id}/results")}

    def _unknown_job(self, code: int) -> Reply:
        return Status(500, text="Internal Server Error") if self.is_pesto else self.error(code, "no such job")

    def _index(self, request: SeenRequest, job: FakeJob | None) -> Reply:
        if job is None:
            return self._unknown_job(404)
        if job.script.index is not None:
            return job.script.index
        urls = {one: self._link(request, f"jobs/{job.id}/results/{one}") for one in job.results}
        if self.is_pesto:
            return Answer(_folded_index(urls))
        return Answer([{"id": one, "_link": {"href": url, "method": "GET"}} for one, url in urls.items()])

    def _result(self, job: FakeJob | None, result_id: str) -> Behaviour:
        if job is None or result_id not in job.results:
            return self.error(500 if self.is_pesto else 404, "no such result")
        return job.results[result_id]

    def _delete(self, path: str, job: FakeJob | None, rest: list[str]) -> Reply:
        match rest:
            case ["results", result_id]:
                return self._delete_result(path, job, result_id)
            case [] | ["results"] if self.is_pesto:
                return self.error(405, "Method Not Allowed") if rest else self.error(404, "Not Found")
            case [] if job is not None:
                self._end(path, job)
            case ["results"] if job is not None:
                job.results.clear()
                self.deleted.append(path)
            case _:
                return self.error(404, "Not Found")
        return Reply(204)

    def _delete_result(self, path: str, job: FakeJob | None, result_id: str) -> Reply:
        is_there = job is not None and job.results.pop(result_id, None) is not None
        if is_there:
            self.deleted.append(path)
        if self.is_pesto:
            return Answer({})  # whether or not anything was there
        return Reply(204) if is_there else self.error(404, "no such result")

    def _end(self, path: str, job: FakeJob) -> None:
        if job.has_ended:
            del self.jobs[job.id]
            self.deleted.append(path)
        else:
            job.finish("CANCELLED")
            self.cancelled.append(job.id)


def _results_by_id(outputs: Mapping[str, Behaviour | Sequence[Behaviour]]) -> dict[str, Behaviour]:
    """Items of a list are numbered: chips0, chips1 …"""
    results: dict[str, Behaviour] = {}
    for name, output in outputs.items():
        if isinstance(output, Sequence):
            results |= {f"{name}{index}": item for index, item in enumerate(output)}
        else:
            results[name] = output
    return results


def _folded_index(urls: Mapping[str, str]) -> JsonObject:
    """PESTO's map: sorted as text, and every name that ends in digits is an item of a list."""
    index: JsonObject = {}
    for name in sorted(urls):
        stem = name.rstrip("0123456789")
        if stem == name:
            index[name] = urls[name]
        else:
            index.setdefault(stem, []).append(urls[name])
    return index
