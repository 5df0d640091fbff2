"""`cador-trio demo`: whole, with real processes; its picture; and its ways to fail."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from cador_trio.commands import demo, demonstration
from cador_trio.commands.picture import SCALE, Frame, draw

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


def fail(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str, output: Path) -> int:
    """Run the demo with another algorithm."""
    (folder / "server.py").write_text(script)
    monkeypatch.setattr(demonstration, "find_algorithm", lambda: folder)
    return demo.run_demo(keep=False, output=output)


def test_algorithm_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It ends before it listens: the demo says so with its exit code and how to try it alone."""
    assert fail(monkeypatch, tmp_path, "raise SystemExit(7)", tmp_path / "out") == demo.EXIT_FAILED
    told = capsys.readouterr().err
    assert "did not start (exit code 7)" in told
    assert "server.py --host" in told


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
