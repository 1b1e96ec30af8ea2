"""A whole evaluation: held-out loss and the local lm-eval tasks, beside an untrained model where there is one."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.evaluate.harness import offline, run_tasks
from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING, TaskSizes, write_tasks
from megatron_kaiyuan.files import write_json


def evaluate(
    model_folder: Path,
    baseline_folder: Path | None,
    held_out: Sequence[Path],
    held_out_text: Sequence[Path],
    work: Path,
    output: Path,
    *,
    seq_length: int | None = None,
    token_limit: int | None = 100_000,
    sizes: TaskSizes | None = None,
    seed: int = 1234,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate an exported model and write the result as JSON.

    Args:
        model_folder, baseline_folder: Hugging Face folders; the baseline is the untrained model.
        held_out: corpus prefixes, one for each domain.
        held_out_text: the same documents as JSON lines {"text", "domain", ...}.
        work: where task files and caches go.
        seq_length: context in tokens, as in training; None: all that the model admits.
        token_limit: predicted tokens at most of the held-out loss; None: all.

    Returns:
        {"model": {"path", "held_out", "tasks", "seconds"}, "baseline": the same or None, "items": by task, "seed"};
        it is written to `output`.

    Raises:
        UserError: a package, folder, corpus or file is missing or wrong; the message names it.
    """
    from megatron_kaiyuan.evaluate.heldout import check_tokenizer, open_corpora

    work.mkdir(parents=True, exist_ok=True)
    with offline(work / "cache"):
        for module in ("transformers", "lm_eval"):
            require(module, extra="eval", purpose="the evaluation")
        corpora = open_corpora(held_out)
        for folder in filter(None, (model_folder, baseline_folder)):
            check_tokenizer(folder, corpora)
        items = write_tasks(held_out_text, work, sizes or TaskSizes(), seed)
        measured = [
            _measure(folder, corpora, work, list(items), seq_length, token_limit, device) if folder else None
            for folder in (model_folder, baseline_folder)
        ]
    result = {"model": measured[0], "baseline": measured[1], "items": items, "seed": seed}
    write_json(output, result)
    return result


def summary_line(result: Mapping[str, Any]) -> str:
    """The evaluation in one line, the untrained model's figures beside."""
    model, baseline = result["model"], result["baseline"]
    held_out = model["held_out"]
    loss, entropy = held_out["nats_per_token"], held_out["unigram_entropy"]
    side = "below" if loss <= entropy else "above"
    line = f"held-out {loss:.2f} nats/token, unigram entropy {entropy:.2f} ({abs(entropy - loss):.2f} {side})"
    if baseline:
        line += f", untrained {baseline['held_out']['nats_per_token']:.2f}"
    for task, metric, words in (
        (CONTINUATION, "acc", "continuation accuracy"),
        (ROLLING, "bits_per_byte", "bits per byte"),
    ):
        if task not in model["tasks"]:
            continue
        line += f"; {words} {model['tasks'][task][metric]:.2f}"
        if baseline:
            line += f" against {baseline['tasks'][task][metric]:.2f} untrained"
    return line


def _measure(
    folder: Path,
    corpora: Mapping[str, IndexedCorpus],
    work: Path,
    tasks: Sequence[str],
    seq_length: int | None,
    token_limit: int | None,
    device: str,
) -> dict[str, Any]:
    from megatron_kaiyuan.evaluate.heldout import held_out_loss
    from megatron_kaiyuan.export.loading import load_network, load_tokenizer

    print(f"evaluate: {folder}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    network, tokenizer = load_network(folder, device), load_tokenizer(folder)
    longest = network.config.max_position_embeddings
    context = seq_length or longest
    if context > longest:
        raise UserError(f"seq_length {context}: {folder} admits {longest} tokens at most")
    held_out = held_out_loss(network, corpora, context, token_limit)
    results = run_tasks(network, tokenizer, work, tasks, context)
    seconds = round(time.perf_counter() - started, 2)
    return {"path": str(folder), "held_out": held_out, "tasks": results, "seconds": seconds}
