"""What the monitor saw over a run, as arrays: of ten thousand events with 28 layers lists take half a gigabyte."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from megatron_kaiyuan.forms import Count, Form

Floats: TypeAlias = NDArray[np.float32]

_HEADROOM, _SIZE = "headroom_bits", "l1"
# Tensors whose size is shown besides their headroom: the residual stream.
STREAM = ("embedding", "residual")


class _Form(Form):
    step: Count
    tokens: Count
    activations: dict[str, dict[str, list[float | None]]]
    gradients: dict[str, dict[str, list[float | None]]]
    update_to_weight: dict[str, list[float | None]] | None


@dataclass(frozen=True)
class Layout:
    """What is watched.

    Attributes:
        places: of each tensor the layers, or 1 outside of them.
        kinds: of weights.
    """

    places: tuple[tuple[str, int], ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MonitorRow:
    """One event of the monitor (`train/hooks/monitoring.py`), as far as it is shown.

    Attributes:
        layout: what is watched.
        figures: headroom of all tensors, sizes of the residual stream, and the update over the weight of each kind, the
            median of its layers. Headroom and sizes are minus infinity where something was not finite; updates are NaN
            after a skipped step.
    """

    step: int
    tokens: int
    layout: Layout
    figures: Floats


class Monitored:
    """The rows that have the layout of the last one, rising in `step`: what is watched may change with a resume.

    Attributes:
        others: rows of another layout, which are left out.
    """

    def __init__(self, rows: Mapping[int, MonitorRow]) -> None:
        found = [rows[step] for step in sorted(rows)]
        alike = [row for row in found if row.layout == found[-1].layout]
        self.others = len(found) - len(alike)
        self.tokens = np.array([row.tokens for row in alike], dtype=np.int64)
        self._layout = alike[-1].layout if alike else Layout((), ())
        self._figures = np.stack([row.figures for row in alike], axis=1) if alike else np.empty((0, 0), np.float32)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def tensors(self) -> list[str]:
        return [name for name, _ in self._layout.places]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of weights."""
        return self._layout.kinds

    def headroom(self, tensor: str) -> Floats:
        """Bits to 65,504 [places, rows]; minus infinity where the tensor was not finite."""
        return self._slice(_HEADROOM, tensor)

    def size(self, tensor: str) -> Floats:
        """L1 mean of a tensor of `STREAM` [places, rows]; minus infinity where it was not finite."""
        return self._slice(_SIZE, tensor)

    def updates(self, kind: str) -> Floats:
        """Norm of the update over that of the weights [rows]; NaN after a skipped step."""
        return self._figures[len(self._figures) - len(self.kinds) + self.kinds.index(kind)]

    def least_headroom(self) -> float:
        """Bits to 65,504 over all tensors and rows; minus infinity where one was not finite."""
        return float(self._figures[: sum(count for _, count in self._layout.places)].min())

    def _slice(self, figure: str, tensor: str) -> Floats:
        start = 0
        for name, of, count in _order(self._layout):
            if (name, of) == (figure, tensor):
                return self._figures[start : start + count]
            start += count
        raise KeyError(tensor)


def read_monitor_row(row: Mapping[str, Any], layouts: dict[Layout, Layout]) -> MonitorRow | None:
    """Read an event of the monitor; None where it is damaged.

    Args:
        layouts: those that rows before it had, to which its own is added, so that rows share them.
    """
    try:
        found = _Form.model_validate(row)
    except ValidationError:
        return None
    activations, updates = found.activations, found.update_to_weight
    if not _is_whole(found):
        return None
    places = tuple((name, len(of[_HEADROOM])) for name, of in activations.items())
    layout = Layout(places, tuple(found.gradients))
    values = [activations[name][figure] for figure, name, _ in _order(layout)]
    if any(len(of) != count for of, (_, _, count) in zip(values, _order(layout), strict=True)):
        return None
    figures = [-np.inf if value is None else value for of in values for value in of]
    medians = [np.nan if updates is None else _median(updates[kind]) for kind in layout.kinds]
    layout = layouts.setdefault(layout, layout)
    with np.errstate(over="ignore"):
        return MonitorRow(found.step, found.tokens, layout, np.array([*figures, *medians]).astype(np.float32))


def _is_whole(found: _Form) -> bool:
    wanted = {name: {_HEADROOM} for name in found.activations} | {name: {_HEADROOM, _SIZE} for name in STREAM}
    activations = all(figures <= found.activations.get(name, {}).keys() for name, figures in wanted.items())
    activations = activations and all(values for of in found.activations.values() for values in of.values())
    updates = found.update_to_weight
    return activations and (updates is None or found.gradients.keys() <= updates.keys())


def _order(layout: Layout) -> list[tuple[str, str, int]]:
    """Figure, tensor and places of each part of a row's figures, in order; updates follow."""
    places = dict(layout.places)
    headroom = [(_HEADROOM, name, count) for name, count in layout.places]
    return [*headroom, *((_SIZE, name, places[name]) for name in STREAM)]


def _median(values: list[float | None]) -> float:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else np.nan
