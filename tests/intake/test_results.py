"""What a job made, fetched and let go of: the index, each result with its own type and bytes."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import httpx
import pytest
import trio

from tests.descriptors import open_descriptors
from tests.intake.running import JOB, check_error, end_one_job, open_daemon, open_get, start_job, wait_end_of
from tests.peers.fake_algorithm import (
    Answer,
    AnswerImage,
    FakeAlgorithm,
    Hold,
    Pattern,
    Stateful,
    Status,
    minimal_describe,
    open_fake_algorithm,
    sample_answer,
)
from tests.peers.fake_algorithm.documents import MASK_SIZE

LARGE = 20_000_000  # bytes: more than all buffers between the spool and a reader


async def test_index(client: httpx.AsyncClient) -> None:
    """An array of ids and References, as the Geo Process API has it; every link works, and says its type."""
    job_id = await end_one_job(client)
    index = (await client.get(f"/jobs/{job_id}/results")).json()
    assert [entry["id"] for entry in index] == list(sample_answer())
    for entry in index:
        link = entry["_link"]
        assert (link["relation"], link["method"]) == ("result", "GET")
        assert (await client.get(link["href"])).headers["Content-Type"] == link["type"]


async def test_index_as_a_map() -> None:
    """`format=map`: PESTO's shape, lists as lists; `format=list` is the other one, and there is no third."""
    async with (
        open_fake_algorithm(dialect="pesto", describe=minimal_describe(asynchronous=True, pesto=True)) as fake,
        open_daemon(fake) as client,
    ):
        job_id = await end_one_job(client)
        base = f"{str(client.base_url).rstrip('/')}/api/v1/jobs/{job_id}/results"
        index = (await client.get(f"/jobs/{job_id}/results?format=map")).json()
        assert index["count"] == f"{base}/count"
        assert index["chips"] == [f"{base}/chips_{number}" for number in range(12)]
        ids = [entry["id"] for entry in (await client.get(f"/jobs/{job_id}/results?format=list")).json()]
        assert set(ids) > {"count", "chips_0", "chips_11"}
        check_error(await client.get(f"/jobs/{job_id}/results?format=xml"), 400)


async def test_results_of_every_kind(client: httpx.AsyncClient) -> None:
    """JSON as JSON, a text in it, too; a base64 image as the image that it is."""
    job_id = await end_one_job(client)
    expected = sample_answer()

    async def fetch(result_id: str) -> httpx.Response:
        return await client.get(f"/jobs/{job_id}/results/{result_id}")

    count, summary, mask, chips = [await fetch(name) for name in ("count", "summary", "mask", "chips")]
    assert (count.headers["Content-Type"], count.json()) == ("application/json", 1)
    assert (summary.headers["Content-Type"], summary.json()) == ("application/json", "one vessel")
    assert (mask.headers["Content-Type"], mask.content) == ("image/png", base64.b64decode(expected["mask"]))
    assert chips.json() == expected["chips"]


async def test_results_of_a_stateful_job() -> None:
    """Images come from the spool with their type, length and digest; texts are bare."""
    async with open_fake_algorithm(describe=minimal_describe(asynchronous=True)) as fake, open_daemon(fake) as client:
        job_id = await end_one_job(client)
        mask = await client.get(f"/jobs/{job_id}/results/mask")
        summary = await client.get(f"/jobs/{job_id}/results/summary")
    assert (summary.headers["Content-Type"].partition(";")[0], summary.text) == ("text/plain", "one vessel")
    assert mask.headers["Content-Type"] == "image/png"
    assert mask.headers["ETag"] == f'"{Pattern(MASK_SIZE).sha256}"'
    assert len(mask.content) == int(mask.headers["Content-Length"]) == MASK_SIZE


async def test_a_stored_image(fake: FakeAlgorithm, tmp_path: Path) -> None:
    """Of an image in a store there is its reference."""
    async with open_daemon(fake, posix_roots=(tmp_path,)) as client:
        technical = {"taskId": "t", "outputStorage": {"POSIX": {"folder": str(tmp_path)}}}
        job_id = await end_one_job(client, technicalMetadata=technical)
        reference = await client.get(f"/jobs/{job_id}/results/mask")
    assert reference.headers["Content-Type"] == "application/json"
    stored = await trio.Path(reference.json()["path"]).read_bytes()
    assert reference.json()["sha256"] == hashlib.sha256(stored).hexdigest()


async def test_output_names_with_slashes(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """The algorithm names its outputs as it likes; the links lead there."""
    names = ["a/b", "a b", "é?#%", "mask.png"]
    fake.default = Answer(dict.fromkeys(names, 1))
    job_id = await end_one_job(client)
    for entry in (await client.get(f"/jobs/{job_id}/results")).json():
        answer = await client.get(entry["_link"]["href"])
        assert (answer.status_code, answer.json()) == (200, 1), entry


# --- Nothing there -----------------------------------------------------------------------------------------------


async def test_results_of_an_unfinished_job(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """Not found (yet), and the hint says how far the job is."""
    fake.default = Hold(Answer({}))
    job_id = await start_job(client)
    await fake.wait_for_request(1, "POST")
    for answer in (
        await client.get(f"/jobs/{job_id}/results"),
        await client.get(f"/jobs/{job_id}/results/mask"),
        await client.delete(f"/jobs/{job_id}/results"),
        await client.delete(f"/jobs/{job_id}/results/mask"),
    ):
        assert "RUNNING" in check_error(answer, 404)["hint"]


async def test_results_of_a_failed_job(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """There are none, and the message says why."""
    fake.default = Status(500, {"detail": "no bands"})
    job_id = await end_one_job(client)
    assert "FAILED" in check_error(await client.get(f"/jobs/{job_id}/results"), 404)["message"]


async def test_an_unknown_result(client: httpx.AsyncClient) -> None:
    """The hint names those that are there."""
    job_id = await end_one_job(client)
    for call in (client.get, client.delete):
        assert "mask" in check_error(await call(f"/jobs/{job_id}/results/musk"), 404)["hint"]


# --- DELETE ------------------------------------------------------------------------------------------------------


async def test_deleting_one_result(client: httpx.AsyncClient) -> None:
    """It is gone, the others are not."""
    job_id = await end_one_job(client)
    assert (await client.delete(f"/jobs/{job_id}/results/mask")).status_code == 204
    check_error(await client.get(f"/jobs/{job_id}/results/mask"), 404)
    check_error(await client.delete(f"/jobs/{job_id}/results/mask"), 404)
    ids = [entry["id"] for entry in (await client.get(f"/jobs/{job_id}/results")).json()]
    assert ids == [name for name in sample_answer() if name != "mask"]


async def test_deleting_all_results(client: httpx.AsyncClient) -> None:
    """They are gone, the status stays."""
    job_id = await end_one_job(client)
    assert (await client.delete(f"/jobs/{job_id}/results")).status_code == 204
    check_error(await client.get(f"/jobs/{job_id}/results"), 404)
    check_error(await client.get(f"/jobs/{job_id}/results/mask"), 404)
    assert (await client.get(f"/jobs/{job_id}/status")).json()["status"] == "SUCCEEDED"


async def test_no_outputs_are_not_the_same_as_deleted_ones(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """An algorithm may find nothing to say."""
    fake.default = Answer({})
    job_id = await end_one_job(client)
    assert (await client.get(f"/jobs/{job_id}/results")).json() == []


# --- Readers that leave ------------------------------------------------------------------------------------------


def spooled_descriptors() -> list[str]:
    """Files of a spool that this process, which the daemon shares, has open, the spool's own lock aside."""
    return [kind for _, kind in open_descriptors() if "cador-trio-spool" in kind and not kind.endswith("/lock")]


async def wait_released() -> None:
    """Sockets and threads tell us nothing of it; the daemon's fixture bounds the time."""
    while spooled_descriptors():  # noqa: ASYNC110 - nobody sets an event for us
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("stateful", [False, True], ids=["answer", "result"])
async def test_a_reader_that_leaves(stateful: bool) -> None:
    """A download that is broken off holds nothing open, and the daemon serves the next one whole."""
    image = AnswerImage(LARGE)
    describe = (
        minimal_describe(asynchronous=True, outputs=["mask"]) if stateful else minimal_describe(whole="image/png")
    )
    async with (
        open_fake_algorithm(describe=describe, default=Stateful({"mask": image}) if stateful else image) as fake,
        open_daemon(fake) as client,
    ):
        job_id = await end_one_job(client)
        path = f"/jobs/{job_id}/results/{'mask' if stateful else 'output'}"
        async with await open_get(client, path) as stream:
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            assert len(spooled_descriptors()) == 1
        await wait_released()
        assert hashlib.sha256((await client.get(path)).content).hexdigest() == Pattern(LARGE).sha256
        await wait_released()


async def test_head_reads_nothing() -> None:
    """HEAD of a large result opens no file for longer than it takes to answer."""
    async with (
        open_fake_algorithm(describe=minimal_describe(whole="image/png"), default=AnswerImage(LARGE)) as fake,
        open_daemon(fake) as client,
    ):
        job_id = await end_one_job(client)
        head = await client.head(f"/jobs/{job_id}/results/output")
        assert int(head.headers["Content-Length"]) == LARGE
        assert spooled_descriptors() == []


async def test_deleting_what_is_being_read() -> None:
    """A download goes on to its end though its result is deleted."""
    async with (
        open_fake_algorithm(describe=minimal_describe(whole="image/png"), default=AnswerImage(LARGE)) as fake,
        open_daemon(fake) as client,
    ):
        job_id = await end_one_job(client)
        digest = hashlib.sha256()
        async with client.stream("GET", f"/jobs/{job_id}/results/output") as stream:
            pieces = stream.aiter_raw()
            digest.update(await anext(pieces))
            assert (await client.delete(f"/jobs/{job_id}")).status_code == 204
            async for piece in pieces:
                digest.update(piece)
    assert digest.hexdigest() == Pattern(LARGE).sha256


async def test_a_reader_of_events_that_leaves(fake: FakeAlgorithm, client: httpx.AsyncClient) -> None:
    """The job does not mind."""
    fake.default = Hold(Answer({}))
    job_id = await start_job(client)
    await fake.wait_for_request(1, "POST")
    async with await open_get(client, f"/jobs/{job_id}/events") as stream:
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    fake.release()
    assert (await wait_end_of(client, job_id))["status"] == "SUCCEEDED"


async def test_several_results_at_once(client: httpx.AsyncClient) -> None:
    """Many readers of one result get all of it."""
    job_id = await end_one_job(client)
    answers: list[bytes] = []

    async def fetch() -> None:
        answers.append((await client.get(f"/jobs/{job_id}/results/detections")).content)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(fetch)
    assert len(set(answers)) == 1
    assert len(answers) == 8
    assert (await client.post("/jobs", json=JOB)).status_code == 200
