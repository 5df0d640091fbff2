"""The wheels that a lock pins for one version of Python, fetched once and kept in .cache until the pins change.

pip fetches them, from whatever index it is configured for, and checks their hashes.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packaging.markers import Marker

from supply_chain.lock import LOCK, Package, read_lock

ROOT: Final = Path(__file__).parents[3]
CACHE: Final = ROOT / ".cache"
DEV_LOCK: Final = ROOT / "requirements-dev.lock"
# What the extra `demo` asks for.
DEMO: Final = ("pillow", "rasterio", "rich")

# glibc's versions, newest first, whose wheels run on Debian 12 and later.
_GLIBC: Final = tuple((2, minor) for minor in range(36, 16, -1))
_SECONDS: Final = 600


def wheelhouse(python: str) -> Path:
    """A folder with the wheels of the product's lock and of the extra `demo` for Python `python` (as in 3.13)."""
    pins = sorted(
        {
            _pin(package)
            for package in (*read_lock(LOCK.read_text(encoding="utf-8")), *_demo())
            if _is_for(package, python)
        }
    )
    text = "".join(pins)
    folder = CACHE / f"wheels-{python}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        _fetch(text, python, folder)
    return folder


def locked(python: str) -> dict[str, str]:
    """The versions that the product's lock pins for Python `python`."""
    packages = read_lock(LOCK.read_text(encoding="utf-8"))
    return {package.name: package.version for package in packages if _is_for(package, python)}


def _fetch(pins: str, python: str, folder: Path) -> None:
    """Into a folder that gets its name when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.{platform.node()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    (unfinished / "pins.txt").write_text(pins)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(unfinished / "pins.txt"), "--dest", str(unfinished)]
    command += ["--python-version", python, *_platforms()]
    subprocess.run(command, check=True, timeout=_SECONDS)
    unfinished.rename(folder)


def _platforms() -> list[str]:
    machine = platform.machine()
    names = [f"manylinux_{major}_{minor}_{machine}" for major, minor in _GLIBC] + [f"manylinux2014_{machine}"]
    return [word for name in names for word in ("--platform", name)]


def _demo() -> list[Package]:
    """The demo's packages and all that they ask for, as the lock of the tests pins them."""
    packages = read_lock(DEV_LOCK.read_text(encoding="utf-8"))
    wanted, before = set(DEMO), 0
    while len(wanted) > before:
        before = len(wanted)
        wanted |= {package.name for package in packages if wanted.intersection(package.asked_for_by)}
    return [package for package in packages if package.name in wanted]


def _is_for(package: Package, python: str) -> bool:
    if not package.marker:
        return True
    environment = {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    return Marker(package.marker).evaluate(environment)


def _pin(package: Package) -> str:
    return f"{package.name}=={package.version} {_hashes(package.hashes)}\n"


def _hashes(hashes: Sequence[str]) -> str:
    return " ".join(f"--hash=sha256:{one}" for one in hashes)
