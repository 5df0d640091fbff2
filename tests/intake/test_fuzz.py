"""The daemon against schemathesis, by the daemon's own OpenAPI document: what it generates must never surprise us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.intake.running import open_daemon
from tests.peers.fake_algorithm import (
    Answer,
    Behaviour,
    Stateful,
    minimal_describe,
    open_fake_algorithm,
    sample_answer,
    sample_outputs,
)

HERE: Final = Path(__file__).parent
TOKEN: Final = "fuzz"
SEED: Final = "20250203"
# Pixel (0, 0) is where the referential says, so it is on the Earth under every referential that the daemon takes.
DETECTIONS: Final = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [0, 0]}, "properties": {}}


def command(url: str) -> list[str]:
    options = ["--checks", "all", "--seed", SEED, "--max-examples", "20", "--generation-database", "none"]
    options += ["--continue-on-failure", "--no-shrink", "--warnings", "off", "--no-color"]
    tool = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "fuzz.toml")]
    return [*tool, "run", f"{url}/openapi/spec.json", *options]


@pytest.mark.parametrize(
    ("asynchronous", "settings"),
    [
        pytest.param(False, {}, id="stateless"),
        pytest.param(
            True,
            {"api_token": TOKEN, "allow_config_put": True, "max_concurrent_jobs": 4, "job_history": 20},
            id="stateful-and-token",
        ),
    ],
)
async def test_no_surprise(asynchronous: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    """With an algorithm that never fails: no 5xx but 503 and 504, no undocumented status, type, header or body."""
    describe = minimal_describe(asynchronous=asynchronous) | {"input": {"type": "object"}}
    default: Behaviour = Answer(sample_answer() | {"detections": DETECTIONS})
    if asynchronous:
        default = Stateful(sample_outputs() | {"detections": Answer(DETECTIONS)})
    async with (
        open_fake_algorithm(describe=describe, default=default) as fake,
        # No store but the folder can be reached from here, so none may be named.
        open_daemon(
            fake, hangs=600, posix_roots=(tmp_path,), storage_endpoints=("nowhere.invalid",), **settings
        ) as client,
    ):
        fake.remembers = False
        done = await trio.run_process(
            command(str(client.base_url).rstrip("/")),
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.intake.fuzz_hooks", "PYTHONPATH": str(HERE.parents[1])},
        )
        assert (await client.get("/readyz")).status_code == 200
    assert done.returncode == 0, done.stdout.decode()
