"""The product's list of parts, CycloneDX 1.6 as JSON: what requirements.lock pins, beside the wheel of `just build`.

There is no time, serial number or machine in it: the same lock and wheel give the same bytes, in an environment of the
same lock.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from supply_chain.lock import LOCK, Package, read_lock

PRODUCT: Final = "cador-trio"
SCHEMA: Final = "http://cyclonedx.org/schema/bom-1.6.schema.json"
# The default index: where a file comes from is the installer's matter, its hashes say which file it is.
INDEX: Final = "https://pypi.org/simple"
LONGEST_NAME: Final = 100  # characters of a licence's name; some packages put the whole text there

Document = dict[str, Any]


def make_sbom(packages: Sequence[Package], wheel: Path) -> Document:
    """The document for these packages and the product's own wheel, whose name says the version."""
    _, version, *_ = wheel.name.split("-")
    product = {
        "type": "application",
        "bom-ref": _purl(PRODUCT, version),
        "name": PRODUCT,
        "version": version,
        "licenses": [{"expression": "Apache-2.0"}],
        "purl": _purl(PRODUCT, version),
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
    }
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": product},
        "components": [_component(package) for package in packages],
        "dependencies": _dependencies(packages, version),
    }


def _component(package: Package) -> Document:
    found: Document = {
        "type": "library",
        "bom-ref": _purl(package.name, package.version),
        "name": package.name,
        "version": package.version,
        "purl": _purl(package.name, package.version),
        # Each hash is one file's, and an installation takes one of them: they belong to the distribution.
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"{INDEX}/{package.name}/",
                "hashes": [{"alg": "SHA-256", "content": content} for content in package.hashes],
            }
        ],
    }
    if licenses := _licenses(package):
        found["licenses"] = licenses
    if package.marker:
        found["properties"] = [{"name": f"{PRODUCT}:environment-marker", "value": package.marker}]
    return found


def _licenses(package: Package) -> list[Document]:
    """What the package says of itself, if this very version is installed here; nothing is guessed from another one."""
    try:
        told = metadata.metadata(package.name)
    except metadata.PackageNotFoundError:
        return []
    if told["Version"] != package.version:
        return []
    if expression := _field(told, "License-Expression"):
        return [{"expression": expression}]
    classifiers = [text.rpartition(" :: ")[2] for text in told.get_all("Classifier") or () if "License :: " in text]
    name = " ".join(_field(told, "License").split())
    names = classifiers or ([name] if 0 < len(name) <= LONGEST_NAME else [])
    return [{"license": {"name": name}} for name in names]


def _field(told: metadata.PackageMetadata, name: str) -> str:
    return next(iter(told.get_all(name) or ()), "")


def _dependencies(packages: Sequence[Package], version: str) -> list[Document]:
    """Who wants whom, as the lock says."""
    refs: dict[str, list[str]] = {PRODUCT: [_purl(PRODUCT, version)]}
    for package in packages:
        refs.setdefault(package.name, []).append(_purl(package.name, package.version))
    wanted: dict[str, set[str]] = {ref: set() for versions in refs.values() for ref in versions}
    for package in packages:
        for name in package.asked_for_by:
            for ref in refs[name]:
                wanted[ref].add(_purl(package.name, package.version))
    return [{"ref": ref, "dependsOn": sorted(others)} for ref, others in sorted(wanted.items())]


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{quote(version, safe='')}"


def write_sbom(folder: Path) -> Path:
    """Write the list beside the one wheel in `folder`, under the wheel's name and version; gives its path.

    Raises:
        ValueError: if there is not exactly one wheel, or the lock can't be read.
    """
    (wheel,) = folder.glob("*.whl")
    name, version, *_ = wheel.name.split("-")
    path = folder / f"{name}-{version}.cdx.json"
    document = make_sbom(read_lock(LOCK.read_text(encoding="utf-8")), wheel)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{write_sbom(Path(sys.argv[1]))}\n")
