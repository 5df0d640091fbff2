"""The wire contract's examples of messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "vectors"


def vector(name: str) -> Any:
    """One of them, by its name without `.json`."""
    return json.loads((FOLDER / f"{name}.json").read_text())
