"""Asks pip-audit what is known against the packages of requirements.lock: at PyPI, then at OSV for what PyPI left open.

No package index is asked, so it does not matter which one is configured. Packages for other Pythons than this one are
asked about too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from supply_chain.lock import LOCK, Package, read_lock

EXIT_OK: Final = 0
EXIT_FOUND: Final = 1
SERVICES: Final = {"pypi": "pypi.org", "osv": "api.osv.dev"}

# What in pip-audit's last words says that a service can't be reached, or is out of order.
AWAY: Final = re.compile(r"Connect|Max retries|[Tt]imed? ?out|Proxy|\b5\d\d\b")

# pip-audit's answer by (name, version): the identifiers of what is known. Who is missing was not looked up.
Answers = dict[tuple[str, str], list[str]]
Ask = Callable[[str, Sequence[Package]], Answers]


class AuditBroken(Exception):
    """pip-audit failed by itself: nothing is known, and nobody was away."""


@dataclass(slots=True)
class Findings:
    """What is known, and what nobody could be asked about, with the services' own words."""

    known: Answers = field(default_factory=dict)
    left: list[Package] = field(default_factory=list)


def audit(packages: Sequence[Package], ask: Ask, services: Iterable[str] = tuple(SERVICES)) -> Findings:
    """Ask one service after the other about what is still open."""
    findings = Findings(left=list(packages))
    for service in services:
        if findings.left:
            findings.known |= ask(service, findings.left)
            findings.left = [one for one in packages if (one.name, one.version) not in findings.known]
    return findings


def verdict(findings: Findings) -> tuple[int, str]:
    """The exit code and the words for it.

    Nobody to ask is no finding and has exit code 0; a package that was left out while others were answered for has not.
    """
    wrong = [f"{name} {version}: {', '.join(ids)}" for (name, version), ids in sorted(findings.known.items()) if ids]
    if not findings.known:
        places = " nor from ".join(SERVICES.values())
        return EXIT_OK, f"NOT AUDITED: no advisories to be had, neither from {places}; nothing is known of {LOCK.name}."
    wrong += [f"{package.name} {package.version}: no service knows it" for package in findings.left]
    if wrong:
        return EXIT_FOUND, "\n".join((f"{len(wrong)} of the packages in {LOCK.name} need a look:", *wrong))
    return EXIT_OK, f"No known vulnerabilities in the {len(findings.known)} packages of {LOCK.name}."


def ask_pip_audit(service: str, packages: Sequence[Package]) -> Answers:
    """Run pip-audit; a service that can't be reached, or does not know a package, leaves it out."""
    answers: Answers = {}
    for layer in layers(packages):
        with tempfile.TemporaryDirectory() as folder:
            requirements = Path(folder) / "requirements.txt"
            requirements.write_text("".join(map(_line, layer)), encoding="utf-8")
            found = _run(service, requirements)
        if found is None:
            break
        answers |= found
    return answers


def layers(packages: Sequence[Package]) -> list[list[Package]]:
    """Each package once in a layer: pip-audit takes no file that pins one twice."""
    found: list[list[Package]] = []
    for package in packages:
        for layer in found:
            if all(other.name != package.name for other in layer):
                layer.append(package)
                break
        else:
            found.append([package])
    return found


def _line(package: Package) -> str:
    """Without its marker, so that it counts on this Python too."""
    return f"{package.name}=={package.version} " + " ".join(f"--hash=sha256:{one}" for one in package.hashes) + "\n"


def _run(service: str, requirements: Path) -> Answers | None:
    """What the service answers; None, and its words on standard error, if it does not."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service]
    command += ["--requirement", str(requirements), "--disable-pip", "--require-hashes"]
    command += ["--progress-spinner", "off", "--format", "json", "--desc", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if done.stdout.strip():
        return read_answers(json.loads(done.stdout))
    *_, last = ["", *done.stderr.strip().splitlines()]
    if not AWAY.search(last):
        raise AuditBroken(f"pip-audit ended with exit code {done.returncode}: {done.stderr}")
    sys.stderr.write(f"{SERVICES[service]}: {last}\n")
    return None


def read_answers(document: Mapping[str, Any]) -> Answers:
    """pip-audit's JSON; what it skipped is left out."""
    return {
        (row["name"], row["version"]): [vulnerability["id"] for vulnerability in row["vulns"]]
        for row in document["dependencies"]
        if "skip_reason" not in row
    }


def main() -> int:
    """Audit the product's lock; gives the process's exit code."""
    code, words = verdict(audit(read_lock(LOCK.read_text(encoding="utf-8")), ask_pip_audit))
    sys.stdout.write(words + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
