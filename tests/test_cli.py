"""The command: what it prints, and what its exit codes say. Each test runs it as people do, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
import trio

from cador_trio import __version__
from tests.leaks import watch
from tests.peers.fake_algorithm import open_fake_algorithm

ROOT: Final = Path(__file__).parents[1]
CAP_SECONDS: Final = 60  # for a process to end by itself: this long only if something is wrong


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's own, without settings but these."""
    ours = ("CADOR_", "KAFKA_", "EOPAAS_", "PROCESSING_SERVER")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ours)}, **settings}


def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`python -m cador_trio` with these arguments and settings, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "cador_trio", *arguments],
        cwd=ROOT,
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=CAP_SECONDS,
        check=False,
    )
    watch("cador-trio", done.stdout + done.stderr)
    return done


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


def closed_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- Asking -------------------------------------------------------------------------------------------------------


def test_the_version() -> None:
    """Name and version, as the package has it."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"cador-trio, version {__version__}\n")


def test_the_script_and_the_module_are_the_same() -> None:
    """`cador-trio` is `python -m cador_trio`."""
    script = Path(sys.executable).with_name("cador-trio")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=CAP_SECONDS, check=True)
    assert done.stdout == run("--version").stdout


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_the_commands(flag: str) -> None:
    """So that nobody has to read the documentation first."""
    done = run(flag)
    assert done.returncode == 0
    for command in ("serve", "check", "demo"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("arguments", [["fly"], ["serve", "--fast"], ["check", "extra"]])
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    """Exit code 2, as for wrong settings."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: " in done.stderr


# --- Wrong settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("serve",), ("check",)])
def test_wrong_settings_stop_the_start_with_a_line_each(command: tuple[str, ...]) -> None:
    """Exit code 2, every finding in one line, no traceback, and nothing was tried."""
    done = run(*command, CADOR_PORT="x", CADOR_USE_SSL="true", CADOR_SPOOL_BYTES="lots", CADOR_API_TOKEN="hunter2")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert sorted(line.split(":")[1].strip() for line in lines) == ["CADOR_PORT", "CADOR_SPOOL_BYTES", "CADOR_USE_SSL"]
    assert all(line.startswith("cador-trio: ") for line in lines)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        (["CADOR_ALGORITHM_CA"], "CADOR_ALGORITHM_CA: no usable CA bundle"),
        (["CADOR_SSL_CERT", "CADOR_SSL_KEY"], "CADOR_SSL_CERT, CADOR_SSL_KEY, CADOR_SSL_CLIENT_CA: not usable"),
    ],
)
def test_a_file_that_is_no_certificate_stops_the_start(
    tmp_path: Path, command: str, variables: list[str], complaint: str
) -> None:
    """What can only be seen when it is used is told in the same way."""
    file = tmp_path / "bad.pem"
    file.write_text("nonsense")
    settings = dict.fromkeys(variables, str(file)) | {"CADOR_USE_SSL": "true", "CADOR_SELF_SIGNED": "true"}
    done = run(command, CADOR_PORT="0", CADOR_HOST="127.0.0.1", **settings)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cador-trio: {complaint}")


def test_a_missing_env_file_is_a_wrong_setting(tmp_path: Path) -> None:
    """Not silently nothing."""
    done = run("serve", "--env-file", str(tmp_path / "missing.env"))
    assert done.returncode == 2
    assert done.stderr == f"cador-trio: --env-file: {tmp_path / 'missing.env'}: no such file\n"


def test_a_port_that_is_taken_is_told_in_one_line(taken_port: int) -> None:
    """Exit code 1, no traceback, and where to look."""
    done = run("serve", CADOR_HOST="127.0.0.1", CADOR_PORT=str(taken_port))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cador-trio: can't listen on 127.0.0.1, port {taken_port}: Address already in use")
    assert "CADOR_PORT" in line


# --- check --------------------------------------------------------------------------------------------------------


async def test_check_shows_the_settings_and_finds_all_well(tmp_path: Path) -> None:
    """Exit code 0: every setting in a line, secrets masked, and a sentence for every neighbour."""
    async with open_fake_algorithm([]) as fake:
        done = await trio.to_thread.run_sync(
            lambda: run(
                "check",
                PROCESSING_SERVER=fake.url,
                CADOR_PORT="0",
                CADOR_METRICS_PORT="0",
                CADOR_HOST="127.0.0.1",
                CADOR_POSIX_ROOTS=str(tmp_path),
                CADOR_API_TOKEN="hunter2",
                CADOR_SPOOL_BYTES="1GiB",
                CADOR_PROT="1",
            )
        )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for line in (
        f"PROCESSING_SERVER={fake.url}",
        "CADOR_SPOOL_BYTES=1GiB",
        "CADOR_MAX_BODY_BYTES=100MiB",
        "CADOR_API_TOKEN=**********",
        "CADOR_PUBLIC_URL=",
        "unknown: CADOR_PROT is no setting of cador-trio, is it misspelt?",
        f"ok: POSIX storage: {tmp_path}: writable",
        "ok: listener: 127.0.0.1, port 0: free",
        "ok: listener of probes and metrics: 127.0.0.1, port 0: free",
    ):
        assert line in lines
    assert any(line.startswith("ok: algorithm: ") for line in lines)
    assert "hunter2" not in done.stdout


def test_check_finds_what_does_not_work(tmp_path: Path, taken_port: int) -> None:
    """Exit code 3, all of it named, and the settings are shown nevertheless."""
    missing = tmp_path / "missing"
    done = run(
        "check",
        PROCESSING_SERVER=f"http://127.0.0.1:{closed_port()}",
        CADOR_HOST="127.0.0.1",
        CADOR_PORT="0",
        CADOR_METRICS_PORT=str(taken_port),
        CADOR_POSIX_ROOTS=str(missing),
    )
    assert (done.returncode, done.stderr) == (3, "")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED: ")]
    assert [line.split(": ")[1] for line in failed] == [
        "algorithm",
        "POSIX storage",
        "listener of probes and metrics",
    ]
    assert f"CADOR_METRICS_PORT={taken_port}" in done.stdout.splitlines()
    assert "Traceback" not in done.stdout


def test_check_reads_the_env_file_too(tmp_path: Path) -> None:
    """Misspelt names in it are found as well."""
    file = tmp_path / "cador.env"
    file.write_text(
        f"PROCESSING_SERVER=http://127.0.0.1:{closed_port()}\nCADOR_TAGGER=mine\nCADOR_HOTS=x\nCADOR_PORT=0\n"
    )
    done = run("check", "--env-file", str(file))
    assert done.returncode == 3
    assert "CADOR_TAGGER=mine" in done.stdout.splitlines()
    assert "unknown: CADOR_HOTS is no setting of cador-trio, is it misspelt?" in done.stdout.splitlines()


# --- serve --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("serve",)])
def test_it_serves_until_it_is_told_to_stop(command: tuple[str, ...]) -> None:
    """Without a command, or with `serve`: log lines only, each one JSON; misspelt settings are named; exit code 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cador_trio", *command],
        cwd=ROOT,
        env=clean_environment(
            PROCESSING_SERVER=f"http://127.0.0.1:{closed_port()}",
            CADOR_HOST="127.0.0.1",
            CADOR_PORT="0",
            CADOR_PROT="1",
            CADOR_LOG_FORMAT="json",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        assert process.stdout is not None
        lines = []
        for text in process.stderr:
            lines.append(json.loads(text))
            if lines[-1]["event"] == "serving":
                break
        process.send_signal(signal.SIGTERM)
        lines += [json.loads(text) for text in process.stderr]
        assert process.stdout.read() == ""
    assert process.returncode == 0
    events = [line["event"] for line in lines]
    assert events[-1] == "stopped"
    (misspelt,) = (line for line in lines if line["event"].startswith("this variable is no setting"))
    assert misspelt["variable"] == "CADOR_PROT"
