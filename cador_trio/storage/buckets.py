"""Storing in buckets of S3 and GCS: who is connected to, what is tried again and when, and what is cleaned up.

Each try is a blocking call in a worker thread (`uploads.py`); between tries this waits in trio, where a cancellation is
noticed at once. A try takes its thread, its connection and a fresh look at the body and the credentials; nothing of a
job is kept but the connection, for the next upload with the same credentials, and that not for long.
"""

from __future__ import annotations

import functools
import http.client
import math
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog
import trio

from cador_trio.errors import CadorError, RequestRefused, StoreFailed
from cador_trio.job import Image
from cador_trio.observe.metrics import STORE_RETRIES
from cador_trio.storage import uploads
from cador_trio.storage.credentials import Credentials
from cador_trio.storage.destinations import BucketDestination
from cador_trio.storage.drivers import Drivers, Identity
from cador_trio.storage.endpoints import Endpoint, is_forbidden
from cador_trio.storage.failures import Garbled, Place, S3Refused, Trouble, explain, wants_other_region
from cador_trio.storage.outgoing import Outgoing
from cador_trio.storage.s3 import DEFAULT_REGION, S3Driver
from cador_trio.storage.uploads import PartSent, Target
from cador_trio.storage.wire import Address, Patience

T = TypeVar("T")
Work = Callable[[S3Driver], T]

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 10.0
LONGEST_RETRY_AFTER_SECONDS: Final = 60.0
ABORT_SECONDS: Final = 10.0  # what dropping the parts of a failed upload may take, shutdown included
MAX_PARTS: Final = 10_000  # of S3
_LEARNT_REGIONS: Final = 1_000
_AUTHENTICATION: Final = frozenset({400, 401, 403, 404})  # versitygw says 404 for an unknown key


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Bytes. Up to `whole` an object goes in one request (S3 takes 5 GiB), above it in parts of `part` (5 MiB or more).

    In one request nothing can be orphaned; in parts a broken connection costs one part.
    """

    whole: int = 1024**3
    part: int = 256 * 1024**2

    def of(self, size: int) -> int:
        """The size of the parts of such an object, the last one excepted."""
        return max(self.part, math.ceil(size / MAX_PARTS))


class Buckets:
    """Buckets of object stores. `ca` is a CA bundle for all that name none of their own, None for the system's."""

    def __init__(self, limiter: trio.CapacityLimiter, patience: Patience, ca: Path | None, sizes: PartSizes) -> None:
        self._limiter = limiter
        self._patience = patience
        self._ca = ca
        self._sizes = sizes
        self._drivers = Drivers(patience)
        self._regions: dict[tuple[Endpoint, str], str] = {}  # what stores said of buckets with an unsaid region

    async def prepare(self, destination: BucketDestination) -> None:
        """See that the bucket is there and knows us; what only writing can tell stays open.

        Tries again what a retry can cure, for as long as it is let. Raises RequestRefused, StoreFailed.
        """
        await self._persist(destination, lambda driver: _look(driver, destination.bucket))

    async def put(self, destination: BucketDestination, key: str, image: Image) -> None:
        """Store an image under a key; see `Store.put`."""
        target = Target.of(destination.bucket, key, image)
        if image.body.size <= self._sizes.whole:
            await self._persist(destination, lambda driver: uploads.put_whole(driver, target))
        else:
            await self._put_in_parts(destination, target)

    async def compare(self, destination: BucketDestination, key: str, image: Image) -> None:
        """Read an object back. Raises StoreFailed if it isn't the image."""
        target = Target.of(destination.bucket, key, image)
        await self._persist(destination, lambda driver: uploads.compare(driver, target))

    async def delete(self, destination: BucketDestination, key: str) -> None:
        """Delete an object."""
        await self._persist(destination, lambda driver: driver.delete(destination.bucket, key))

    def expire(self) -> None:
        """Close connections that nobody has used for a while."""
        self._drivers.expire()

    def close(self) -> None:
        """Close connections; those in use when they come back."""
        self._drivers.close()

    # --- in parts

    async def _put_in_parts(self, destination: BucketDestination, target: Target) -> None:
        attempts = _Attempts()
        while not await self._put_in_parts_once(destination, target):
            await attempts.wait(Trouble(StoreFailed("the parts did not become the object"), is_curable=True))
            STORE_RETRIES.labels(destination.variant).inc()

    async def _put_in_parts_once(self, destination: BucketDestination, target: Target) -> bool:
        attempts = _Attempts()
        upload: str | None = None
        is_complete = False
        try:
            upload = await self._persist(destination, lambda driver: uploads.begin(driver, target), attempts)
            parts = await self._send_parts(destination, target, upload)
            is_good = await self._persist(destination, lambda driver: uploads.complete(driver, target, upload, parts))
            is_complete = True
            return is_good
        finally:
            # Cancelled or not: parts that nobody completes are kept, and paid for, until somebody drops them.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_SECONDS):
                await self._clean_up(destination, target, upload, is_complete=is_complete, in_doubt=attempts.in_doubt)

    async def _send_parts(self, destination: BucketDestination, target: Target, upload: str) -> list[PartSent]:
        size = target.body.size
        step = self._sizes.of(size)
        parts: list[PartSent] = []
        for number, offset in enumerate(range(0, size, step), 1):
            fresh = functools.partial(
                Outgoing,
                target.body,
                offset=offset,
                size=min(step, size - offset),
                sha256=parts[-1].sha256 if parts else None,
                md5=True,
            )
            send = functools.partial(_send_part, target=target, upload=upload, number=number, fresh=fresh)
            parts.append(await self._persist(destination, send))
        return parts

    async def _clean_up(
        self, destination: BucketDestination, target: Target, upload: str | None, *, is_complete: bool, in_doubt: bool
    ) -> None:
        try:
            if upload is not None and not is_complete:
                await self._persist(destination, lambda driver: uploads.abort(driver, target, upload))
            if in_doubt:
                await self._persist(destination, lambda driver: uploads.abort_others(driver, target, upload))
        except CadorError as error:
            log.warning(
                "parts of an upload may be left in a bucket",
                bucket=target.bucket,
                key_of_object=target.key,
                error=error.message,
            )

    # --- tries

    async def _persist(self, destination: BucketDestination, work: Work[T], attempts: _Attempts | None = None) -> T:
        """Try until it works, or can't, or the caller's deadline leaves no time for another try."""
        attempts = attempts or _Attempts()
        while True:
            doubt, attempts.in_doubt = attempts.in_doubt, True
            result = await self._try(destination, work)
            if not (isinstance(result, Trouble) and result.is_curable):
                attempts.in_doubt = doubt
            if not isinstance(result, Trouble):
                return result
            await attempts.wait(result)
            STORE_RETRIES.labels(destination.variant).inc()

    async def _try(self, destination: BucketDestination, work: Work[T]) -> T | Trouble:
        """One try, in a thread; what is wrong comes back as a value."""
        place = Place(destination.access.endpoint, destination.bucket, self._region(destination), Credentials("", ""))
        try:
            addresses = await self._addresses(destination)
        except (CadorError, OSError) as error:
            return explain(error, place)
        # Not abandoned on cancellation: an upload that nobody waits for could still appear after its job has ended.
        return await trio.to_thread.run_sync(
            self._try_in_thread, destination, place, addresses, work, abandon_on_cancel=False, limiter=self._limiter
        )

    def _try_in_thread(
        self, destination: BucketDestination, place: Place, addresses: list[Address], work: Work[T]
    ) -> T | Trouble:
        access = destination.access
        try:
            credentials = access.credentials.read()
        except StoreFailed as error:
            return explain(error, place)
        place = Place(place.endpoint, place.bucket, place.region, credentials)
        # Google's servers know no such header.
        identity = Identity(
            access.endpoint, place.region, credentials, access.ca or self._ca, takes_sha256=destination.variant == "S3"
        )
        try:
            with self._drivers.lend(identity) as driver:
                driver.wire.addresses = addresses
                return work(driver)
        except S3Refused as refused:
            return self._refused(destination, place, refused)
        except (CadorError, Garbled, OSError, http.client.HTTPException) as error:
            return explain(error, place)

    def _refused(self, destination: BucketDestination, place: Place, refused: S3Refused) -> Trouble:
        """A refusal is curable if the next try can avoid it: other region, other credentials in files."""
        trouble = explain(refused, place)
        if destination.access.region is None and wants_other_region(refused, place.region):
            self._learn_region(destination, refused.region)
            return Trouble(trouble.failure, is_curable=True)
        if refused.status in _AUTHENTICATION and _have_changed(destination, place.credentials):
            return Trouble(trouble.failure, is_curable=True)
        return trouble

    def _region(self, destination: BucketDestination) -> str:
        access = destination.access
        return access.region or self._regions.get((access.endpoint, destination.bucket), DEFAULT_REGION)

    def _learn_region(self, destination: BucketDestination, region: str) -> None:
        if len(self._regions) >= _LEARNT_REGIONS:
            self._regions.clear()
        self._regions[destination.access.endpoint, destination.bucket] = region

    async def _addresses(self, destination: BucketDestination) -> list[Address]:
        """The addresses of the endpoint, resolved and checked once for this try: no second look-up can differ.

        Raises RequestRefused for one that a request must not lead to, OSError if there is none.
        """
        endpoint = destination.access.endpoint
        try:
            with trio.fail_after(self._patience.connect):
                found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        except trio.TooSlowError:
            raise socket.gaierror(socket.EAI_AGAIN, "the name service does not answer") from None
        except UnicodeError as error:
            raise socket.gaierror(socket.EAI_NONAME, "no name of a host") from error
        if destination.profile is None and any(is_forbidden(str(sockaddr[0])) for *_, sockaddr in found):
            raise RequestRefused(
                f"storing at {endpoint.address} is not allowed: it leads to a link-local or metadata address",
                hint="An operator who means it can make it a storage profile.",
            )
        return [Address(family, sockaddr) for family, _, _, _, sockaddr in found]


class _Attempts:
    """Counts tries, and waits for the next. `in_doubt`: one may have worked, its answer being lost."""

    def __init__(self) -> None:
        self.number = 0
        self.in_doubt = False

    async def wait(self, trouble: Trouble) -> None:
        """Wait until the next try. Raises the failure where another try can't cure it, or there is no time for one."""
        pause = self.pause(trouble)
        if not trouble.is_curable:
            raise trouble.failure
        await trio.lowlevel.checkpoint_if_cancelled()  # the deadline of what is cancelled is past, and no reason
        if trio.current_time() + pause >= trio.current_effective_deadline():
            raise self._given_up(trouble.failure)
        log.warning("the store fails, trying again", error=trouble.failure.message, tries=self.number)
        await trio.sleep(pause)

    def pause(self, trouble: Trouble) -> float:
        """Seconds: doubling from try to try, capped, with jitter; longer if the store asks for it."""
        self.number += 1
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self.number - 1, 10))
        jittered = longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return max(jittered, min(trouble.wait, LONGEST_RETRY_AFTER_SECONDS))

    def _given_up(self, failure: CadorError) -> CadorError:
        """The last failure, when there is no time for another try."""
        if isinstance(failure, StoreFailed) and self.number > 1:
            return StoreFailed(f"{failure.message} ({self.number} tries)", hint=failure.hint)
        return failure


def _look(driver: S3Driver, bucket: str) -> None:
    if bucket in driver.seen:
        return
    try:
        driver.look_at(bucket)
    except S3Refused as refused:
        # A key may be good for writing alone, and a store may know no listing: only writing will tell.
        if refused.code not in {"AccessDenied", "NotImplemented", "MethodNotAllowed"}:
            raise
    driver.seen.add(bucket)


def _send_part(
    driver: S3Driver, *, target: Target, upload: str, number: int, fresh: Callable[[], Outgoing]
) -> PartSent:
    return uploads.put_part(driver, target, upload, number, fresh())


def _have_changed(destination: BucketDestination, used: Credentials) -> bool:
    try:
        return destination.access.credentials.read() != used
    except StoreFailed:
        return False
