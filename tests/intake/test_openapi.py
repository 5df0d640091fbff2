"""Our OpenAPI document and the page that shows it: complete, and without anything from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema_rs
import pytest
from quart_trio import QuartTrio

from cador_trio.intake.http.app import create_app
from cador_trio.intake.http.door import Door
from cador_trio.intake.http.openapi import openapi_document
from cador_trio.intake.http.openapi_parts import PAGE_FILES
from cador_trio.settings import Settings
from tests.intake.running import open_daemon
from tests.peers.fake_algorithm import FakeAlgorithm

METHODS = {"get", "put", "post", "delete"}


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By `METHOD /path`."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def references(part: Any) -> set[str]:
    """Every `$ref` below."""
    if isinstance(part, dict):
        found = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return found.union(*(references(value) for value in part.values()))
    return set().union(*(references(value) for value in part)) if isinstance(part, list) else set()


def routes(app: QuartTrio) -> set[str]:
    """By `METHOD /path`; HEAD comes with every GET."""
    return {
        f"{method} {re.sub('<(?:path:)?', '{', rule.rule).replace('>', '}')}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }


@pytest.mark.parametrize("allows_put", [False, True])
async def test_document_and_routes_agree(
    fake: FakeAlgorithm, monkeypatch: pytest.MonkeyPatch, allows_put: bool
) -> None:
    """Every route is in the document, every operation of the document is a route, and the root spells all but one."""
    apps: list[QuartTrio] = []

    def seen(door: Door) -> QuartTrio:
        apps.append(create_app(door))
        return apps[0]

    monkeypatch.setattr("cador_trio.daemon.create_app", seen)
    async with open_daemon(fake, allow_config_put=allows_put) as client:
        document = (await client.get("/openapi/spec.json")).json()
    documented = set(operations(document))
    at_the_root = {route.replace("/api/v1", "") for route in documented if "/api/v1" in route}
    assert routes(apps[0]) == documented | at_the_root - {"GET /metrics"}
    assert ("PUT /api/v1/config" in documented) is allows_put


def test_document_is_whole() -> None:
    """Every reference leads somewhere, and nothing is defined in vain."""
    document = openapi_document(Settings())
    defined = {f"#/components/{kind}/{name}" for kind, parts in document["components"].items() for name in parts}
    used = references(document)
    assert used <= defined
    assert defined - used <= {"#/components/responses/401", "#/components/headers/Allow"}


def test_examples_fit_their_schemas() -> None:
    """What the document shows is what it says."""
    document = openapi_document(Settings())

    def check(part: Any) -> int:
        if isinstance(part, list):
            return sum(check(value) for value in part)
        if not isinstance(part, dict):
            return 0
        checked = sum(check(value) for name, value in part.items() if name != "example")
        if "example" in part and "schema" in part:
            schema = {**part["schema"], "components": document["components"]}
            jsonschema_rs.validate(schema, part["example"])
            checked += 1
        return checked

    assert check(document) >= 15


def test_every_operation_says_what_is_common() -> None:
    """Ids are unique; every answer has the correlation id; a 503 of the API tells when to come again."""
    document = openapi_document(Settings())
    found = operations(document)
    assert len({operation["operationId"] for operation in found.values()}) == len(found)
    for operation in found.values():
        for answer in operation["responses"].values():
            while "$ref" in answer:
                answer = document["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]  # noqa: PLW2901
            assert "X-Correlation-ID" in answer["headers"]
            assert answer["description"]
    assert "Retry-After" in document["components"]["responses"]["503"]["headers"]


def test_token_is_asked_for_only_where_there_is_one() -> None:
    """With a token there is a scheme, a 401 for each operation that wants it, and none for those that are open."""
    assert "security" not in openapi_document(Settings())
    document = openapi_document(Settings.model_validate({"api_token": "hush"}))
    assert document["security"] == [{"token": []}]
    assert "hush" not in str(document)
    open_to_all = {name for name, operation in operations(document).items() if "401" not in operation["responses"]}
    assert open_to_all == {
        "GET /api/v1/health",
        "GET /livez",
        "GET /readyz",
        "GET /metrics",
        "GET /openapi/spec.json",
        "GET /swagger",
        "GET /swagger/{asset}",
        "GET /asyncapi/schemas/{schema}.json",
    }


def test_tokens_leave_no_trace() -> None:
    """A document with the token does not change the one without."""
    before = openapi_document(Settings())
    openapi_document(Settings.model_validate({"api_token": "hush"}))
    assert openapi_document(Settings()) == before


def test_metrics_are_where_they_are_served() -> None:
    """With a port of their own they are not part of the API."""
    assert "/metrics" in openapi_document(Settings())["paths"]
    assert "/metrics" not in openapi_document(Settings.model_validate({"metrics_port": 9_091}))["paths"]


def test_nothing_but_what_3_0_knows_too() -> None:
    """The bundled Swagger UI reads 3.0: no list of types, no `const`, no `examples` of a schema, no null type."""
    text = str(openapi_document(Settings()))
    assert not re.search(r"'type': \[|'const'|'examples'|'type': 'null'|'\$defs'|'webhooks'", text)


# --- Served ------------------------------------------------------------------------------------------------------


async def test_document_is_served(client: httpx.AsyncClient) -> None:
    """As JSON, to be asked for again each time, at no cost while it is the same."""
    answer = await client.get("/openapi/spec.json")
    assert answer.json() == openapi_document(Settings())
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-cache"
    again = await client.get("/openapi/spec.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == answer.headers["ETag"]


async def test_public_url_is_the_server(fake: FakeAlgorithm) -> None:
    """Behind a proxy the document names the address that callers use."""
    async with open_daemon(fake, public_url="https://geo.example/cador") as client:
        assert (await client.get("/openapi/spec.json")).json()["servers"] == [{"url": "https://geo.example/cador"}]


@pytest.mark.parametrize("path", ["/swagger", "/swagger/"])
async def test_page(client: httpx.AsyncClient, path: str) -> None:
    """With or without a slash at the end the page finds what it is made of, all of it here."""
    page = await client.get(path)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    base = page.url.join(re.findall(r'<base href="(.+?)">', page.text)[0])
    assert base.path == "/swagger/"
    for link in re.findall(r'(?:src|href)="(?!\./|swagger/)(.+?)"', page.text):
        answer = await client.get(base.join(link))
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].partition(";")[0] in {"text/css", "text/javascript", "image/png"}
    assert base.join("../openapi/spec.json").path == "/openapi/spec.json"


async def test_page_may_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """The browser is told so, and nothing on the page asks for it."""
    page = await client.get("/swagger")
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy["script-src"], policy["connect-src"]} == {"'self'"}
    assert not re.search("https?:", page.text)
    styles = (await client.get("/swagger/swagger-ui.css")).text
    assert set(re.findall(r"url\(['\"]?(\w+:)", styles)) <= {"data:"}
    assert "@import" not in styles


async def test_assets(client: httpx.AsyncClient) -> None:
    """They may be kept for a while, and are cheap to ask for again; others are not there."""
    for name in PAGE_FILES:
        answer = await client.get(f"/swagger/{name}")
        assert answer.headers["Cache-Control"] == "public, max-age=3600"
        assert len(answer.content) == int(answer.headers["Content-Length"]) > 100
        again = await client.get(f"/swagger/{name}", headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304
    for name in ("index.html", "swagger-ui.js", "..%2f__init__.py"):
        assert (await client.get(f"/swagger/{name}")).status_code == 404
