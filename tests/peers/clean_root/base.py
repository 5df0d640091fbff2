"""What stands for the base image: a root with Python and what that needs, from this machine or from Debian.

`from_here` takes the interpreter that runs this, its standard library and the shared libraries that they name: quick,
needs nothing, and has less in it than the base image has. `from_debian` is the base image's userland, by debootstrap.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pip

from tests.peers.clean_root.containerfile import Image

SUITE: Final = "trixie"  # of python:3.13-slim
DEBIAN_PACKAGES: Final = ("python3", "python3-venv", "python3-pip")
_DEBIAN_SECONDS: Final = 900

# What compiled wheels may expect of any Linux (PEP 600): the C library's parts, and what Debian's base has for apt.
BESIDE_LIBC: Final = (
    *("libdl.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libutil.so.1"),
    *("libgcc_s.so.1", "libstdc++.so.6"),
)
FOLDERS: Final = ("bin", "dev", "etc", "proc", "tmp", "usr/local/bin")
_LEFT_OUT: Final = ("config-*", "dist-packages", "idlelib", "site-packages", "test", "tkinter")
_LIBRARY: Final = re.compile(r"(?:=> )?(/\S+) \(0x")


def from_here(root: Path) -> Image:
    """Assemble the root from this machine's interpreter, which keeps its path; a shell is there for the steps alone."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    python = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    for program in (python, Path("/bin/sh")):
        _take(root, [program])
    shutil.copytree(library, _in(root, library), symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    _take(root, _needed([python, Path("/bin/sh"), *library.glob("lib-dynload/*.so")]))
    _take(root, [path for path in (Path("/etc/ld.so.cache"),) if path.exists()])
    _bring_pip(root, python)
    _add_pip_command(root)
    (root / "usr/local/bin/python").symlink_to(python)
    return Image(root)


def _add_pip_command(root: Path) -> None:
    program = root / "usr/local/bin/pip"
    program.write_text("#!/usr/local/bin/python\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n")
    program.chmod(0o755)


def _needed(programs: Iterable[Path]) -> set[Path]:
    """Every shared library that they name, and those that wheels may expect beside them."""
    printed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=True).stdout
    found = {Path(path) for path in _LIBRARY.findall(printed)}
    (libc,) = {path.parent for path in found if path.name == "libc.so.6"}
    return found | {libc / name for name in BESIDE_LIBC}


def _bring_pip(root: Path, python: Path) -> None:
    """Put pip where the interpreter looks for packages, and a virtual environment of its does not."""
    question = "import site; print(site.getsitepackages()[0])"
    done = subprocess.run([str(python), "-I", "-c", question], capture_output=True, text=True, check=True)
    shutil.copytree(Path(pip.__file__).parent, _in(root, Path(done.stdout.strip())) / "pip")


def _take(root: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        target = _in(root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _in(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def from_debian(root: Path) -> Image:
    """Debian's smallest system with its Python, which is of the base image's version; takes a minute or so.

    Raises:
        subprocess.CalledProcessError: if debootstrap fails, with what it printed; no mirror, say.
    """
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(DEBIAN_PACKAGES)}", SUITE, str(root)]
    subprocess.run(command, check=True, timeout=_DEBIAN_SECONDS, stdout=sys.stderr)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    # The base image's Python is nobody's but pip's.
    for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        mark.unlink()
    return Image(root)


def python_version(image: Image) -> str:
    """As in `3.13`."""
    command = [
        "chroot",
        str(image.root),
        "/usr/local/bin/python",
        "-c",
        "import sys; print('%d.%d' % sys.version_info[:2])",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def take_shells_away(image: Image) -> None:
    """Whatever could run a script in it goes, that of Python excepted."""
    for shell in shells(image):
        shell.unlink()


def shells(image: Image) -> Iterator[Path]:
    """Every shell in the places where programs are."""
    for folder in ("bin", "usr/bin", "usr/local/bin"):
        for name in ("sh", "bash", "dash", "rbash", "busybox", "perl"):
            path = image.root / folder / name
            if path.is_symlink() or path.exists():
                yield path
