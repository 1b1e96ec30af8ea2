"""One self-contained HTML page about a run."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.evaluate.run import RESULT
from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING
from megatron_kaiyuan.files import read_json
from megatron_kaiyuan.forms import Count, Form, require_form
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.outputs import check
from megatron_kaiyuan.pages.page import earlier_page, page_identity, page_output, render, write_page
from megatron_kaiyuan.pages.phase_mixes import PhaseMix, read_phases, stream_tables
from megatron_kaiyuan.pages.plotting import stream_figures
from megatron_kaiyuan.report.metrics import History, read_history
from megatron_kaiyuan.report.monitored import least_headroom, monitor_figures
from megatron_kaiyuan.report.plots import ReferenceLine, training_figures

GENERATOR = "kaiyuan report"
# Told in other places of the page.
_NOT_LISTED = ("checkpoint", "loss_scale")


class _Domain(Form):
    tokens: Count
    nats_per_token: float
    unigram_entropy: float


class _HeldOut(Form):
    nats_per_token: float
    unigram_entropy: float
    domains: dict[str, _Domain] = {}


class _Measured(Form):
    held_out: _HeldOut | None
    tasks: dict[str, dict[str, float | str | None]]


class _Evaluation(Form):
    model: _Measured
    baseline: _Measured | None


def build_report(run_dir: Path, output: Path, force: bool = False) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run_dir: holds `metrics.jsonl`; `config.yaml`, the phases it names and `evaluation.json` are shown when there.
        output: the HTML file, new or an earlier report of the run; it refers to nothing outside itself.
        force: the report of another run may be replaced.

    Returns:
        `output`.

    Raises:
        UserError: there are no metrics, or something else lies at `output`.
    """
    if run_dir.is_file():
        raise UserError(f"{run_dir}: is a file; name the folder of a run{near_run(run_dir)}")
    identity = page_identity(run_dir, output)
    check(page_output(output), identity, earlier_page(GENERATOR), force)
    history = read_history(run_dir / "metrics.jsonl")
    missing: list[str] = []
    run = _read_config(run_dir, missing)
    phases = _read_stream(run_dir, run, missing)
    evaluation = _read_evaluation(run_dir, missing)
    figures = [*training_figures(history, phases, _references(evaluation))]
    if history.monitored:
        figures += monitor_figures(history, phases)
    else:
        missing.append("Activations by layer: metrics.jsonl holds none; set monitor.activations_every_steps")
    if phases:
        figures += stream_figures(phases)
        missing += [f"Exact shares: {note}" for phase in phases for note in phase.notes]
    page = render(
        "page.html",
        __package__,
        generator=GENERATOR,
        identity=identity,
        name=run_dir.resolve().name,
        tiles=_tiles(history, run, evaluation),
        figures=figures,
        stream=stream_tables(phases) if phases else None,
        held_out=_held_out_rows(evaluation),
        domains=held_out["domains"] if (held_out := _held_out(evaluation)) else {},
        tasks=_task_rows(evaluation),
        events=[_event(event) for event in history.events if event["event"] not in _NOT_LISTED],
        checkpoints=[event.get("step") for event in history.events if event["event"] == "checkpoint"],
        repeated=history.repeated,
        unreadable=history.unreadable,
        configuration=(run_dir / "config.yaml").read_text(encoding="utf-8") if run else None,
        missing=missing,
    )
    write_page(output, page, identity, GENERATOR, force)
    return output


def _read_config(run_dir: Path, missing: list[str]) -> RunConfig | None:
    try:
        return load_run(run_dir / "config.yaml")
    except UserError as error:
        missing.append(f"Configuration: {error}")
        return None


def _read_stream(run_dir: Path, run: RunConfig | None, missing: list[str]) -> list[PhaseMix]:
    if run is None:
        missing.append("Datasets and quality: the configuration names the phases")
        return []
    folders = [phase.path for phase in run.data.phases]
    try:
        return read_phases([folder if folder.exists() else run_dir / folder for folder in folders])
    except UserError as error:
        missing.append(f"Datasets and quality: {error}")
        return []


def _read_evaluation(run_dir: Path, missing: list[str]) -> dict[str, Any] | None:
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


def _held_out(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """The model's held-out loss; None: it was not evaluated, or on tasks alone."""
    return None if evaluation is None else evaluation["model"]["held_out"]


def _references(evaluation: dict[str, Any] | None) -> list[ReferenceLine]:
    if (held_out := _held_out(evaluation)) is None:
        return []
    return [
        ReferenceLine("held-out loss", held_out["nats_per_token"]),
        ReferenceLine("unigram entropy of the held-out tokens", held_out["unigram_entropy"]),
    ]


def _tiles(history: History, run: RunConfig | None, evaluation: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The figures at the head of the page: (what, value)."""
    loss, loss_steps = history.last_loss()
    speed = history.column("tokens_per_second")
    over = f"loss, mean of the last {loss_steps} recorded steps" if loss_steps > 1 else "loss of the last step"
    tiles = [(over, f"{loss:.3f}" if math.isfinite(loss) else "none")]
    if held_out := _held_out(evaluation):
        tiles.append(("held-out nats per token", f"{held_out['nats_per_token']:.3f}"))
    tiles += [("tokens", f"{history.rows.tokens[-1]:,}"), ("steps", f"{history.rows.steps[-1]:,}")]
    if np.isfinite(speed).any():
        tiles.append(("tokens/s, median", f"{np.nanmedian(speed):,.0f}"))
    if np.isfinite(mfu := history.column("mfu")).any():
        tiles.append(("MFU, median", f"{np.nanmedian(mfu):.1%}"))
    if run:
        tiles.append(("parameters", _short(count_parameters(run.model))))
    if history.monitored:
        tiles.append(("bits of headroom, least", f"{least_headroom(history):.1f}"))
    skipped = history.column("skipped_steps")[-1]
    skips = f"{skipped:,.0f}" if math.isfinite(skipped) else "0"
    return [*tiles, ("restarts", str(len(history.restarts))), ("skipped steps", skips)]


def _held_out_rows(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
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


def _task_rows(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
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


def _event(event: dict[str, Any]) -> dict[str, Any]:
    seconds = event.get("time")
    when = ""
    # The end of year 9999.
    if isinstance(seconds, int | float) and 0 <= seconds < 253_402_300_800:
        when = f"{datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    return {"name": event["event"], "step": event.get("step"), "when": when}


def _short(count: int) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return f"{count:,}"
