"""What a figure shows, as numbers: for its values on hover, and for its text alternative."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from megatron_kaiyuan.pages.svg import css_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

# Levels of a heat map's scale in the page; the one above them says that the value is not finite.
_LEVELS = 65_534
_MOST_IN_WORDS = 6


@dataclass(frozen=True)
class Series:
    """A line's values, without those that are not finite.

    Attributes:
        drawn: its points lie where the values are; else (a stacked area) elsewhere.
    """

    name: str
    colour: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    drawn: bool

    def in_words(self) -> str:
        first, last = f"{self.y[0]:.4g}", f"{self.y[-1]:.4g}"
        if len(self.y) == 1 or (first == last and self.y.min() == self.y.max()):
            return f"{self.name} {last}"
        return f"{self.name} from {first} to {last}, least {self.y.min():.4g}, most {self.y.max():.4g}"


def series_of(axes: Axes) -> list[Series]:
    """Values of the lines on axes; vertical lines and marks outside the data's coordinates have none.

    A line that is not visible stands for values that are drawn otherwise.
    """
    from matplotlib.colors import to_hex

    found = []
    for line in axes.lines:
        in_x, in_y = line.get_transform().contains_branch_seperately(axes.transData)
        x, y = (np.asarray(line.get_data(orig=False)[axis], dtype=np.float64) for axis in (0, 1))
        finite = np.isfinite(x) & np.isfinite(y)
        if not in_y or not finite.any():
            continue
        if not in_x:
            x = np.array(axes.get_xlim())
        label = str(line.get_label())
        name = axes.get_ylabel() if label.startswith("_") else label
        colour = css_colour(to_hex(line.get_color()))
        found.append(Series(name, colour, x[finite], y[finite], drawn=bool(line.get_visible())))
    return found


def heat_map_of(axes: Axes) -> QuadMesh | None:
    from matplotlib.collections import QuadMesh

    return next((one for one in axes.collections if isinstance(one, QuadMesh)), None)


def in_words(axes: Axes, series: list[Series]) -> str:
    """The values in a sentence, for those who cannot see the figure."""
    across = f"Against {axes.get_xlabel()}: "
    if (mesh := heat_map_of(axes)) is not None:
        values: NDArray[np.float64] = np.ma.masked_invalid(mesh.get_array()).compressed()
        return across + (f"from {values.min():.4g} to {values.max():.4g}." if len(values) else "nothing finite.")
    said = [one.in_words() for one in series[:_MOST_IN_WORDS]]
    left = len(series) - len(said)
    return across + "; ".join([*said, *([f"and {left} more"] if left else [])]) + "."


def as_json(axes: Axes, series: list[Series]) -> Markup:
    """For the page's script: series whose abscissas are shared where they are the same, or a heat map."""
    facts: dict[str, Any] = {"x": axes.get_xlabel(), "abscissas": [], "series": []}
    seen: dict[bytes, int] = {}
    for one in series:
        place = seen.setdefault(one.x.tobytes(), len(seen))
        if place == len(facts["abscissas"]):
            facts["abscissas"].append(_short(one.x, 6))
        facts["series"].append(
            {"name": one.name, "colour": one.colour, "x": place, "y": _short(one.y, 5), "drawn": one.drawn}
        )
    if (mesh := heat_map_of(axes)) is not None:
        facts["map"] = _heat_map(axes, mesh)
    # No text of it ends the script element.
    return Markup(json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c"))


def _heat_map(axes: Axes, mesh: QuadMesh) -> dict[str, Any]:
    values = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=np.float64), np.nan)
    corners = mesh.get_coordinates()
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    share = (values - low) / ((high - low) or 1.0)
    levels = np.where(np.isfinite(share), np.rint(np.nan_to_num(share) * _LEVELS), _LEVELS + 1).astype("<u2")
    bar = mesh.colorbar
    return {
        "across": _short(corners[0, :, 0], 6),
        "up": _short(corners[:, 0, 1], 6),
        "label": axes.get_ylabel(),
        "unit": "" if bar is None else bar.ax.get_ylabel(),
        "low": low,
        "high": high,
        "levels": base64.b64encode(levels.tobytes()).decode(),
    }


def _short(values: NDArray[np.float64], digits: int) -> list[float]:
    return [int(short) if (short := float(f"{value:.{digits}g}")).is_integer() else short for value in values.tolist()]
