"""The store that a job sees: one for folders and buckets, whatever is behind its destination.

Blocking work is done in worker threads with a limiter of their own, so that slow disks and slow stores never take the
threads of others. Names and policy come from `destinations.py`, the writing is in `folders.py` and `buckets.py`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from cador_trio.errors import StoreFailed
from cador_trio.job import BodyReader, Image, JsonObject, StorageRequest, StoredObject
from cador_trio.observe.metrics import STORED_BYTES, STORED_OBJECTS
from cador_trio.storage.buckets import Buckets, PartSizes
from cador_trio.storage.destinations import BucketDestination, Destination, Policy, PosixDestination, resolve
from cador_trio.storage.drivers import KEPT_SECONDS
from cador_trio.storage.folders import Folders
from cador_trio.storage.wire import Patience

DEFAULT_THREADS: Final = 8  # uploads at once
_PROBE: Final = b"cador-trio check"


class Store:
    """Stores images where their destination says. One a process; its methods may run at once.

    None of them has a deadline: set one around the call. Failures of a store that trying again can cure are tried again
    until that deadline, with growing pauses. `ca` is a CA bundle for object stores, None for the system's.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        threads: int = DEFAULT_THREADS,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        ca: Path | None = None,
        sizes: PartSizes = PartSizes(),  # noqa: B008
    ) -> None:
        self._policy = policy
        self._limiter = trio.CapacityLimiter(threads)
        self._folders = Folders(policy.posix_roots)
        self._buckets = Buckets(self._limiter, patience, ca, sizes)

    def resolve(self, request: StorageRequest, task_name: str) -> Destination:
        """Decide where the images of a job go; see `destinations.resolve`. Raises RequestRefused."""
        return resolve(request, task_name, self._policy)

    async def prepare(self, destination: Destination) -> None:
        """Find out before dispatch whether the destination can be written, and make its folder where it is missing.

        Of a bucket this sees endpoint, bucket, key, region and clock; whether the key may write, only writing tells.
        Raises RequestRefused where the destination leads out of what is allowed (symbolic links followed, names
        resolved), StoreFailed where nothing can be written. Cancelled while it waits: nothing was done; a folder that
        is being made is waited for.
        """
        match destination:
            case PosixDestination():
                await self._in_thread(self._folders.prepare, destination)
            case BucketDestination():
                await self._buckets.prepare(destination)
            case _:
                raise _unknown(destination)

    async def put(self, destination: Destination, image: Image) -> StoredObject:
        """Store an image: whole, durable and verified (size and SHA-256) when this returns.

        An object of the same name is replaced in one step. The image's body is read, as often as it takes, not closed.
        Raises RequestRefused where the destination leads out of what is allowed by now, ResultRefused for an output
        name that can't be stored, StoreFailed for the rest. On an error, and on cancellation (noticed within one chunk
        of 1 MiB, or a quarter of a second; a sync that has begun is waited for), nothing of the new object can be read
        and an old one is as it was. Exceptions: if only the last sync of a folder fails, the new object is in place,
        though perhaps not for long; a bucket whose last answer was not waited for may have it. Once it is known to be
        in place, a cancellation no longer hides it: this returns.
        """
        body = image.body
        reference = destination.reference(
            image.output, image.index, media_type=image.media_type, size=body.size, sha256=body.sha256
        )
        match destination:
            case PosixDestination():
                await self._in_thread(self._folders.put, destination, reference["objectId"], body)
            case BucketDestination():
                await self._buckets.put(destination, reference["key"], image)
            case _:
                raise _unknown(destination)
        STORED_BYTES.labels(destination.variant).inc(body.size)
        STORED_OBJECTS.labels(destination.variant).inc()
        return StoredObject(image.result_id, reference)

    async def probe(self, destination: Destination) -> None:
        """Write a small object, read it back and delete it. Raises as `prepare` and `put`."""
        await self.prepare(destination)
        image = Image("probe", None, "text/plain", _ProbeBody())
        reference = (await self.put(destination, image)).reference
        match destination:
            case PosixDestination():
                await self._in_thread(_compare_file, reference, image)
                await self._in_thread(self._folders.delete, destination, reference["objectId"])
            case BucketDestination():
                await self._buckets.compare(destination, reference["key"], image)
                await self._buckets.delete(destination, reference["key"])

    async def run(self) -> None:
        """Close connections that nobody uses any more, now and then; all of them when this is cancelled."""
        try:
            while True:
                await trio.sleep(KEPT_SECONDS / 2)
                self._buckets.expire()
        finally:
            self.close()

    def close(self) -> None:
        """Close all kept connections. Does not wait."""
        self._buckets.close()

    async def _in_thread(self, work: Callable[..., None], *args: object) -> None:
        # Not abandoned on cancellation: an upload that nobody waits for could still appear, after its job has ended.
        await trio.to_thread.run_sync(work, *args, abandon_on_cancel=False, limiter=self._limiter)


class _ProbeBody:
    """The `Body` of the probe."""

    size = len(_PROBE)
    sha256 = hashlib.sha256(_PROBE).hexdigest()
    in_memory = True

    def read_all(self) -> bytes:
        return _PROBE

    def open(self) -> BodyReader:
        return io.BytesIO(_PROBE)

    def close(self) -> None:
        """Nothing to give back."""


def _compare_file(reference: JsonObject, image: Image) -> None:
    try:
        found = Path(reference["path"]).read_bytes()
    except OSError as error:
        raise StoreFailed(f"what was written to {reference['path']} can't be read: {error.strerror}") from error
    if found != image.body.read_all():
        raise StoreFailed(f"what was written to {reference['path']} reads differently")


def _unknown(destination: Destination) -> TypeError:
    return TypeError(f"no store for {type(destination).__name__}")
