"""`kaiyuan average`, `averages`, `export`, `import` and `compare`: what is made of runs. Only arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_kaiyuan.cli_checkpoint import AsJson, alone
from megatron_kaiyuan.command_line import Force, SeveralValuesCommand, bytes_option, positive_count_option
from megatron_kaiyuan.errors import UserError

AverageKind = Literal["equal", "ema", "one_minus_sqrt", "weighted"]
Over = Literal["checkpoints", "steps", "tokens"]
ModelOrEma = Annotated[
    Literal["model", "ema"], typer.Option("--weights", help="of a checkpoint; ema: those that ema.decay kept")
]
RunStep = Annotated[int | None, typer.Option("--step", min=0, help="of RUN_DIR this checkpoint; default: the newest")]


def add_commands(app: typer.Typer) -> None:
    """Add them to the root."""
    app.command()(average)
    app.command(cls=SeveralValuesCommand)(averages)
    app.command()(export)
    app.command("import")(import_model)
    app.command()(compare)


def average(
    run_dir: Annotated[Path, typer.Argument(help="run folder with checkpoints")],
    last: Annotated[
        int | None,
        typer.Option(min=1, help="how many of the newest scheduled checkpoints; default: 8, or one a coefficient"),
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="steps between them; default: every scheduled one")] = None,
    steps: Annotated[str | None, typer.Option(help="exactly these instead, as 100,200,300")] = None,
    kind: Annotated[AverageKind, typer.Option(help="how much each of them counts")] = "equal",
    decay: Annotated[float | None, typer.Option(help="ema: by how much the weight falls with age, such as 0.8")] = None,
    decay_per: Annotated[float, typer.Option(help="ema: over so many checkpoints, steps or tokens")] = 1.0,
    over: Annotated[Over, typer.Option(help="ema, one_minus_sqrt: what distance is counted in")] = "checkpoints",
    coefficients: Annotated[
        str | None, typer.Option(help="weighted: one for each checkpoint, as 1,2,4; their sum counts as 1")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="default: RUN_DIR/averaged, of other kinds averaged_KIND")] = None,
    force: Force = False,
) -> None:
    """Mean of the weights of the last scheduled checkpoints (multiples of checkpoint.save_every_steps).

    Example: kaiyuan average runs/quickstart/train --last 4 --kind ema --decay 0.7
    """
    chosen = _step_numbers(steps) if steps is not None else ()
    shares = _numbers(coefficients, "--coefficients", "as 1,2,4") if coefficients is not None else ()
    with alone():
        from megatron_kaiyuan.checkpoint.average import Selection, average_checkpoints
        from megatron_kaiyuan.checkpoint.weighting import Weighting

        wanted, weighting = (
            Selection(last or len(shares) or 8, stride, chosen),
            Weighting(kind, over, decay, decay_per, shares),
        )
        place = output or run_dir / ("averaged" if kind == "equal" else f"averaged_{kind}")
        print(average_checkpoints(run_dir, wanted, place, force, weighting))


def averages(
    run_dir: Annotated[Path, typer.Argument(help="run folder with checkpoints")],
    held_out: Annotated[list[Path], typer.Option(help="held-out corpora, each an .idx or a prefix")],
    kinds: Annotated[str, typer.Option(help="of equal, ema and one_minus_sqrt")] = "equal,ema,one_minus_sqrt",
    last: Annotated[str, typer.Option(help="how many of the newest scheduled checkpoints")] = "1,2,4,8",
    stride: Annotated[int | None, typer.Option(min=1, help="steps between them; default: every scheduled one")] = None,
    decay: Annotated[float, typer.Option(help="ema: by how much the weight falls with age")] = 0.8,
    decay_per: Annotated[float, typer.Option(help="ema: over so many checkpoints, steps or tokens")] = 1.0,
    over: Annotated[Over, typer.Option(help="ema, one_minus_sqrt: what distance is counted in")] = "checkpoints",
    seq_length: Annotated[int | None, typer.Option(min=1, help="context in tokens; default: as in training")] = None,
    output: Annotated[
        Path | None, typer.Option(help="page; the JSON file beside it has its name; default: RUN_DIR/averages.html")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or npu")] = "auto",
    force: Force = False,
) -> None:
    """Measure several averages of a run's checkpoints on held-out corpora: a page with a plot, and JSON.

    Example: kaiyuan averages runs/quickstart/train --held-out held_out/math_text_document --last 1,2,4
    """
    with alone(device) as platform:
        from megatron_kaiyuan.checkpoint.weighting import several
        from megatron_kaiyuan.evaluate.averages import Wanted, compare_averages

        prefixes = [path.with_suffix("") if path.suffix == ".idx" else path for path in held_out]
        weightings = several(kinds.split(","), over, decay, decay_per)
        wanted = Wanted(weightings, _counts(last, "--last"), prefixes, stride, seq_length)
        print(compare_averages(run_dir, wanted, output or run_dir / "averages.html", platform.device, force))


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT|RUN_DIR",
            help="RUN_DIR/checkpoints/step_N or RUN_DIR/averaged; of a run's folder its newest step",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Hugging Face folder to write")],
    step: RunStep = None,
    weights: ModelOrEma = "model",
    tokenizer: Annotated[Path | None, typer.Option(help="folder with tokenizer.json, copied along")] = None,
    format: Annotated[
        Literal["kaiyuan", "gemma3", "qwen3"] | None,
        typer.Option(
            "--format", help="kaiyuan: a class of its own, in the folder; default: the class of transformers that it is"
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="of the written weights; gemma3: float32 only")
    ] = "float32",
    max_shard_size: Annotated[
        int, typer.Option(parser=bytes_option, metavar="SIZE", help="of a file of weights, as 500MB or 5GB")
    ] = 5_000_000_000,
    compare: Annotated[
        bool, typer.Option(help="compare logits with megatron-core's: holds both networks in memory")
    ] = True,
    force: Force = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder.

    Example: kaiyuan export runs/quickstart/train/averaged --output exported --tokenizer runs/quickstart/tokenizer

    For a server: --format kaiyuan --dtype bfloat16 (docs/after_training.md says what serves where).
    """
    with alone():
        from megatron_kaiyuan.export.huggingface import Form
        from megatron_kaiyuan.export.run import export_checkpoint

        form = Form(format, dtype, max_shard_size)
        print(export_checkpoint(checkpoint, output, tokenizer, force, step, weights, form, compare))


def import_model(
    folder: Annotated[Path, typer.Argument(help="Hugging Face folder: what kaiyuan export wrote, or a Qwen3 folder")],
    output: Annotated[Path, typer.Option(help="checkpoint folder to write")],
    force: Force = False,
) -> None:
    """Write a Hugging Face folder of this network as a checkpoint: to start from, to evaluate, to export again.

    Example: kaiyuan import exported --output imported
    """
    with alone():
        from megatron_kaiyuan.checkpoint.imported import import_folder

        print(import_folder(folder, output, force))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="2 to 20 runs; the first is compared with")],
    last: Annotated[
        int | None,
        typer.Option(
            parser=positive_count_option,
            metavar="TOKENS",
            help="final measures are means over so many tokens; default: a tenth of the shortest run's",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="HTML page to write, with the curves")] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """What differs between runs: configuration, environment, loss and speed, evaluations, with intervals.

    Example: kaiyuan compare runs/base runs/higher_lr --output comparison.html

    Runs may still be written.
    """
    from megatron_kaiyuan.compare.compare import compare_runs
    from megatron_kaiyuan.compare.page import check_place, write_comparison
    from megatron_kaiyuan.compare.records import as_record
    from megatron_kaiyuan.compare.show import as_text

    if output is not None:
        check_place(runs, output, force)
    found = compare_runs(runs, last)
    print(json.dumps(as_record(found), indent=1) if as_json else as_text(found))
    if output is not None:
        write_comparison(found, output, force)
        if not as_json:
            print(f"compare: {output}")


def _numbers(words: str, option: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError:
        raise UserError(f"{option} {words}: write numbers with commas between, {example}") from None


def _counts(words: str, option: str) -> tuple[int, ...]:
    try:
        counts = tuple(dict.fromkeys(int(word) for word in words.split(",")))
    except ValueError:
        counts = ()
    if min(counts, default=0) < 1:
        raise UserError(f"{option} {words}: write numbers from 1 up with commas between, as 1,2,4")
    return counts


def _step_numbers(words: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError:
        raise UserError(f"--steps {words}: write numbers with commas between, as 100,200,300") from None
