"""`kaiyuan-data`: one command a stage, from raw text to a phase. No logic lives here, only arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_kaiyuan.command_line import make_app, run_app

app = make_app("Turn raw text into Megatron corpora and ordered training phases.")


@app.command()
def curriculum(
    recipe: Annotated[Path, typer.Argument(help="order recipe, YAML")],
    output: Annotated[Path, typer.Option("--output", help="folder that gets one folder a phase")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, e.g. 'phases[0].seed=7'")] = None,
    phase: Annotated[str | None, typer.Option(help="build this phase only")] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: every core; the result is the same for any number")] = 0,
) -> None:
    """Build the document order of each phase: shuffled, or quality ascending (Algorithm 1).

    Example: kaiyuan-data curriculum launch/recipes/quickstart/order.yaml --output runs/phases
    """
    from data_tools.curriculum import build_recipe

    print(build_recipe(recipe, overrides or [], output, phase, threads))


def main() -> None:
    """Entry point of `kaiyuan-data`."""
    run_app(app)


if __name__ == "__main__":
    main()
