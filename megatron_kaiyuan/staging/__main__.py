"""`python -m megatron_kaiyuan.staging`, as launch/stage_env.sh calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_kaiyuan.command_line import Force, make_app, run_app

app = make_app("An environment as one file, unpacked to each node's own disk (docs/setup.md).")
Archive = Annotated[Path, typer.Argument(metavar="FILE", help="the archive, on a file system that all nodes see")]


@app.command()
def pack(file: Archive, force: Force = False) -> None:
    """Pack the environment, its interpreter and the project into FILE; once, on any node."""
    from megatron_kaiyuan.staging.pack import pack as write

    print(write(file, force))


@app.command()
def use(file: Archive) -> None:
    """Unpack FILE to this node's disk, if it is not there yet, and print the environment's folder."""
    from megatron_kaiyuan.staging.unpack import use as unpack

    print(unpack(file))


@app.command()
def clean() -> None:
    """Remove the unpacked environments that no process on this node uses."""
    from megatron_kaiyuan.staging.unpack import clean as remove_unused

    for line in remove_unused():
        print(line)


@app.command()
def measure(
    platform: Annotated[str, typer.Option(help="what ranks run on: cpu, cuda, npu or auto")] = "auto",
) -> None:
    """Count the stats and opens of a rank's imports, by place, and time them."""
    from megatron_kaiyuan.staging.cold_start import measure as count

    print(count(platform))


if __name__ == "__main__":
    run_app(app)
