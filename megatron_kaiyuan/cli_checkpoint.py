"""`kaiyuan checkpoint`: what lies in a run's checkpoints. No logic lives here, only arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_kaiyuan.command_line import make_app, positive_count_option

if TYPE_CHECKING:
    from megatron_kaiyuan.platform import Platform

app = make_app("List, verify, compare and prune the checkpoints of a run.")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="run folder with checkpoints")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


@contextlib.contextmanager
def alone(name: str = "cpu") -> Iterator[Platform]:
    """One process with megatron-core ready, for commands on whole checkpoints."""
    from megatron_kaiyuan import platform

    device = platform.activate(name)
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield device


@app.command("list")
def list_them(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """Steps with position, size and time, what was set aside, and averages in the run's folder; files are not read.

    Example: kaiyuan checkpoint list runs/quickstart/train
    """
    from megatron_kaiyuan.checkpoint import listing

    found, averages = listing.list_checkpoints(run_dir), listing.list_averages(run_dir)
    if as_json:
        content = {"checkpoints": listing.as_json(found), "averages": listing.as_json(averages)}
        print(json.dumps({"run_dir": str(run_dir), **content}, indent=1))
    else:
        print(*filter(None, [listing.as_table(found), listing.averages_as_table(averages)]), sep="\n")
        print(f"checkpoint list: {listing.summary(found)}")


@app.command()
def verify(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR|CHECKPOINT", help="run folder, or a checkpoint such as RUN_DIR/averaged"),
    ],
    step: Annotated[int | None, typer.Option(help="only this one; default: all")] = None,
    as_json: AsJson = False,
) -> None:
    """Read every file and compare size and checksum with the manifest; nothing is moved. Exit code 2 on damage.

    Example: kaiyuan checkpoint verify runs/quickstart/train --step 100
    """
    from megatron_kaiyuan.checkpoint import listing

    if line := listing.verify_and_tell(run_dir, step, as_json):
        print(line)


@app.command()
def diff(
    run_dir: RunFolder,
    first: Annotated[str, typer.Argument(help="a step, a checkpoint's folder, or a run's for its newest step")],
    second: Annotated[str, typer.Argument(help="a step, a checkpoint's folder, or a run's for its newest step")],
    as_json: AsJson = False,
) -> None:
    """What changed between two checkpoints: configuration, progress, and how far each group of weights moved.

    Example: kaiyuan checkpoint diff runs/quickstart/train 100 200
    """
    with alone():
        from megatron_kaiyuan.checkpoint.difference import difference
        from megatron_kaiyuan.checkpoint.listing import checkpoint_named

        before, after = (checkpoint_named(run_dir, name) for name in (first, second))
        found = difference(before.folder, after.folder)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(*found.lines(), sep="\n")
        print(f"checkpoint diff: {before.name}, to {after.name}: {found.summary()}")


@app.command()
def prune(
    run_dir: RunFolder,
    keep_last: Annotated[int, typer.Option(min=2, help="the newest ones")],
    keep_every_steps: Annotated[int | None, typer.Option(min=1, help="multiples of it stay too")] = None,
    keep_every_tokens: Annotated[
        int | None,
        typer.Option(
            parser=positive_count_option, metavar="NUMBER", help="the first one at or after each multiple stays too"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove checkpoints; step 0 stays, and so do two that have been read through and are whole.
    Exit code 1 when a step could not be removed.

    Example: kaiyuan checkpoint prune runs/quickstart/train --keep-last 4 --dry-run
    """
    from megatron_kaiyuan.checkpoint.pruning import prune as prune_run
    from megatron_kaiyuan.checkpoint.retention import Retention

    found = prune_run(run_dir, Retention(keep_last, keep_every_steps, keep_every_tokens), dry_run)
    print(json.dumps(dataclasses.asdict(found)) if as_json else found.summary())
    raise typer.Exit(1 if found.problems else 0)
