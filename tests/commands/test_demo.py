"""`cador-trio demo`: whole, with real processes; its picture; and its ways to fail."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import httpx
import numpy as np
import pytest
from confluent_kafka.admin import AdminClient
from PIL import Image

from cador_trio.commands import demo, demonstration, processes
from cador_trio.commands.demo_brokers import KINDS
from cador_trio.commands.picture import SCALE, Frame, draw
from tests.peers.kafka.broker import RealKafka

TIMEOUT = 120  # seconds after which a test has hung


def command(output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "cador_trio", "demo", "--output", str(output), *options]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What one whole demo printed, and its output folder."""
    folder = tmp_path_factory.mktemp("demo") / "made by the demo"
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, folder


def test_seas_are_where_the_atlas_has_them(shown: tuple[str, Path]) -> None:
    """The table has the Black Sea and the Caspian, each at most 0.1° off."""
    for name in ("Black Sea", "Caspian Sea"):
        (row,) = re.findall(rf"^ {name}.*$", shown[0], re.MULTILINE)
        (off,) = re.findall(r"(\d\.\d\d)° ✓", row)
        assert float(off) <= 0.1


def test_table_fits_80_columns(shown: tuple[str, Path]) -> None:
    """What comes before the files and addresses is no wider than a terminal."""
    table = shown[0].partition("Bodies of water")[2].partition("Files")[0]
    assert max(map(len, table.splitlines())) <= 80


def test_cut_seas_are_not_compared(shown: tuple[str, Path]) -> None:
    """The Mediterranean goes on past the edge of the image, and the table says so."""
    assert re.search(r"^ Mediterranean .* cut by the edge *$", shown[0], re.MULTILINE)


def test_mask_is_stored_intact(shown: tuple[str, Path]) -> None:
    """The stored mask is a PNG of the image's size, and its SHA-256 is the one that is printed."""
    mask = shown[1] / "demo_mask"
    assert hashlib.sha256(mask.read_bytes()).hexdigest() in shown[0]
    with Image.open(mask) as opened:
        assert (opened.format, opened.size) == ("PNG", (600, 240))


def test_shores_are_in_degrees(shown: tuple[str, Path]) -> None:
    """The GeoJSON that is left for other programs lies within the image's longitudes and latitudes, holes included."""
    features = json.loads((shown[1] / "water.geojson").read_text())["features"]
    positions = [p for feature in features for ring in feature["geometry"]["coordinates"] for p in ring]
    assert (min(p[0] for p in positions), max(p[1] for p in positions)) >= (24.0, 34.0)
    assert all(24 <= longitude <= 64.0001 and 33.9999 <= latitude <= 50 for longitude, latitude in positions)


def test_addresses_are_promised_only_with_keep(shown: tuple[str, Path]) -> None:
    """Without --keep the addresses are dead when they are read, so the text says how to have them."""
    assert "run it with --keep" in shown[0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(re.findall(r"http://\S+/swagger", shown[0])[0], trust_env=False)


def test_output_folder_may_exist(shown: tuple[str, Path]) -> None:
    """A second demo overwrites the first one's files."""
    subprocess.run(command(shown[1]), check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL)


# --- Staying, and leaving early ----------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo with --keep."""
    with subprocess.Popen(command(tmp_path, "--keep"), stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.terminate()  # not kill: it has a process of its own to end


def read_until(process: subprocess.Popen[str], mark: str) -> str:
    """Its output up to the line with the mark."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if mark in line:
            return text
    raise AssertionError(f"it ended without {mark!r}: {text}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_keep_stays_until_it_is_stopped(kept: subprocess.Popen[str], number: signal.Signals) -> None:
    """With --keep every address that is printed works, and Ctrl-C or SIGTERM ends all of it with code 0."""
    addresses = re.findall(r"http://\S+", read_until(kept, "Results"))
    algorithm, _, *printed = addresses
    for address in printed:
        assert httpx.get(address, trust_env=False, follow_redirects=True).status_code == 200
    kept.send_signal(number)
    assert kept.wait(TIMEOUT) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(algorithm, trust_env=False)


def test_interrupted_before_the_end(kept: subprocess.Popen[str]) -> None:
    """Ctrl-C before there is a result ends everything with the shell's code for it, without a traceback."""
    algorithm = re.findall(r"http://\S+", read_until(kept, "listens at"))[0]
    kept.send_signal(signal.SIGINT)
    assert kept.wait(TIMEOUT) == demo.EXIT_INTERRUPTED
    with pytest.raises(httpx.ConnectError):
        httpx.get(algorithm, trust_env=False)


# --- By Kafka ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown_by_kafka(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one whole demo through the mock cluster printed."""
    done = run(tmp_path_factory.mktemp("demo"), "--kafka")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=TIMEOUT, check=False)


def messages(told: str) -> list[str]:
    """The lines about messages: topic and what it says."""
    return [f"{kind} {words}" for kind, words in re.findall(r"^  ([a-z-]+)/\d+/\d+ +(.+?) *$", told, re.MULTILINE)]


def check_messages(told: str) -> None:
    first, accepted, running, *tags, output, end = messages(told)
    assert first.startswith("requests task demo")
    assert (accepted, running) == ("statuses ACCEPTED", "statuses RUNNING")
    assert all(re.fullmatch(r"tags water, centre [\d.]+° E [\d.]+° N, [\d,]+ km²", tag) for tag in tags)
    more = int(re.findall(r"and (\d+) more tags", told)[0])
    assert output == f"outputs water: {len(tags) + more} features, mask: stored as demo_mask"
    assert end == f"statuses SUCCEEDED, names {len(tags) + more + 1} messages and 1 stored object"


def test_kafka_shows_the_messages(shown_by_kafka: str) -> None:
    """Request, statuses, tags and output in the order in which they were written; all that the last one names came."""
    check_messages(shown_by_kafka)


def test_kafka_shows_the_same_table(shown: tuple[str, Path], shown_by_kafka: str) -> None:
    """The results are those of the demo by HTTP, to the last digit; and it fits the terminal."""
    tables = [told.partition("Bodies of water")[2].partition("Files")[0] for told in (shown[0], shown_by_kafka)]
    assert tables[0] == tables[1]
    table = shown_by_kafka.partition("topic/partition")[2].partition("✓ Job")[0]
    assert max(map(len, table.splitlines())) <= 80


def test_mock_cluster_promises_no_transactions(shown_by_kafka: str) -> None:
    """It is said that there are none, what that means, and what to do for more."""
    assert "no transactions" in shown_by_kafka
    assert "Delivery: at least once" in shown_by_kafka
    assert "--brokers HOST:PORT" in shown_by_kafka


def topics_of_demos(kafka: RealKafka) -> set[str]:
    found = AdminClient({"bootstrap.servers": kafka.bootstrap}).list_topics(timeout=TIMEOUT).topics
    return {name for name in found if name.startswith("cador-demo-")}


def test_real_brokers(kafka: RealKafka, tmp_path: Path) -> None:
    """On real brokers the same job goes exactly once, and nothing of the demo's is left there."""
    before = topics_of_demos(kafka)
    done = run(tmp_path, "--brokers", kafka.bootstrap)
    assert (done.returncode, done.stderr) == (0, "")
    check_messages(done.stdout)
    assert "Delivery: exactly once" in done.stdout
    (prefix,) = re.findall(r"Created 5 topics at \S+: (cador-demo-[0-9a-f]+-)", done.stdout)
    assert f"Deleted the topics {prefix}…" in done.stdout
    assert topics_of_demos(kafka) == before
    groups = AdminClient({"bootstrap.servers": kafka.bootstrap}).list_consumer_groups().result().valid
    assert not [group.group_id for group in groups if group.group_id.startswith(prefix)]


def test_real_brokers_keep(kafka: RealKafka, tmp_path: Path) -> None:
    """With --keep the topics stay for whoever wants to look, and their names are said."""
    before = topics_of_demos(kafka)
    options = command(tmp_path, "--brokers", kafka.bootstrap, "--keep")
    with subprocess.Popen(options, stdout=subprocess.PIPE, text=True) as process:
        told = read_until(process, "Results")
        process.terminate()
        assert process.stdout is not None
        told += process.stdout.read()
        assert process.wait(TIMEOUT) == 0
    (prefix,) = re.findall(r"The topics (cador-demo-[0-9a-f]+-)… stay at", told)
    assert topics_of_demos(kafka) - before == {f"{prefix}{kind}" for kind in KINDS}


def test_real_brokers_interrupted(kafka: RealKafka, tmp_path: Path) -> None:
    """Ctrl-C before the end leaves nothing behind on the brokers either."""
    before = topics_of_demos(kafka)
    with subprocess.Popen(
        command(tmp_path, "--brokers", kafka.bootstrap), stdout=subprocess.PIPE, text=True
    ) as process:
        read_until(process, "Created 5 topics")
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == demo.EXIT_INTERRUPTED
    assert topics_of_demos(kafka) == before


def test_brokers_that_are_not_there(tmp_path: Path) -> None:
    """It says so, with their address, and the code is 3."""
    with socket.socket() as taken:  # bound and not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        brokers = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(tmp_path, "--brokers", brokers)
    assert done.returncode == demo.EXIT_FAILED
    assert re.search(rf"The demo failed: .*{brokers}", done.stderr)


def test_brokers_that_can_not_be(tmp_path: Path) -> None:
    """A misspelt address is a wrong setting."""
    done = run(tmp_path, "--brokers", "http://no/broker")
    assert done.returncode == demo.EXIT_SETTINGS
    assert "KAFKA_BROKERS_REQUEST: must be host:port" in done.stderr


# --- Failing -----------------------------------------------------------------------------------------------------


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without the extra's packages it names them and the command that installs them, and the code is 3."""
    find_spec = importlib.util.find_spec

    def without_rasterio(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "rasterio" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_rasterio)
    assert demo.run_demo(keep=False, output=tmp_path) == demo.EXIT_FAILED
    told = capsys.readouterr().err
    assert "rasterio" in told
    assert "pip install 'cador-trio[demo]'" in told


def fail(
    monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, output: Path, kafka: demo.KafkaChoice | None = None
) -> int:
    """Run the demo with another algorithm."""
    (folder / "server.py").write_text(script)
    monkeypatch.setattr(demonstration, "find_algorithm", lambda: folder)
    return demo.run_demo(keep=False, output=output, kafka=kafka)


def test_algorithm_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It ends before it listens: the demo says so with its exit code and how to try it alone."""
    assert fail(monkeypatch, tmp_path, "raise SystemExit(7)", tmp_path / "out") == demo.EXIT_FAILED
    told = capsys.readouterr().err
    assert "did not start (exit code 7)" in told
    assert "server.py --host" in told


REFUSES = """
import http.server, pathlib
DESCRIBE = pathlib.Path(__file__).with_name("describe.json").read_bytes()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.answer(200, DESCRIBE)
    def do_POST(self): self.rfile.read(int(self.headers["Content-Length"])), self.answer(500, b'"no bands"')
    def log_message(self, *_): pass
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def test_algorithm_that_refuses_by_kafka(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The dead letter is shown with its reason, then FAILED, and the demo ends with that reason."""
    algorithm = processes.find_algorithm()
    for name in ("describe.json", demonstration.IMAGE):
        shutil.copy(algorithm / name, tmp_path)
    assert fail(monkeypatch, tmp_path, REFUSES, tmp_path / "out", demo.KafkaChoice()) == demo.EXIT_FAILED
    told = capsys.readouterr()
    letter, end = messages(told.out)[-2:]
    assert letter.startswith("dead-letters the algorithm answered 500")
    assert end.startswith("statuses FAILED the algorithm answered 500")
    assert "The demo failed: the job is FAILED: the algorithm answered 500" in told.err


def test_algorithm_that_dies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It ends while the demo waits for it: no waiting until some timeout, but a sentence."""
    script = "print('http://127.0.0.1:9', flush=True)"
    assert fail(monkeypatch, tmp_path, script, tmp_path / "out") == demo.EXIT_FAILED
    assert "the example algorithm ended by itself, with code 0" in capsys.readouterr().err


def test_output_folder_that_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file in the way of the folder: said, with the option that helps."""
    (tmp_path / "file").touch()
    assert demo.run_demo(keep=False, output=tmp_path / "file" / "out") == demo.EXIT_FAILED
    assert "--output" in capsys.readouterr().err


def test_wrong_place_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """If the image were said to lie two pixels further east, the demo would fail and name both seas."""
    monkeypatch.setattr(demonstration, "FRAME", Frame(24.0 + 2 / 15, 50.0, 1 / 15, -1 / 15))
    assert demo.run_demo(keep=False, output=tmp_path) == demo.EXIT_FAILED
    told = capsys.readouterr().err
    assert "Black Sea" in told
    assert "Caspian" in told


def test_unexpected_errors_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What nobody foresaw comes with its traceback, and the code is 3 all the same."""
    monkeypatch.setattr(demonstration, "bodies_table", lambda _: 1 / 0)
    assert demo.run_demo(keep=False, output=tmp_path) == demo.EXIT_FAILED
    assert "ZeroDivisionError" in capsys.readouterr().err


# --- The picture -------------------------------------------------------------------------------------------------


def test_shores_are_drawn_where_the_referential_puts_them(tmp_path: Path) -> None:
    """A square from 31 to 32° E and 41 to 42° N, in an image of 2 pixels a degree, is drawn around its pixels."""
    frame = Frame(30.0, 45.0, 0.5, -0.5)
    Image.new("RGB", (20, 16)).save(tmp_path / "image.png")
    ring = [[31.0, 42.0], [32.0, 42.0], [32.0, 41.0], [31.0, 41.0], [31.0, 42.0]]
    features = [{"geometry": {"coordinates": [ring]}}]
    draw(tmp_path / "image.png", features, [], frame, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (20 * SCALE, 16 * SCALE)
        red, _, blue = np.moveaxis(np.asarray(picture).astype(int), -1, 0)
    rows, columns = np.nonzero(red - blue > 100)  # the yellow of shores
    # Columns 2 to 4 and rows 6 to 8 of the image. A shift by half a pixel would be 1.5 on the screen.
    centre = ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
    assert centre == pytest.approx((3 * SCALE, 7 * SCALE), abs=0.75)
    assert columns.max() - columns.min() == pytest.approx(2 * SCALE, abs=2)
