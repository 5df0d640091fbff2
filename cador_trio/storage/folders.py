"""Writing objects into folders, through libcloud's driver for them. What makes a folder safe is in `posix.py`.

Blocking calls, for worker threads that trio has started.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, nullcontext
from typing import Any, Final

from libcloud.common.types import LibcloudError
from libcloud.storage.base import Container
from libcloud.storage.drivers.local import LocalStorageDriver

from cador_trio.errors import StoreFailed
from cador_trio.job import Body
from cador_trio.storage.destinations import PosixDestination
from cador_trio.storage.outgoing import CHUNK_BYTES, Outgoing
from cador_trio.storage.posix import Part, identity, in_plain_words, new_part, open_folder, remove_object, sweep_parts

_SWEPT_FOLDERS: Final = 1_000  # folders whose last sweep is remembered
_SWEEP_EVERY_SECONDS: Final = 3_600.0  # a folder may hold a million objects, and sweeping lists them all


class Folders:
    """The folders that jobs may write to."""

    def __init__(self, roots: tuple[str, ...]) -> None:
        self._roots = roots
        self._swept: dict[tuple[int, int], float] = {}  # (device, inode) of a folder -> when, by its own clock

    def prepare(self, destination: PosixDestination) -> None:
        """Make the folder where it is missing, see that it can be written, and sweep it now and then."""
        place, roots = destination.folder, self._roots_of(destination)
        with in_plain_words(place), open_folder(place, roots, create=True) as folder, new_part(folder) as probe:
            self._sweep_now_and_then(folder, probe.created_at)

    def put(self, destination: PosixDestination, object_id: str, body: Body) -> None:
        """Write an object: whole and durable, or not at all."""
        place, roots = destination.folder, self._roots_of(destination)
        with in_plain_words(place), open_folder(place, roots, create=False) as folder, new_part(folder) as part:
            _upload(part, body)
            part.publish(object_id, body.size)

    def delete(self, destination: PosixDestination, object_id: str) -> None:
        """Remove an object."""
        place, roots = destination.folder, self._roots_of(destination)
        with in_plain_words(place), open_folder(place, roots, create=False) as folder:
            remove_object(folder, object_id)

    def _roots_of(self, destination: PosixDestination) -> tuple[str, ...]:
        return self._roots if destination.root is None else (destination.root,)

    def _sweep_now_and_then(self, folder: int, now: float) -> None:
        key = identity(folder)
        if now - self._swept.get(key, float("-inf")) < _SWEEP_EVERY_SECONDS:
            return
        if len(self._swept) >= _SWEPT_FOLDERS:
            self._swept.clear()
        self._swept[key] = now
        sweep_parts(folder, now)


def _upload(part: Part, body: Body) -> None:
    """Fill a part file through libcloud.

    libcloud gets the path of the open descriptor, not the file's name: it opens the very same file once more, whoever
    does what to the name or the folders above it, and there is no key that could hold a `..`.
    """
    try:
        driver = local_driver("/proc/self")
        with closing(_chunks(body)) as chunks:
            driver.upload_object_via_stream(chunks, Container("fd", {}, driver), str(part.fd))
    except LibcloudError as error:
        raise StoreFailed(f"libcloud refused the upload: {error}", hint="POSIX storage needs /proc.") from error


def _chunks(body: Body) -> Generator[bytes]:
    with Outgoing(body, md5=False) as outgoing:
        while chunk := outgoing.read(CHUNK_BYTES):
            yield chunk


def local_driver(root: str) -> Any:
    """libcloud's driver for folders, without locks; for one thread at a time, and cheap (0.03 ms).

    Its locks leave a file for each key in the temporary folder for ever. The stand-in for them that it takes with
    `ex_use_locking=False` (3.9.1) is worse: its `__exit__` returns the exception, which counts as true, so that an
    upload that fails or is cancelled midway looks like a success. Hence a stand-in of ours.
    """
    driver: Any = LocalStorageDriver(root)
    driver._lock_cls = nullcontext  # noqa: SLF001 - there is no public way; the version is pinned, and a test watches
    return driver
