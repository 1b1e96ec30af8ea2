"""The roof: `kaiyuan` and its subcommands. Each reads its arguments and calls one room."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_kaiyuan import cli_after_training, cli_checkpoint, cli_config, cli_evaluate, cli_research
from megatron_kaiyuan.cli_checkpoint import AsJson, RunFolder
from megatron_kaiyuan.command_line import Force, SeveralValuesCommand, make_app, run_app
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.paths import path_word
from megatron_kaiyuan.streams import make_output_optional

app = make_app("Train, average, export, evaluate and report a Kaiyuan language model.", root=True)

app.add_typer(cli_checkpoint.app, name="checkpoint")
app.add_typer(cli_config.app, name="config")

Recipe = Annotated[Path, typer.Argument(help="training recipe, a YAML file")]
Precision = Literal["fp32", "bf16", "fp16"]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="fields to change")]


@app.command(cls=SeveralValuesCommand)
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder to write")],
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            parser=path_word, metavar="NAME=PREFIX", help="corpora to train on; default: one that is to be made"
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            parser=path_word, metavar="NAME=PREFIX", help="corpora to validate on while it trains, a domain each"
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="the network: kaiyuan-tiny or kaiyuan-2b")] = "kaiyuan-tiny",
    score: Annotated[str, typer.Option(help="column of a corpus that ranks its documents, where it has it")] = "score",
) -> None:
    """Write a folder to begin in: order.yaml and train.yaml, launch/ with the scripts that start jobs, docs/.

    Example: kaiyuan init mine --corpus web=corpora/web_text_document books=corpora/books_text_document

    With corpora named, batch, warm-up and vocabulary fit them. Files that are there already with another content are
    never replaced.
    """
    from megatron_kaiyuan.starter.init import init as write_folder

    print(write_folder(folder, corpus or [], preset, score, held_out or []))


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="only check recipe and data, without torch")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="only build network and optimizer, without devices or data, and count them"),
    ] = False,
    world_size: Annotated[
        int, typer.Option(min=1, help="with --check or --dry-run: processes that will be started")
    ] = 1,
    init_from: Annotated[
        Path | None,
        typer.Option(help="weights of a new run: a checkpoint's folder, an exported one, or a Qwen3 folder"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="a damaged checkpoint ends the run")] = False,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight",
            help="first, in 30 s, examine the devices of all ranks and what lies between them; a bad node is named in "
            "RUN_DIR/bad_nodes.json, and the exit code is 3",
        ),
    ] = False,
) -> None:
    """Train a recipe; resumes by itself when the run folder holds a checkpoint.

    Example: kaiyuan train mine/train.yaml

    Several processes: mine/launch/torchrun.sh --nproc-per-node 2 mine/train.yaml train.seed=7. `kaiyuan init mine`
    writes both files, and the pages that help names (docs/); a checkout of the project has them in launch/ and docs/.

    Exit code 0 only when the run has come to its end. SIGTERM, SIGHUP, SIGUSR1 and ctrl-C save it first; the codes are
    143, 129, 138 and 130 then, 2 after a mistake, 1 after any other failure (docs/launch.md).
    """
    overrides = list(overrides or [])
    if init_from is not None:
        overrides.append(f"init_from={json.dumps(str(init_from))}")
    if strict:
        overrides.append("checkpoint.strict=true")
    if check:
        from megatron_kaiyuan.train.run_length import check_training

        # The exit code is the answer, which a launch script waits for.
        make_output_optional()
        print(check_training(recipe, overrides, world_size))
    elif dry_run:
        from megatron_kaiyuan.train.dry_run import dry_run as build_without_devices

        print(build_without_devices(recipe, overrides, world_size))
    else:
        if preflight:
            from megatron_kaiyuan.doctor.preflight import preflight as examine_all_ranks

            examine_all_ranks(recipe, overrides)
        from megatron_kaiyuan.train.rank import run_on_this_rank

        run_on_this_rank(recipe, overrides)


@app.command()
def plan(
    recipe: Recipe,
    gpus: Annotated[int, typer.Option(min=1, max=1_000_000, help="devices, one for each process")],
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, 910a, 910b, cpu; any other with both figures below")],
    overrides: Overrides = None,
    gpu_memory_gib: Annotated[float | None, typer.Option(min=0.1, max=1e6, help="memory of a device")] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(min=1e-6, max=1e9, help="dense peak of a device in the recipe's precision, 1e12 FLOP/s"),
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1.0, help="part of the peak that matrix products reach")
    ] = None,
    measured_mfu: Annotated[
        float | None,
        typer.Option(min=0.001, max=1.0, help="instead: mfu_causal of metrics.jsonl, in the recipe's layout on --gpus"),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, max=1e9, help="of a device for an hour, in any currency")
    ] = None,
    mtbf: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e9, help="hours between failures of one device; default: as published"),
    ] = None,
    restart_minutes: Annotated[float, typer.Option(min=0.0, max=1e5, help="from a failure to the next step")] = 10.0,
    save_seconds: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, help="until a checkpoint is whole, as measured; default: 2 GB/s in all"),
    ] = None,
    all_layouts: Annotated[
        bool, typer.Option("--all", help="every micro-batch size of every layout, and the parts of its memory")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Memory, days, cost and losses by failures of every legal layout of a recipe, best first; needs no devices.

    Example: kaiyuan plan mine/launch/recipes/kaiyuan-2b/train.yaml --gpus 64 --gpu h100 train.train_tokens=2.2T
    """
    from megatron_kaiyuan.planning.failures import Assumed
    from megatron_kaiyuan.planning.plan import make_plan, require_steps
    from megatron_kaiyuan.planning.records import Costs, as_record
    from megatron_kaiyuan.planning.show import as_text
    from megatron_kaiyuan.platform.datasheets import device_named

    device = device_named(gpu, gpu_memory_gib, peak_tflops)
    if mfu is not None and measured_mfu is not None:
        raise UserError("--mfu and --measured-mfu: give one of them")
    found = make_plan(recipe, overrides or [], gpus, device, mfu, measured_mfu)
    require_steps(found)
    costs = Costs(price, Assumed(mtbf, restart_minutes, save_seconds))
    print(json.dumps(as_record(found, costs), indent=1) if as_json else as_text(found, all_layouts, costs))


# In the order of the list that --help prints.
cli_after_training.add_commands(app)
cli_evaluate.add_commands(app)
cli_research.add_commands(app)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="run folder with metrics.jsonl")],
    output: Annotated[Path | None, typer.Option(help="default: RUN_DIR/report.html")] = None,
    force: Force = False,
) -> None:
    """One self-contained page about a run.

    Example: kaiyuan report runs/quickstart/train
    """
    from megatron_kaiyuan.report import build_report

    print(f"report: {build_report(run_dir, output or run_dir / 'report.html', force)}")


@app.command(cls=SeveralValuesCommand)
def doctor(
    platform: Annotated[str, typer.Option(help="auto, cpu, cuda or npu")] = "auto",
    run_dir: Annotated[Path | None, typer.Option(help="where a run will write: do all ranks see it?")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="seconds for the device, again for missing ranks, again for collectives; default: 120, on NPUs 600",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    acceptance: Annotated[
        bool, typer.Option("--acceptance", help="twenty checks of a machine that this project was never run on")
    ] = False,
    output: Annotated[Path, typer.Option(help="acceptance: folder of its record")] = Path("acceptance"),
    only: Annotated[list[str] | None, typer.Option(help="acceptance: names of the checks to run")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="acceptance: trained for a step by the last check; default: Kaiyuan-2B")
    ] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="acceptance: devices to use; default: all")] = None,
) -> None:
    """What this machine has, and whether it and all ranks can train. Exit code 1 when there is a problem.

    Example: kaiyuan doctor --run-dir runs

    All ranks: python -m megatron_kaiyuan.cluster.torchrun --nproc-per-node 2 -m megatron_kaiyuan.cli doctor

    A new kind of machine: launch/acceptance.sh, or kaiyuan doctor --platform npu --acceptance. Half an hour on eight
    devices; what failed or was interrupted is run again by the same command; OUTPUT/acceptance.json is to be sent back
    (docs/npu.md).
    """
    if acceptance:
        from megatron_kaiyuan.doctor.acceptance.run import run_acceptance

        raise typer.Exit(run_acceptance(platform, output, only or (), recipe, ranks))
    for option, value in (("--only", only), ("--recipe", recipe), ("--ranks", ranks)):
        if value is not None:
            raise UserError(f"{option}: is for --acceptance; give that too, or leave it out")
    from megatron_kaiyuan.doctor.run import run_doctor

    raise typer.Exit(run_doctor(platform, run_dir, timeout, as_json))


@app.command()
def replay(
    capsule: Annotated[Path, typer.Argument(help="folder RUN_DIR/overflow/step_N that a run wrote at an overflow")],
    platform: Annotated[str, typer.Option(help="auto, cpu, cuda or npu")] = "auto",
    precision: Annotated[Precision | None, typer.Option(help="default: the run's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Run the one layer that left FP16's range alone: each tensor's size, and which is the first beyond the range.

    Exit code 0 when that is the tensor that the run recorded, 1 when it is not.

    Example: kaiyuan replay runs/mine/overflow/step_1200 --platform cpu
    """
    from megatron_kaiyuan import platform as platforms

    device = platforms.activate(platform)
    from megatron_kaiyuan.cluster.groups import single_process
    from megatron_kaiyuan.monitor import replay as replaying

    with single_process(device):
        result = replaying.replay(capsule, device, precision)
    print(json.dumps(replaying.as_json(result), indent=1) if as_json else replaying.as_text(result))
    raise typer.Exit(0 if result.reproduced else 1)


@app.command()
def status(run_dir: RunFolder, as_json: AsJson = False) -> None:
    """Look at a run from any machine that sees its folder: state, step, loss, speed, time left, checkpoint, holder.

    Exit code 0 while it starts or trains and when it is finished; 1 when it is hung, stopped or dead; 2 for a mistake.

    Example: kaiyuan status runs/mine
    """
    from megatron_kaiyuan.report.status import read_status

    found = read_status(run_dir)
    print(json.dumps(dataclasses.asdict(found), indent=1) if as_json else "\n".join(found.lines()))
    raise typer.Exit(found.exit_code)


def main() -> None:
    # torch would load torch_npu by itself, and fail to start where the driver's libraries are not to be found, whatever
    # the platform. It is left to platform npu, which says what is missing.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    run_app(app, {"kaiyuan-data": "data_tools.cli"})


if __name__ == "__main__":
    main()
