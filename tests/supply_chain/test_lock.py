"""Reading requirements.lock: every package, and no line passed over."""

from __future__ import annotations

import re

import pytest

from supply_chain.lock import LOCK, Package, read_lock

HASH = "ab" * 32
OTHER = "cd" * 32


def test_a_package_is_read_whole() -> None:
    """Name, version, marker, every hash, and who asked for it."""
    text = (
        f"one==1.0 \\\n    --hash=sha256:{HASH} \\\n    --hash=sha256:{OTHER}\n    # via two\n"
        f"two==2.0.post1 ; python_full_version < '3.12' \\\n    --hash=sha256:{HASH}\n"
        "    # via\n    #   cador-trio (pyproject.toml)\n    #   three\n"
    )
    assert read_lock(text) == [
        Package("one", "1.0", "", (HASH, OTHER), ("two",)),
        Package("two", "2.0.post1", "python_full_version < '3.12'", (HASH,), ("cador-trio", "three")),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "one>=1.0 \\\n    --hash=sha256:" + HASH,
        "one==1.0",
        "--index-url https://user:secret@index.example\n",
        f"one==1.0 \\\n    --hash=sha256:{HASH}\n    --extra\n",
        "one==1.0 \\\n    # via two\n",
    ],
    ids=["not pinned", "no hashes", "option", "unknown line", "no hash in it"],
)
def test_what_is_no_lock_is_refused(text: str) -> None:
    """Whatever can't be read, or pins nothing by hash, is an error and never a missing package."""
    with pytest.raises(ValueError, match=r"not a|has no hash"):
        read_lock(text)


def test_the_products_lock_is_read() -> None:
    """As many packages as lines that pin one, each asked for by somebody who is in the lock too."""
    text = LOCK.read_text(encoding="utf-8")
    packages = read_lock(text)
    assert len(packages) == len(re.findall(r"^\S+==", text, re.MULTILINE)) > 20
    names = {package.name for package in packages} | {"cador-trio"}
    assert all(package.asked_for_by and names.issuperset(package.asked_for_by) for package in packages)
