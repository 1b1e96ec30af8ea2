"""The commands of `kaiyuan-data` over scored corpora: curriculum, quantile, report. No logic lives here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from megatron_kaiyuan.command_line import Force, SeveralValuesCommand, make_app, optional_value
from megatron_kaiyuan.nearby import corpus_word

app = make_app()


@app.command(cls=optional_value("--materialize", ("tokens", "index")))
def curriculum(
    recipe: Annotated[Path, typer.Argument(help="order recipe, YAML")],
    output: Annotated[Path, typer.Option("--output", help="folder that gets one folder a phase")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, e.g. 'phases[0].seed=7'")] = None,
    phase: Annotated[str | None, typer.Option(help="build this phase only")] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: every core; the result is the same for any number")] = 0,
    memory: Annotated[
        str | None, typer.Option(help="as 4G; default: half of what is free. Same result for any")
    ] = None,
    materialize: Annotated[
        str | None,
        typer.Option(
            metavar="[tokens|index]",
            help="also write each phase as a plain Megatron .bin/.idx; index: pointers only, for a phase of one corpus",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Build the document order of each phase: shuffled, or quality ascending (Algorithm 1).

    Example: kaiyuan-data curriculum mine/order.yaml --output mine/phases --memory 4G

    A phase that does not fit the memory is sorted with files beside it, of up to about 60 bytes a document. With
    --materialize stock Megatron opens OUTPUT/PHASE_text_document: the documents of the phase in its order.
    """
    from data_tools.curriculum.build import build_recipe
    from data_tools.curriculum.materialize import check_recipe, materialize_phases
    from data_tools.curriculum.memory import parse_memory

    pairs = check_recipe(recipe, overrides or [], materialize, phase) if materialize else []
    limit = parse_memory(memory) if memory else None
    summary = build_recipe(recipe, overrides or [], output, phase, threads, limit, force)
    for line in materialize_phases(output, pairs, materialize, threads or os.cpu_count() or 1, force):
        print(line, flush=True)
    print(summary)


@app.command(cls=SeveralValuesCommand)
def quantile(
    corpora: Annotated[
        list[str],
        typer.Argument(
            parser=corpus_word, metavar="PATH", help="corpora, without .bin or .idx, as PREFIX or NAME=PREFIX"
        ),
    ],
    scores: Annotated[list[str], typer.Option("--score", help="column of all of them, or NAME=COLUMN for each")],
    output: Annotated[Path, typer.Option("--output", help="folder that gets a phase for each window and windows.json")],
    tops: Annotated[
        list[str], typer.Option("--top", help="where windows begin, from the best; default: 0 0.15 0.30 0.45 0.60 0.75")
    ] = [],  # noqa: B006
    width: Annotated[str, typer.Option(help="of each window")] = "0.02",
    windows: Annotated[list[str], typer.Option("--window", help="or windows as 0.30-0.32")] = [],  # noqa: B006
    by: Annotated[str, typer.Option(help="what the shares count: documents or tokens")] = "documents",
    tokens: Annotated[
        str | None, typer.Option(help="of every phase, as 2M; default: what the smallest window holds")
    ] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="repeat windows that hold fewer tokens")] = False,
    missing_scores: Annotated[
        str, typer.Option(help="documents without a score: refuse, drop, or take them as lowest")
    ] = "refuse",
    seed: Annotated[int, typer.Option(help="of the draws between equal scores and of the order")] = 1234,
    samples: Annotated[int, typer.Option(help="beginnings of documents in each portrait")] = 3,
    portrait: Annotated[bool, typer.Option("--portrait/--no-portrait", help="look at the text of each window")] = True,
    tokenizer_model: Annotated[
        Path | None, typer.Option(help="of the corpora, if not where their manifests say")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: every core; the result is the same for any number")] = 0,
    memory: Annotated[
        str | None, typer.Option(help="as 4G; default: half of what is free. Same result for any")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print windows.json")] = False,
    force: Force = False,
) -> None:
    """Cut windows at target quantiles of a score: a phase of equal tokens each, to find out what each slice is worth.

    Example: kaiyuan-data quantile edu=runs/edu_text_document web=runs/web_text_document --score edu=edu web=quality
    --output runs/windows

    Exact to one document; equal scores are drawn between by the seed, as in an order recipe. No text is copied.
    OUTPUT/order.yaml is the recipe of the phases.
    """
    from data_tools.curriculum.memory import parse_memory
    from data_tools.windows.cut import cut_windows
    from data_tools.windows.options import WindowOptions

    options = WindowOptions(
        scores,
        tops,
        width,
        windows,
        by,
        tokens,
        repeat,
        missing_scores,
        seed,
        samples if portrait else None,
        tokenizer_model,
    )
    print(cut_windows(corpora, options, output, threads, parse_memory(memory) if memory else None, as_json, force))


@app.command()
def report(
    recipe: Annotated[Path, typer.Argument(help="order recipe, YAML")],
    phases: Annotated[Path, typer.Option("--phases", help="folder that curriculum --output wrote")],
    overrides: Annotated[list[str] | None, typer.Argument(help="as they were given to curriculum")] = None,
    output: Annotated[Path | None, typer.Option(help="the page; default: report.html beside the phases")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object; no page unless --output")] = False,
    force: Force = False,
) -> None:
    """Show what built phases hold: shares and quality along the tokens, and how often each quality decile is seen.

    Example: kaiyuan-data report mine/order.yaml --phases mine/phases
    """
    from data_tools.curriculum.report import report_order

    print(report_order(recipe, overrides or [], phases, output, as_json, force))
