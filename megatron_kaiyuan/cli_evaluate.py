"""`kaiyuan eval` and `generate`: what a model can do. No logic lives here, only arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from megatron_kaiyuan.cli_after_training import ModelOrEma, RunStep
from megatron_kaiyuan.cli_checkpoint import AsJson, alone
from megatron_kaiyuan.command_line import Force, SeveralValuesCommand, positive_count_option

# Options of `eval`.
_Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL|RUN_DIR", help="Hugging Face folder, or checkpoint; of a run's folder its newest step"
    ),
]
_HeldOut = Annotated[list[Path] | None, typer.Option(help="held-out corpora, each an .idx or a prefix")]
_HeldOutText = Annotated[
    list[Path] | None, typer.Option(help="held-out documents as JSON lines files, of which two tasks are made")
]
_Tasks = Annotated[list[str] | None, typer.Option(help="tasks or groups of lm-eval, by name")]
_Preset = Annotated[
    list[str] | None,
    typer.Option(help="sets of them, english, chinese, math or code; docs/after_training.md has tasks and shots"),
]
_IncludePath = Annotated[Path | None, typer.Option(help="folder with YAML files of tasks besides lm-eval's own")]
_NumFewshot = Annotated[
    int | None, typer.Option(min=0, help="examples before each question of --tasks; default: the task's")
]
_Limit = Annotated[
    int | None,
    typer.Option(parser=positive_count_option, metavar="NUMBER", help="documents of each task; default: all"),
]
_ConfirmRunUnsafeCode = Annotated[
    bool,
    typer.Option(
        "--confirm-run-unsafe-code",
        help="tasks such as those of --preset code may run what the model writes, as you: in a sandbox only",
    ),
]
_Output = Annotated[
    Path | None, typer.Option(help="JSON file; default: RUN_DIR/evaluation.json, which kaiyuan report reads")
]
_Baseline = Annotated[Path | None, typer.Option(help="model to compare with, such as RUN_DIR/checkpoints/step_0")]
_Tokenizer = Annotated[
    Path | None, typer.Option(help="of a checkpoint, for text and tasks: folder with tokenizer.json")
]
_SeqLength = Annotated[
    int | None,
    typer.Option(min=1, help="context in tokens; default: as in training, of a Hugging Face folder all it admits"),
]
_BatchSize = Annotated[
    int | None, typer.Option(min=1, help="sequences at a time; default: as many as their logits leave room for")
]
_TensorModelParallelSize = Annotated[
    int,
    typer.Option(min=1, help="of a checkpoint: ranks that share each matrix; started by torchrun or srun"),
]
_PipelineModelParallelSize = Annotated[
    int, typer.Option(min=1, help="of a checkpoint: ranks that share the layers; the other ranks share the texts")
]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda or npu")]
_Dtype = Annotated[
    Literal["float32", "bfloat16", "float16", "auto"],
    typer.Option(help="of a Hugging Face folder: held and computed in; auto: as it is stored, as lm_eval does"),
]


def add_commands(app: typer.Typer) -> None:
    """Add them to the root."""
    app.command("eval", cls=SeveralValuesCommand)(evaluate)
    app.command()(generate)


def evaluate(
    model: _Model,
    step: RunStep = None,
    weights: ModelOrEma = "model",
    held_out: _HeldOut = None,
    held_out_text: _HeldOutText = None,
    tasks: _Tasks = None,
    preset: _Preset = None,
    include_path: _IncludePath = None,
    num_fewshot: _NumFewshot = None,
    limit: _Limit = None,
    confirm_run_unsafe_code: _ConfirmRunUnsafeCode = False,
    output: _Output = None,
    baseline: _Baseline = None,
    tokenizer: _Tokenizer = None,
    seq_length: _SeqLength = None,
    batch_size: _BatchSize = None,
    tensor_model_parallel_size: _TensorModelParallelSize = 1,
    pipeline_model_parallel_size: _PipelineModelParallelSize = 1,
    device: _Device = "auto",
    dtype: _Dtype = "float32",
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


def generate(
    model: _Model,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="texts to continue; none, and no file: lines of standard input"),
    ] = None,
    step: RunStep = None,
    weights: ModelOrEma = "model",
    prompt_file: Annotated[
        Path | None, typer.Option(help='a prompt a line; of a .jsonl file the "prompt" of each line')
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="folder with tokenizer.json; a checkpoint needs it")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of a text at most")] = 64,
    do_sample: Annotated[
        bool, typer.Option("--do-sample", help="draw tokens; else the most probable one is taken")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="below 1: more of the probable tokens")] = None,
    top_k: Annotated[int | None, typer.Option(help="draw among so many tokens; default: transformers' 50")] = None,
    top_p: Annotated[float | None, typer.Option(help="draw among tokens that are so probable together")] = None,
    min_p: Annotated[float | None, typer.Option(help="none below this part of the most probable one")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="above 1: fewer tokens again")] = None,
    num_return_sequences: Annotated[int, typer.Option(help="texts for each prompt")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, max=(1 << 63) - 1, help="of drawn tokens; default: one that is logged")
    ] = None,
    device: _Device = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="that weights are held and computed in")
    ] = "float32",
    as_json: AsJson = False,
) -> None:
    """Continue texts with a model. Options of sampling are transformers', under its names.

    Example: kaiyuan generate runs/mine "The sea is" --tokenizer tokenizer --do-sample --top-p 0.9 --seed 1

    The texts are on standard output, each after its prompt; on a terminal they appear as they are written. Without a
    prompt it asks for one after the other, until ctrl-D.
    """
    from megatron_kaiyuan.generate.prompts import prompts_of
    from megatron_kaiyuan.generate.sampling import Sampling

    sampling = Sampling(
        max_new_tokens, do_sample, temperature, top_k, top_p, min_p, repetition_penalty, num_return_sequences
    )
    prompts = prompts_of(prompt or (), prompt_file)
    with alone(device) as platform:
        from megatron_kaiyuan.generate.model import open_generator
        from megatron_kaiyuan.generate.run import generate as generate_texts

        generator = open_generator(model, step, tokenizer, platform.device, dtype, weights)
        for text in generate_texts(generator, prompts, sampling, seed, as_json):
            print(text, flush=True)
