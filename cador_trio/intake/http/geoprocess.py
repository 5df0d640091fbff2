"""The Geo Process API as we serve it (wire contract, section 2.2): which path and method meets which handler."""

from __future__ import annotations

from quart import Blueprint

from cador_trio.intake.http.documents import Documents
from cador_trio.intake.http.door import Door
from cador_trio.intake.http.jobs import Jobs
from cador_trio.intake.http.results import Results
from cador_trio.intake.http.routing import Route, add_routes


def geoprocess_routes(door: Door, name: str) -> Blueprint:
    """All routes of the contract, to be registered under `/api/v1` and at the root alike."""
    documents, jobs, results = Documents(door), Jobs(door), Results(door)
    routes: list[Route] = [
        ("GET", "/describe", documents.describe),
        ("GET", "/version", documents.version),
        ("GET", "/openapi", documents.openapi),
        ("GET", "/config", documents.config),
        ("GET", "/health", documents.health),
        ("POST", "/process", jobs.post),
        ("POST", "/jobs", jobs.post),
        ("GET", "/jobs", jobs.page),
        ("DELETE", "/jobs/<job_id>", jobs.delete),
        ("GET", "/jobs/<job_id>/status", jobs.status),
        ("GET", "/jobs/<job_id>/events", jobs.events),
        ("GET", "/jobs/<job_id>/results", results.index),
        ("DELETE", "/jobs/<job_id>/results", results.delete_all),
        # The algorithm names its outputs, and may put slashes in.
        ("GET", "/jobs/<job_id>/results/<path:result_id>", results.one),
        ("DELETE", "/jobs/<job_id>/results/<path:result_id>", results.delete_one),
    ]
    if door.settings.allow_config_put:
        routes.append(("PUT", "/config", documents.put_config))
    return add_routes(Blueprint(name, __name__), routes)


def algorithm_metrics(door: Door, name: str) -> Blueprint:
    """The algorithm's own metrics; under `/api/v1` only, since `/metrics` at the root is ours."""
    return add_routes(Blueprint(name, __name__), [("GET", "/metrics", Documents(door).metrics)])
