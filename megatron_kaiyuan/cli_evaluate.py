"""`kaiyuan eval`: how good a model is. No logic lives here, only arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_kaiyuan.cli_after_training import ModelOrEma, RunStep
from megatron_kaiyuan.command_line import Force, SeveralValuesCommand, positive_count_option


def add_commands(app: typer.Typer) -> None:
    """Add it to the root."""
    app.command("eval", cls=SeveralValuesCommand)(evaluate)


def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RUN_DIR", help="Hugging Face folder, or checkpoint; of a run's folder its newest step"
        ),
    ],
    step: RunStep = None,
    weights: ModelOrEma = "model",
    held_out: Annotated[list[Path] | None, typer.Option(help="held-out corpora, each an .idx or a prefix")] = None,
    held_out_text: Annotated[
        list[Path] | None, typer.Option(help="held-out documents as JSON lines files, of which two tasks are made")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="tasks or groups of lm-eval, by name")] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(help="sets of them, english, chinese, math or code; docs/after_training.md has tasks and shots"),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="folder with YAML files of tasks besides lm-eval's own")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="examples before each question of --tasks; default: the task's")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(parser=positive_count_option, metavar="NUMBER", help="documents of each task; default: all"),
    ] = None,
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code",
            help="tasks such as those of --preset code may run what the model writes, as you: in a sandbox only",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="JSON file; default: RUN_DIR/evaluation.json, which kaiyuan report reads")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="model to compare with, such as RUN_DIR/checkpoints/step_0")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="of a checkpoint, for text and tasks: folder with tokenizer.json")
    ] = None,
    seq_length: Annotated[
        int | None,
        typer.Option(min=1, help="context in tokens; default: as in training, of a Hugging Face folder all it admits"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="sequences at a time; default: as many as their logits leave room for")
    ] = None,
    tensor_model_parallel_size: Annotated[
        int,
        typer.Option(min=1, help="of a checkpoint: ranks that share each matrix; started by torchrun or srun"),
    ] = 1,
    pipeline_model_parallel_size: Annotated[
        int, typer.Option(min=1, help="of a checkpoint: ranks that share the layers; the other ranks share the texts")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or npu")] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(help="of a Hugging Face folder: held and computed in; auto: as it is stored, as lm_eval does"),
    ] = "float32",
    force: Force = False,
) -> None:
    """Held-out loss, and lm-eval on its own tasks or on tasks made from held-out text; on one rank or many.

    Example: kaiyuan eval runs/mine --held-out corpora/math_text_document --tasks arc_easy --tokenizer tokenizer

    Under torchrun the ranks share the work, and rank 0 prints and writes. Only lm-eval's own tasks may ask the network
    for their data (HF_HUB_OFFLINE=1: not even they).
    """
    from megatron_kaiyuan.config import ParallelConfig
    from megatron_kaiyuan.evaluate.ranks import evaluation_ranks

    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
    )
    with evaluation_ranks(device, parallel) as platform:
        from megatron_kaiyuan.evaluate.measures import Measures
        from megatron_kaiyuan.evaluate.presets import preset_selections
        from megatron_kaiyuan.evaluate.replicas import is_first
        from megatron_kaiyuan.evaluate.run import evaluate as evaluate_model
        from megatron_kaiyuan.evaluate.source import Settings
        from megatron_kaiyuan.evaluate.summary import summary_line
        from megatron_kaiyuan.evaluate.task_selection import TaskSelection

        prefixes = [path.with_suffix("") if path.suffix == ".idx" else path for path in held_out or ()]
        selection = TaskSelection(tuple(tasks or ()), include_path, num_fewshot, limit, confirm_run_unsafe_code)
        presets = list(preset_selections(preset or (), limit, confirm_run_unsafe_code))
        result, path = evaluate_model(
            model,
            Measures(prefixes, held_out_text or (), selection, seq_length, presets=presets),
            output,
            step=step,
            weights=weights,
            baseline=baseline,
            tokenizer=tokenizer,
            settings=Settings(platform.device, parallel, batch_size, dtype),
            force=force,
        )
        speaks = is_first()
    if speaks:
        print(f"eval: {result['model']['name']}: {summary_line(result)}; {path}")
