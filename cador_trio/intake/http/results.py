"""What a finished job made: its index of results, each result by itself, and letting go of them."""

from __future__ import annotations

from quart import Response

from cador_trio.errors import NotFound, RequestRefused
from cador_trio.intake.http.context import links, query
from cador_trio.intake.http.door import Door
from cador_trio.intake.http.links import Links
from cador_trio.intake.http.respond import json_response, no_content, result_response
from cador_trio.job import Json, Product, Result
from cador_trio.registry import JobRecord


class Results:
    """The handlers. Results of a job that has not succeeded (yet) are not found."""

    def __init__(self, door: Door) -> None:
        self._settings = door.settings
        self._registry = door.house.registry

    async def index(self, job_id: str) -> Response:
        """The results as the Geo Process API lists them, or as PESTO's map."""
        record = self._registry.get(job_id)
        product = _finished(record)
        ours = links(self._settings)
        match query("format"):
            case None | "list":
                return json_response(_as_list(record, product, ours))
            case "map":
                return json_response(_as_map(record, product, ours))
            case _:
                raise RequestRefused("format must be list or map")

    async def one(self, job_id: str, result_id: str) -> Response:
        """One result with its own media type."""
        return await result_response(_result(_finished(self._registry.get(job_id)), result_id))

    async def delete_one(self, job_id: str, result_id: str) -> Response:
        """Let go of one result."""
        record = self._registry.get(job_id)
        self._registry.drop_result(record, _result(_finished(record), result_id))
        return no_content()

    async def delete_all(self, job_id: str) -> Response:
        """Let go of all results; the job's status stays."""
        record = self._registry.get(job_id)
        _finished(record)
        self._registry.drop_results(record)
        return no_content()


def _as_list(record: JobRecord, product: Product, ours: Links) -> Json:
    return [{"id": result.result_id, "_link": ours.result_reference(record, result)} for result in product.results]


def _as_map(record: JobRecord, product: Product, ours: Links) -> Json:
    return {
        name: [ours.result(record, item) for item in output]
        if isinstance(output, tuple)
        else ours.result(record, output)
        for name, output in product.outputs.items()
    }


def _finished(record: JobRecord) -> Product:
    if not record.ended.is_set():
        raise NotFound("the job has no results yet", hint=f"it is {record.state}: watch its status")
    if record.product is None:
        raise NotFound(f"the job has no results: it is {record.state}", hint="its status says why")
    if record.results_gone:
        raise NotFound("the job's results are deleted, or no longer kept", hint="post it again if they are wanted")
    return record.product


def _result(product: Product, result_id: str) -> Result:
    for result in product.results:
        if result.result_id == result_id:
            return result
    known = ", ".join(result.result_id for result in product.results[:20])
    raise NotFound(f"no result {result_id[:80]!r}", hint=f"there are: {known}" if known else "they are deleted")
