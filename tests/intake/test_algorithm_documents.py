"""What the algorithm says of itself, as it comes out of the daemon; and health."""

from __future__ import annotations

import httpx
import pytest

from cador_trio.intake.http.links import Links
from tests.intake.running import JOB, check_error, open_daemon, vector
from tests.peers.fake_algorithm import (
    AnswerText,
    FakeAlgorithm,
    Html,
    Reply,
    Status,
    minimal_describe,
    open_fake_algorithm,
    sample_answer,
)


async def test_describe_is_the_facade() -> None:
    """Only the links are ours: the contract's example, to the letter."""
    facade = vector("describe-facade")
    theirs = {name: value for name, value in facade.items() if name != "_links"}
    async with (
        open_fake_algorithm(describe=theirs) as fake,
        open_daemon(fake, public_url="http://127.0.0.1:9090") as client,
    ):
        assert (await client.get("/describe")).json() == facade


async def test_describe_is_fresh(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """A new version of the algorithm is seen at the next look."""
    fake.describe = minimal_describe() | {"version": "2.0.0"}
    assert (await client.get("/describe")).json()["version"] == "2.0.0"


async def test_describe_while_the_algorithm_is_away(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """The last one is better than none."""
    before = (await client.get("/describe")).json()
    await fake.refuse_connections()
    assert (await client.get("/describe")).json() == before


async def test_links_to_documents_are_kept(fake: FakeAlgorithm) -> None:
    """The algorithm's icon, license and documentation are where they were; links of its own making are dropped."""
    kept = {name: {"relation": name, "href": f"https://example.org/{name}"} for name in ("icon", "license")}
    document = {
        "_links": kept | {"execution": {"href": "http://elsewhere/jobs"}, "other": {"href": "http://elsewhere"}}
    }
    links = Links("http://here").describe(document, claims_synchronous=False)["_links"]
    assert {name: links[name] for name in kept} == kept
    assert links["execution"]["href"] == "http://here/api/v1/jobs"
    assert "elsewhere" not in str(links)


@pytest.mark.parametrize("links", [None, [], "x", {"icon": {}}])
def test_describe_without_usable_links(links: object) -> None:
    """Whatever stands there, ours come out."""
    assert Links("http://here").describe({"_links": links}, claims_synchronous=False)["_links"]["self"]["href"]


async def test_links_follow_the_caller(client: httpx.AsyncClient) -> None:
    """Without a public URL links begin with the address that the caller used, whatever a proxy is said to be."""
    forwarded = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "host=evil.example;proto=https",
    }
    answer = await client.get("/describe", headers=forwarded | {"Host": "cador.example:1234"})
    assert answer.json()["_links"]["self"]["href"] == "http://cador.example:1234/api/v1/describe"


async def test_public_url(fake: FakeAlgorithm) -> None:
    """With a public URL, a path of a proxy included, every link begins with it."""
    async with open_daemon(fake, public_url="https://geo.example/cador") as client:
        describe = (await client.get("/describe")).json()
        accepted = await client.post("/jobs", json=JOB, headers={"Prefer": "respond-async"})
    links = [link["href"] for link in describe["_links"].values()]
    links += [accepted.headers["Location"], accepted.json()["href"], accepted.json()["link"]]
    assert all(link.startswith("https://geo.example/cador/api/v1/") for link in links)


async def test_documents_are_passed_on(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Version, OpenAPI document, metrics and configuration come with the algorithm's bytes and media types."""
    fake.config = {"a": 1}
    for path, body, media_type in (
        ("version", b"1.0.0", "text/plain; charset=utf-8"),
        ("openapi", b"openapi: 3.0.0\n", "text/plain; charset=utf-8"),
        ("metrics", b'{"jobs": 0}', "application/json"),
        ("config", b'{"a": 1}', "application/json"),
    ):
        answer = await client.get(f"/api/v1/{path}")
        assert answer.status_code == 200
        assert answer.content.startswith(body)
        assert answer.headers["Content-Type"] == media_type


async def test_documents_of_pesto() -> None:
    """PESTO's version is JSON; the configuration and metrics that it lacks are not found, with an Error."""
    async with open_fake_algorithm(dialect="pesto") as fake, open_daemon(fake) as client:
        assert (await client.get("/version")).json() == {"version": "1.0.0"}
        for path in ("/config", "/api/v1/metrics"):
            assert "the algorithm has nothing there" in check_error(await client.get(path), 404)["message"]


async def test_config_is_read_only(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """PUT is not possible unless the operator wants it."""
    answer = await client.put("/config", json={"a": 2})
    check_error(answer, 405)
    assert answer.headers["Allow"] == "GET, HEAD"
    assert fake.config == {}


async def test_config_can_be_written(fake: FakeAlgorithm) -> None:
    """Where it is allowed, PUT reaches the algorithm, and its refusal comes back."""
    async with open_daemon(fake, allow_config_put=True) as client:
        assert (await client.put("/config", json={"a": 2})).json() == {"a": 2}
        check_error(await client.put("/config", content=b"{", headers={"Content-Type": "application/json"}), 400)
        check_error(await client.put("/config", content=b"x", headers={"Content-Type": "text/plain"}), 415)
    assert fake.config == {"a": 2}


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Status(500, {"detail": "no config today"}), 500),
        (Status(503, text="busy"), 503),
        (Status(502, text="gateway"), 502),
        (Html(404), 404),
        (Reply(302, headers=(("Location", "http://elsewhere/"),)), 502),
    ],
)
async def test_errors_of_the_algorithm(
    fake: FakeAlgorithm, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, reply: Reply, status: int
) -> None:
    """What the algorithm answers instead of a document is told as an Error, and no redirect is followed."""
    monkeypatch.setattr(fake, "_configure", lambda _: reply)
    check_error(await client.get("/config"), status)


async def test_documents_before_the_algorithm_was_ever_there(fake: FakeAlgorithm) -> None:
    """Nothing is known yet: come again."""
    await fake.refuse_connections()
    async with open_daemon(fake, is_ready=False) as client:
        for path in ("/describe", "/version", "/openapi", "/config", "/api/v1/metrics"):
            answer = await client.get(path)
            check_error(answer, 503)
            assert int(answer.headers["Retry-After"]) >= 1
        check_error(await client.post("/jobs", json=JOB), 503)


async def test_health(client: httpx.AsyncClient) -> None:
    """`OK`, as text."""
    answer = await client.get("/health")
    assert (answer.status_code, answer.text) == (200, "OK")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_health_without_the_algorithm(fake: FakeAlgorithm) -> None:
    """`KO : ` and the reasons, with 503; the process itself is alive."""
    await fake.refuse_connections()
    async with open_daemon(fake, is_ready=False) as client:
        answer = await client.get("/health")
        assert answer.status_code == 503
        assert answer.text.startswith("KO : the algorithm ")
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        assert answer.text == f"KO : {'; '.join(ready.json()['reasons'])}"
        assert (await client.get("/livez")).json() == {"status": "ok", "reasons": []}


async def test_readiness_while_busy(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """A job at the algorithm does not make the daemon unready."""
    assert (await client.post("/jobs", json=JOB)).json() == sample_answer()
    assert (await client.get("/readyz")).json() == {"status": "ok", "reasons": []}


async def test_stateful_inline_claims_to_be_synchronous() -> None:
    """With CADOR_REST_STATEFUL=inline a stateful algorithm is described as what its callers meet."""
    describe = minimal_describe(asynchronous=True)
    async with open_fake_algorithm(describe=describe) as fake:
        async with open_daemon(fake) as client:
            assert (await client.get("/describe")).json()["asynchronous"] is True
        async with open_daemon(fake, rest_stateful="inline") as client:
            assert (await client.get("/describe")).json()["asynchronous"] is False


async def test_document_without_media_type(
    fake: FakeAlgorithm, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes without a media type goes out as bytes, not as a guess."""
    monkeypatch.setattr(fake, "_configure", lambda _: AnswerText("x", media_type=""))
    assert (await client.get("/config")).headers["Content-Type"] == "application/octet-stream"
