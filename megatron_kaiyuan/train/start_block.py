"""The lines of a start that a person reads: what is trained, on what, and how it is cut over the ranks.

With the line before them (where the run writes, `train/rank.py`) and the event after them (the step from which it
starts or resumes) they are six. All other facts of a start are in `config.yaml` and `events.jsonl`.
"""

from __future__ import annotations

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.network import count_parameters

_MOST_NAMES = 4


def start_block(run: RunConfig, tokens: int, total_steps: int, world_size: int, device: str) -> list[str]:
    """Return four lines: network, data, layout and precision.

    Args:
        tokens: of all phases.
        total_steps: of the run, from its first step.
        device: the name of this rank's, as its driver calls it.
    """
    return [_network(run), _data(run, tokens, total_steps), _layout(run, world_size, device), _precision(run)]


def _network(run: RunConfig) -> str:
    model = run.model
    named = "" if model.preset is None else f"{model.preset}, "
    return (
        f"network: {named}{count_parameters(model) / 1e6:,.2f} M parameters, {model.num_layers} layers of width "
        f"{model.hidden_size}, {model.num_attention_heads} heads, vocabulary {model.vocab_size:,}"
    )


def _data(run: RunConfig, tokens: int, total_steps: int) -> str:
    phases, step = [phase.path.name for phase in run.data.phases], run.train
    more = f" and {len(phases) - _MOST_NAMES} more" if len(phases) > _MOST_NAMES else ""
    return (
        f"data: {tokens:,} tokens of {', '.join(phases[:_MOST_NAMES])}{more}; {total_steps:,} steps of "
        f"{step.global_batch_size} samples of {step.seq_length:,} tokens"
    )


def _layout(run: RunConfig, world_size: int, device: str) -> str:
    parallel = run.parallel
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    parts = [f"layout: {world_size} {'rank' if world_size == 1 else 'ranks'} on {device}"]
    parts += [f"tensor parallel {tensor}"] if tensor > 1 else []
    parts += [f"pipeline parallel {pipeline}"] if pipeline > 1 else []
    parts += [f"data parallel {world_size // (tensor * pipeline)}", f"micro-batch {run.train.micro_batch_size}"]
    return ", ".join(parts)


def _precision(run: RunConfig) -> str:
    recompute = run.parallel.recompute_granularity
    return f"precision: {run.train.precision}" + (f", {recompute} recomputation" if recompute else "")
