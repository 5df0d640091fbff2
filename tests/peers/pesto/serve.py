"""Serve the example algorithm with PESTO, in PESTO's environment, on a socket that the launcher has bound.

    python -I serve.py FOLDER PROFILE DESCRIPTOR

FOLDER gets the descriptors and PESTO's workspace, PROFILE is a PESTO profile or empty, DESCRIPTOR is the number of the
bound socket. What PESTO's image build lays down under `/etc/pesto` and `/tmp` is put in FOLDER instead, so that several
can run on one machine; all else is PESTO's own. The process ends with its standard input, thus with its launcher.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

# PESTO and what it brings exist in its own environment only.
import pesto.ws.v1  # type: ignore[import-not-found]
import uvicorn  # type: ignore[import-not-found,unused-ignore]
from pesto.cli import PROCESSING_FACTORY_PATH  # type: ignore[import-not-found]
from pesto.cli.core.build_config import BuildConfig  # type: ignore[import-not-found]
from pesto.cli.core.config_loader import ConfigLoader  # type: ignore[import-not-found]
from pesto.cli.core.pesto_files import PestoFiles  # type: ignore[import-not-found]
from pesto.ws.app import app, setup_logging  # type: ignore[import-not-found]
from pesto.ws.service.describe import DescribeService  # type: ignore[import-not-found]
from pesto.ws.service.job_list import JobListService  # type: ignore[import-not-found]

DETECTOR = Path(__file__).with_name("detector")
OPENAPI = Path(PROCESSING_FACTORY_PATH) / "pesto/cli/resources/doc/api_geo_process_v1.0.yaml"


def main(folder: Path, profile: str, descriptor: int) -> None:
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    # PESTO imports the algorithm by the name of its package. Last in line: the folder has a `pesto` in it, too.
    sys.path.append(str(DETECTOR))
    _bake_descriptors(folder, [profile] if profile else [])
    _stay_inside(folder)
    server = uvicorn.Server(uvicorn.Config(app))
    setup_logging()
    server.run(sockets=[socket.socket(fileno=descriptor)])


def _end_with_standard_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def _bake_descriptors(folder: Path, profiles: list[str]) -> None:
    baked = ConfigLoader.load(BuildConfig.from_path(str(DETECTOR / "pesto/build/build.json"), profiles))
    for kind in (PestoFiles.service, PestoFiles.version):
        (folder / Path(kind.value).name).write_text(json.dumps(baked[kind]), encoding="utf-8")


def _stay_inside(folder: Path) -> None:
    DescribeService.SERVICE_JSON_PATH = str(folder / "service.json")
    DescribeService.VERSION_CONTENT_PATH = str(folder / "version.json")
    JobListService.PESTO_WORKSPACE = str(folder / "jobs")
    file_response = pesto.ws.v1.FileResponse

    def openapi_from_the_package(_baked_path: str) -> Any:
        return file_response(str(OPENAPI))

    # `GET /openapi` names its file in the middle of a function; it is the one route that answers with a file.
    pesto.ws.v1.FileResponse = openapi_from_the_package


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
