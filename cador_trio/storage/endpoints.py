"""Where an object store is on the network, and which places there a request may name.

Pure: nothing is resolved or connected here. Names are checked against the operator's list before dispatch, the
addresses that a name led to when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import quote, urlsplit

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")
_PORT: Final = re.compile(r"\d{1,5}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and port that speak S3; `host` without brackets, `prefix` empty or with a slash before, none behind."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @classmethod
    def from_url(cls, url: str, *, ssl: bool = False) -> Endpoint:
        """Read a URL, or a bare `host[:port]`: then `ssl` decides between https and http.

        Raises ValueError, whose text quotes nothing of the URL.
        """
        try:
            # Without a scheme, `host:9000` would be read as one called `host`.
            parts = urlsplit(url if "://" in url else f"{'https' if ssl else 'http'}://{url}")
            port = parts.port
        except ValueError:  # its words quote what may be half a password
            raise ValueError("must be a host or a URL of http or https") from None
        if parts.scheme not in DEFAULT_PORTS:
            raise ValueError("must be a host or a URL of http or https")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a user name or password")
        if parts.query or parts.fragment:
            raise ValueError("must end with its path: no query, no fragment")
        host = (parts.hostname or "").rstrip(".")
        if not _HOST.fullmatch(host) or port == 0:
            raise ValueError("must be a host or a URL of http or https")
        return cls(parts.scheme, host, port or DEFAULT_PORTS[parts.scheme], _prefix(parts.path))

    @property
    def is_tls(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.scheme == "https"

    @property
    def netloc(self) -> str:
        """What the Host header says: the port only where it isn't the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _prefix(path: str) -> str:
    segments = path.strip("/").split("/")
    if segments == [""]:
        return ""
    if any(segment in ("", ".", "..") for segment in segments):
        raise ValueError("has a path with an empty segment, '.' or '..'")
    return quote("/" + "/".join(segments), safe="/%~")


# --- The operator's lists ----------------------------------------------------------------------------------------


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless it is `host`, `host:port`, `*.suffix` or `*.suffix:port`."""
    host, port = _split(pattern)
    if not _HOST.fullmatch(host.removeprefix("*.")):
        raise ValueError("must be host, host:port or *.suffix")
    if port is not None and not (_PORT.fullmatch(port) and 0 < int(port) < 65_536):
        raise ValueError("has a port that is none")


def is_listed(endpoint: Endpoint, patterns: Sequence[str]) -> bool:
    """Whether a list of patterns has this endpoint; one without a port has the host with any port."""
    return any(_matches(endpoint, *_split(pattern)) for pattern in patterns)


def _matches(endpoint: Endpoint, host: str, port: str | None) -> bool:
    if port is not None and int(port) != endpoint.port:
        return False
    host, ours = host.lower().rstrip("."), endpoint.host.lower()
    return ours.endswith(host[1:]) if host.startswith("*.") else ours == host


def _split(pattern: str) -> tuple[str, str | None]:
    """Host and port of a pattern; IPv6 addresses in brackets, or bare without a port."""
    if pattern.startswith("["):
        host, _, rest = pattern[1:].partition("]")
        return host, rest.removeprefix(":") or None
    if pattern.count(":") > 1:
        return pattern, None
    host, _, port = pattern.partition(":")
    return host, port or None


def matches_bucket(bucket: str, patterns: Sequence[str]) -> bool:
    """Whether a list of names, with `*` for any letters, has this bucket."""
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), bucket) for pattern in patterns)


# --- Addresses ---------------------------------------------------------------------------------------------------

# Where clouds answer any process of a machine with its credentials, beside 169.254.169.254, which is link-local.
_METADATA: Final = (
    ip_network("100.100.100.200/32"),  # Alibaba Cloud
    ip_network("168.63.129.16/32"),  # Azure's wire server
    ip_network("192.0.0.192/32"),  # Oracle Cloud
    ip_network("fd00:ec2::/32"),  # AWS
    ip_network("fd20:ce::/32"),  # Google Cloud
)
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052
_IPV4_COMPATIBLE: Final = IPv6Network("::/96")  # RFC 4291, 2.5.5.1: deprecated, and still understood by some


def is_forbidden(address: str) -> bool:
    """Whether a request may not lead there: link-local, metadata, multicast, unspecified; IPv4 inside IPv6 included.

    `address` is as `getaddrinfo` gives it. Raises ValueError if it is none.
    """
    return any(_is_forbidden(form) for form in _forms(ip_address(address.partition("%")[0])))


def _forms(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address, and the IPv4 addresses that it stands for."""
    if isinstance(address, IPv4Address):
        return [address]
    found: list[IPv4Address | IPv6Address | None] = [address, address.ipv4_mapped, address.sixtofour]
    found += address.teredo or ()
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        found.append(IPv4Address(int(address) & 0xFFFF_FFFF))
    return [form for form in found if form is not None]


def _is_forbidden(address: IPv4Address | IPv6Address) -> bool:
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or any(address in network for network in _METADATA)
    )
