"""The demo's picture: the image with the shores drawn back on it. Needs pillow (the extra `demo`).

The shores come as longitude and latitude and go back to pixels through the referential, so an error of the way there
would be visible as a shift against the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from cador_trio.commands.atlas import Sighting
from cador_trio.job import JsonObject

SCALE: Final = 3  # screen pixels for one of the image
GRID: Final = 5  # degrees between two lines of the graticule
ROOMY: Final = 50_000  # km² from which a body has room for its name; that of a smaller one stands below it

_SHORE: Final = (255, 209, 71)
_GRATICULE: Final = (255, 255, 255, 56)
_TEXT: Final = (255, 255, 255)
_HALO: Final = (8, 20, 40)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the image lies: the outer corner of its first pixel, and degrees per pixel, signed."""

    longitude: float
    latitude: float
    longitude_step: float
    latitude_step: float

    def to_screen(self, longitude: float, latitude: float) -> tuple[float, float]:
        """Degrees to pixels of the enlarged picture."""
        column = (longitude - self.longitude) / self.longitude_step
        row = (latitude - self.latitude) / self.latitude_step
        return column * SCALE, row * SCALE

    def edges(self, width: int, height: int) -> tuple[float, float, float, float]:
        """West, south, east, north of an image of that size, north up, in degrees."""
        return (
            self.longitude,
            self.latitude + height * self.latitude_step,
            self.longitude + width * self.longitude_step,
            self.latitude,
        )


def draw(
    image: Path, features: Sequence[JsonObject], sightings: Sequence[Sighting], frame: Frame, target: Path
) -> None:
    """Write the picture as PNG. Blocks on the disk; raises OSError if a file can't be read or written."""
    with Image.open(image) as source:
        size = source.size
        picture = source.convert("RGB").resize((size[0] * SCALE, size[1] * SCALE), Image.Resampling.LANCZOS)
    brush = ImageDraw.Draw(picture, "RGBA")
    _draw_graticule(brush, frame, size)
    for feature in features:
        for ring in feature["geometry"]["coordinates"]:
            brush.line([frame.to_screen(*position[:2]) for position in ring], fill=_SHORE, width=2, joint="curve")
    for sighting in _labelled(sightings):
        _draw_label(brush, sighting, frame)
    picture.save(target, "PNG")


def _draw_graticule(brush: ImageDraw.ImageDraw, frame: Frame, size: tuple[int, int]) -> None:
    west, south, east, north = frame.edges(*size)
    font = ImageFont.load_default(15)
    for longitude in _multiples(west, east):
        x, _ = frame.to_screen(longitude, north)
        brush.line([(x, 0), (x, size[1] * SCALE)], fill=_GRATICULE)
        brush.text((x + 4, 3), f"{longitude}° E", _TEXT, font, stroke_width=1, stroke_fill=_HALO)
    for latitude in _multiples(south, north):
        _, y = frame.to_screen(west, latitude)
        brush.line([(0, y), (size[0] * SCALE, y)], fill=_GRATICULE)
        brush.text((4, y + 3), f"{latitude}° N", _TEXT, font, stroke_width=1, stroke_fill=_HALO)


def _multiples(low: float, high: float) -> Iterator[int]:
    """The lines between two edges, without those on an edge."""
    first = math.floor(low / GRID) + 1
    yield from range(first * GRID, math.ceil(high), GRID)


def _labelled(sightings: Sequence[Sighting]) -> Iterator[Sighting]:
    """One sighting a name, the first (largest): three parts of the Aral Sea need no three labels."""
    names = set()
    for sighting in sightings:
        if sighting.name not in names:
            names.add(sighting.name)
            yield sighting


def _draw_label(brush: ImageDraw.ImageDraw, sighting: Sighting, frame: Frame) -> None:
    is_large = sighting.area > ROOMY
    x, y = frame.to_screen(sighting.longitude, sighting.latitude if is_large else sighting.south)
    centre = f"\n{sighting.longitude:.2f}° E  {sighting.latitude:.2f}° N"
    brush.multiline_text(
        (x, y if is_large else y + 4),
        sighting.name + ("" if sighting.is_cut else centre),
        _TEXT,
        ImageFont.load_default(20 if is_large else 15),
        anchor="mm" if is_large else "ma",
        align="center",
        stroke_width=2,
        stroke_fill=_HALO,
    )
