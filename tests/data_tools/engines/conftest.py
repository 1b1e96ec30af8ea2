"""The steps that other tests run, for the tests of engines."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "steps"))
