"""The audit of the lock: what is found fails, who can't be reached is said aloud, and nothing passes unseen.

pip-audit is the real one, before a server of advisories on loopback.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from supply_chain.audit import Answers, AuditBroken, ask_pip_audit, audit, layers, verdict
from supply_chain.lock import LOCK, Package, read_lock

# PyPI's advisories are at a fixed address.
OSV = ("osv",)

HASHES = ("ab" * 32,)
GOOD = Package("good", "1.0", "", HASHES, ())
BAD = Package("bad", "1.0", "", HASHES, ())
BAD_LATER = Package("bad", "2.0", "python_full_version >= '3.99'", HASHES, ())


class Advisories(BaseHTTPRequestHandler):
    """OSV's query: `bad` has an advisory in every version, whatever else is asked has none."""

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = {"name": question["package"]["name"], "ecosystem": "PyPI"}
        advisory = {
            "id": "PYSEC-1",
            "summary": "",
            "affected": [{"package": package, "versions": [question["version"]]}],
        }
        body = json.dumps({"vulns": [advisory]} if package["name"] == "bad" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@pytest.fixture
def osv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of advisories, where pip-audit looks for OSV's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{server.server_port}/v1/query")
        yield
        server.shutdown()
        thread.join()


def test_a_vulnerability_fails(osv: None) -> None:
    """What is known of any pinned version is named, that for another Python too, and makes the exit code 1."""
    code, words = verdict(audit([GOOD, BAD, BAD_LATER], ask_pip_audit, OSV))
    assert code == 1
    assert words.splitlines()[1:] == ["bad 1.0: PYSEC-1", "bad 2.0: PYSEC-1"]


def test_the_whole_lock_can_be_asked_about(osv: None) -> None:
    """pip-audit takes every line of the product's lock, and where nothing is known the exit code is 0."""
    packages = read_lock(LOCK.read_text(encoding="utf-8"))
    code, words = verdict(audit(packages, ask_pip_audit, OSV))
    assert (code, words) == (0, f"No known vulnerabilities in the {len(packages)} packages of requirements.lock.")


def test_nobody_there_is_said_aloud(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """With no service to be reached nothing is claimed, and the exit code is 0 for that reason alone."""
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", "http://127.0.0.1:9/v1/query")
    code, words = verdict(audit([BAD], ask_pip_audit, OSV))
    assert code == 0
    assert words.startswith("NOT AUDITED")
    assert "127.0.0.1" in capfd.readouterr().err


def test_a_broken_audit_is_not_taken_for_an_absent_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of any other kind is one."""
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", "no address")
    with pytest.raises(AuditBroken, match="exit code 1"):
        audit([BAD], ask_pip_audit, OSV)


def test_the_second_service_answers_for_the_rest() -> None:
    """What the first one does not know the second one is asked about, and only that."""
    asked: list[tuple[str, list[Package]]] = []

    def ask(service: str, packages: Sequence[Package]) -> Answers:
        asked.append((service, list(packages)))
        return {("good", "1.0"): []} if service == "pypi" else {("bad", "1.0"): ["PYSEC-1"]}

    findings = audit([GOOD, BAD], ask)
    assert asked == [("pypi", [GOOD, BAD]), ("osv", [BAD])]
    assert verdict(findings)[0] == 1


def test_a_package_that_nobody_knows_fails() -> None:
    """Services that answer for some are there: what they leave out is no matter of reaching them."""
    code, words = verdict(audit([GOOD, BAD], lambda service, packages: {("good", "1.0"): []}))
    assert code == 1
    assert words.splitlines()[1:] == ["bad 1.0: no service knows it"]


def test_each_layer_pins_a_name_once() -> None:
    """A package of two versions is asked about in two goes."""
    assert layers([GOOD, BAD, BAD_LATER]) == [[GOOD, BAD], [BAD_LATER]]
