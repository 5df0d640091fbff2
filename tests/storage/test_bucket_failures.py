"""What an object store can do to an upload, at each of its stages, and what must not come of it."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing

from cador_trio.errors import CadorError, RequestRefused, StoreFailed
from cador_trio.storage import buckets
from cador_trio.storage.buckets import PartSizes
from cador_trio.storage.destinations import Destination, Policy, check_storage
from cador_trio.storage.failures import Trouble
from cador_trio.storage.outgoing import CHUNK_BYTES
from cador_trio.storage.store import Store
from cador_trio.storage.wire import Patience
from tests.descriptors import open_descriptors, ports_of
from tests.peers.object_stores.memory_s3 import Reply, SeenRequest
from tests.peers.object_stores.misbehaving import MisbehavingS3
from tests.peers.object_stores.misbehaviour import (
    STALL_SHOWS_BYTES,
    CloseAfterHead,
    CloseBeforeAnswer,
    CloseBeforeHead,
    ErrorIn200,
    Fine,
    HangBeforeAnswer,
    Operation,
    Refuse,
    ResetInBody,
    Stall,
    Step,
    WrongETag,
)
from tests.secrets import STORE_SECRET

from .bodies import MemoryBody, MemoryReader, image

CAP_SECONDS = 30.0  # for any one test: this long only if something is wrong
HASTY = Patience(connect=2.0, send=1.0, receive=1.0)  # for servers that are silent
PATIENT = Patience(connect=60.0, send=60.0, receive=60.0)
WHOLE = PartSizes()
PARTS = PartSizes(whole=CHUNK_BYTES, part=CHUNK_BYTES)
SMALL = b"\x89PNG"
LARGE = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"end"  # three parts
HUGE = bytes(2 * STALL_SHOWS_BYTES)

CURABLE: list[Step] = [
    Refuse(503, "SlowDown"),
    Refuse(503, "SlowDown", early=True),
    Refuse(500, "InternalError"),
    Refuse(502, ""),
    Refuse(504, ""),
    Refuse(429, "TooManyRequests"),
    Refuse(400, "RequestTimeout"),
    Refuse(400, "BadDigest"),
    Refuse(400, "IncompleteBody"),
    Refuse(409, "OperationAborted"),
    CloseAfterHead(),
    ResetInBody(),
    CloseBeforeAnswer(),
    CloseBeforeAnswer(done=True),
    HangBeforeAnswer(),
]
INCURABLE = [
    (Refuse(404, "NoSuchBucket"), "there is no bucket images"),
    (Refuse(403, "AccessDenied"), "may not do that in bucket images"),
    (Refuse(403, ""), "may not do that"),
    (Refuse(403, "InvalidAccessKeyId"), "does not know the access key"),
    (Refuse(404, "XAdminUserNotFound"), "does not know the access key"),
    (Refuse(403, "SignatureDoesNotMatch"), "the secret does not belong"),
    (Refuse(403, "RequestTimeTooSkewed"), "the clocks"),
    (Refuse(400, "ExpiredToken"), "session token has expired"),
    (Refuse(400, "AuthorizationHeaderMalformed"), "us-east-1 is the wrong region"),
    (Refuse(301, "PermanentRedirect", (("Location", "http://127.0.0.1:9/"),)), "wrong region"),
    (Refuse(307, "", (("Location", "http://127.0.0.1:9/"),)), "the store says: 307"),
    (Refuse(412, "PreconditionFailed"), "the store says: 412 PreconditionFailed As told."),
    (Refuse(507, "XMinioStorageFull"), "the store is full"),
]


class World:
    """A store, and a server that misbehaves."""

    def __init__(self, server: MisbehavingS3, patience: Patience, sizes: PartSizes) -> None:
        self.server = server
        self.store = Store(Policy(), patience=patience, sizes=sizes)

    def destination(self, **changes: Any) -> Destination:
        settings = {"url": self.server.url, "containerPath": "images/a", "key": "the-key", "secret": STORE_SECRET}
        request = check_storage({"S3": {**settings, **changes}})
        assert request is not None
        return self.store.resolve(request, "t-1")

    @property
    def objects(self) -> dict[str, bytes]:
        return {key: data for (_, key), data in self.server.objects.items()}


@asynccontextmanager
async def open_world(
    *script: Step, only: Operation | None = "PutObject", patience: Patience | None = None, sizes: PartSizes = WHOLE
) -> AsyncIterator[World]:
    """A world that is as it was in the end: no thread works, no connection and no descriptor is open.

    Unless told otherwise, the store is patient with a server that is not silent: it runs in this very process.
    """
    if patience is None:
        patience = HASTY if any(isinstance(step, Stall | HangBeforeAnswer) for step in script) else PATIENT
    before = set(open_descriptors())
    with trio.fail_after(CAP_SECONDS):
        async with trio.open_nursery() as server_nursery:
            server = await server_nursery.start(MisbehavingS3(script, None if only is None else [only]).serve)
            world = World(server, patience, sizes)
            with closing(world.store):
                yield world
            assert world.store._limiter.borrowed_tokens == 0
            if not any(isinstance(step, Stall) for step in script):  # that one never looks whether its client has left
                await server.wait_until(lambda: server.open_connections == 0)
            server_nursery.cancel_scope.cancel("the test is done")
    await wait_closed(before, server.url)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(buckets, "LONGEST_PAUSE_SECONDS", 0.01)


# --- In one piece ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("step", CURABLE, ids=str)
async def test_cured_by_another_try(step: Step, data: bytes) -> None:
    """A failure that may pass is tried again with the whole body, and the object is what it should be."""
    async with open_world(step) as world:
        await world.store.put(world.destination(), image(data))
        assert world.objects == {"a/t-1_mask": data}
        assert world.server.operations() == ["PutObject", "PutObject"]


async def test_connection_that_closes_at_once() -> None:
    """A server that hangs up before it has read a byte is tried again."""
    async with open_world(CloseBeforeHead(), CloseBeforeHead(), only=None) as world:
        await world.store.put(world.destination(), image(SMALL))
        assert world.objects == {"a/t-1_mask": SMALL}


async def test_kept_connection_that_went_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the store has closed meanwhile is noticed before it is used: no try is lost."""
    monkeypatch.setattr(buckets._Attempts, "wait", lambda *_: pytest.fail("a try was lost"))
    async with open_world() as world:
        await world.store.put(world.destination(), image(SMALL))
        kept = world.store._buckets._drivers._idle[0].driver.wire._connection.sock
        kept.shutdown(socket.SHUT_WR)  # the server closes its side
        await world.server.wait_until(lambda: world.server.open_connections == 0)
        await world.store.put(world.destination(), image(b"second"))
        assert world.server.operations() == ["PutObject", "PutObject"]
        assert world.objects == {"a/t-1_mask": b"second"}


async def test_stall_in_mid_upload() -> None:
    """A store that takes no more bytes is given up after the send timeout, and tried again."""
    async with open_world(Stall(1)) as world:
        await world.store.put(world.destination(), image(HUGE))
        assert world.objects == {"a/t-1_mask": HUGE}


@pytest.mark.parametrize(("step", "words"), INCURABLE, ids=str)
async def test_not_cured_by_another_try(step: Step, words: str) -> None:
    """What a retry can't cure is said in plain words after one request; nothing is stored, no redirect followed."""
    async with open_world(step) as world:
        with pytest.raises(StoreFailed, match=words):
            await world.store.put(world.destination(region="us-east-1"), image(SMALL))
        assert world.objects == {}
        assert world.server.operations() == ["PutObject"]


async def test_early_refusal_of_a_large_object() -> None:
    """A store that refuses before it has everything is heard: the rest is not sent, and the words are its own."""
    body = CountedBody(HUGE)
    async with open_world(Refuse(403, "AccessDenied", early=True)) as world:
        with pytest.raises(StoreFailed, match="may not do that"):
            await world.store.put(world.destination(), image(body))
    assert body.reads < len(HUGE) // CHUNK_BYTES


async def test_early_success_is_none() -> None:
    """A store that says yes before it has everything can't have it."""
    async with open_world(Refuse(200, "", early=True)) as world:
        await world.store.put(world.destination(), image(HUGE))
        assert world.objects == {"a/t-1_mask": HUGE}
        assert world.server.operations() == ["PutObject", "PutObject"]


async def test_gives_up_when_no_try_fits_before_the_deadline() -> None:
    """A store that stays down fails the upload with its own last words, not with a bare timeout."""
    long = Refuse(503, "SlowDown", (("Retry-After", "59"),))
    async with open_world(Refuse(503, "SlowDown"), long) as world:
        with pytest.raises(StoreFailed, match=r"slow down \(2 tries\)"):
            await world.store.put(world.destination(), image(SMALL))
        assert world.objects == {}


async def test_retry_after_is_obeyed() -> None:
    """A store that asks for more time than there is gets no second request."""
    async with open_world(Refuse(503, "SlowDown", (("Retry-After", "50"),))) as world:
        with pytest.raises(StoreFailed, match="slow down"):
            await world.store.put(world.destination(), image(SMALL))
        assert world.server.operations() == ["PutObject"]


async def test_pauses_grow_and_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses double up to a cap, and no two clients keep step."""
    monkeypatch.setattr(buckets, "FIRST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(buckets, "LONGEST_PAUSE_SECONDS", 10.0)
    attempts = buckets._Attempts()
    pauses = [attempts.pause(Trouble(StoreFailed("x"), is_curable=True)) for _ in range(12)]
    for number, pause in enumerate(pauses):
        longest = min(10.0, 0.2 * 2**number)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == 12
    assert buckets._Attempts().pause(Trouble(StoreFailed("x"), is_curable=True, wait=1e9)) == 60.0


@pytest.mark.parametrize("step", [Stall(0), Stall(1), HangBeforeAnswer()], ids=str)
async def test_cancelled_while_the_store_says_nothing(step: Step) -> None:
    """However patient the settings are, a cancelled upload ends at once; nothing of it is stored, no thread stays."""
    async with open_world(step, patience=PATIENT) as world:
        world.server.objects["images", "a/t-1_mask"] = b"old"
        async with trio.open_nursery() as uploads_nursery:
            uploads_nursery.start_soon(world.store.put, world.destination(), image(HUGE))
            await world.server.wait_reached()
            uploads_nursery.cancel_scope.cancel("the test says so")
        assert uploads_nursery.cancel_scope.cancelled_caught
        assert world.objects == {"a/t-1_mask": b"old"}


async def test_cancelled_between_tries() -> None:
    """A pause is no obstacle to a cancellation."""
    async with open_world(Refuse(503, "SlowDown", (("Retry-After", "20"),))) as world:
        async with trio.open_nursery() as uploads_nursery:
            uploads_nursery.start_soon(world.store.put, world.destination(), image(SMALL))
            await world.server.wait_reached()
            uploads_nursery.cancel_scope.cancel("the test says so")
        assert world.server.operations() == ["PutObject"]


# --- Integrity ---------------------------------------------------------------------------------------------------


async def test_etag_of_something_else_is_looked_into() -> None:
    """An ETag that is no MD5 of ours (encryption has such) is no proof of anything: the object is read back."""
    async with open_world(WrongETag()) as world:
        await world.store.put(world.destination(), image(SMALL))
        assert world.server.operations() == ["PutObject", "GetObject"]


async def test_garbled_object_is_removed_and_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that arrives with other bytes is no success: it goes, and is sent once more."""
    async with open_world() as world:
        garble(world.server, monkeypatch, times=1)
        await world.store.put(world.destination(), image(SMALL))
        assert world.server.operations() == ["PutObject", "GetObject", "DeleteObject", "PutObject"]
        assert world.objects == {"a/t-1_mask": SMALL}


async def test_always_garbled_objects_are_never_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it never arrives as it was sent, the upload fails, and no wrong object can be read."""
    async with open_world() as world:
        garble(world.server, monkeypatch, times=10_000)
        monkeypatch.setattr(buckets, "FIRST_PAUSE_SECONDS", 100.0)
        monkeypatch.setattr(buckets, "LONGEST_PAUSE_SECONDS", 100.0)
        with pytest.raises(StoreFailed, match="other bytes than were sent"):
            await world.store.put(world.destination(), image(SMALL))
        assert world.objects == {}


async def test_body_is_read_once() -> None:
    """The hashes are made of what is sent: no second look at the body, and a fresh one for another try."""
    async with open_world(Fine(), Refuse(503, "SlowDown")) as world:
        first, second = CountedBody(LARGE), CountedBody(LARGE)
        await world.store.put(world.destination(), image(first))
        assert first.opened == 1
        await world.store.put(world.destination(), image(second))
        assert second.opened == 2
        assert world.objects == {"a/t-1_mask": LARGE}


async def test_checksum_is_sent() -> None:
    """Where the store can check SHA-256, it is given the body's."""
    async with open_world() as world:
        await world.store.put(world.destination(), image(SMALL))
        [request] = world.server.requests
        assert request.headers["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(SMALL).digest()).decode()
        assert request.headers["content-length"] == str(len(SMALL))
        assert request.headers["content-type"] == "image/png"


async def test_store_that_refuses_checksums() -> None:
    """A store that answers 501 to a checksum header gets the upload without one, and the hash in the signature."""
    async with open_world(Refuse(501, "NotImplemented")) as world:
        await world.store.put(world.destination(), image(SMALL))
        first, second = world.server.requests
        assert "x-amz-checksum-sha256" in first.headers
        assert "x-amz-checksum-sha256" not in second.headers
        assert second.headers["x-amz-content-sha256"] == image(SMALL).body.sha256


async def test_store_that_implements_nothing() -> None:
    """501 without a reason is tried once more at most."""
    async with open_world(*[Refuse(501, "NotImplemented")] * 5) as world:
        with pytest.raises(StoreFailed, match="501"):
            await world.store.put(world.destination(), image(SMALL))
        assert world.server.operations() == ["PutObject", "PutObject"]


@pytest.mark.parametrize("sizes", [PartSizes(), PARTS], ids=["whole", "parts"])
async def test_empty_object_has_a_length(sizes: PartSizes) -> None:
    """Nothing is sent with its length, zero: some stores refuse chunked bodies."""
    async with open_world(sizes=sizes) as world:
        await world.store.put(world.destination(), image(b""))
        assert world.objects == {"a/t-1_mask": b""}
        [request] = world.server.requests
        assert request.headers["content-length"] == "0"
        assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("media_type", ["image/png;  a=b", "image/pñg", "image/png\r\nX-Evil: 1", "", "nonsense"])
async def test_media_types_never_break_an_upload(media_type: str) -> None:
    """The algorithm may call its bytes anything; what can't be signed or sent becomes another type."""
    async with open_world() as world:
        await world.store.put(world.destination(), image_of(media_type))
        [request] = world.server.requests
        assert "x-evil" not in request.headers
        assert "  " not in request.headers["content-type"]


# --- In parts ----------------------------------------------------------------------------------------------------

MULTIPART: list[Operation] = ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]


@pytest.mark.parametrize(
    ("operation", "step"),
    [*((operation, step) for operation in MULTIPART for step in CURABLE), ("CompleteMultipartUpload", ErrorIn200())],
    ids=str,
)
async def test_parts_are_cured_by_another_try(operation: Operation, step: Step) -> None:
    """Each request of an upload in parts is tried again by itself, and nothing is left pending."""
    async with open_world(step, only=operation, sizes=PARTS) as world:
        await world.store.put(world.destination(), image(LARGE))
        assert world.objects == {"a/t-1_mask": LARGE}
        assert world.server.uploads == {}
        assert world.server.operations().count("UploadPart") == 3 + (operation == "UploadPart")


@pytest.mark.parametrize("operation", MULTIPART)
async def test_failed_upload_in_parts_leaves_nothing(operation: Operation) -> None:
    """An upload that can't go on is aborted: no object, no parts."""
    async with open_world(Fine(), Refuse(403, "AccessDenied"), only=operation, sizes=PARTS) as world:
        if operation != "UploadPart":
            world.server.script.popleft()
        with pytest.raises(StoreFailed, match="may not do that"):
            await world.store.put(world.destination(), image(LARGE))
        assert world.objects == {}
        assert world.server.uploads == {}


@pytest.mark.parametrize("operation", MULTIPART)
async def test_cancelled_upload_in_parts_leaves_nothing(operation: Operation) -> None:
    """A cancellation at any stage aborts the upload, even if the store had begun it and never said so."""
    async with open_world(HangBeforeAnswer(), only=operation, sizes=PARTS, patience=PATIENT) as world:
        async with trio.open_nursery() as uploads_nursery:
            uploads_nursery.start_soon(world.store.put, world.destination(), image(LARGE))
            await world.server.wait_reached()
            if operation == "CreateMultipartUpload":
                world.server.perform(world.server.requests[-1])  # begun after all, behind our back
            uploads_nursery.cancel_scope.cancel("the test says so")
        assert uploads_nursery.cancel_scope.cancelled_caught
        assert world.objects == {}
        assert world.server.uploads == {}


async def test_abort_that_fails_hides_nothing() -> None:
    """What is said is why the upload failed, not why it could not be cleaned up."""
    script: list[Step] = [Fine(), Refuse(403, "AccessDenied"), Refuse(403, "InvalidAccessKeyId")]
    async with open_world(*script, only=None, sizes=PARTS) as world:
        with pytest.raises(StoreFailed, match="may not do that"):
            await world.store.put(world.destination(), image(LARGE))
        assert world.server.operations()[2] == "AbortMultipartUpload"


async def test_part_that_was_overtaken() -> None:
    """A part that another request has replaced makes the whole upload begin again, and leaves nothing pending."""
    async with open_world(Refuse(400, "InvalidPart"), only="CompleteMultipartUpload", sizes=PARTS) as world:
        await world.store.put(world.destination(), image(LARGE))
        assert world.objects == {"a/t-1_mask": LARGE}
        assert world.server.uploads == {}
        assert world.server.operations().count("CreateMultipartUpload") == 2


async def test_aborted_upload_that_is_still_there() -> None:
    """An abort that a part on its way has outlived is done again."""
    async with open_world(Refuse(200, ""), only="AbortMultipartUpload", sizes=PARTS) as world:
        body = MemoryBody(LARGE)
        body.data = b"!" + LARGE[1:]
        with pytest.raises(StoreFailed, match="other bytes than it took"):
            await world.store.put(world.destination(), image(body))
        assert world.server.operations().count("AbortMultipartUpload") == 2
        assert world.server.uploads == {}


async def test_uploads_of_others_are_left_alone() -> None:
    """Cleaning up after a lost answer takes our object's uploads, and no other's."""
    async with open_world(CloseBeforeAnswer(done=True), only="CreateMultipartUpload", sizes=PARTS) as world:
        other = SeenRequest("POST", "/images/a/t-1_mask2?uploads", {})
        world.server.perform(other)
        await world.store.put(world.destination(), image(LARGE))
        assert [upload.key for upload in world.server.uploads.values()] == ["a/t-1_mask2"]


async def test_part_of_other_bytes_is_no_success() -> None:
    """A body that reads differently from what it says is noticed at the last part: nothing is completed."""
    async with open_world(sizes=PARTS) as world:
        body = MemoryBody(LARGE)
        body.data = b"!" + LARGE[1:]
        with pytest.raises(StoreFailed, match="other bytes than it took"):
            await world.store.put(world.destination(), image(body))
        assert world.objects == {}
        assert world.server.uploads == {}
        assert body.open_readers == 0


async def test_parts_with_other_etags_are_read_back() -> None:
    """Parts whose ETags prove nothing are proved by the object as a whole."""
    async with open_world(*[WrongETag()] * 3, only="UploadPart", sizes=PARTS) as world:
        await world.store.put(world.destination(), image(LARGE))
        assert "GetObject" in world.server.operations()
        assert world.objects == {"a/t-1_mask": LARGE}


@pytest.mark.parametrize(("size", "part"), [(2 * 1024**3, 256 * 1024**2), (5 * 1024**4, 549_755_814)])
def test_number_of_parts_is_possible(size: int, part: int) -> None:
    """S3 takes ten thousand parts."""
    assert PartSizes().of(size) == part
    assert -(-size // part) <= 10_000


# --- Before dispatch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["AccessDenied", "NotImplemented"])
async def test_prepare_lets_pass_what_only_writing_tells(code: str) -> None:
    """A key that may write but not list is no reason to refuse a job, and the bucket is asked only once."""
    async with open_world(Refuse(403, code), only=None) as world:
        await world.store.prepare(world.destination())
        await world.store.prepare(world.destination())
        assert len(world.server.requests) == 1
        await world.store.put(world.destination(), image(SMALL))


@pytest.mark.parametrize(("step", "words"), [case for case in INCURABLE if case[0].code not in {"AccessDenied", ""}])
async def test_prepare_finds_what_is_wrong(step: Refuse, words: str) -> None:
    """Bucket, key, region and clock are wrong before the algorithm works, not after."""
    async with open_world(step, only=None) as world:
        with pytest.raises(StoreFailed, match=words):
            await world.store.prepare(world.destination(region="us-east-1"))


async def test_unsaid_region_is_learnt() -> None:
    """A request that names no region takes the one that the store names, for this bucket from then on."""
    wrong = Refuse(400, "AuthorizationHeaderMalformed", (("x-amz-bucket-region", "garage"),))
    async with open_world(wrong) as world:
        await world.store.put(world.destination(), image(SMALL))
        await world.store.put(world.destination(), image(SMALL))
        regions = [request.headers["authorization"].split("/")[2] for request in world.server.requests]
        assert regions == ["us-east-1", "garage", "garage"]


# --- Nobody there ------------------------------------------------------------------------------------------------


async def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection would be tried again, and is said when there is no time for that."""
    monkeypatch.setattr(buckets, "FIRST_PAUSE_SECONDS", 100.0)
    monkeypatch.setattr(buckets, "LONGEST_PAUSE_SECONDS", 100.0)
    with closing(socket.socket()) as keeper, closing(Store(Policy(), patience=HASTY)) as store:
        keeper.bind(("127.0.0.1", 0))
        destination = destination_at(store, f"http://127.0.0.1:{keeper.getsockname()[1]}")
        with trio.fail_after(CAP_SECONDS), pytest.raises(StoreFailed, match="nobody listens"):
            await store.put(destination, image(SMALL))


async def test_no_such_host() -> None:
    """A name that no host has is a mistake, not an outage."""
    trio.socket.set_custom_hostname_resolver(Names({}))
    with closing(Store(Policy(), patience=HASTY)) as store, pytest.raises(StoreFailed, match="no host has this name"):
        await store.prepare(destination_at(store, "http://nobody.example"))


async def test_name_is_resolved_once_and_pinned() -> None:
    """The address that was checked is the one that is connected to, and the store is told the name."""
    async with open_world() as world:
        names = Names({"store.example": "127.0.0.1"})
        trio.socket.set_custom_hostname_resolver(names)
        destination = world.destination(url=f"http://store.example:{world.server.port}")
        await world.store.put(destination, image(SMALL))
        assert names.asked == ["store.example"]
        assert world.server.requests[0].headers["host"] == f"store.example:{world.server.port}"


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "0.0.0.0", "100.100.100.200", "224.0.0.1"]
)
async def test_names_do_not_lead_to_metadata(address: str) -> None:
    """A harmless name that resolves to a link-local or metadata address is refused when it is used."""
    trio.socket.set_custom_hostname_resolver(Names({"evil.example": address}))
    with closing(Store(Policy(), patience=HASTY)) as store:
        destination = destination_at(store, "http://evil.example")
        for step in (store.prepare(destination), store.put(destination, image(SMALL))):
            with pytest.raises(RequestRefused, match="link-local or metadata"):
                await step


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:a9fe:a9fe]", "2852039166", "0xa9fea9fe", "[fe80::1]"])
async def test_addresses_in_disguise_do_not_lead_to_metadata(host: str) -> None:
    """The many spellings of one address are all that address."""
    with (
        closing(Store(Policy(), patience=HASTY)) as store,
        pytest.raises(RequestRefused, match="link-local or metadata"),
    ):
        await store.prepare(destination_at(store, f"http://{host}"))


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither HTTP_PROXY nor ~/.netrc comes between us and the address that was checked."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("default login evil password evil\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    async with open_world() as world:
        await world.store.put(world.destination(), image(SMALL))
        assert world.server.requests[0].headers["authorization"].startswith("AWS4-HMAC-SHA256 ")


# --- Secrets, resources ------------------------------------------------------------------------------------------


async def test_errors_hold_no_credentials() -> None:
    """What a store says is quoted without key, secret and token, whatever it repeats of the request."""
    async with open_world(Refuse(400, "Bad the-key the-secret the-token-of-ours")) as world:
        with pytest.raises(CadorError) as caught:
            await world.store.put(world.destination(token="the-token-of-ours"), image(SMALL))
        said = caught.value.message + caught.value.hint + repr(world.destination(token="the-token-of-ours"))
        assert "the-key" not in said
        assert STORE_SECRET not in said
        assert "the-token" not in said


async def test_connections_are_kept_and_bounded() -> None:
    """Uploads one after the other share a connection; other credentials get their own; idle ones are few."""
    async with open_world() as world:
        for _ in range(3):
            await world.store.put(world.destination(), image(SMALL))
        assert world.server.open_connections == 1
        for number in range(20):
            await world.store.put(world.destination(key=f"key-{number}"), image(SMALL))
        assert len(world.store._buckets._drivers._idle) == 16
        await world.server.wait_until(lambda: world.server.open_connections == 16)


async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has used for a while is closed, and its credentials forgotten."""
    async with open_world() as world:
        await world.store.put(world.destination(), image(SMALL))
        monkeypatch.setattr("cador_trio.storage.drivers.KEPT_SECONDS", -1.0)
        world.store._buckets.expire()
        assert world.store._buckets._drivers._idle == []
        await world.server.wait_until(lambda: world.server.open_connections == 0)


async def test_drivers_are_never_shared() -> None:
    """Eight uploads at once use a driver each."""
    script: list[Step] = [Fine(), *[HangBeforeAnswer()] * 8]
    async with open_world(*script, patience=PATIENT) as world, trio.open_nursery() as uploads_nursery:
        await world.store.put(world.destination(), image(SMALL))  # one is there to be shared
        for number in range(8):
            uploads_nursery.start_soon(world.store.put, world.destination(), image(SMALL, "m", number))
        await world.server.wait_reached(8)
        assert world.server.open_connections == 8
        uploads_nursery.cancel_scope.cancel("the test has seen enough")


# --- Helpers -----------------------------------------------------------------------------------------------------


class CountedBody(MemoryBody):
    """Counts how often it was opened, and read from."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.opened = self.reads = 0

    def open(self) -> MemoryReader:
        self.opened += 1
        self.open_readers += 1
        return CountingReader(self)


class CountingReader(MemoryReader):
    """Reads a CountedBody."""

    def before_read(self) -> None:
        assert isinstance(self.body, CountedBody)
        self.body.reads += 1


class Names(trio.abc.HostnameResolver):
    """A name service of the test's."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, *_: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        if name not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return socket.getaddrinfo(self.addresses[name], port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def wait_closed(before: set[tuple[int, str]], url: str) -> None:
    """Wait until nothing of ours is open that was not before."""
    left = {(-1, "not looked yet")}
    with trio.move_on_after(CAP_SECONDS):  # noqa: ASYNC912 - nothing may be left
        while left := {one for one in set(open_descriptors()) - before if is_ours(*one, url)}:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
    assert left == set()


def is_ours(descriptor: int, kind: str, url: str) -> bool:
    """Whether this is a file, or a connection with the server at this URL."""
    return kind.startswith("/") or urlsplit(url).port in ports_of(descriptor, kind)


def destination_at(store: Store, url: str) -> Destination:
    request = check_storage({"S3": {"url": url, "containerPath": "images/a", "key": "k", "secret": "s"}})
    assert request is not None
    return store.resolve(request, "t-1")


def image_of(media_type: str) -> Any:
    return replace(image(SMALL), media_type=media_type)


def garble(server: MisbehavingS3, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Have the server store other bytes than it gets, so many times."""
    honest = server.perform
    left = [times]

    def perform(request: SeenRequest) -> Reply:
        if request.operation == "PutObject" and left[0]:
            left[0] -= 1
            request.body[0] ^= 1
        return honest(request)

    monkeypatch.setattr(server, "perform", perform)
