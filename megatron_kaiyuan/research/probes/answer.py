"""From the table of a probe's runs to its answer: each window with its interval, each dataset with a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.probes.design import Design
from megatron_kaiyuan.research.probes.request import MEAN, ProtocolName
from megatron_kaiyuan.research.probes.trend import (
    Matrix,
    Noise,
    Trend,
    detectable_difference,
    half_width,
    judge,
    noise_between_windows,
    pooled_noise,
)
from megatron_kaiyuan.research.probes.window import Window
from megatron_kaiyuan.research.queue.request import BITS_PER_BYTE

# A course needs three windows; where documents are shared, one more for the noise between windows.
_FEWEST_WINDOWS, _FEWEST_SHARED = 3, 4


@dataclass(frozen=True)
class Measured:
    """A window under one protocol and measure, in bits per byte.

    Attributes:
        lr_factor: the factor that the protocol chose for this window.
        half_width: of the interval to compare windows with.
        difference: to the first window of its dataset, the best scores; None for that one and without a dataset.
        difference_half_width: of its interval.
    """

    window: str
    dataset: str | None
    quantile: float | None
    lr_factor: float
    mean: float
    half_width: float
    difference: float | None
    difference_half_width: float


@dataclass(frozen=True)
class Measure:
    """One protocol's figures for one domain, for the mean of all domains, or for a task.

    Attributes:
        paired_sd, freedom: noise of a paired difference, pooled over all windows, and its degrees of freedom.
        detectable: difference of two windows that is found with 80 %.
        trends: by dataset; one with too few windows is left out.
    """

    protocol: ProtocolName
    name: str
    windows: list[Measured]
    paired_sd: float
    freedom: int
    detectable: float
    trends: dict[str, Trend]


@dataclass(frozen=True)
class ProbeAnswer:
    """The answer of a probe; `too_few` names datasets whose windows are too few for a verdict."""

    design: Design
    measures: list[Measure]
    too_few: list[str]

    def as_json(self) -> dict[str, Any]:
        design = self.design
        return {
            "windows": [
                {
                    "name": window.name,
                    "dataset": window.dataset,
                    "quantile": window.quantile,
                    "phases": [str(part) for part in window.parts],
                    "portrait": window.portrait,
                }
                for window in design.windows
            ],
            "seeds": design.config.seeds,
            "steps": design.steps,
            "tokens": design.tokens,
            "runs": len(design.runs),
            "tasks": [
                {"name": task.name, "items": len(task.items), "bytes": task.bytes, "identity": task.identity}
                for task in design.tasks.tasks
            ],
            "shared_documents": design.shared_documents,
            "significance": design.config.significance,
            "flops": design.flops,
            "share_of_main_run": share_of_main_run(design),
            "measures": [asdict(measure) for measure in self.measures],
            "too_few_windows": self.too_few,
        }


def share_of_main_run(design: Design) -> float | None:
    return None if design.main_flops is None else design.flops / design.main_flops


def make_answer(design: Design, rows: Sequence[dict[str, Any]]) -> ProbeAnswer:
    """Judge the rows that the queue gave for `design.runs`.

    Raises:
        UserError: the network diverged on a window, at every learning rate of a protocol.
    """
    config, windows = design.config, design.windows
    columns = [*config.held_out, *config.task_measures]
    names = [*config.held_out, *([MEAN] if len(config.held_out) > 1 else []), *config.task_measures]
    measures = []
    for protocol in config.protocols:
        # [factor, window, seed, domain or task], in the order of the runs.
        mine = [row for row in rows if row["protocol"] == protocol]
        factors = config.factors(protocol)
        shape = len(factors), len(windows), config.seeds, len(columns)
        table = np.array([[row[f"{BITS_PER_BYTE}{name}"] for name in columns] for row in mine]).reshape(shape)
        # A learning rate at which the network diverged is not the best one.
        table = np.nan_to_num(table, nan=np.inf)
        domains = len(config.held_out)
        best_w = table[..., :domains].mean((2, 3)).argmin(0)
        values_wsd = np.stack([table[best, at] for at, best in enumerate(best_w)])
        for window, values_sd in zip(windows, values_wsd, strict=True):
            if not np.isfinite(values_sd).all():
                raise UserError(
                    f"window {window.name!r}, {protocol}: the network diverged; lower the recipe's learning rate"
                )
        for name in names:
            values_ws = values_wsd[:, :, :domains].mean(2) if name == MEAN else values_wsd[:, :, columns.index(name)]
            chosen = [factors[best] for best in best_w]
            measures.append(_measure(design, protocol, name, values_ws, chosen, len(names)))
    return ProbeAnswer(
        design, measures, [name for name, found in _datasets(windows).items() if len(found) < _fewest(design)]
    )


def _measure(
    design: Design, protocol: ProtocolName, name: str, values_ws: Matrix, factors: Sequence[float], tests: int
) -> Measure:
    config, windows = design.config, design.windows
    noise, means_w = pooled_noise(values_ws), values_ws.mean(1)
    firsts = {dataset: found[0] for dataset, found in _datasets(windows).items()}
    measured = []
    for at, window in enumerate(windows):
        first = firsts.get(window.dataset) if window.dataset is not None else None
        measured.append(
            Measured(
                window=window.name,
                dataset=window.dataset,
                quantile=window.quantile,
                lr_factor=factors[at],
                mean=float(means_w[at]),
                half_width=half_width(noise, config.seeds, config.significance),
                difference=None if first in (None, at) else float(means_w[at] - means_w[first]),
                difference_half_width=half_width(noise, config.seeds, config.significance, of_difference=True),
            )
        )
    trends = {
        dataset: _trend(design, found, means_w, noise, tests)
        for dataset, found in _datasets(windows).items()
        if len(found) >= _fewest(design)
    }
    detectable = detectable_difference(config.seeds, noise, config.significance) if noise.variance else 0.0
    return Measure(protocol, name, measured, noise.paired_sd, noise.freedom, detectable, trends)


def _trend(design: Design, found: Sequence[int], means_w: Matrix, noise: Noise, tests: int) -> Trend:
    seeds = design.config.seeds
    quantiles_w = np.array([design.windows[at].quantile for at in found], float)
    means_w = means_w[list(found)]
    if design.shared_documents:
        noise = noise_between_windows(means_w, quantiles_w, seeds)
    return judge(means_w, quantiles_w, seeds, noise, design.config.significance, tests)


def _datasets(windows: Sequence[Window]) -> dict[str, list[int]]:
    """Places of each dataset's windows, best quantile first."""
    found: dict[str, list[int]] = {}
    for at, window in sorted(enumerate(windows), key=lambda pair: pair[1].quantile or 0.0):
        if window.dataset is not None:
            found.setdefault(window.dataset, []).append(at)
    return found


def _fewest(design: Design) -> int:
    return _FEWEST_SHARED if design.shared_documents else _FEWEST_WINDOWS


def planned_noise(design: Design) -> Noise:
    """The noise that a plan expects: of the recipe's `expected_sd`, with the freedom that the runs will give."""
    windows, seeds = len(design.windows), design.config.seeds
    return Noise((design.config.expected_sd / math.sqrt(2)) ** 2, (windows - 1) * (seeds - 1))
