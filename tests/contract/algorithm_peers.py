"""The algorithms that the same cases run against: the fake in both dialects, and a real PESTO.

A `Peer` says what to send and what to expect. Expected images are what the peer itself gives to a plain HTTP client.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

import httpx
import pytest

from cador_trio.job import Answer, Image, JsonObject, Value
from tests.peers.fake_algorithm import FakeAlgorithm, minimal_describe, open_fake_algorithm, sample_answer
from tests.peers.pesto.detector.algorithm import rules
from tests.peers.pesto.images import sample_image
from tests.peers.pesto.launcher import PestoPeer

Kind = Literal["fake, plain API", "fake, PESTO's dialect", "real PESTO"]
KINDS: Final[Sequence[Kind]] = ("fake, plain API", "fake, PESTO's dialect", "real PESTO")
IMAGES: Final = ("mask", "chips")


@dataclass(frozen=True)
class Peer:
    """An algorithm that runs. `values` are its outputs that are no images, for these inputs."""

    url: str
    inputs: JsonObject
    values: JsonObject
    execution: str
    pesto: PestoPeer | None = None
    fake: FakeAlgorithm | None = None

    @property
    def has_output_names(self) -> bool:
        """Its describe document tells which outputs there are; the plain API's doesn't."""
        return self.pesto is not None or (self.fake is not None and self.fake.is_pesto)

    def leftovers(self) -> list[str]:
        """The result files that it still holds."""
        if self.pesto is not None:
            return [file for files in self.pesto.job_folders().values() for file in files]
        assert self.fake is not None
        kept = (job for job in self.fake.jobs.values() if job.id not in self.fake.cancelled)
        return [result for job in kept for result in job.results]


def describe(kind: Kind, *, asynchronous: bool) -> JsonObject:
    return minimal_describe(asynchronous=asynchronous, pesto=kind == "fake, PESTO's dialect")


@asynccontextmanager
async def open_peer(kind: Kind, request: pytest.FixtureRequest, *, asynchronous: bool) -> AsyncIterator[Peer]:
    """The peer inside the block; a real PESTO is the session's, and must be left as it was found."""
    if kind == "real PESTO":
        pesto: PestoPeer = request.getfixturevalue("pesto_stateful" if asynchronous else "pesto_stateless")
        inputs = {"image": f"file://{pesto.image_path}", "sigma": 2.5}
        yield Peer(f"{pesto.url}/api/v1", inputs, detector_values(), "process", pesto=pesto)
        return
    dialect: Literal["pesto", "spec"] = "pesto" if kind == "fake, PESTO's dialect" else "spec"
    async with open_fake_algorithm(dialect=dialect, describe=describe(kind, asynchronous=asynchronous)) as fake:
        values = {name: value for name, value in sample_answer().items() if name not in IMAGES}
        yield Peer(fake.url, {"image": "aW1hZ2U="}, values, fake.execution, fake=fake)


def detector_values() -> JsonObject:
    """What the detector of the real PESTO finds in its sample image with a sigma of 2.5."""
    image = sample_image()
    return {
        "detections": rules.detections(image),
        "polygon": rules.polygon(image),
        "count": rules.count(image, sigma=2.5),
        "threshold_used": rules.threshold_used(image, sigma=2.5),
        "summary": rules.summary(image, sigma=2.5),
        "p99": rules.p99(image),
    }


# --- What a plain client is given ------------------------------------------------------------------------------------


async def direct_stateless(peer: Peer) -> JsonObject:
    """The whole answer, asked directly."""
    async with _plain_client(peer) as http:
        answer = await http.post(f"/{peer.execution}", json=peer.inputs)
        assert answer.status_code == 200
        document: JsonObject = answer.json()
        return document


async def direct_stateful_images(peer: Peer) -> Mapping[str, Sequence[str]]:
    """The SHA-256 of the images, asked directly; the job's results are deleted again."""
    async with _plain_client(peer) as http:
        reference = (await http.post(f"/{peer.execution}", json=peer.inputs)).json()
        job = str(reference.get("href") or reference["link"]).removesuffix("/status")
        ids = {"mask": ["mask"], "chips": [f"chips{index}" for index in range(12)]}
        found = {
            name: [sha256((await http.get(f"{job}/results/{one}")).content) for one in ids_of]
            for name, ids_of in ids.items()
        }
        for one in [*peer.values, "mask", *ids["chips"]]:
            await http.delete(f"{job}/results/{one}")
        return found


def _plain_client(peer: Peer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=peer.url, timeout=None, trust_env=False)


# --- Answers in a form that can be compared --------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def inline_sha256(text: str) -> str:
    return sha256(base64.b64decode(text, validate=True))


def values_of(answer: Answer) -> JsonObject:
    """Outputs that are no images, by name."""
    return {name: output.json for name, output in answer.outputs.items() if isinstance(output, Value)}


def images_of(answer: Answer) -> dict[str, list[str]]:
    """The SHA-256 of the images of each output, in order, recomputed from their bytes."""
    found: dict[str, list[str]] = {}
    for image in answer.images():
        content = image.body.read_all()
        assert image.body.sha256 == sha256(content)
        assert image.body.size == len(content)
        found.setdefault(image.output, []).append(image.body.sha256)
    return found


def the_image(answer: Answer) -> Image:
    (image,) = answer.images()
    return image
