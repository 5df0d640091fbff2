"""Starts one versitygw on a free loopback port, and ends it.

The strictest of the peers: it checks signatures, their region, checksums and the sizes of parts as Amazon's store does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trustme

from tests.secrets import VERSITY_LIMITED_SECRET, VERSITY_ROOT_SECRET

from .server_process import HOST, is_open, reserved_ports, running
from .store import BUCKET, KeyPair, ObjectStore, s3_client

ROOT: Final = KeyPair("versity-root", VERSITY_ROOT_SECRET)
_LIMITED: Final = KeyPair("versity-nobody", VERSITY_LIMITED_SECRET)


@contextmanager
def running_versitygw(
    program: Path, folder: Path, *, region: str = "us-east-1", tls: bool = False, root: KeyPair = ROOT
) -> Iterator[ObjectStore]:
    """Run a versitygw in `folder`, which must exist and be empty, from when it is usable to the end of the block.

    Its objects are gone afterwards, its log stays.

    Args:
        program: see `versitygw_build`.
        folder: on a file system with extended attributes, such as ext4 and tmpfs.
        region: the one that it takes signatures for.
        tls: serve https, with a certificate for `localhost` and 127.0.0.1 of an authority made for the occasion.
        root: what its administrator signs with.

    Raises:
        StoreDidNotStart: it ended early, or its port was still closed after half a minute.

    """
    data, users, log_path = folder / "data", folder / "users", folder / "versitygw.log"
    data.mkdir()
    users.mkdir()
    ca = folder / "ca.pem" if tls else None
    options = [
        "--region",
        region,
        "--keep-alive",
        "--quiet",
        "--iam-dir",
        users,
        *(_certificate(folder, ca) if ca else ()),
    ]
    environment = {"ROOT_ACCESS_KEY": root.access_key, "ROOT_SECRET_KEY": root.secret_key}
    try:
        with reserved_ports(1) as [port]:
            command = [program, "--port", f"{HOST}:{port}", *options, "posix", data]
            with running(command, log_path, environment) as process:
                process.wait_until(lambda: is_open(port))
                url = f"{'https' if tls else 'http'}://{HOST}:{port}"
                _add_limited_user(program, url, region, root)
                with s3_client(url, root, region, ca) as client:
                    client.create_bucket(Bucket=BUCKET)
                    yield ObjectStore(url, *root, BUCKET, _LIMITED, region, ca, log_path, client)
    finally:
        shutil.rmtree(data)


def _certificate(folder: Path, ca: Path) -> list[str | Path]:
    """Make an authority and a certificate of it; return the options that name the latter."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    authority.cert_pem.write_to_path(ca)
    chain, key = folder / "certificate.pem", folder / "key.pem"
    chain.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return ["--cert", chain, "--key", key]


def _add_limited_user(program: Path, url: str, region: str, root: KeyPair) -> None:
    subprocess.run(
        [
            *(program, "admin", "--endpoint-url", url, "--region", region, "--allow-insecure"),
            *("create-user", "--access", _LIMITED.access_key, "--secret", _LIMITED.secret_key, "--role", "user"),
        ],
        env={**os.environ, "ADMIN_ACCESS_KEY": root.access_key, "ADMIN_SECRET_KEY": root.secret_key},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=30,
    )
