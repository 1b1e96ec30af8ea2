"""Commands for runs about runs, which `cli.py` adds to its own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_kaiyuan.command_line import Force


def probe(
    request: Annotated[Path, typer.Argument(help="probes.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="only cost, power and what will be run")] = False,
    slots: Annotated[
        int | None, typer.Option(min=1, help="runs at the same time; default: one a CPU core, or one a device")
    ] = None,
    engine: Annotated[Literal["local", "slurm"], typer.Option(help="this machine, or an array of Slurm's")] = "local",
    tasks: Annotated[int, typer.Option(min=1, help="with --engine slurm: tasks of the array")] = 8,
    sbatch: Annotated[str, typer.Option(help="with --engine slurm: its options, as '--gpus=1 --time=4:00:00'")] = "",
    force: Force = False,
) -> None:
    """What windows of data are worth: a small network trained on each under paired seeds, judged on held-out text.

    A kill loses nothing: the same command continues. The answer is OUTPUT/answer/answer.md.

    Example: kaiyuan probe probes.yaml --plan
    """
    from megatron_kaiyuan.research.probes import command

    if only_plan:
        print(command.plan(request, overrides or []))
        return
    from megatron_kaiyuan.research.queue.slurm import Array

    array = Array(tasks, tuple(shlex.split(sbatch))) if engine == "slurm" else None
    print(*command.probe(request, overrides or [], slots, array, force), sep="\n")
