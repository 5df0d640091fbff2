"""The jars of Kafka's broker, fetched with Maven on first use and kept until their list changes.

Knows Java and Maven; knows nothing of how a broker is set up and started.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).parents[3] / ".cache" / "kafka"
POM: Final = Path(__file__).with_name("pom.xml")
SUMS: Final = Path(__file__).with_name("jars.sha256")
"""Each jar's SHA-256. After a change of the pom: `sha256sum *.jar` in the folder that `mvn` copies them to."""

OLDEST_JAVA: Final = 17  # what Kafka 4's broker is compiled for

_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_FETCH_SECONDS: Final = 600  # 8 with a good line; 45 MB and Maven's own plugins


class NoKafkaHere(Exception):
    """This machine lacks what a broker needs; the text says what, and what to install."""


class JarsNotFetched(Exception):
    """Maven failed, or brought something else than expected; the text holds what it printed."""


def find_java() -> Path:
    """Return the program `java`.

    Raises:
        NoKafkaHere: there is none on PATH that works, or it is too old.

    """
    hint = f"a Kafka broker needs Java {OLDEST_JAVA} or newer; install for example openjdk-{OLDEST_JAVA}-jre-headless"
    java = shutil.which("java")
    if java is None:
        raise NoKafkaHere(f"no program `java` on PATH: {hint}")
    answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', answer.stderr)
    if answer.returncode != 0 or version is None or int(version[1]) < OLDEST_JAVA:
        raise NoKafkaHere(f"{java} is {version[0] if version else 'no Java that works'}: {hint}")
    return Path(java)


def kafka_jars() -> Path:
    """Return the folder with the jars, after fetching them if they are not there yet.

    Safe against other processes that ask at the same time, who wait, and against one that was killed: the folder gets
    its name when all jars are in it and every checksum is right.

    Raises:
        NoKafkaHere: they would have to be fetched, and there is no `mvn` on PATH.
        JarsNotFetched: Maven failed, took longer than ten minutes, or a jar is not the expected one.

    """
    jars = CACHE / f"jars-{hashlib.sha256(SUMS.read_bytes()).hexdigest()[:16]}"
    if jars.exists():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise NoKafkaHere(
            f"Kafka's jars are not in {CACHE}, and no program `mvn` on PATH can fetch them: install Maven"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    with jars.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.exists():
            _fetch(maven, jars, lock.fileno())
    return jars


def _fetch(maven: str, jars: Path, lock: int) -> None:
    """Fetch into a folder beside theirs; Maven shares the lock, should it outlive its starter."""
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        fetched = folder / "jars"
        command: list[str | Path] = [
            *(maven, "--batch-mode", "--quiet", "--strict-checksums", "--file", POM, _COPY),
            *(f"-DoutputDirectory={fetched}", "-DincludeScope=runtime", f"-Dmaven.repo.local={folder / 'repository'}"),
        ]
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
                timeout=_FETCH_SECONDS,
                pass_fds=[lock],
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise JarsNotFetched(f"{error}\n{error.output or ''}") from error
        _check(fetched)
        fetched.replace(jars)


def _check(fetched: Path) -> None:
    """Hold what was fetched against the list, by name and checksum."""
    expected = _expected()
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in fetched.glob("*")}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise JarsNotFetched(f"missing, surplus or with another checksum than in {SUMS.name}: {', '.join(wrong)}")


def _expected() -> Mapping[str, str]:
    pairs = (line.split() for line in SUMS.read_text(encoding="ascii").splitlines())
    return {name: checksum for checksum, name in pairs}
