"""How each output follows from the image: pure and exact, so that a test can compute what to expect.

Images are `(bands, rows, columns)`; the first band decides. Coordinates are pixel edges, `[column, row]`. Imports numpy
alone, must run on Python 3.10.
"""

from typing import Any

import numpy as np

Image = np.ndarray[Any, Any]
Json = dict[str, Any]

CHIP_ROWS = 3
CHIP_COLUMNS = 4


def threshold_used(image: Image, sigma: float = 0.0) -> float:
    """Return the mean of the first band, rounded down, plus sigma."""
    band = image[0]
    return float(int(band.sum(dtype=np.int64)) // band.size + sigma)


def mask(image: Image, sigma: float = 0.0) -> Image:
    """Return one 8-bit band, 255 where the first band is above the threshold and 0 elsewhere."""
    return np.where(image[:1] > threshold_used(image, sigma), 255, 0).astype(np.uint8)


def count(image: Image, sigma: float = 0.0) -> int:
    """Return the number of pixels above the threshold."""
    return int(np.count_nonzero(mask(image, sigma)))


def p99(image: Image) -> float:
    """Return the pixel value of the first band below which 99 of 100 lie."""
    values = np.sort(image[0], axis=None)
    return float(values[values.size * 99 // 100])


def chips(image: Image) -> list[Image]:
    """Cut the image, all bands in their own sample type, into twelve windows: rows first, columns in each.

    Twelve, so that their names do not sort as text like they sort as numbers.
    """
    _, rows, columns = image.shape
    height, width = rows // CHIP_ROWS, columns // CHIP_COLUMNS
    return [
        image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(CHIP_ROWS)
        for column in range(CHIP_COLUMNS)
    ]


def summary(image: Image, sigma: float = 0.0) -> str:
    """Return a sentence with letters beyond ASCII."""
    return f"{count(image, sigma)} pixels au-dessus du seuil, détection terminée ✓"


def polygon(image: Image) -> Json:
    """Return the outline of the image as a bare geometry."""
    _, rows, columns = image.shape
    return {"type": "Polygon", "coordinates": [_ring(0, 0, columns, rows)]}


def detections(image: Image) -> Json:
    """Return three detections in the manner of PESTO's template, which leaves out the collection's own `type`.

    A frame with a hole, a box whose confidence is a whole number, a box without a name.
    """
    _, rows, columns = image.shape
    frame = [_ring(0, 0, columns, rows), _ring(columns // 4, rows // 4, columns * 3 // 4, rows * 3 // 4)[::-1]]
    return {
        "features": [
            _feature(frame, {"confidence": 0.75, "name": "lisière", "category": "frame", "value": 7}),
            _feature([_ring(1, 1, columns // 2, rows // 2)], {"confidence": 1, "category": ["water", "lake"]}),
            _feature([_ring(columns - 3, rows - 2, columns, rows)], {"confidence": 0.5}),
        ]
    }


def _feature(rings: list[list[list[int]]], properties: Json) -> Json:
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": rings}}


def _ring(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [left, bottom], [right, bottom], [right, top], [left, top]]
