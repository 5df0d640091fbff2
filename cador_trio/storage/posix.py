"""Folders on a file system: confined to the allowed roots, and an object is in them whole or not at all.

Blocking calls of Linux, for worker threads; neither trio nor libcloud lives here, and no bytes are moved. Every step
goes by descriptor: what was checked is what is used, wherever someone moves a name or a symbolic link meanwhile.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from cador_trio.errors import StoreFailed
from cador_trio.storage.destinations import folder_outside, is_inside

# With O_DIRECTORY, O_NOFOLLOW refuses a symbolic link as ENOTDIR. O_PATH asks for no right to list the folders above.
_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# An object's name starts with a task id, and no task id starts with a dot: the two never meet.
_PART_NAME: Final = re.compile(r"\.cador-[0-9a-f]{32}\.part")
STALE_PART_SECONDS: Final = 3_600.0  # a writer that hasn't written for so long is dead: a store step takes 600 s


@contextmanager
def open_folder(folder: str, roots: tuple[str, ...], *, create: bool) -> Iterator[int]:
    """A descriptor of a folder, good for `dir_fd`, after following its symbolic links and checking where they lead.

    Missing folders below the root are made if `create` says so (rights by the umask), the root itself never is: it may
    be a volume that isn't mounted yet. Raises RequestRefused where the folder leads out of the allowed `roots`, and
    OSError for what the file system refuses, a link that was put there after the check among it.
    """
    real = os.path.realpath(folder)
    root = next((root for root in map(os.path.realpath, roots) if is_inside(real, root)), None)
    if root is None:
        raise folder_outside(folder, roots)
    here = _open_root(root)
    try:
        for name in filter(None, real.removeprefix(root).split("/")):
            below = _open_below(here, name, create=create)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


def _open_root(root: str) -> int:
    try:
        return os.open(root, _FOLDER)
    except FileNotFoundError as error:
        raise StoreFailed(
            f"the allowed folder {root} does not exist",
            hint="Is the volume mounted? CADOR_POSIX_ROOTS, or the profile, names it.",
        ) from error


def _open_below(here: int, name: str, *, create: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=here)
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):  # another job was faster
        os.mkdir(name, dir_fd=here)
        _sync_folder(here)
    return os.open(name, _FOLDER, dir_fd=here)


@dataclass(frozen=True, slots=True)
class Part:
    """A new file under a hidden name, in the folder where it is to become an object.

    Attributes:
        fd: open for reading and writing, at the first byte.
        mode: the rights that the umask (or the folder's default ACL) gave it.
        created_at: seconds by the file system's clock, which may be another machine's.
    """

    folder: int
    name: str
    fd: int
    mode: int
    created_at: float

    def publish(self, name: str, size: int) -> None:
        """Make the file durable, then let it appear under its name, in place of what had that name.

        A symbolic link of that name is replaced, not followed. Raises StoreFailed if the file hasn't `size` bytes, and
        OSError; what had the name is then unharmed, unless only the last step failed, the sync of the folder.
        """
        os.fchmod(self.fd, self.mode)  # libcloud has set 664, whatever the umask says
        os.fsync(self.fd)
        if (written := os.fstat(self.fd).st_size) != size:
            raise StoreFailed(f"{written} of {size} bytes were written")
        os.replace(self.name, name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        _sync_folder(self.folder)


@contextmanager
def new_part(folder: int) -> Iterator[Part]:
    """A part file that is gone at the end, unless it was published. Rights by the umask."""
    name = f".cador-{secrets.token_hex(16)}.part"
    with ExitStack() as cleanup:
        fd = os.open(name, _NEW_FILE, 0o666, dir_fd=folder)
        cleanup.callback(_remove, name, folder)
        cleanup.callback(os.close, fd)
        status = os.fstat(fd)
        yield Part(folder, name, fd, status.st_mode & 0o7777, status.st_mtime)


def identity(folder: int) -> tuple[int, int]:
    """Device and inode: the same folder, whatever its path."""
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


def sweep_parts(folder: int, now: float) -> None:
    """Remove what killed processes left in a folder: parts not written to for `STALE_PART_SECONDS` before `now`.

    `now` is seconds by the file system's own clock, such as the `created_at` of a part just made.
    """
    readable = _open_readable(folder)
    try:
        with os.scandir(readable) as entries:
            for entry in entries:
                if _PART_NAME.fullmatch(entry.name):
                    _remove_if_stale(entry, folder, now)
    finally:
        os.close(readable)


def _remove_if_stale(entry: os.DirEntry[str], folder: int, now: float) -> None:
    with suppress(FileNotFoundError):  # its writer has just finished with it
        if now - entry.stat(follow_symlinks=False).st_mtime > STALE_PART_SECONDS:
            _remove(entry.name, folder)


def remove_object(folder: int, name: str) -> None:
    """Remove an object, durably. Raises OSError."""
    os.unlink(name, dir_fd=folder)
    _sync_folder(folder)


def _remove(name: str, folder: int) -> None:
    with suppress(OSError):  # published, or it stays for the next sweep: no reason to fail what was done
        os.unlink(name, dir_fd=folder)


def _sync_folder(folder: int) -> None:
    """Make the names in a folder durable."""
    readable = _open_readable(folder)
    try:
        os.fsync(readable)
    except OSError as error:
        if error.errno != errno.EINVAL:  # how file systems (some of FUSE) say that they can't sync a folder
            raise
    finally:
        os.close(readable)


def _open_readable(folder: int) -> int:
    """The same folder, for what an O_PATH descriptor can't do: fsync and listing."""
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)


# --- Errors ------------------------------------------------------------------------------------------------------

_DISK_FULL: Final = ("the disk is full", "Make room, or store elsewhere.")
_DENIED: Final = ("permission denied", "The daemon's user must be allowed to list, enter and write the folder.")
_NO_FOLDER: Final = ("a part of the path is not a folder", "Name another folder.")
_GONE: Final = ("it does not exist (any more)", "Something else has removed or moved it.")
_PLAIN_WORDS: Final = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOSPC: _DISK_FULL,
    errno.EDQUOT: ("the disk quota is used up", "Make room, or raise the quota."),
    errno.EFBIG: ("the object is larger than a file may be", "Look at the file system's and the process' limits."),
    errno.EROFS: ("the file system is read-only", "Mount it writable, or store elsewhere."),
    errno.ENOTDIR: _NO_FOLDER,
    errno.ELOOP: _NO_FOLDER,
    errno.EISDIR: ("a folder has the object's name", "Remove it, or use another folder or task id."),
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.ENAMETOOLONG: ("the object's name is too long for the file system", "Use a shorter task id."),
}


@contextmanager
def in_plain_words(folder: str) -> Iterator[None]:
    """Turn what the file system says about a folder into StoreFailed."""
    try:
        yield
    except OSError as error:
        words, hint = _PLAIN_WORDS.get(error.errno or 0, (f"the file system says: {error.strerror or error}", ""))
        raise StoreFailed(f"can't store in folder {folder}: {words}", hint=hint) from error
