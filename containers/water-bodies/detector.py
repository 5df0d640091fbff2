"""Bodies of water in a colour image of the Earth, by the colour of water alone.

Knows pixels only: no files, no network, no degrees. `server.py` puts it behind the Geo Process API.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import features

MINIMUM_PIXELS = 8  # a smaller body is as likely a shadow or a wet field

# All in grey values of 8-bit colour, tuned on NASA's Blue Marble.
BLUE_OVER_RED = 8  # water swallows red first
GREEN_OVER_RED = 25  # shallow water and algae: greener than plants, and
BLUE_UNDER_RED = 12  # not as poor in blue as they are
BRIGHT_SUM = 230  # red + green + blue from which it must be clearly blue, or it is wet sand,
CLEARLY_BLUE = 60  # such as the spit that parts a lagoon from its sea
CERTAIN = 50  # lead of blue or green over red from which nothing else looks like it


@dataclass(frozen=True)
class Water:
    """What was found: a boolean mask (rows, columns), and a GeoJSON feature for each body, the largest first."""

    mask: NDArray[np.bool_]
    features: list[dict[str, Any]]


def find_water(image: NDArray[np.uint8], minimum_pixels: int = MINIMUM_PIXELS) -> Water:
    """Find the bodies of water of at least `minimum_pixels` in an image (rows, columns, red-green-blue).

    A body is what hangs together by the edges of pixels. Its polygon runs along them, islands are its holes, and (0, 0)
    is the outer corner of the first pixel. `confidence` is the mean, over the body, of how far blue or green leads red:
    0 is no lead, 1 is `CERTAIN` or more.
    """
    red, green, blue = np.moveaxis(image.astype(np.int16), -1, 0)
    certainty = np.clip((np.maximum(green, blue) - red) / CERTAIN, 0, 1)
    polygons = list(_trace(_looks_like_water(red, green, blue)))
    if not polygons:
        return Water(np.zeros(red.shape, dtype=np.bool_), [])
    # The outlines follow pixel edges, so burning them in gives every body exactly its own pixels: 1, 2, 3 …
    labels = features.rasterize(zip(polygons, range(1, len(polygons) + 1), strict=True), red.shape, dtype=np.int32)
    pixels = np.bincount(labels.ravel())
    confidence = np.bincount(labels.ravel(), weights=certainty.ravel()) / np.maximum(pixels, 1)
    kept = [label for label in range(1, len(pixels)) if pixels[label] >= minimum_pixels]
    kept.sort(key=lambda label: -pixels[label])
    found = [_feature(index, polygons[label - 1], pixels[label], confidence[label]) for index, label in enumerate(kept)]
    return Water(np.isin(labels, kept), found)


def _looks_like_water(red: NDArray[np.int16], green: NDArray[np.int16], blue: NDArray[np.int16]) -> NDArray[np.bool_]:
    lead = blue - red
    deep = lead > BLUE_OVER_RED
    shallow = (green - red > GREEN_OVER_RED) & (lead > -BLUE_UNDER_RED)
    wet_sand = (red + green + blue >= BRIGHT_SUM) & (lead <= CLEARLY_BLUE)
    water: NDArray[np.bool_] = (deep | shallow) & ~wet_sand
    return water


def _trace(water: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    for polygon, _ in features.shapes(water.astype(np.uint8), mask=water, connectivity=4):
        yield polygon


def _feature(index: int, polygon: dict[str, Any], pixels: int, confidence: float) -> dict[str, Any]:
    properties = {"category": "water", "confidence": round(float(confidence), 3), "pixels": int(pixels)}
    return {"type": "Feature", "id": index, "geometry": polygon, "properties": properties}
