"""Writing images to their destination: the only module that imports libcloud, and the one that knows its traps.

Uploads run in worker threads with a limiter of their own, so that slow disks never take the threads of others. Names
and policy come from `destinations.py`, what makes a folder safe from `posix.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import trio
from libcloud.common.types import LibcloudError
from libcloud.storage.base import Container
from libcloud.storage.drivers.local import LocalStorageDriver

from cador_trio.errors import StoreFailed
from cador_trio.job import Body, Image, StorageRequest, StoredObject
from cador_trio.storage.destinations import Destination, Policy, PosixDestination, resolve
from cador_trio.storage.posix import Part, identity, in_plain_words, new_part, open_folder, sweep_parts

CHUNK_BYTES = 1024 * 1024  # one read, one write, and how far an upload goes on after its cancellation
DEFAULT_THREADS = 4  # uploads at once; more than the disks of one machine keep up with
_SWEPT_FOLDERS = 1_000  # folders whose last sweep is remembered
_SWEEP_EVERY_SECONDS = 3_600.0  # a folder may hold a million objects, and sweeping lists them all


class Store:
    """Stores images where their destination says. One a process; its methods may run at once.

    None of them has a deadline: set one around the call.
    """

    def __init__(self, policy: Policy, *, threads: int = DEFAULT_THREADS) -> None:
        self._policy = policy
        self._limiter = trio.CapacityLimiter(threads)
        self._swept: dict[tuple[int, int], float] = {}  # (device, inode) of a folder -> when, by its own clock

    def resolve(self, request: StorageRequest, task_name: str) -> Destination:
        """Decide where the images of a job go; see `destinations.resolve`. Raises RequestRefused."""
        return resolve(request, task_name, self._policy)

    async def prepare(self, destination: Destination) -> None:
        """Find out before dispatch whether the destination can be written, and make its folder where it is missing.

        Removes old part files that a killed process left there. Raises RequestRefused where the folder leads out of
        the allowed roots (symbolic links followed), StoreFailed where nothing can be written. Cancelled while it
        waits for a thread: nothing was done; after that it finishes first.
        """
        await self._in_thread(self._prepare_folder, _posix_only(destination))

    async def put(self, destination: Destination, image: Image) -> StoredObject:
        """Store an image: whole, durable and verified (size and SHA-256) when this returns.

        An object of the same name is replaced in one step. The image's body is read, not closed. Raises RequestRefused
        where the folder leads out of the allowed roots by now, ResultRefused for an output name that can't be stored,
        StoreFailed for the rest. On an error, and on cancellation (noticed within `CHUNK_BYTES`; a sync that has begun
        is waited for), nothing of the new object can be read and an old one is as it was. One exception: if only the
        last sync, that of the folder, fails, the new object is in place, though perhaps not for long. Once it is in
        place, a cancellation no longer hides it: this returns.
        """
        body = image.body
        reference = destination.reference(
            image.output, image.index, media_type=image.media_type, size=body.size, sha256=body.sha256
        )
        await self._in_thread(self._write_object, _posix_only(destination), reference["objectId"], body)
        return StoredObject(image.result_id, reference)

    async def _in_thread(self, work: Callable[..., None], *args: object) -> None:
        # Not abandoned on cancellation: an upload that nobody waits for could still appear, after its job has ended.
        await trio.to_thread.run_sync(work, *args, abandon_on_cancel=False, limiter=self._limiter)

    def _prepare_folder(self, destination: PosixDestination) -> None:
        place = destination.folder
        with in_plain_words(place), open_folder(place, self._policy, create=True) as folder, new_part(folder) as probe:
            self._sweep_now_and_then(folder, probe.created_at)

    def _sweep_now_and_then(self, folder: int, now: float) -> None:
        key = identity(folder)
        if now - self._swept.get(key, float("-inf")) < _SWEEP_EVERY_SECONDS:
            return
        if len(self._swept) >= _SWEPT_FOLDERS:
            self._swept.clear()
        self._swept[key] = now
        sweep_parts(folder, now)

    def _write_object(self, destination: PosixDestination, object_id: str, body: Body) -> None:
        place = destination.folder
        with in_plain_words(place), open_folder(place, self._policy, create=False) as folder, new_part(folder) as part:
            _upload(part, body)
            part.publish(object_id, body.size)


def _posix_only(destination: Destination) -> PosixDestination:
    if not isinstance(destination, PosixDestination):
        raise StoreFailed(f"{destination.variant} storage is not available in this version yet")
    return destination


# --- libcloud ----------------------------------------------------------------------------------------------------


def _upload(part: Part, body: Body) -> None:
    """Fill a part file through libcloud.

    libcloud gets the path of the open descriptor, not the file's name: it opens the very same file once more, whoever
    does what to the name or the folders above it, and there is no key that could hold a `..`.
    """
    try:
        driver = local_driver("/proc/self")
        with closing(_verified_chunks(body)) as chunks:
            driver.upload_object_via_stream(chunks, Container("fd", {}, driver), str(part.fd))
    except LibcloudError as error:
        raise StoreFailed(f"libcloud refused the upload: {error}", hint="POSIX storage needs /proc.") from error


def local_driver(root: str) -> Any:
    """libcloud's driver for folders, without locks; for one thread at a time, and cheap (0.03 ms).

    Its locks leave a file for each key in the temporary folder for ever. The stand-in for them that it takes with
    `ex_use_locking=False` (3.9.1) is worse: its `__exit__` returns the exception, which counts as true, so that an
    upload that fails or is cancelled midway looks like a success. Hence a stand-in of ours.
    """
    driver: Any = LocalStorageDriver(root)  # type: ignore[no-untyped-call] # libcloud's gap
    driver._lock_cls = nullcontext  # noqa: SLF001 - there is no public way; the version is pinned, and a test watches
    return driver


def _verified_chunks(body: Body) -> Generator[bytes]:
    """The bytes of a body; raises StoreFailed at the end if they are not what the body says, trio's Cancelled at once.

    For a worker thread that trio has started.
    """
    digest = hashlib.sha256()
    size = 0
    with _reading_the_spool(), closing(body.open()) as reader:
        while True:
            trio.from_thread.check_cancelled()
            chunk = reader.read(CHUNK_BYTES)
            if not chunk:
                break
            size += len(chunk)
            digest.update(chunk)
            yield chunk
    if (size, digest.hexdigest()) != (body.size, body.sha256):
        raise StoreFailed(
            f"the spool gave back other bytes than it took: {size} bytes with SHA-256 {digest.hexdigest()}, "
            f"not {body.size} with {body.sha256}"
        )


@contextmanager
def _reading_the_spool() -> Iterator[None]:
    """Keep errors of the spool apart from those of the destination."""
    try:
        yield
    except OSError as error:
        raise StoreFailed(
            f"the result can't be read back from the spool: {error.strerror or error}",
            hint="Look at the folder of CADOR_SPOOL_DIR.",
        ) from error
