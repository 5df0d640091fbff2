"""What a file system can do to an object, and what must not come of it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from libcloud.storage.base import Container

from cador_trio.errors import RequestRefused, StoreFailed
from cador_trio.job import StorageRequest
from cador_trio.storage.destinations import Policy, PosixDestination
from cador_trio.storage.folders import local_driver
from cador_trio.storage.outgoing import CHUNK_BYTES
from cador_trio.storage.posix import STALE_PART_SECONDS, in_plain_words
from cador_trio.storage.store import Store
from tests.descriptors import open_descriptors

from .bodies import GatedBody, image
from .conftest import PosixUnderTest

LARGE = b"x" * (2 * CHUNK_BYTES)
IS_ROOT = os.geteuid() == 0


# --- libcloud's traps --------------------------------------------------------------------------------------------


def test_driver_lets_errors_of_an_upload_pass(tmp_path: Path) -> None:
    """An upload that fails midway raises; the driver's own stand-in for its locks would call it a success."""

    def breaks() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("midway")

    driver = local_driver(str(tmp_path))
    with pytest.raises(RuntimeError, match="midway"):
        driver.upload_object_via_stream(breaks(), Container(".", {}, driver), "x")


async def test_no_lock_files_stay(posix: PosixUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storing leaves nothing in the temporary folder."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    await posix.store.prepare(posix.destination())
    await posix.store.put(posix.destination(), image(b"x"))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
async def test_rights_follow_the_umask(posix: PosixUnderTest, umask: int) -> None:
    """Folders and objects have the rights that the umask leaves, not libcloud's 664."""
    before = os.umask(umask)
    try:
        await posix.store.prepare(posix.destination())
        await posix.store.put(posix.destination(), image(b"x"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(posix.folder.stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((posix.folder / "t-1_mask").stat().st_mode) == 0o666 & ~umask


async def test_durable_before_visible(posix: PosixUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before it gets its name, and the folder after."""
    await posix.store.prepare(posix.destination())
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        real_fsync(fd)

    def replace(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        steps.append("name it")
        real_replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    await posix.store.put(posix.destination(), image(b"x"))
    assert steps == ["sync file", "name it", "sync folder"]


async def test_new_folders_are_durable(posix: PosixUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder that is made is synced in its parent: an object is worth nothing in a folder that gets lost."""
    synced: list[int] = []
    real_fsync = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    await posix.store.prepare(posix.destination())
    assert synced == [posix.root.stat().st_ino, (posix.root / "a").stat().st_ino]


async def test_file_system_that_cannot_sync_folders(posix: PosixUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL for the sync of a folder fails nothing; any other error does."""
    await posix.store.prepare(posix.destination())
    real_fsync = os.fsync
    answer = errno.EINVAL

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(answer, os.strerror(answer))
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    await posix.store.put(posix.destination(), image(b"x"))
    answer = errno.EIO
    with pytest.raises(StoreFailed, match="Input/output error"):
        await posix.store.put(posix.destination(), image(b"x"))


async def test_short_file_is_no_success(posix: PosixUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is shorter than its body, though nothing complained, does not become an object."""
    await posix.store.prepare(posix.destination())
    real_fsync = os.fsync

    def truncating_fsync(fd: int) -> None:
        os.ftruncate(fd, 1)
        real_fsync(fd)

    monkeypatch.setattr(os, "fsync", truncating_fsync)
    with pytest.raises(StoreFailed, match="1 of 6 bytes were written"):
        await posix.store.put(posix.destination(), image(b"abcdef"))
    assert posix.objects() == {}
    assert posix.leftovers() == []


# --- Confinement -------------------------------------------------------------------------------------------------


async def test_link_out_of_the_roots_is_refused(posix: PosixUnderTest, tmp_path: Path) -> None:
    """A folder that leads outside by a symbolic link is refused before dispatch and at the upload."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (posix.root / "a").symlink_to(outside)
    with pytest.raises(RequestRefused, match="outside of the allowed folders"):
        await posix.store.prepare(posix.destination())
    (outside / "b").mkdir()
    with pytest.raises(RequestRefused, match="outside of the allowed folders"):
        await posix.store.put(posix.destination(), image(b"x"))
    assert list(outside.rglob("*")) == [outside / "b"]


async def test_dangling_link_creates_nothing_outside(posix: PosixUnderTest, tmp_path: Path) -> None:
    """A link to a folder outside that doesn't exist yet is no way to have it made."""
    (posix.root / "a").symlink_to(tmp_path / "not-there")
    with pytest.raises(RequestRefused, match="outside of the allowed folders"):
        await posix.store.prepare(posix.destination())
    assert not (tmp_path / "not-there").exists()


async def test_link_within_the_roots_is_followed(posix: PosixUnderTest) -> None:
    """A link that stays inside an allowed root is fine; the reference keeps the path as asked for."""
    (posix.root / "real").mkdir()
    (posix.root / "a").symlink_to("real")
    await posix.store.prepare(posix.destination())
    stored = await posix.store.put(posix.destination(), image(b"x"))
    assert (posix.root / "real" / "b" / "t-1_mask").read_bytes() == b"x"
    assert stored.reference["path"] == f"{posix.root}/a/b/t-1_mask"


async def test_profile_is_a_root_of_its_own(tmp_path: Path) -> None:
    """A profile's folder needs no other root, and nothing leads out of it."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    store = Store(Policy())
    below = PosixDestination(f"{inside}/a", "t-1", profile="disk", root=str(inside))
    await store.prepare(below)
    await store.put(below, image(b"x"))
    assert (inside / "a" / "t-1_mask").read_bytes() == b"x"
    with pytest.raises(RequestRefused, match="outside of the allowed folders"):
        await store.prepare(PosixDestination(f"{inside}/link", "t-1", profile="disk", root=str(inside)))


async def test_root_may_be_a_link_itself(tmp_path: Path) -> None:
    """The operator may point a root elsewhere."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "root").symlink_to("volume")
    destination = PosixDestination(f"{tmp_path}/root/a/", "t-1")
    store = Store(Policy((f"{tmp_path}/root",)))
    await store.prepare(destination)
    await store.put(destination, image(b"x"))
    assert (tmp_path / "volume" / "a" / "t-1_mask").read_bytes() == b"x"


async def test_sibling_with_the_same_beginning_is_outside(posix: PosixUnderTest) -> None:
    """`/root-2` does not lie in `/root`."""
    sibling = posix.root.with_name("root-2")
    destination = PosixDestination(str(sibling), "t-1")
    with pytest.raises(RequestRefused, match="outside of the allowed folders"):
        await posix.store.prepare(destination)
    assert not sibling.exists()


async def test_link_put_there_after_the_check(
    posix: PosixUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapping a folder for a link between check and use gains nothing."""
    await posix.store.prepare(posix.destination())
    outside = tmp_path / "outside"
    outside.mkdir()
    real_path = os.path.realpath

    def swap_after_check(path: str) -> str:
        found = real_path(path)
        if path == str(posix.folder):
            posix.folder.rename(posix.root / "moved")
            posix.folder.symlink_to(outside)
        return found

    with monkeypatch.context() as patch:  # no longer than needed: pytest itself calls realpath
        patch.setattr(os.path, "realpath", swap_after_check)
        with pytest.raises(StoreFailed, match="not a folder"):
            await posix.store.put(posix.destination(), image(b"x"))
    assert list(outside.iterdir()) == []


async def test_link_put_there_during_the_upload(posix: PosixUnderTest, tmp_path: Path) -> None:
    """An upload stays in the folder that was checked, even if that is moved and a link takes its name."""
    await posix.store.prepare(posix.destination())
    outside = tmp_path / "outside"
    outside.mkdir()
    body = GatedBody(LARGE)
    async with trio.open_nursery() as uploads_nursery:
        uploads_nursery.start_soon(posix.store.put, posix.destination(), image(body))
        await trio.to_thread.run_sync(body.halfway.wait)
        posix.folder.rename(posix.root / "moved")
        posix.folder.symlink_to(outside)
        body.gate.set()
    assert list(outside.iterdir()) == []
    assert [path.name for path in (posix.root / "moved").iterdir()] == ["t-1_mask"]


async def test_part_swapped_for_a_link_during_the_upload(posix: PosixUnderTest, tmp_path: Path) -> None:
    """Whoever replaces the part file by a link doesn't get the link's target written."""
    await posix.store.prepare(posix.destination())
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    target.chmod(0o600)
    body = GatedBody(LARGE)
    async with trio.open_nursery() as uploads_nursery:
        uploads_nursery.start_soon(posix.store.put, posix.destination(), image(body))
        await trio.to_thread.run_sync(body.halfway.wait)
        [part] = posix.folder.iterdir()
        part.unlink()
        part.symlink_to(target)
        body.gate.set()
    assert target.read_bytes() == b"precious"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


async def test_link_with_the_objects_name_is_replaced(posix: PosixUnderTest, tmp_path: Path) -> None:
    """An object takes the place of a link, and the link's target is left alone."""
    await posix.store.prepare(posix.destination())
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (posix.folder / "t-1_mask").symlink_to(target)
    await posix.store.put(posix.destination(), image(b"x"))
    assert target.read_bytes() == b"precious"
    assert not (posix.folder / "t-1_mask").is_symlink()
    assert posix.objects() == {"t-1_mask": b"x"}


def test_store_resolves_by_its_policy(posix: PosixUnderTest) -> None:
    """A store gives destinations in its own roots only."""
    inside = StorageRequest("POSIX", {"folder": str(posix.folder)})
    assert posix.store.resolve(inside, "t-1") == posix.destination()
    with pytest.raises(RequestRefused, match="outside of the allowed folders"):
        posix.store.resolve(StorageRequest("POSIX", {"folder": "/etc"}), "t-1")


# --- Folders that can't be written -------------------------------------------------------------------------------


async def test_missing_root_is_not_made(tmp_path: Path) -> None:
    """A root that isn't there is a volume that isn't mounted: writing beside it would hide the mistake."""
    store = Store(Policy((f"{tmp_path}/root",)))
    with pytest.raises(StoreFailed, match="does not exist"):
        await store.prepare(PosixDestination(f"{tmp_path}/root/a", "t-1"))
    assert not (tmp_path / "root").exists()


async def test_folder_vanishes(posix: PosixUnderTest) -> None:
    """A folder that was removed since `prepare` is not made again behind its remover's back."""
    await posix.store.prepare(posix.destination())
    posix.folder.rmdir()
    with pytest.raises(StoreFailed, match="does not exist"):
        await posix.store.put(posix.destination(), image(b"x"))


async def test_folder_vanishes_during_the_upload(posix: PosixUnderTest) -> None:
    """A folder that is removed with the upload in it fails that upload."""
    await posix.store.prepare(posix.destination())
    body = GatedBody(LARGE)
    with pytest.RaisesGroup(pytest.RaisesExc(StoreFailed, match="does not exist")):
        async with trio.open_nursery() as uploads_nursery:
            uploads_nursery.start_soon(posix.store.put, posix.destination(), image(body))
            await trio.to_thread.run_sync(body.halfway.wait)
            [part] = posix.folder.iterdir()
            part.unlink()
            posix.folder.rmdir()
            body.gate.set()


async def test_file_where_the_folder_should_be(posix: PosixUnderTest) -> None:
    """A file on the way is told from a missing folder."""
    (posix.root / "a").write_bytes(b"a file")
    with pytest.raises(StoreFailed, match="not a folder"):
        await posix.store.prepare(posix.destination())


async def test_folder_where_the_object_should_be(posix: PosixUnderTest) -> None:
    """A folder with the object's name stays, and the error says that it is in the way."""
    (posix.folder / "t-1_mask").mkdir(parents=True)
    with pytest.raises(StoreFailed, match="a folder has the object's name"):
        await posix.store.put(posix.destination(), image(b"x"))
    assert posix.leftovers() == []


async def test_folder_that_may_not_be_written(posix: PosixUnderTest) -> None:
    """Missing rights are found before dispatch, and said."""
    posix.folder.mkdir(parents=True)
    with without_rights(posix.folder), pytest.raises(StoreFailed, match="permission denied"):
        await posix.store.prepare(posix.destination())


async def test_read_only_file_system(tmp_path: Path) -> None:
    """A volume that is mounted read-only is found before dispatch, and said."""
    with mounted(tmp_path, "ro,size=1m"):
        store = Store(Policy((str(tmp_path),)))
        with pytest.raises(StoreFailed, match="read-only"):
            await store.prepare(PosixDestination(str(tmp_path), "t-1"))


async def test_full_disk(tmp_path: Path) -> None:
    """A disk that fills up in mid-upload fails it in plain words, and the old object and the room are still there."""
    with mounted(tmp_path, f"size={CHUNK_BYTES + 65_536}"):
        world = PosixUnderTest(tmp_path)
        await world.store.prepare(world.destination())
        await world.store.put(world.destination(), image(b"old"))
        with pytest.raises(StoreFailed, match="the disk is full"):
            await world.store.put(world.destination(), image(LARGE))
        assert world.objects() == {"t-1_mask": b"old"}
        assert world.leftovers() == []
        await world.store.put(world.destination(), image(LARGE[:CHUNK_BYTES]))


async def test_last_bytes_do_not_fit(posix: PosixUnderTest) -> None:
    """A write that fails after the last chunk was read is no success: the whole body was hashed, not stored."""
    await posix.store.prepare(posix.destination())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_BYTES, before[1]))
    try:
        with pytest.raises(StoreFailed, match="larger than a file may be"):
            await posix.store.put(posix.destination(), image(LARGE[: CHUNK_BYTES + 1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert posix.objects() == {}
    assert posix.leftovers() == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EDQUOT, "quota"),
        (errno.ESTALE, "does not exist"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_errors_are_in_plain_words(code: int, words: str) -> None:
    """What the system says becomes a sentence with the folder in it, and keeps its cause."""
    with pytest.raises(StoreFailed, match=words) as caught, in_plain_words("/data/out"):
        raise OSError(code, os.strerror(code))
    assert "/data/out" in caught.value.message
    assert isinstance(caught.value.__cause__, OSError)


async def test_nothing_of_a_failure_stays_open(posix: PosixUnderTest) -> None:
    """Files and folders of the store, after an upload that failed and one that didn't."""
    await posix.store.prepare(posix.destination())
    (posix.folder / "t-1_taken").mkdir()
    before = open_below(posix.folder)
    await posix.store.put(posix.destination(), image(b"x"))
    with pytest.raises(StoreFailed):
        await posix.store.put(posix.destination(), image(b"x", "taken"))
    assert open_below(posix.folder) == before


# --- What a killed process leaves --------------------------------------------------------------------------------


async def test_parts_of_killed_processes_are_swept(posix: PosixUnderTest) -> None:
    """Old parts go with the next job in their folder; fresh ones may be alive, and other files are none of ours."""
    posix.folder.mkdir(parents=True)
    dead = posix.folder / f".cador-{'0' * 32}.part"
    alive = posix.folder / f".cador-{'1' * 32}.part"
    foreign = posix.folder / ".cador-notes.part"
    for path, age in (dead, STALE_PART_SECONDS + 60), (alive, STALE_PART_SECONDS - 60), (foreign, 10 * 86_400):
        path.write_bytes(b"half")
        make_old(path, age)
    await posix.store.prepare(posix.destination())
    assert sorted(path.name for path in posix.folder.iterdir()) == sorted([alive.name, foreign.name])


async def test_folder_is_swept_at_most_once_an_hour(posix: PosixUnderTest) -> None:
    """A folder with a million objects isn't listed for every job; another process starts afresh."""
    await posix.store.prepare(posix.destination())
    dead = posix.folder / f".cador-{'0' * 32}.part"
    dead.write_bytes(b"half")
    make_old(dead, STALE_PART_SECONDS + 60)
    await posix.store.prepare(posix.destination())
    assert dead.exists()
    await Store(posix.policy).prepare(posix.destination())
    assert not dead.exists()


# --- Threads -----------------------------------------------------------------------------------------------------


async def test_uploads_wait_for_each_other(posix: PosixUnderTest) -> None:
    """No more uploads run than threads are given, and one that waits can be cancelled."""
    store = Store(posix.policy, threads=1)
    await store.prepare(posix.destination())
    first, second = GatedBody(LARGE), GatedBody(LARGE)
    async with trio.open_nursery() as uploads_nursery:
        uploads_nursery.start_soon(store.put, posix.destination(), image(first))
        await trio.to_thread.run_sync(first.halfway.wait)
        async with trio.open_nursery() as waiting_nursery:
            waiting_nursery.start_soon(store.put, posix.destination(), image(second, "other"))
            await trio.testing.wait_all_tasks_blocked()
            assert store._limiter.statistics().tasks_waiting == 1
            waiting_nursery.cancel_scope.cancel()
        first.gate.set()
    assert posix.objects() == {"t-1_mask": LARGE}


# --- Helpers -----------------------------------------------------------------------------------------------------


def open_below(folder: Path) -> list[str]:
    """Files and folders in there, and itself, that this process has open."""
    return sorted(kind for _, kind in open_descriptors() if kind.startswith(str(folder)))


def make_old(path: Path, seconds: float) -> None:
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """No right to write into a folder; root, who has every right, becomes nobody."""
    folder.chmod(0o500)
    if IS_ROOT:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if IS_ROOT:
            os.seteuid(0)
        folder.chmod(0o700)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system of its own at a folder, where this machine lets us make one."""
    command = ["mount", "-t", "tmpfs", "-o", options, "cador-test", str(folder)]
    possible = IS_ROOT and shutil.which("mount")
    if not possible or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root, with the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
