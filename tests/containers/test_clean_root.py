"""The images without an engine: their Containerfiles' steps in an empty root, and what they make as it runs in a pod.

Each program is process 1 of its own namespaces, on a read-only root, as its image's user, without a privilege to its
name and with no shell to be had. The roots begin with this machine's Python; `just clean-root` takes the Debian and the
Python that the base image has.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from tests.peers.clean_root.base import from_debian, from_here, python_version, shells, take_shells_away
from tests.peers.clean_root.containerfile import Builder, Image, lay_over
from tests.peers.clean_root.wheels import CACHE, DEMO, locked, wheelhouse
from tests.peers.output import read_until

ROOT: Final = Path(__file__).parents[2]
CONTAINERS: Final = ROOT / "containers"
SCENE: Final = "blue-marble-black-sea-caspian.png"
TIMEOUT: Final = 120  # seconds after which a program has hung
ROOTS_BYTES: Final = 3 * 1024**3  # all of them, with room to spare
BASE: Final = os.environ.get("CLEAN_ROOT", "here")
PYTHON_BASE: Final = "docker.io/library/python:3.13-slim"

# As `pip install 'cador-trio[demo]'`, in the daemon's image.
DEMO_IMAGE: Final = f"""
FROM cador-trio
USER 0:0
RUN python -m pip --python /opt/cador-trio install --no-cache-dir --only-binary :all: {" ".join(DEMO)}
USER 10001:10001
"""

# What a process can find out about its own cage. It prints one JSON object.
PROBE: Final = """
import errno, json, os, pathlib
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def error(path):
    try:
        pathlib.Path(path, "file").write_text("x")
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps({
    "ids": [os.getpid(), os.getuid(), os.getgid(), os.getgroups()],
    "capabilities": [int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
    "no new privileges": status["NoNewPrivs"].strip(),
    "writing": {path: error(path) for path in ("/", "/opt/cador-trio", "/etc", "/tmp")},
}))
"""

# Installed distributions, and the top-level names that a test asks about.
INSTALLED: Final = """
import importlib.metadata, importlib.util, json
found = {one.name.lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()}
print(json.dumps([found, importlib.util.find_spec("pip") is not None]))
"""


def missing() -> str:
    """What this machine lacks to make such roots; empty if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "making roots and namespaces needs root on Linux"
    programs = ["unshare", "nsenter", "mount", "chroot", "cp", "ldd"] + ["debootstrap"] * (BASE == "debian")
    if absent := [program for program in programs if shutil.which(program) is None]:
        return f"these programs are not here: {', '.join(absent)}"
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces to be had: {tried.stderr.strip()}" if tried.returncode else ""


if reason := missing():
    pytest.skip(reason, allow_module_level=True)


@dataclass(frozen=True)
class Images:
    """What was built, and for which Python."""

    daemon: Image
    demo: Image
    algorithm: Image
    python: str


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for roots, which are too large to be kept for the next three runs."""
    folder = where_roots_fit() / f"clean-root-{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def where_roots_fit() -> Path:
    """Memory, where it has the room and programs may be run there: roots are many small files."""
    memory = Path("/dev/shm")
    if memory.is_dir():
        found = os.statvfs(memory)
        if found.f_bavail * found.f_frsize > ROOTS_BYTES and not found.f_flag & os.ST_NOEXEC:
            return memory
    return CACHE


@pytest.fixture(scope="module")
def images(place: Path) -> Images:
    base = make_base(place)
    python = python_version(base)
    variables = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    builder = Builder(place, {PYTHON_BASE: base}, variables, {"/wheels": wheelhouse(python)})
    context = make_context(place / "context")
    folder = CONTAINERS / "water-bodies"
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(builder.build, "water-bodies", text_of(folder / "Containerfile"), folder)
        daemon = builder.build("cador-trio", text_of(CONTAINERS / "Containerfile"), context)
        demo = builder.build("demo", DEMO_IMAGE, context)
        algorithm = beside.result()
    for image in (daemon, demo, algorithm):
        take_shells_away(image)
    return Images(daemon, demo, algorithm, python)


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def make_base(place: Path) -> Image:
    if BASE == "here":
        return from_here(place / "base")
    kept = CACHE / "clean-root-debian"
    if not kept.exists():
        from_debian(CACHE / place.name).root.rename(kept)
    lay_over(kept, place / "base")
    return Image(place / "base")


def make_context(folder: Path) -> Path:
    """What the engine would be sent: all that .dockerignore lets through."""
    dist = folder / "dist"
    dist.mkdir(parents=True)
    shutil.copy(ROOT / "requirements.lock", folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def python_in(image: Image, script: str) -> subprocess.CompletedProcess[str]:
    """Run the script by the environment's Python in the image."""
    return finished(replace(image, entrypoint=("/opt/cador-trio/bin/python", "-c", script)))


def finished(image: Image, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = image.entry(*arguments, **environment).argv()
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_context_is_what_the_images_may_see() -> None:
    """The build is given no more than .dockerignore lets through."""
    lines = (CONTAINERS / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["*", "!requirements.lock", "!dist"]


def test_no_privileges(images: Images) -> None:
    """Process 1, the image's user, no capability to have or to gain, and nothing to write to but /tmp."""
    done = python_in(images.daemon, PROBE)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {
        "ids": [1, 10001, 10001, []],
        "capabilities": [0, 0, 0, 0, 0],
        "no new privileges": "1",
        "writing": {"/": "EROFS", "/opt/cador-trio": "EROFS", "/etc": "EROFS", "/tmp": None},
    }


def test_no_shell(images: Images) -> None:
    """None is left in any of the images that run here."""
    assert [shell for image in (images.daemon, images.demo, images.algorithm) for shell in shells(image)] == []


def test_exactly_the_lock_is_installed(images: Images) -> None:
    """What the lock pins for that Python, the product, and nothing else: no pip either."""
    done = python_in(images.daemon, INSTALLED)
    assert (done.returncode, done.stderr) == (0, "")
    version = importlib.metadata.version("cador-trio")
    assert json.loads(done.stdout) == [{**locked(images.python), "cador-trio": version}, False]


def test_version(images: Images) -> None:
    """The command is there and knows its version."""
    done = finished(images.daemon, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert importlib.metadata.version("cador-trio") in done.stdout


def test_check_without_neighbours(images: Images) -> None:
    """It says that the algorithm is not there, and nothing else is amiss."""
    done = finished(images.daemon, "check", PROCESSING_SERVER="http://127.0.0.1:8080", CADOR_POSIX_ROOTS="/tmp")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_demo_says_what_it_lacks(images: Images) -> None:
    """The daemon's image is without the demo's libraries, and the command says so."""
    done = finished(images.daemon, "demo", "--output", "/tmp/demo")
    assert done.returncode == 3
    assert "cador-trio[demo]" in done.stderr


def test_demo(images: Images) -> None:
    """With them it runs from end to end."""
    done = finished(images.demo, "demo", "--output", "/tmp/demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Black Sea" in done.stdout
    assert "Caspian Sea" in done.stdout


# --- A pod -------------------------------------------------------------------------------------------------------


@contextmanager
def started(image: Image, beside: int | None = None, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The image's program, until the block ends; killed then if it is still there."""
    command = image.entry(**environment).argv(beside)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def process_1(process: subprocess.Popen[str]) -> int:
    """The program itself, by its number out here."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    return int(child)


def test_a_pod(images: Images) -> None:
    """Algorithm and daemon in their images, side by side: all is well, a job goes through, SIGTERM ends both."""
    settings = {"PROCESSING_SERVER": "http://127.0.0.1:8080", "CADOR_POSIX_ROOTS": "/tmp"}
    scene = (CONTAINERS / "water-bodies" / SCENE).resolve()
    algorithm = replace(images.algorithm, mounted={"/scenes": scene.parent})
    with started(algorithm) as first:
        read_until(first.stdout, "http://")
        checked = subprocess.run(
            images.daemon.entry("check", **settings).argv(first.pid),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        with started(images.daemon, first.pid, **settings) as second:
            read_until(second.stderr, "http")
            sent = subprocess.run(
                images.daemon.entry("submit", "--input", f"image=file:///scenes/{SCENE}").argv(first.pid),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            assert sent.returncode == 0, sent.stdout + sent.stderr
            assert json.loads(sent.stdout)["count"] > 5
            os.kill(process_1(second), signal.SIGTERM)
            assert second.wait(TIMEOUT) == 0
        os.kill(process_1(first), signal.SIGTERM)
        assert first.wait(TIMEOUT) == 0


def test_two_builds_are_the_same(images: Images, place: Path) -> None:
    """The wheel that goes into the image is the same bytes each time."""
    again = make_context(place / "again")
    wheels = [path for folder in (place / "context", again) for path in (folder / "dist").glob("*.whl")]
    assert len({hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}) == 1
    assert len(wheels) == 2
