"""`evaluation.json` of a run as the page shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import TypedDict

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.run import RESULT
from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Count, Form, Share, require_form
from megatron_kaiyuan.pages.plotting import COLOURS, FAINT, Figure, render_plot
from megatron_kaiyuan.report.plots import ReferenceLine

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Domain(Form):
    tokens: Count
    nats_per_token: float
    unigram_entropy: float


_Positions = TypedDict("_Positions", {"from": Count, "to": Count, "tokens": Count, "nats_per_token": float})


class _HeldOut(Form):
    nats_per_token: float
    unigram_entropy: float
    domains: dict[str, _Domain] = {}
    by_position: list[_Positions] | None = None


class _Bin(Form):
    items: Count
    confidence: Share
    accuracy: Share


class _Calibration(Form):
    items: Count
    accuracy: Share
    confidence: Share
    expected_calibration_error: Share
    bins: list[_Bin]


class _Measured(Form):
    held_out: _HeldOut | None
    tasks: dict[str, dict[str, float | str | None]]
    calibration: dict[str, _Calibration] | None = None


class _Evaluation(Form):
    model: _Measured
    baseline: _Measured | None


def read_evaluation(run_dir: Path, missing: list[str]) -> dict[str, Any] | None:
    """The results of `kaiyuan eval`; why there are none goes into `missing`."""
    path = run_dir / RESULT
    if not path.is_file():
        missing.append(f"Held-out results: {RESULT} is not there; run kaiyuan eval {run_dir}")
        return None
    try:
        evaluation: dict[str, Any] = read_json(path, "evaluation")
        require_form(path, evaluation, _Evaluation, "run kaiyuan eval again")
    except UserError as error:
        missing.append(f"Held-out results: {error}")
        return None
    return evaluation


def held_out_of(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """The model's held-out loss; None: it was not evaluated, or on tasks alone."""
    return None if evaluation is None else evaluation["model"]["held_out"]


def references(evaluation: dict[str, Any] | None) -> list[ReferenceLine]:
    """What the training loss is compared with."""
    if (held_out := held_out_of(evaluation)) is None:
        return []
    return [
        ReferenceLine("held-out loss", held_out["nats_per_token"]),
        ReferenceLine("unigram entropy of the held-out tokens", held_out["unigram_entropy"]),
    ]


def held_out_rows(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A row for the model and one for the untrained model; a task that was not run is None."""
    rows: list[dict[str, Any]] = []
    if evaluation is None:
        return rows
    for name, result in (("this model", evaluation["model"]), ("untrained", evaluation["baseline"])):
        if result is None:
            continue
        held_out, tasks = result["held_out"], result["tasks"]
        if held_out is None and not {ROLLING, CONTINUATION} & set(tasks):
            continue
        loss, entropy = (held_out["nats_per_token"], held_out["unigram_entropy"]) if held_out else (None, None)
        rows.append(
            {
                "name": name,
                "nats_per_token": loss,
                "unigram_entropy": entropy,
                "below": None if loss is None or entropy is None else entropy - loss,
                "bits_per_byte": tasks.get(ROLLING, {}).get("bits_per_byte"),
                "accuracy": tasks.get(CONTINUATION, {}).get("acc"),
                "normalized": tasks.get(CONTINUATION, {}).get("acc_norm"),
            }
        )
    return rows


def task_rows(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each metric of each task of lm-eval, besides those made of held-out text."""
    if evaluation is None:
        return []
    untrained = evaluation["baseline"]["tasks"] if evaluation["baseline"] else {}
    return [
        {"task": task, "metric": metric, "value": value, "untrained": untrained.get(task, {}).get(metric)}
        for task, metrics in evaluation["model"]["tasks"].items()
        if task not in (CONTINUATION, ROLLING)
        for metric, value in metrics.items()
    ]


def evaluation_figures(evaluation: dict[str, Any] | None) -> list[Figure]:
    """Loss against the position in the context, and how far confidence is right, where they were measured."""
    return [] if evaluation is None else list(_figures(evaluation["model"]))


def _figures(model: dict[str, Any]) -> Iterator[Figure]:
    positions = (model["held_out"] or {}).get("by_position")
    if positions:
        caption = "Held-out loss of a token by how many tokens of its context come before it."
        yield Figure("Loss by position", caption, render_plot(lambda axes: _draw_positions(axes, positions)))
    calibration = {name: one for name, one in (model.get("calibration") or {}).items() if one["bins"]}
    if calibration:
        errors = "; ".join(f"{name} {one['expected_calibration_error']:.3f}" for name, one in calibration.items())
        caption = (
            f"Accuracy of answers by the probability that the model gives them; on the dotted line it is right. "
            f"Expected calibration error: {errors}."
        )
        yield Figure("Calibration", caption, render_plot(lambda axes: _draw_calibration(axes, calibration)))


def _draw_positions(axes: Axes, positions: list[dict[str, float]]) -> None:
    # The middle of each bin, counted from 1, so that the first position has a place on a logarithmic axis.
    middles = np.array([(bin["from"] + bin["to"] - 1) / 2 + 1 for bin in positions])
    losses = [bin["nats_per_token"] for bin in positions]
    axes.plot(middles, losses, color=COLOURS[0], marker=".", label="held-out loss")
    axes.set_xscale("log")
    axes.set_xlabel("position in the context, from 1")
    axes.set_ylabel("nats per token")


def _draw_calibration(axes: Axes, calibration: dict[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1.2, label="confidence = accuracy")
    for number, (name, one) in enumerate(calibration.items()):
        confidence = [bin["confidence"] for bin in one["bins"]]
        accuracy = [bin["accuracy"] for bin in one["bins"]]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(confidence, accuracy, color=colour, marker="o", markersize=4, linewidth=1.2, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.legend(loc="upper left")
