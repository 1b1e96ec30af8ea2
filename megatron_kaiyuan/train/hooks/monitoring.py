"""The size of activations, gradients and updates, layer by layer, every so many steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.utils.hooks import RemovableHandle

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.monitor.activations import watch_activations
from megatron_kaiyuan.monitor.headroom import HeadroomWatch, headroom_bits
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.monitor.table import Cell, Table
from megatron_kaiyuan.monitor.tensors import ATTENTION_LOGITS, activation_places
from megatron_kaiyuan.monitor.weights import add_weights
from megatron_kaiyuan.network import places
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult

_WEIGHT = "weight:"
Figures = dict[str, Any]


def monitoring(run: RunConfig, sinks: Sinks) -> list[Hook]:
    """The hook that the recipe asks for, or none."""
    return [Monitoring(run, sinks)] if run.monitor.activations_every_steps else []


class Monitoring(Hook):
    """A row of figures by tensor and layer in `metrics.jsonl`, and warnings before FP16's range ends.

    Of the row, in which null stands for what is not finite: `activations` has for each tensor of
    `monitor/tensors.py` the mean of |x| (`l1`), `rms`, `max` and `headroom_bits` to 65,504, one number a layer;
    `gradients` has for each kind of weight of `monitor/weights.py` the norm and the largest element, before clipping;
    `update_to_weight` the norm of the update over that of the weights, none after a skipped step.

    Nothing is measured, and no hook is there, in other steps.
    """

    def __init__(self, run: RunConfig, sinks: Sinks):
        self._run, self._sinks = run, sinks
        self._headroom = HeadroomWatch(run.model, run.monitor.headroom_warning_bits)
        self._activations = activation_places(run.model)
        self._weights = places(run.model)
        self._table: Table | None = None
        self._handles: list[RemovableHandle] = []

    def before_step(self, session: Session) -> None:
        if (session.state.progress.step + 1) % self._run.monitor.activations_every_steps:
            return
        weights = {_WEIGHT + name: count for name, count in self._weights.items()}
        self._table = Table({**self._activations, **weights}, session.state.platform.device)
        for chunk in session.state.network.chunks:
            self._handles += watch_activations(chunk, self._run.model, self._table)

    def after_step(self, session: Session, result: StepResult) -> None:
        table = self._end()
        if table is None:
            return
        state = session.state
        factor = 1.0 if result.skipped else _clip_factor(self._run.optimizer.clip_grad, result.gradient_norm)
        state.gather_weights()
        add_weights(
            table, _WEIGHT, state.network, session.run.model, state.optimizer, factor, updated=not result.skipped
        )
        cells = table.gather()
        if cells is not None:
            self._report(session, cells, updated=not result.skipped)

    def rolled_back(self, session: Session) -> None:
        self._end()

    def _end(self) -> Table | None:
        for handle in self._handles:
            handle.remove()
        table, self._table, self._handles = self._table, None, []
        return table

    def _report(self, session: Session, cells: dict[str, list[Cell]], updated: bool) -> None:
        progress = session.state.progress
        weights = {name: cells[_WEIGHT + name] for name in self._weights}
        self._sinks.table(
            "monitor",
            step=progress.step,
            tokens=progress.tokens,
            activations={name: _activation(name, cells[name]) for name in self._activations},
            gradients={name: _gradient(row) for name, row in weights.items()},
            update_to_weight={name: _ratios(row) for name, row in weights.items()} if updated else None,
        )
        if self._run.train.precision == "fp16":
            peaks = {name: [cell.peak for cell in cells[name]] for name in self._activations}
            for low in self._headroom.look(peaks):
                self._sinks.event("headroom_warning", step=progress.step, message=str(low))


def _clip_factor(clip_grad: float, gradient_norm: float) -> float:
    """What megatron-core's `clip_grad_by_total_norm_fp32` multiplies gradients by."""
    return min(1.0, clip_grad / (gradient_norm + 1e-6)) if clip_grad else 1.0


def _activation(name: str, cells: list[Cell]) -> Figures:
    figures: Figures = {}
    if name != ATTENTION_LOGITS:
        figures["l1"] = _short(cell.sums[1] / cell.sums[0] for cell in cells)
        figures["rms"] = _short(math.sqrt(cell.sums[2] / cell.sums[0]) for cell in cells)
    figures["max"] = _short(cell.peak for cell in cells)
    figures["headroom_bits"] = _short(headroom_bits(cell.peak) for cell in cells)
    return figures


def _gradient(cells: list[Cell]) -> Figures:
    return {"norm": _short(math.sqrt(cell.sums[0]) for cell in cells), "max": _short(cell.peak for cell in cells)}


def _ratios(cells: list[Cell]) -> list[float | None]:
    return _short(math.sqrt(cell.sums[1] / cell.sums[2]) if cell.sums[2] else math.nan for cell in cells)


def _short(numbers: Iterable[float]) -> list[float | None]:
    """Four digits, so that rows stay small."""
    return [float(f"{number:.4g}") if math.isfinite(number) else None for number in numbers]
