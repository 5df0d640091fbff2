"""What the demo prints: steps, then the bodies of water beside the atlas, and where to look further.

Needs rich (the extra `demo`). Made to fit 80 columns; addresses and paths stay in one piece whatever their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cador_trio.commands.atlas import TOLERANCE, Sighting
from cador_trio.job import JsonObject

_HEADING = f"{'lon':>5}  {'lat':>5}  {'km²':>7}"
_WIDTH = len(_HEADING)


def done(console: Console, text: str) -> None:
    """Print a step that is behind us. Nothing is wrapped: an address that is broken into lines can't be copied."""
    console.print(f"[green]✓[/green] {text}", soft_wrap=True)


def bodies_table(sightings: Sequence[Sighting]) -> Table:
    """Every body of water, found and in the atlas."""
    table = Table(
        title="Bodies of water in degrees east and north",
        title_justify="left",
        caption="atlas: © OpenStreetMap contributors (the two seas), Natural Earth, GSHHG; centres of mass",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("\nwater", no_wrap=True)
    table.add_column(f"{'found':>{_WIDTH}}\n{_HEADING}", justify="right", no_wrap=True, min_width=_WIDTH)
    table.add_column(f"{'atlas':>{_WIDTH}}\n{_HEADING}", justify="right", no_wrap=True, min_width=_WIDTH)
    table.add_column("\noff by", justify="right", no_wrap=True)
    for sighting in sightings:
        found = _numbers(sighting.longitude, sighting.latitude, sighting.area)
        table.add_row(sighting.name, found, _atlas(sighting), _off(sighting))
    return table


@dataclass(frozen=True, slots=True)
class Places:
    """Where the user can look further. `mask` is the reference of the stored mask, already verified."""

    mask: JsonObject
    picture: Path
    shores: Path
    url: str
    results_url: str


def places_text(places: Places, *, keep: bool) -> Text:
    """The files that stay, and the addresses, said in a way that stays true when the demo ends."""
    mask = places.mask
    proof = f"{mask['size']:,} bytes of {mask['mediaType']}, read back and intact\nsha256 {mask['sha256']}"
    files = [
        ("Picture", str(places.picture)),
        ("Shores", str(places.shores)),
        ("Mask", f"{mask['path']}\n{proof}"),
    ]
    addresses = [
        ("API", f"{places.url}/swagger"),
        ("Jobs", f"{places.url}/api/v1/jobs"),
        ("Results", places.results_url),
    ]
    title = "Open in a browser (Ctrl-C ends the demo)" if keep else "To open these in a browser, run it with --keep"
    return Text("\n\n").join([_lines("Files", files), _lines(title, addresses)])


def _lines(title: str, rows: list[tuple[str, str]]) -> Text:
    width = max(len(name) for name, _ in rows) + 2
    lines = [Text(title, style="bold")]
    for name, value in rows:
        first, *rest = value.split("\n")
        lines += [Text(f"  {name:<{width}}{first}"), *(Text(f"  {'':<{width}}{line}") for line in rest)]
    return Text("\n").join(lines)


def _numbers(longitude: float, latitude: float, area: float) -> str:
    return f"{longitude:5.2f}  {latitude:5.2f}  {area:7,.0f}"


def _atlas(sighting: Sighting) -> str | Text:
    if sighting.is_cut:
        return Text("cut by the edge", style="dim")
    if sighting.atlas is None or sighting.atlas.area is None:
        return Text("–", style="dim")
    return _numbers(sighting.atlas.longitude, sighting.atlas.latitude, sighting.atlas.area)


def _off(sighting: Sighting) -> str | Text:
    if sighting.off is None or sighting.atlas is None:
        return ""
    if not sighting.atlas.decides:
        return f"{sighting.off:.2f}°"
    is_good = sighting.off <= TOLERANCE
    return Text(f"{sighting.off:.2f}° {'✓' if is_good else '✗'}", style="green" if is_good else "bold red")
