"""Every command of the pages is typed by a test, or is on the list of those that can't be, with its reason.

A reader's places are put where a test may have them: ports, brokers and folders, nothing else of a command is changed.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest

from cador_trio.errors import AlgorithmFailed
from cador_trio.kafka.dead_letters import dead_letter
from cador_trio.kafka.messages import Record
from cador_trio.settings import load_settings, unknown_variables
from tests.peers.kafka.broker import RealKafka
from tests.peers.kafka_fixtures import Topics
from tests.peers.object_stores.server_process import reserved_ports
from tests.peers.output import read_until
from tests.test_docs import COMMANDS, PAGES, ROOT, blocks, name_of

CAP_SECONDS: Final = 60  # for any one command: this long only if something is wrong
EXAMPLE: Final = ROOT / "containers" / "water-bodies"
SCENE: Final = EXAMPLE / "blue-marble-black-sea-caspian.png"

ENGINE: Final = "needs a container engine"
CLUSTER: Final = "needs a cluster"
CI: Final = "run whole by .ci/run"
DEMO: Final = "run by tests/commands/test_demo.py"
CLEAN_ROOT: Final = "run by tests/containers/test_clean_root.py"
TRACES: Final = "run by tests/daemon/test_traces.py, with a collector of its own"

# Each command by its page and how it begins: the test that types it, or why none does.
TABLE: Final[dict[tuple[str, str], str]] = {
    ("README.md", "python3 -m venv .venv"): CI,
    ("README.md", ".venv/bin/pip install --quiet rust-just"): CI,
    ("README.md", ".venv/bin/just demo"): DEMO,
    ("README.md", ".venv/bin/just test"): CI,
    ("README.md", "PROCESSING_SERVER=http://127.0.0.1:8080 CADOR_POSIX_ROOTS=/data cador-trio check"): "test_by_http",
    ("README.md", "PROCESSING_SERVER=http://127.0.0.1:8080 CADOR_POSIX_ROOTS=/data cador-trio"): "test_by_http",
    ("README.md", "curl"): "test_by_http",
    ("README.md", "export KAFKA_BROKERS_REQUEST"): "at_kafka",
    ("README.md", "export EOPAAS_JOB_REQUEST_TOPIC"): "at_kafka",
    ("README.md", "cador-trio submit request.json"): "test_by_kafka",
    ("README.md", "cador-trio demo --kafka"): DEMO,
    ("containers/water-bodies/README.md", "pip install"): CLEAN_ROOT,
    ("containers/water-bodies/README.md", "python server.py"): "algorithm",
    ("docs/commands.md", "cador-trio submit request.json"): "test_by_http",
    ("docs/commands.md", "cador-trio submit --input"): "test_by_http",
    ("docs/commands.md", "make-request | cador-trio submit"): "test_by_kafka",
    ("docs/commands.md", "cador-trio dead-letters list"): "test_dead_letters",
    ("docs/commands.md", "cador-trio dead-letters show"): "test_dead_letters",
    ("docs/commands.md", "cador-trio dead-letters replay 0/17"): "test_dead_letters",
    ("docs/commands.md", "cador-trio dead-letters replay --all"): "test_dead_letters",
    ("docs/from-pesto-to-service.md", "docker run"): ENGINE,
    ("docs/from-pesto-to-service.md", "PROCESSING_SERVER=http://127.0.0.1:8080 cador-trio check"): "test_own_image",
    ("docs/from-pesto-to-service.md", "PROCESSING_SERVER=http://127.0.0.1:8080 cador-trio"): "test_own_image",
    ("docs/from-pesto-to-service.md", "cador-trio submit --http"): "test_own_image",
    ("docs/from-pesto-to-service.md", "just build"): CI,
    ("docs/from-pesto-to-service.md", "docker compose --file containers/compose.yaml up"): ENGINE,
    ("docs/from-pesto-to-service.md", "curl"): "test_own_image",
    ("docs/from-pesto-to-service.md", "docker compose --file containers/compose.yaml exec"): ENGINE,
    ("docs/from-pesto-to-service.md", "just image"): ENGINE,
    ("docs/from-pesto-to-service.md", "kubectl exec"): CLUSTER,
    ("docs/kubernetes.md", "cd containers/kubernetes"): "test_folders",
    ("docs/kubernetes.md", "kubectl apply -f configuration.yaml"): CLUSTER,
    ("docs/kubernetes.md", "kubectl apply -f statefulset.yaml"): CLUSTER,
    ("docs/kubernetes.md", "kubectl apply -f servicemonitor.yaml"): CLUSTER,
    ("docs/traces-and-logs.md", "pip install"): CLEAN_ROOT,
    ("docs/traces-and-logs.md", "export OTEL_EXPORTER_OTLP_ENDPOINT"): TRACES,
}  # fmt: skip


# --- What is in the pages ----------------------------------------------------------------------------------------


def commands_in(text: str, *, is_console: bool) -> Iterator[str]:
    """Each command whole, over as many lines as its quotes and backslashes say; without comments and what it prints."""
    command = ""
    for line in text.splitlines():
        if is_console and not command and not line.startswith("$ "):
            continue
        command += line.removeprefix("$ ") if is_console and not command else line
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quote is open
            command += "\n"
            continue
        if command.endswith("\\"):
            command = command[:-1]
        else:
            if words:
                yield re.sub(r"\s+# .*$", "", command) if "\n" not in command else command
            command = ""
    assert not command, f"never ends: {command}"


def assignments(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def is_assignment(command: str) -> bool:
    """It sets variables and runs nothing."""
    return all(re.fullmatch(r"\w+=.*", word) for word in shlex.split(command))


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for language, text in blocks(page):
            if language in COMMANDS:
                for command in commands_in(text, is_console=language == "console"):
                    yield name_of(page), command


EVERY_COMMAND: Final = list(commands())


def rows_of(page: str, command: str) -> list[tuple[str, str]]:
    """The longest entry of the table that the command begins with."""
    found = [key for key in TABLE if key[0] == page and command.startswith(key[1])]
    return sorted(found, key=lambda key: len(key[1]))[-1:]


def told(page: str, begin: str) -> str:
    """The page's command of that entry."""
    found = {command for place, command in EVERY_COMMAND if rows_of(place, command) == [(page, begin)]}
    assert len(found) == 1, f"{page} has {len(found)} commands that begin with {begin}"
    return found.pop()


@pytest.mark.parametrize(("page", "command"), EVERY_COMMAND)
def test_each_command_is_accounted_for(page: str, command: str) -> None:
    """A test types it, or the list says why none can; lines that only set variables are held against the settings."""
    assert rows_of(page, command) or is_assignment(command), f"{page}: nobody runs {command}"


def test_the_table_is_true() -> None:
    """Each entry is in its page still, and the test that it names types it."""
    met = {key for page, command in EVERY_COMMAND for key in rows_of(page, command)}
    assert met == set(TABLE)
    reasons = {ENGINE, CLUSTER, CI, DEMO, CLEAN_ROOT, TRACES}
    for (page, begin), by in TABLE.items():
        if by not in reasons:
            source = inspect.getsource(inspect.unwrap(getattr(sys.modules[__name__], by)))
            assert f'"{page}"' in source, f"{by} does not open {page}"
            assert f'"{begin}"' in source, f"{by} does not type {begin}"


def test_ci_runs_what_is_left_to_it() -> None:
    """.ci/run types these commands."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for (page, begin), by in TABLE.items():
        if by == CI:
            assert told(page, begin).removeprefix(".venv/bin/") in script


def test_files_for_the_cluster_are_there() -> None:
    """Every manifest is applied by some command, and every one that is applied exists."""
    lines = [command for page, command in EVERY_COMMAND if page == "docs/kubernetes.md" and "apply" in command]
    named = {file for line in lines for file in re.findall(r"-f (\S+)", line)}
    there = {path.name for path in (ROOT / "containers" / "kubernetes").glob("*.yaml")}
    assert named <= there
    assert there - named <= {"deployment.yaml"}  # "one of the two"


def test_variables_are_settings() -> None:
    """Blocks that only set variables name ours, with values that are good together."""
    pages = dict[str, dict[str, str]]()
    for page, command in EVERY_COMMAND:
        if is_assignment(command):
            pages.setdefault(page, {}).update(assignments(shlex.split(command)))
    assert pages
    for variables in pages.values():
        assert unknown_variables(variables) == []
        assert set(variables) <= {row.alias for row in type(load_settings(variables)).model_fields.values()}


# --- A reader ----------------------------------------------------------------------------------------------------


class Reader:
    """Somebody at a terminal with one folder, who types what a page says. `places` are the page's words -> ours."""

    def __init__(self, folder: Path, places: Mapping[str, str], **variables: str) -> None:
        self.folder = folder
        self.places = places
        ours = ("CADOR_", "KAFKA_", "EOPAAS_", "PROCESSING_SERVER")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join((str(Path(sys.executable).parent), str(folder), os.environ["PATH"]))
        self.variables = {**kept, "PATH": path, **variables}

    def moved(self, command: str) -> str:
        """The command with its places replaced by ours."""
        words = "|".join(re.escape(word) for word in sorted(self.places, key=len, reverse=True))
        return re.sub(words, lambda match: self.places[match[0]], command) if words else command

    def type(self, command: str) -> str:
        """Its standard output, once it has ended well."""
        command = self.moved(command)
        if command.startswith("export "):
            self.variables |= assignments(shlex.split(command)[1:])
            return ""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=CAP_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def typed(self, command: str, mark: str) -> Iterator[None]:
        """The command runs within the block, from the line with `mark` on; SIGTERM ends it, which has to go well."""
        with subprocess.Popen(
            ["bash", "-c", f"exec env {self.moved(command)}"],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                read_until(process.stdout, mark)
                yield
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=CAP_SECONDS)
                assert process.returncode == 0
            finally:
                process.kill()


def request(folder: Path) -> dict[str, Any]:
    """What a request.json would hold."""
    return {"image": f"file://{folder}/in/scene.tif", "technicalMetadata": {"taskId": "order-41"}}


@pytest.fixture(scope="module")
def algorithm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The example algorithm, started as its page says; gives its address."""
    page = "containers/water-bodies/README.md"
    with reserved_ports(1) as [port]:
        reader = Reader(EXAMPLE, {"8080": str(port)})
        with reader.typed(told(page, "python server.py"), f"http://127.0.0.1:{port}"):
            yield f"127.0.0.1:{port}"


@pytest.fixture
def reader(algorithm: str, tmp_path: Path) -> Iterator[Reader]:
    """With /data in the reader's own folder, and a scene in it."""
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    shutil.copy(SCENE, tmp_path / "in" / "scene.tif")
    (tmp_path / "request.json").write_text(json.dumps(request(tmp_path)), encoding="utf-8")
    with reserved_ports(1) as [port]:
        places = {
            "127.0.0.1:8080": algorithm,
            "127.0.0.1:9090": f"127.0.0.1:{port}",
            "/data": str(tmp_path),
            "/scenes": str(EXAMPLE),
            "https://images.example": f"file://{tmp_path}/in",
        }
        yield Reader(tmp_path, places, CADOR_PORT=str(port), CADOR_LOG_LEVEL="info")


def test_by_http(reader: Reader) -> None:
    """The README's way by REST, and `submit` to the same daemon."""
    readme, commands_page = "README.md", "docs/commands.md"
    reader.type(told(readme, "PROCESSING_SERVER=http://127.0.0.1:8080 CADOR_POSIX_ROOTS=/data cador-trio check"))
    serve = told(readme, "PROCESSING_SERVER=http://127.0.0.1:8080 CADOR_POSIX_ROOTS=/data cador-trio")
    with reader.typed(serve, "serving"):
        answer = json.loads(reader.type(told(readme, "curl")))
        assert (reader.folder / "out" / "order-42_mask").stat().st_size == answer["mask"]["size"]
        sent = json.loads(reader.type(told(commands_page, "cador-trio submit request.json")))
        assert sent["count"] == answer["count"]
        reader.type(told(commands_page, "cador-trio submit --input"))
    assert json.loads((reader.folder / "result.json").read_text(encoding="utf-8"))["count"] < answer["count"]


def test_own_image(reader: Reader) -> None:
    """From a PESTO image to a service, without the engine: check, serve, submit, and the request of all the parts."""
    page = "docs/from-pesto-to-service.md"
    reader.type(told(page, "PROCESSING_SERVER=http://127.0.0.1:8080 cador-trio check"))
    # The compose file's profile, with a folder in place of its store.
    profiles = reader.folder / "profiles.toml"
    profiles.write_text(f'[archive]\ntype = "POSIX"\nfolder = "{reader.folder}/out"\n', encoding="utf-8")
    reader.variables["CADOR_STORAGE_PROFILES"] = str(profiles)
    with reader.typed(told(page, "PROCESSING_SERVER=http://127.0.0.1:8080 cador-trio"), "serving"):
        sent = json.loads(reader.type(told(page, "cador-trio submit --http")))
        answer = json.loads(reader.type(told(page, "curl")))
    assert answer["count"] == sent["count"]
    assert (reader.folder / "out" / "first_mask").exists()


def test_folders() -> None:
    """Where a page sends its reader, there is a folder."""
    Reader(ROOT, {}).type(told("docs/kubernetes.md", "cd containers/kubernetes"))


# --- With a Kafka ------------------------------------------------------------------------------------------------

WORDS: Final = ("requests", "outputs", "statuses", "dead-letters")


@pytest.fixture
def at_kafka(reader: Reader, kafka: RealKafka, topics: Topics) -> Reader:
    """The reader, whose brokers have the topics that the pages name, by names of this test's own."""
    kafka.create_topics({topics(word): 1 for word in WORDS})
    named = {f"{before}{word}": f"{before}{topics(word)}" for word in WORDS for before in ("_TOPIC=", "-topic ")}
    brokers = {"127.0.0.1:9092": kafka.bootstrap, "broker:9092": kafka.bootstrap}
    reader.places = {**reader.places, **brokers, **named, "_GROUP=cador": f"_GROUP={topics('cador')}"}
    reader.type(told("README.md", "export KAFKA_BROKERS_REQUEST"))
    reader.type(told("README.md", "export EOPAAS_JOB_REQUEST_TOPIC"))
    return reader


def test_by_kafka(at_kafka: Reader) -> None:
    """The README's way by Kafka, and `submit` by other brokers' names."""
    reader, page = at_kafka, "docs/commands.md"
    program = reader.folder / "make-request"
    program.write_text("#!/bin/sh\ncat request.json\n", encoding="utf-8")
    program.chmod(0o755)
    serve = told("README.md", "PROCESSING_SERVER=http://127.0.0.1:8080 CADOR_POSIX_ROOTS=/data cador-trio")
    with reader.typed(serve, "serving"):
        end = json.loads(reader.type(told("README.md", "cador-trio submit request.json")))
        assert (end["status"], end["taskId"]) == ("SUCCEEDED", "order-41")
        end = json.loads(reader.type(told(page, "make-request | cador-trio submit")))
        assert (end["status"], end["taskId"]) == ("SUCCEEDED", "order-42")


def test_dead_letters(at_kafka: Reader, kafka: RealKafka, topics: Topics) -> None:
    """Listed, shown and sent again, at the positions that the page names."""
    reader, page = at_kafka, "docs/commands.md"
    reader.variables["CADOR_DEAD_LETTER_TOPIC"] = topics("dead-letters")
    for number in range(22):
        letter = dead_letter(
            Record(topics("requests"), 0, number, None, json.dumps(request(reader.folder)).encode(), (), 0),
            error=AlgorithmFailed("the algorithm answered 500: no bands"),
            attempts=(),
            job_id=UUID(int=number),
            task_name="order-42",
            algorithm="water-bodies/1.0.0",
            failed_at=int(time.time() * 1_000),
            traceparent=None,
            limit=1_000_000,
        )
        kafka.produce(topics("dead-letters"), [letter.value], keys=[letter.key], headers=letter.headers, partition=0)
    assert "0/21" in reader.type(told(page, "cador-trio dead-letters list"))
    assert "no bands" in reader.type(told(page, "cador-trio dead-letters show"))
    reader.type(told(page, "cador-trio dead-letters replay 0/17"))
    assert len(kafka.read_topic(topics("requests"))) == 2
    reader.type(told(page, "cador-trio dead-letters replay --all"))
    assert len(kafka.read_topic(topics("requests"))) == 2
