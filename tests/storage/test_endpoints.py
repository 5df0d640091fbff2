"""Lists of endpoints and buckets, and the addresses that nobody may be led to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cador_trio.storage.endpoints import Endpoint, check_pattern, is_forbidden, is_listed, matches_bucket


@pytest.mark.parametrize(
    ("pattern", "listed"),
    [
        ("store.example", True),
        ("STORE.example.", True),
        ("store.example:9000", True),
        ("store.example:9001", False),
        ("*.example", True),
        ("*.example:9000", True),
        ("*.store.example", False),
        ("example", False),
        ("*.ample", False),
        ("other", False),
    ],
)
def test_patterns(pattern: str, listed: bool) -> None:
    """A pattern has a host by its whole name, or all hosts below a suffix; a port only if it names one."""
    check_pattern(pattern)
    assert is_listed(Endpoint("https", "store.example", 9000), [pattern]) is listed


@pytest.mark.parametrize("pattern", ["::1", "[::1]", "[::1]:9000"])
def test_patterns_of_addresses(pattern: str) -> None:
    """An IPv6 address may stand bare, or in brackets with a port."""
    check_pattern(pattern)
    assert is_listed(Endpoint("http", "::1", 9000), [pattern])


def test_suffix_is_not_its_own_host() -> None:
    """`*.example` has what is below it, not itself."""
    assert not is_listed(Endpoint("http", "example", 80), ["*.example"])


@pytest.mark.parametrize(
    "pattern", ["http://host", "host/path", "host:port", "host:0", "host:70000", "*", "a*b", "", ":9000", "user@host"]
)
def test_patterns_that_are_none(pattern: str) -> None:
    """What would never match, or match too much, is found at start."""
    with pytest.raises(ValueError, match=r"must be host|has a port"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "bucket", "matches"),
    [
        ("masks", "masks", True),
        ("masks", "masks-2", False),
        ("masks-*", "masks-2", True),
        ("*", "anything", True),
        ("m?sks", "masks", False),
        ("m.sks", "masks", False),
        ("[m]asks", "masks", False),
        ("*-prod-*", "a-prod-b", True),
    ],
)
def test_buckets(pattern: str, bucket: str, matches: bool) -> None:
    """`*` is the only letter of a bucket's pattern that means something."""
    assert matches_bucket(bucket, [pattern]) is matches


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "2002:a9fe:a9fe::1",  # 6to4
        "64:ff9b::a9fe:a9fe",  # NAT64
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
    ],
)
def test_forbidden_addresses(address: str) -> None:
    """Link-local, metadata, multicast and unspecified addresses, in IPv6's clothes too."""
    assert is_forbidden(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:4860::1", "fd12::1"]
)
def test_other_addresses(address: str) -> None:
    """Private networks and this host are where many stores are."""
    assert not is_forbidden(address)


@given(st.ip_addresses(network="169.254.0.0/16"), st.sampled_from(["{}", "::ffff:{}", "64:ff9b::{}"]))
def test_no_link_local_address_gets_through(address: object, form: str) -> None:
    """All of 169.254/16 is forbidden in each form."""
    assert is_forbidden(form.format(address))


@given(st.text())
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    """No URL gets past with another error than a refusal, and no refusal quotes it."""
    try:
        endpoint = Endpoint.from_url(text)
    except ValueError as error:
        words = str(error)
    else:
        words = ""
    if words:
        assert words.startswith(("must", "has a path"))
        return
    assert endpoint.host
    assert 0 < endpoint.port < 65_536
    assert "//" not in endpoint.prefix
