"""What schemathesis is told beyond the OpenAPI document; it loads this by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import itertools
import re
from typing import Any

import schemathesis

_numbers = itertools.count(1)
_PLAIN = re.compile(r"[!-~]([ -~]{0,198}[!-~])?")


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Follow a posted job: OpenAPI's own links can't take the id out of the `Location` header, this extension can."""
    paths = raw_schema["paths"]
    posted = "$response.header.Location#regex:/jobs/([^/]+)/status"
    for path in ("/api/v1/jobs", "/api/v1/process"):
        paths[path]["post"]["responses"]["202"]["links"] = {
            operation: {"operationId": operation, "parameters": {"job_id": posted}}
            for operation in ("job_status", "job_events", "list_results", "delete_results")
        }
    # DELETE cancels a job that runs, and its status then says so: only one that has ended must be gone afterwards.
    del paths["/api/v1/jobs/{job_id}/status"]["get"]["responses"]["200"]["links"]["delete_job"]
    paths["/api/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["links"] = {
        "delete_job": {"operationId": "delete_job", "parameters": {"job_id": "$request.path.job_id"}}
    }


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Give every job a key of its own, since a known one is answered with its job; and leave every other to itself."""
    if case.method != "POST":
        return
    number = next(_numbers)
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and _PLAIN.fullmatch(key):
        case.headers["Idempotency-Key"] = f"key {number}"
    if number % 2:  # chance alone would seldom make a job that can be followed
        case.headers["Prefer"] = "respond-async"
