"""The fake algorithm as a process of its own, for measurements: its URL is the first line on stdout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import trio

from tests.peers.fake_algorithm.documents import minimal_describe
from tests.peers.fake_algorithm.script import Answer, AnswerImage, Behaviour, JsonObject, Stateful
from tests.peers.fake_algorithm.server import FakeAlgorithm


def build(arguments: Sequence[str]) -> tuple[FakeAlgorithm, int]:
    """The fake that the command line asks for, and its port."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers.fake_algorithm", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 is any free one")
    parser.add_argument("--dialect", choices=["spec", "pesto"], default="spec")
    parser.add_argument(
        "--mode",
        choices=["stateless", "image", "stateful"],
        default="stateless",
        help="a small JSON object at once; a bare image of --size bytes; a job with such an image as its result",
    )
    parser.add_argument("--size", type=int, default=1_000_000, help="bytes of the image")
    parser.add_argument("--media-type", default="image/png", help="of the image")
    chosen = parser.parse_args(arguments)
    image, pesto = AnswerImage(chosen.size, chosen.media_type), chosen.dialect == "pesto"
    modes: dict[str, tuple[JsonObject, Behaviour]] = {
        "stateless": (minimal_describe(pesto=pesto, outputs=["count"]), Answer({"count": 3})),
        "image": (minimal_describe(whole=chosen.media_type), image),
        "stateful": (minimal_describe(pesto=pesto, outputs=["mask"], asynchronous=True), Stateful({"mask": image})),
    }
    describe, default = modes[chosen.mode]
    fake = FakeAlgorithm(dialect=chosen.dialect, describe=describe, default=default)
    fake.remembers = False
    return fake, chosen.port


async def serve(fake: FakeAlgorithm, port: int) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(fake.serve, port)
        sys.stdout.write(f"{fake.url}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(serve, *build(sys.argv[1:]))
