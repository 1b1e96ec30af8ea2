"""`kaiyuan` commands that decide what to train on; `cli.py` adds them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_kaiyuan.command_line import Force

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")]
Slots = Annotated[int | None, typer.Option(min=1, help="runs at once; default: one a core, or one a device")]


def mix(
    recipe: Annotated[Path, typer.Argument(help="mix.yaml: corpora, held-out text, and what the large run is")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="folder of the study")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="only say what would be trained")] = False,
    slots: Slots = None,
    force: Force = False,
) -> None:
    """Train small runs on drawn mixtures, fit how held-out loss follows from the shares, and write the best order.yaml.

    Example: kaiyuan mix mix.yaml --output runs/mix

    The same command goes on where it was stopped; with more runs it trains only the new ones.
    """
    from megatron_kaiyuan.errors import UserError
    from megatron_kaiyuan.research.mixture import run

    if plan:
        print(run.plan(recipe, overrides or []))
        return
    if output is None:
        raise UserError("--output: name the folder of the study, or ask for --plan")
    print(run.mix(recipe, overrides or [], output, slots, force))


def probe(
    recipe: Annotated[Path, typer.Argument(help="probes.yaml: windows, held-out text, and the small network's recipe")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="folder of the runs and of the answer")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="only say what would be trained, at which cost and power")
    ] = False,
    slots: Slots = None,
    engine: Annotated[Literal["local", "slurm"], typer.Option(help="this machine, or an array of Slurm's")] = "local",
    tasks: Annotated[int, typer.Option(min=1, help="with --engine slurm: tasks of the array")] = 8,
    sbatch: Annotated[str, typer.Option(help="with --engine slurm: its options, as '--gpus=1 --time=4:00:00'")] = "",
    force: Force = False,
) -> None:
    """Train a small network on each window of data under paired seeds, and say what the windows are worth.

    Example: kaiyuan probe probes.yaml --output runs/probes

    A kill loses nothing: the same command continues. The answer is OUTPUT/answer/answer.md.
    """
    from megatron_kaiyuan.errors import UserError
    from megatron_kaiyuan.research.probes import command
    from megatron_kaiyuan.research.queue.slurm import Array

    if plan:
        print(command.plan(recipe, overrides or []))
        return
    if output is None:
        raise UserError("--output: name the folder of the probes, or ask for --plan")
    array = Array(tasks, tuple(shlex.split(sbatch))) if engine == "slurm" else None
    print(*command.probe(recipe, overrides or [], output, slots, array, force), sep="\n")


def add_commands(app: typer.Typer) -> None:
    """Add them to `kaiyuan`."""
    app.command()(mix)
    app.command()(probe)
