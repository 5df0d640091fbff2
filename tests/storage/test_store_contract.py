"""What every store must do, whatever is behind it."""

from __future__ import annotations

import hashlib

import pytest
import trio

from cador_trio.errors import ResultRefused, StoreFailed
from cador_trio.storage.outgoing import CHUNK_BYTES

from .bodies import FailingBody, GatedBody, MemoryBody, image
from .conftest import StoreUnderTest

LARGE = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"  # three chunks and a bit


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", LARGE[:CHUNK_BYTES], LARGE], ids=["empty", "small", "chunk", "large"]
)
async def test_stores_the_very_bytes(world: StoreUnderTest, data: bytes) -> None:
    """An image arrives byte for byte, from nothing at all to several chunks."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    stored = await world.store.put(destination, image(data))
    assert world.objects() == {"t-1_mask": data}
    assert stored.image_id == "mask"
    assert stored.reference["objectId"] == "t-1_mask"
    assert stored.reference["size"] == len(data)
    assert stored.reference["sha256"] == hashlib.sha256(data).hexdigest()
    assert world.leftovers() == []


async def test_items_of_a_list_have_names_of_their_own(world: StoreUnderTest) -> None:
    """The images of a list are told apart by their index."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    for index, data in enumerate([b"zero", b"one"]):
        stored = await world.store.put(destination, image(data, "chips", index))
        assert stored.image_id == f"chips_{index}"
    assert world.objects() == {"t-1_chips_0": b"zero", "t-1_chips_1": b"one"}


async def test_replay_overwrites(world: StoreUnderTest) -> None:
    """The last of two writes under one name is what is read."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    await world.store.put(destination, image(LARGE))
    await world.store.put(destination, image(b"second"))
    assert world.objects() == {"t-1_mask": b"second"}


async def test_unprintable_output_name_is_stored_as_it_is(world: StoreUnderTest) -> None:
    """Spaces, umlauts and signs that URLs care about are part of a name."""
    destination = world.destination("t:1")
    await world.store.prepare(destination)
    await world.store.put(destination, image(b"x", "Été 100% #1?&=+~"))
    assert world.objects() == {"t:1_Été 100% #1?&=+~": b"x"}


@pytest.mark.parametrize("output", ["../../x", "/etc/x", "..", "a/b", "nul\0", "", "x" * 300, "\ud800"])
async def test_output_name_never_leads_elsewhere(world: StoreUnderTest, output: str) -> None:
    """A name that could leave its place is refused, and nothing is written."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    with pytest.raises(ResultRefused):
        await world.store.put(destination, image(b"x", output))
    assert world.objects() == {}
    assert world.leftovers() == []


async def test_half_written_object_is_not_visible(world: StoreUnderTest) -> None:
    """While an upload runs, readers see the old object, then the new one, never something between."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    await world.store.put(destination, image(b"old"))
    body = GatedBody(LARGE)
    async with trio.open_nursery() as uploads_nursery:
        uploads_nursery.start_soon(world.store.put, destination, image(body))
        await trio.to_thread.run_sync(body.halfway.wait)
        assert world.objects() == {"t-1_mask": b"old"}
        body.gate.set()
    assert world.objects() == {"t-1_mask": LARGE}


async def test_broken_spool_leaves_the_old_object(world: StoreUnderTest) -> None:
    """A body that can't be read to its end fails the upload, and leaves neither half an object nor a damaged one."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    await world.store.put(destination, image(b"old"))
    body = FailingBody(LARGE)
    with pytest.raises(StoreFailed, match="read back from the spool: Input/output error"):
        await world.store.put(destination, image(body))
    assert world.objects() == {"t-1_mask": b"old"}
    assert world.leftovers() == []
    assert body.open_readers == 0


@pytest.mark.parametrize("lie", ["short", "long", "other"])
async def test_other_bytes_than_announced_are_no_success(world: StoreUnderTest, lie: str) -> None:
    """An upload whose bytes don't match size and SHA-256 of the body fails, and leaves nothing."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    body = MemoryBody(LARGE)
    body.data = {"short": LARGE[:-1], "long": LARGE + b"!", "other": b"!" + LARGE[1:]}[lie]
    with pytest.raises(StoreFailed, match="other bytes than it took"):
        await world.store.put(destination, image(body))
    assert world.objects() == {}
    assert world.leftovers() == []


async def test_cancelled_upload_stops_within_a_chunk(world: StoreUnderTest) -> None:
    """Cancellation in mid-upload leaves the old object, nothing new, no open reader, and a store that goes on."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    await world.store.put(destination, image(b"old"))
    body = GatedBody(LARGE)
    async with trio.open_nursery() as uploads_nursery:
        uploads_nursery.start_soon(world.store.put, destination, image(body))
        await trio.to_thread.run_sync(body.halfway.wait)
        uploads_nursery.cancel_scope.cancel("the test says so")
        body.gate.set()
    assert uploads_nursery.cancel_scope.cancelled_caught
    assert body.chunks_read == 2  # the first, and the one that was under way
    assert body.open_readers == 0
    assert world.objects() == {"t-1_mask": b"old"}
    assert world.leftovers() == []
    await world.store.put(destination, image(b"new"))
    assert world.objects() == {"t-1_mask": b"new"}


async def test_two_uploads_of_one_name_do_not_mix(world: StoreUnderTest) -> None:
    """Two uploads under one name at once end with one of them, whole."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    first, second = GatedBody(b"1" * len(LARGE)), GatedBody(b"2" * (CHUNK_BYTES + 1))
    async with trio.open_nursery() as uploads_nursery:
        uploads_nursery.start_soon(world.store.put, destination, image(first))
        uploads_nursery.start_soon(world.store.put, destination, image(second))
        for body in first, second:
            await trio.to_thread.run_sync(body.halfway.wait)
        first.gate.set()
        second.gate.set()
    assert world.objects()["t-1_mask"] in (first.data, second.data)
    assert world.leftovers() == []


async def test_body_stays_with_its_owner(world: StoreUnderTest) -> None:
    """Storing reads a body and closes its reader, but not the body: a retry needs it."""
    destination = world.destination("t-1")
    await world.store.prepare(destination)
    body = MemoryBody(LARGE)
    await world.store.put(destination, image(body))
    assert body.open_readers == 0
    assert not body.closed


async def test_probe_leaves_nothing(world: StoreUnderTest) -> None:
    """The probe of `cador-trio check` writes, reads back and deletes."""
    await world.store.probe(world.destination("t-1"))
    assert world.objects() == {}
    assert world.leftovers() == []
