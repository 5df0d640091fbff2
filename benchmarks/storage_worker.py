"""One way to upload, in a process of its own that waits for orders: `python -m benchmarks.storage_worker NAME PLACE`.

PLACE is JSON (`Place`). Each line on stdin is an order, `SIZE OBJECTS AT_ONCE`; each answer a line of JSON with seconds
passed, CPU seconds used and the peak of memory so far. Every way sends the same files, or in our case what the spool
makes of them.
"""

# ruff: noqa: PLC0415 - each process imports its own client alone, so that memory and CPU are that client's

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

PutMany = Callable[[int, int, int], Awaitable[None]]  # size of each in bytes, objects, at once
PutOne = Callable[[Path, str], object]  # file, key


@dataclass(frozen=True)
class Place:
    """Where to upload to, and the folder with a file of each size, named for it."""

    url: str
    key: str
    secret: str
    region: str
    bucket: str
    folder: str


# --- Ours --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def ours(place: Place) -> AsyncIterator[PutMany]:
    """The product's store, from its spool."""
    from cador_trio.job import Image, StorageRequest
    from cador_trio.spool import WRITE_BYTES, Spool, SpooledBody, open_spool
    from cador_trio.storage.destinations import Policy
    from cador_trio.storage.store import Store

    settings = {"url": place.url, "containerPath": f"{place.bucket}/ours", "key": place.key, "secret": place.secret}
    store = Store(Policy())
    destination = store.resolve(StorageRequest("S3", {**settings, "region": place.region}), "bench")

    async with open_spool(Path(place.folder), 1024**3) as spool:
        bodies: dict[int, SpooledBody] = {}

        async def put_many(size: int, objects: int, at_once: int) -> None:
            if size not in bodies:
                bodies[size] = await spooled(spool, size)
            indexes = iter(range(objects))

            async def put_next() -> None:
                for index in indexes:
                    await store.put(destination, Image(f"image-{size}", index, "image/png", bodies[size]))

            async with trio.open_nursery() as upload_nursery:
                for _ in range(at_once):
                    upload_nursery.start_soon(put_next)

        async def spooled(spool: Spool, size: int) -> SpooledBody:
            writer = spool.writer(size, "a body", "nothing")
            async with await trio.open_file(Path(place.folder, str(size)), "rb") as file:
                while piece := await file.read(WRITE_BYTES):
                    await writer.write(piece)
            return await writer.finish()

        yield put_many
        store.close()


# --- The others --------------------------------------------------------------------------------------------------


def threaded(make: Callable[[Place], Callable[[], PutOne]]) -> Callable[[Place], Any]:
    """A client of blocking calls, from as many threads as there are uploads at once.

    `make` returns what gives each thread its function.
    """

    @asynccontextmanager
    async def contender(place: Place) -> AsyncIterator[PutMany]:
        for_thread = make(place)
        local = threading.local()

        def put(size: int, index: int) -> None:
            if not hasattr(local, "put"):
                local.put = for_thread()
            local.put(Path(place.folder, str(size)), f"others/image-{size}_{index}")

        pools = {at_once: ThreadPoolExecutor(at_once) for at_once in (1, 8)}

        def put_all(size: int, objects: int, at_once: int) -> None:
            for done in [pools[at_once].submit(put, size, index) for index in range(objects)]:
                done.result()

        async def put_many(size: int, objects: int, at_once: int) -> None:
            await trio.to_thread.run_sync(put_all, size, objects, at_once)

        yield put_many
        for pool in pools.values():
            pool.shutdown()

    return contender


def libcloud(place: Place) -> Callable[[], PutOne]:
    """`upload_object` as its pages show it, with a driver for each thread, and the container looked up once."""
    from libcloud.storage.drivers.s3 import S3StorageDriver

    address = urlsplit(place.url)

    def for_thread() -> PutOne:
        driver = S3StorageDriver(
            place.key, place.secret, secure=False, host=address.hostname, port=address.port, region=place.region
        )
        container = driver.get_container(place.bucket)
        return lambda file, key: driver.upload_object(str(file), container, key)

    return for_thread


def boto3_fileobj(place: Place) -> Callable[[], PutOne]:
    """boto3's managed upload, which sends parts from threads of its own."""
    client = _boto3(place)

    def put(file: Path, key: str) -> None:
        with file.open("rb") as body:
            client.upload_fileobj(body, place.bucket, key)

    return lambda: put


def boto3_put(place: Place) -> Callable[[], PutOne]:
    """boto3's one request."""
    client = _boto3(place)

    def put(file: Path, key: str) -> None:
        with file.open("rb") as body:
            client.put_object(Bucket=place.bucket, Key=key, Body=body)

    return lambda: put


def _boto3(place: Place) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=place.url,
        aws_access_key_id=place.key,
        aws_secret_access_key=place.secret,
        region_name=place.region,
        config=Config(s3={"addressing_style": "path"}),
    )


def minio(place: Place) -> Callable[[], PutOne]:
    """minio's upload of a file."""
    from minio import Minio

    client = Minio(
        urlsplit(place.url).netloc,
        access_key=place.key,
        secret_key=place.secret,
        region=place.region,
        secure=False,
    )
    return lambda: lambda file, key: client.fput_object(place.bucket, key, str(file))


def obstore(place: Place) -> Callable[[], PutOne]:
    """obstore, which is Rust behind one call."""
    import obstore as rust
    from obstore.store import S3Store

    store = S3Store(
        place.bucket,
        endpoint=place.url,
        access_key_id=place.key,
        secret_access_key=place.secret,
        region=place.region,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    return lambda: lambda file, key: rust.put(store, key, file)


CONTENDERS: dict[str, Callable[[Place], Any]] = {
    "cador-trio": ours,
    "libcloud upload_object": threaded(libcloud),
    "boto3 upload_fileobj": threaded(boto3_fileobj),
    "boto3 put_object": threaded(boto3_put),
    "minio fput_object": threaded(minio),
    "obstore put": threaded(obstore),
}


# --- Orders ------------------------------------------------------------------------------------------------------


async def obey(name: str, place: Place) -> None:
    """Do what comes on stdin until it ends."""
    async with CONTENDERS[name](place) as put_many:
        while order := await trio.to_thread.run_sync(sys.stdin.readline):
            size, objects, at_once = map(int, order.split())
            began, used = time.perf_counter(), _cpu_seconds()
            await put_many(size, objects, at_once)
            report = {"seconds": time.perf_counter() - began, "cpu": _cpu_seconds() - used, "peak": _peak_bytes()}
            print(json.dumps(report), flush=True)  # noqa: T201 - this is how it talks


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak_bytes() -> int:
    # Not getrusage's, which begins with what the parent had.
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    trio.run(obey, sys.argv[1], Place(**json.loads(sys.argv[2])))
