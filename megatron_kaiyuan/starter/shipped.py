"""Files that belong to the project and are not Python: in its folder, and in a wheel beside this module."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> Path:
    """The folder `launch` or `docs`."""
    inside = Path(__file__).with_name(name)
    return inside if inside.is_dir() else Path(__file__).parents[2] / name
