"""What the detector takes and gives.

PESTO fills the first and empties the second by field name; `pesto/api` has the matching schemas. Must run on Python
3.10.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Input:
    """One request; PESTO passes None for what the payload leaves out."""

    image: np.ndarray[Any, Any]
    """Pixels, `(bands, rows, columns)`."""
    sigma: float | None = None
    """Added to the threshold, in pixel values; 0 when absent."""
    seconds: float | None = None
    """How long to work, in seconds; not at all when absent."""
    fail: str | None = None
    """The text to fail with, after the work."""
    hold_port: int | None = None
    """A loopback port: connect to it and work until that connection ends, 60 s at most."""


@dataclass
class Output:
    """One answer; `rules` says how each is made."""

    detections: dict[str, Any]
    polygon: dict[str, Any]
    mask: np.ndarray[Any, Any]
    chips: list[np.ndarray[Any, Any]]
    count: int
    threshold_used: float
    summary: str
    p99: float
