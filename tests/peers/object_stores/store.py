"""What tests know of a running object store, and a look into it that shares no code with the product."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

BUCKET: Final = "images"


class KeyPair(NamedTuple):
    """What a request is signed with."""

    access_key: str
    secret_key: str


@dataclass(frozen=True)
class ObjectStore:
    """A store that runs, and one bucket in it, where `access_key` may do all.

    Attributes:
        url: scheme, host and port, without a path.
        bucket: exists already.
        limited: a known user. On SeaweedFS it may write to the first bucket and nothing else, not even read what it
            has written; on versitygw it may do nothing at all.
        region: what requests must be signed for. SeaweedFS takes any.
        ca: the file with the authority of its certificate, where `url` is of https.
    """

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    limited: KeyPair = field(repr=False)
    region: str
    ca: Path | None
    log_path: Path = field(repr=False)
    client: Any = field(repr=False, compare=False)
    """boto3's, signed by `access_key`, without retries; from any thread."""

    def read_object(self, key: str) -> bytes | None:
        """All bytes of an object; None where there is none."""
        try:
            with closing(self.client.get_object(Bucket=self.bucket, Key=key)["Body"]) as body:
                content: bytes = body.read()
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchKey":
                raise
            return None
        return content

    def describe_object(self, key: str) -> dict[str, Any]:
        """What HEAD says: `ETag`, `ContentLength`, `ContentType`, `Metadata` and more, as boto3 spells it."""
        description: dict[str, Any] = self.client.head_object(Bucket=self.bucket, Key=key)
        return description

    def list_keys(self, prefix: str = "") -> list[str]:
        """The keys of the bucket that begin so, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))

    def pending_multipart_uploads(self, prefix: str = "") -> list[str]:
        """The keys of uploads that were begun, and neither completed nor aborted."""
        answer = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=prefix)
        return sorted(entry["Key"] for entry in answer.get("Uploads", ()))

    def with_new_bucket(self) -> Self:
        """The same store, looked at through a bucket of its own that is empty."""
        bucket = f"bucket-{secrets.token_hex(8)}"
        self.client.create_bucket(Bucket=bucket)
        return replace(self, bucket=bucket)


@contextmanager
def s3_client(url: str, keys: KeyPair, region: str, ca: Path | None) -> Iterator[Any]:
    """A client of boto3 that makes each request once.

    It sends bodies whole, without the checksum in a trailer that boto3 puts behind them over TLS. versitygw 1.8.0
    answers when it has read the trailer; when the end of the HTTP chunks arrives later, it takes that for the next
    request and refuses it (seen after 1 in 100 to 400 uploads).
    """
    session = boto3.session.Session(*keys, region_name=region)
    config = Config(
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        connect_timeout=10,
        read_timeout=30,
        proxies={},
        request_checksum_calculation="when_required",
    )
    with closing(session.client("s3", endpoint_url=url, verify=str(ca) if ca else None, config=config)) as client:
        yield client
