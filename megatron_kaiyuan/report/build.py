"""One self-contained HTML page about a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from megatron_kaiyuan.config import RunConfig, load_run
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.nearby import near_run
from megatron_kaiyuan.network import count_parameters
from megatron_kaiyuan.outputs import check
from megatron_kaiyuan.pages.page import earlier_page, page_identity, page_output, render, write_page
from megatron_kaiyuan.pages.phase_mixes import PhaseMix, read_phases, stream_tables
from megatron_kaiyuan.pages.streams import stream_figures
from megatron_kaiyuan.report.environment import cost_rows, environment_rows, implementation_rows, total_cost
from megatron_kaiyuan.report.evaluation import (
    evaluation_figures,
    held_out_of,
    held_out_rows,
    read_evaluation,
    references,
    task_rows,
)
from megatron_kaiyuan.report.happened import happenings, samples_of
from megatron_kaiyuan.report.metrics import History, read_history
from megatron_kaiyuan.report.monitored import monitor_figures
from megatron_kaiyuan.report.plots import speed_over_time, training_figures

GENERATOR = "kaiyuan report"


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
    evaluation = read_evaluation(run_dir, missing)
    figures = [*training_figures(history, phases, references(evaluation))]
    if len(history.monitored):
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
        held_out=held_out_rows(evaluation),
        domains=held_out["domains"] if (held_out := held_out_of(evaluation)) else {},
        tasks=task_rows(evaluation),
        measured=evaluation_figures(evaluation),
        samples=samples_of(history),
        environment=environment_rows(history),
        implementations=implementation_rows(history),
        costs=cost_rows(history, run),
        cost=total_cost(history, run),
        speed=speed_over_time(history),
        events=happenings(history),
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


def _tiles(history: History, run: RunConfig | None, evaluation: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The figures at the head of the page: (what, value)."""
    loss, loss_steps = history.last_loss()
    speed = history.column("tokens_per_second")
    over = f"loss, mean of the last {loss_steps} recorded steps" if loss_steps > 1 else "loss of the last step"
    tiles = [(over, f"{loss:.3f}" if math.isfinite(loss) else "none")]
    if held_out := held_out_of(evaluation):
        tiles.append(("held-out nats per token", f"{held_out['nats_per_token']:.3f}"))
    tiles += [("tokens", f"{history.rows.tokens[-1]:,}"), ("steps", f"{history.rows.steps[-1]:,}")]
    if np.isfinite(speed).any():
        tiles.append(("tokens/s, median", f"{np.nanmedian(speed):,.0f}"))
    if np.isfinite(mfu := history.column("mfu")).any():
        tiles.append(("MFU, median", f"{np.nanmedian(mfu):.1%}"))
    if run:
        tiles.append(("parameters", _short(count_parameters(run.model))))
    if len(history.monitored):
        tiles.append(("bits of headroom, least", _bits(history.monitored.least_headroom())))
    skipped = history.column("skipped_steps")[-1]
    skips = f"{skipped:,.0f}" if math.isfinite(skipped) else "0"
    return [*tiles, ("restarts", str(len(history.restarts))), ("skipped steps", skips)]


def _bits(headroom: float) -> str:
    return f"{headroom:.1f}" if math.isfinite(headroom) else "not finite"


def _short(count: int) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return f"{count:,}"
