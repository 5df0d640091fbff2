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
    job_id = "$response.header.Location#regex:/jobs/([^/]+)/status"
    follow = ("job_status", "job_events", "list_results", "delete_results", "delete_job")
    for path in ("/api/v1/jobs", "/api/v1/process"):
        raw_schema["paths"][path]["post"]["responses"]["202"]["links"] = {
            operation: {"operationId": operation, "parameters": {"job_id": job_id}} for operation in follow
        }


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Give every job a key of its own: with a known one the answer is the known job's, whatever is sent."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and _PLAIN.fullmatch(key):
        case.headers["Idempotency-Key"] = f"key {next(_numbers)}"
