"""Reads requirements.lock, as `uv pip compile --generate-hashes` writes it.

Pure: it knows lines, no network and no installed packages. A line that it can't read is an error, so that no
package is left out unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOCK: Final = Path(__file__).parents[1] / "requirements.lock"

_PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+?))? \\")
_HASH = re.compile(r" {4}--hash=sha256:([0-9a-f]{64})(?: \\)?")
_ASKED_FOR_BY = re.compile(r" {4}#(?: via)?(?: {2,3}| )(?P<name>\S+)(?: \(pyproject\.toml(?::\w+)?\))?")
_OPENS_LIST: Final = "    # via"


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned package.

    `marker` says where it is installed (empty: everywhere), `hashes` are the SHA-256 of its files, `asked_for_by` the
    packages that want it.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    asked_for_by: tuple[str, ...]


def read_lock(text: str) -> list[Package]:
    """The packages in the lock's order; one that is pinned anew for another Python is there twice.

    Raises:
        ValueError: with the line that is none of a lock's, or the package that has no hash.
    """
    packages = [_package(block) for block in _blocks(text)]
    for package in packages:
        if not package.hashes:
            raise ValueError(f"{package.name} {package.version} has no hash")
    return packages


def _blocks(text: str) -> Iterator[list[str]]:
    """The lines of one package each."""
    block: list[str] = []
    for line in text.splitlines():
        if block and not line.startswith(" "):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _package(block: list[str]) -> Package:
    pin = _PIN.fullmatch(block[0])
    if pin is None:
        raise ValueError(f"not a pinned package with hashes: {block[0]}")
    hashes, asked_for_by = [], []
    for line in block[1:]:
        if line == _OPENS_LIST:
            continue
        if (found := _HASH.fullmatch(line)) is not None:
            hashes.append(found[1])
        elif (found := _ASKED_FOR_BY.fullmatch(line)) is not None:
            asked_for_by.append(found["name"])
        else:
            raise ValueError(f"not a line of a lock: {line}")
    return Package(pin["name"], pin["version"], pin["marker"] or "", tuple(hashes), tuple(asked_for_by))
