"""Image files in memory, as tests make and read them.

Arrays are `(bands, rows, columns)`, as PESTO hands them to an algorithm. This is the one module of the peer that needs
rasterio in the environment of the tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile


def sample_image(bands: int = 3, rows: int = 36, columns: int = 48) -> np.ndarray[Any, Any]:
    """Return a small 8-bit picture in which neighbouring pixels, windows and bands differ."""
    band, row, column = np.indices((bands, rows, columns))
    return np.asarray((band * 40 + row * 5 + column * 3) % 256, dtype=np.uint8)


def encode_image(pixels: np.ndarray[Any, Any], driver: Literal["PNG", "GTiff"] = "PNG") -> bytes:
    """Return the pixels as a file; their sample type is kept."""
    bands, rows, columns = pixels.shape
    with _pixels_without_a_place(), MemoryFile() as memory:
        with memory.open(driver=driver, count=bands, height=rows, width=columns, dtype=pixels.dtype) as image:
            image.write(pixels)
        return bytes(memory.read())


def decode_image(content: bytes) -> np.ndarray[Any, Any]:
    """Return the pixels of an image file of any type that GDAL reads."""
    with _pixels_without_a_place(), MemoryFile(content) as memory, memory.open() as image:
        return np.asarray(image.read())


@contextmanager
def _pixels_without_a_place() -> Iterator[None]:
    """Let rasterio be content with images that are on no map."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
