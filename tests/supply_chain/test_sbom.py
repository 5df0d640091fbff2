"""The list of parts: valid CycloneDX, complete against the lock, and the same each time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from supply_chain.lock import LOCK, Package, read_lock
from supply_chain.sbom import make_sbom, write_sbom

WHEEL = "cador_trio-1.2.3-py3-none-any.whl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dist folder with one wheel, and its list of parts."""
    folder = tmp_path_factory.mktemp("dist")
    (folder / WHEEL).write_bytes(b"a wheel")
    write_sbom(folder)
    return folder


@pytest.fixture(scope="module")
def sbom(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "cador_trio-1.2.3.cdx.json").read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def packages() -> list[Package]:
    return read_lock(LOCK.read_text(encoding="utf-8"))


def test_it_is_cyclonedx(folder: Path) -> None:
    """The strict schema of the version that it names has nothing to say against it."""
    text = (folder / "cador_trio-1.2.3.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"purl"', '"pearl"')) is not None


def test_every_locked_package_is_in_it(sbom: dict[str, Any], packages: Sequence[Package]) -> None:
    """With version, package URL, every hash of the lock, and where it is installed; and nothing else is in it."""
    found = {
        (row["purl"], tuple(one["content"] for one in row["externalReferences"][0]["hashes"])): row.get(
            "properties", []
        )
        for row in sbom["components"]
    }
    assert found == {
        (f"pkg:pypi/{package.name}@{package.version}", package.hashes): (
            [{"name": "cador-trio:environment-marker", "value": package.marker}] if package.marker else []
        )
        for package in packages
    }
    assert [(row["name"], row["version"]) for row in sbom["components"]] == [(p.name, p.version) for p in packages]


def test_it_is_the_wheels(sbom: dict[str, Any]) -> None:
    """Its subject is the product in the wheel's version, with the wheel's hash."""
    product = sbom["metadata"]["component"]
    assert (product["name"], product["version"]) == ("cador-trio", "1.2.3")
    assert product["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"a wheel").hexdigest()}]


def test_licences_are_the_packages_own_words(sbom: dict[str, Any]) -> None:
    """Every package that is installed in the locked version and says a licence has one; no other has."""
    for row in sbom["components"]:
        told = metadata.metadata(row["name"]) if _installed(row["name"]) == row["version"] else None
        assert ("licenses" in row) == (told is not None and _says_a_licence(told)), row["name"]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _says_a_licence(told: metadata.PackageMetadata) -> bool:
    classifiers = told.get_all("Classifier") or ()
    return bool(
        told.get_all("License-Expression")
        or told.get_all("License")
        or any(text.startswith("License ::") for text in classifiers)
    )


def test_the_product_leads_to_every_part(sbom: dict[str, Any]) -> None:
    """Following who wants whom from the product, every component is met."""
    wants = {row["ref"]: row["dependsOn"] for row in sbom["dependencies"]}
    met, open_refs = set[str](), ["pkg:pypi/cador-trio@1.2.3"]
    while open_refs:
        ref = open_refs.pop()
        if ref not in met:
            met.add(ref)
            open_refs += wants[ref]
    assert met == set(wants) == {row["bom-ref"] for row in sbom["components"]} | {"pkg:pypi/cador-trio@1.2.3"}


def test_it_is_reproducible(folder: Path, sbom: dict[str, Any]) -> None:
    """Made anew from the same lock and wheel it is the same bytes: no time and no serial number is in it."""
    before = (folder / "cador_trio-1.2.3.cdx.json").read_bytes()
    assert write_sbom(folder).read_bytes() == before
    assert "serialNumber" not in sbom
    assert "timestamp" not in sbom["metadata"]


def test_two_wheels_are_one_too_many(tmp_path: Path) -> None:
    """It does not choose between wheels, nor writes a list for none."""
    with pytest.raises(ValueError, match="unpack"):
        write_sbom(tmp_path)
    for name in (WHEEL, WHEEL.replace("1.2.3", "1.2.4")):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="unpack"):
        write_sbom(tmp_path)


def test_long_licence_texts_are_no_names(tmp_path: Path) -> None:
    """A package that puts a whole text where the licence's name belongs has no name of ours."""
    (tmp_path / WHEEL).touch()
    names = [
        licence["license"]["name"]
        for row in make_sbom(read_lock(LOCK.read_text(encoding="utf-8")), tmp_path / WHEEL)["components"]
        for licence in row.get("licenses", ())
        if "license" in licence
    ]
    assert names
    assert max(map(len, names)) <= 100
