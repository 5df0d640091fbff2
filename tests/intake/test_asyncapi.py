"""What the HTTP door serves about messages: the AsyncAPI document, JSON Schemas, and the guarantee that holds."""

from __future__ import annotations

from pathlib import Path

import httpx
import jsonschema_rs
import pytest

from cador_trio import __version__
from cador_trio.intake.http.openapi_parts import MESSAGE_SCHEMAS
from cador_trio.kafka.asyncapi import asyncapi_document, schemas
from cador_trio.settings import Settings
from tests.daemon.process import client_of, wait_answer
from tests.intake.running import check_error, open_daemon
from tests.kafka.street import KafkaStreet, running
from tests.peers.fake_algorithm import FakeAlgorithm
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import Topics


async def test_document(client: httpx.AsyncClient) -> None:
    """It is there without Kafka too, as JSON, to be asked for again each time at no cost."""
    answer = await client.get("/asyncapi")
    assert answer.json() == asyncapi_document(Settings(), __version__)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-cache"
    again = await client.get("/asyncapi", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_schemas(client: httpx.AsyncClient) -> None:
    """Every schema has its own path, and is one; the OpenAPI document knows them all."""
    assert sorted(schemas()) == MESSAGE_SCHEMAS
    for name in MESSAGE_SCHEMAS:
        answer = await client.get(f"/asyncapi/schemas/{name}.json")
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json() == schemas()[name]
        jsonschema_rs.meta.validate(answer.json())


async def test_link_of_the_openapi_document(client: httpx.AsyncClient) -> None:
    """Its relative link leads to the AsyncAPI document, from the page that shows it and from itself."""
    text = (await client.get("/openapi/spec.json")).json()["info"]["description"]
    assert "](../asyncapi)" in text
    for base in ("/openapi/spec.json", "/swagger/"):
        assert client.base_url.join(base).join("../asyncapi").path == "/asyncapi"


@pytest.mark.parametrize("path", ["/asyncapi/schemas", "/asyncapi/schemas/status", "/asyncapi/schemas/none.json"])
async def test_what_is_not_there(client: httpx.AsyncClient, path: str) -> None:
    """An Error object."""
    check_error(await client.get(path), 404)


async def test_token(fake: FakeAlgorithm) -> None:
    """Schemas are the same everywhere, and open; the document has the operator's topics in it, and is not."""
    async with open_daemon(fake, api_token="hush") as client:
        check_error(await client.get("/asyncapi"), 401)
        assert (await client.get("/asyncapi", headers={"Authorization": "Bearer hush"})).status_code == 200
        assert (await client.get("/asyncapi/schemas/status.json")).status_code == 200


async def test_no_guarantee_without_kafka(client: httpx.AsyncClient) -> None:
    """`/readyz` says nothing of what there is not."""
    assert (await client.get("/readyz")).json() == {"status": "ok", "reasons": []}


async def test_daemon_with_kafka(kafka: RealKafka, topics: Topics, fake: FakeAlgorithm, tmp_path: Path) -> None:
    """The document has the topics that are set, and `/readyz` the guarantee that holds; `/livez` has none."""
    street = KafkaStreet(kafka, topics)
    await street.create()
    async with running(tmp_path / "daemon", fake, street.settings()) as daemon, client_of(daemon) as client:
        ready = await wait_answer(client, "/readyz", 200)
        assert ready.json() == {
            "status": "ok",
            "reasons": [],
            "delivery": "exactly once: one transaction holds output, tags, statuses, dead letters and the request's "
            "offset",
        }
        assert "delivery" not in (await client.get("/livez")).json()
        channels = (await client.get("/asyncapi")).json()["channels"]
        assert channels["request"]["address"] == topics("requests")
        assert channels["deadLetter"]["address"] == topics("dead")
        assert await daemon.stop() == 0
