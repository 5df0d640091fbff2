"""The example algorithm is a program, not a package: its folder is where its modules are found."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "containers" / "water-bodies"))
