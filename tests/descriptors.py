"""What this process has open, as the kernel tells it, for tests of leaks.

Kafka's clients of other tests live on, and open and close descriptors whenever they like: who compares looks at their
own alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def open_descriptors() -> Iterator[tuple[int, str]]:
    """Each with what it is, in the kernel's words: a path, `socket:[…]`, `pipe:[…]`."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are all we need
        with suppress(FileNotFoundError):  # closed meanwhile; the one that lists them always is
            yield int(name), str(Path("/proc/self/fd", name).readlink())


def ports_of(descriptor: int, kind: str) -> set[int]:
    """The port of a TCP socket of IPv4, and that of its peer if it has one; nothing for what else `kind` may be."""
    if not kind.startswith("socket:"):  # `fromfd` would leave a copy of it open
        return set()
    ports = set()
    with (
        suppress(OSError, IndexError),  # closed meanwhile, not connected, or no TCP
        socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as copy,
    ):
        ports.add(copy.getsockname()[1])
        ports.add(copy.getpeername()[1])
    return ports
