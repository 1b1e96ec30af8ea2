"""`kaiyuan` commands that decide what to train on; `cli.py` adds them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_kaiyuan.command_line import Force
from megatron_kaiyuan.errors import UserError

if TYPE_CHECKING:
    from megatron_kaiyuan.research.queue.slurm import Array

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")]
Plan = Annotated[bool, typer.Option("--plan", help="only say what would be trained, and at which cost")]
Slots = Annotated[int | None, typer.Option(min=1, help="runs at once; default: one a core, or one a device")]
Engine = Annotated[Literal["local", "slurm"], typer.Option(help="this machine, or an array of Slurm's")]
Tasks = Annotated[int, typer.Option(min=1, help="with --engine slurm: tasks of the array")]
Sbatch = Annotated[str, typer.Option(help="with --engine slurm: its options, as '--gpus=1 --time=4:00:00'")]


def mix(
    recipe: Annotated[Path, typer.Argument(help="mix.yaml: corpora, held-out text, and what the large run is")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="folder of the study")] = None,
    plan: Plan = False,
    slots: Slots = None,
    engine: Engine = "local",
    tasks: Tasks = 8,
    sbatch: Sbatch = "",
    force: Force = False,
) -> None:
    """Train small runs on drawn mixtures, fit how held-out loss follows from the shares, and write the best order.yaml.

    Example: kaiyuan mix mix.yaml --output runs/mix

    The same command continues where it was stopped; with more runs it trains only the new ones.
    """
    from megatron_kaiyuan.research.mixture import command

    if plan:
        print(command.plan(recipe, overrides or []))
    else:
        print(command.mix(recipe, overrides or [], _named(output), slots, _array(engine, tasks, sbatch), force))


def probe(
    recipe: Annotated[Path, typer.Argument(help="probes.yaml: windows, held-out text, and the small network's recipe")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="folder of the runs and of the answer")] = None,
    plan: Plan = False,
    slots: Slots = None,
    engine: Engine = "local",
    tasks: Tasks = 8,
    sbatch: Sbatch = "",
    force: Force = False,
) -> None:
    """Train a small network on each window of data under paired seeds, and say what the windows are worth.

    Example: kaiyuan probe probes.yaml --output runs/probes

    A kill loses nothing: the same command continues. The answer is OUTPUT/answer/answer.md.
    """
    from megatron_kaiyuan.research.probes import command

    if plan:
        print(command.plan(recipe, overrides or []))
        return
    lines = command.probe(recipe, overrides or [], _named(output), slots, _array(engine, tasks, sbatch), force)
    print(*lines, sep="\n")


def _named(output: Path | None) -> Path:
    if output is None:
        raise UserError("--output: name the folder of the runs, or ask for --plan")
    return output


def _array(engine: str, tasks: int, sbatch: str) -> Array | None:
    from megatron_kaiyuan.research.queue.slurm import Array

    return Array(tasks, tuple(shlex.split(sbatch))) if engine == "slurm" else None


def add_commands(app: typer.Typer) -> None:
    """Add them to `kaiyuan`."""
    app.command()(mix)
    app.command()(probe)
