"""Figures of what the monitor saw: activations by layer along the tokens, headroom, updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_kaiyuan.monitor.tensors import OUTSIDE_LAYERS
from megatron_kaiyuan.pages.phase_mixes import PhaseMix
from megatron_kaiyuan.pages.plotting import COLOURS, Figure, scaled, thin
from megatron_kaiyuan.report.metrics import History
from megatron_kaiyuan.report.monitor_rows import STREAM
from megatron_kaiyuan.report.plots import against_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Reduce = Callable[..., NDArray[np.float64]]

_MOST_COLUMNS = 400
_OUT_OF_RANGE = "#d62728"
_FP16_BITS = 16


def monitor_figures(history: History, phases: Sequence[PhaseMix]) -> Iterator[Figure]:
    """Two heat maps of layers along the tokens, the headroom of each tensor, and how fast weights change."""
    seen = history.monitored
    of_layers = [name for name in seen.tensors if name not in OUTSIDE_LAYERS]
    unit = scaled(history.column("tokens"))[1]
    x = seen.tokens / unit.size
    edges = np.concatenate([[0.0], x])

    def frame(draw: Callable[[Axes], None], title: str, caption: str, wide: bool = False) -> Figure:
        return against_tokens(draw, history, phases, title, caption, wide)

    headroom = np.min([seen.headroom(name) for name in of_layers], axis=0)
    yield frame(
        lambda axes: _heat_map(axes, edges, headroom, np.min, "bits", limits=(0, _FP16_BITS)),
        "Headroom by layer",
        "Doublings left to 65,504, of the largest element of any watched tensor of the layer; red: not finite.",
    )
    stream = np.concatenate([seen.size(name) for name in STREAM])
    yield frame(
        lambda axes: _heat_map(axes, edges, stream, np.mean, "mean |x|", first=0),
        "Residual stream by layer",
        "L1 mean after each layer; 0 is the embedding.",
    )
    yield frame(
        lambda axes: _lines(axes, x, {name: seen.headroom(name).min(axis=0) for name in seen.tensors}, "bits"),
        "Headroom by tensor",
        "Bits to 65,504 in the layer that has least of it.",
        wide=True,
    )
    changes = {kind: seen.updates(kind) for kind in seen.kinds}
    yield frame(
        lambda axes: _lines(axes, x, changes, "update / weight", logarithmic=True),
        "Updates",
        "Norm of the update over norm of the weights; of weights in layers the median layer.",
        wide=True,
    )


def _heat_map(
    axes: Axes,
    edges: NDArray[np.float64],
    values: NDArray[np.float64],
    reduce: Reduce,
    label: str,
    limits: tuple[float, float] | None = None,
    first: int = 1,
) -> None:
    """Rows of `values` are layers from `first` on, columns end at the tokens `edges[1:]`."""
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    group = -(-values.shape[1] // _MOST_COLUMNS)
    starts = range(0, values.shape[1], group)
    values = np.stack([reduce(values[:, start : start + group], axis=1) for start in starts], axis=1)
    edges = np.append(edges[::group], edges[-1]) if edges[::group][-1] != edges[-1] else edges[::group]
    colours = matplotlib.colormaps["viridis" if limits else "cividis"].with_extremes(bad=_OUT_OF_RANGE)
    finite = values[np.isfinite(values)]
    scale: dict[str, Any] = dict(zip(("vmin", "vmax"), limits, strict=True)) if limits else {}
    if not limits and len(finite):
        scale = {"norm": LogNorm(finite.min(), finite.max())}
    # As a picture: one path for each field would make a page of many megabytes.
    mesh = axes.pcolormesh(
        edges,
        np.arange(first - 0.5, first + len(values)),
        np.ma.masked_invalid(values),
        cmap=colours,
        rasterized=True,
        **scale,
    )
    axes.grid(False)
    axes.set_ylabel("layer")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar = axes.figure.colorbar(mesh, ax=axes, label=label)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)


def _lines(
    axes: Axes, x: NDArray[np.float64], lines: dict[str, NDArray[np.float64]], label: str, logarithmic: bool = False
) -> None:
    styles = ("-", "--")
    for index, (name, values) in enumerate(lines.items()):
        style, colour = styles[index // len(COLOURS) % len(styles)], COLOURS[index % len(COLOURS)]
        at, shown = thin(x, values)
        marker = "." if len(shown) < 20 else None
        axes.plot(at, shown, style, color=colour, linewidth=1.2, marker=marker, label=name)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.legend(loc="upper right")
