"""A whole evaluation: held-out loss and the local lm-eval tasks, beside an untrained model where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.data.indexed import IndexedCorpus, idx_path
from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.evaluate.harness import offline, run_tasks
from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING, TaskSizes, write_tasks
from megatron_kaiyuan.files import write_json
from megatron_kaiyuan.outputs import Output, claim, files_identity, identity_of, marked_json

FORMAT = "kaiyuan-evaluation"


def evaluate(
    model_folder: Path,
    baseline_folder: Path | None,
    held_out: Sequence[Path],
    held_out_text: Sequence[Path],
    work: Path | None,
    output: Path,
    *,
    seq_length: int | None = None,
    token_limit: int | None = 100_000,
    sizes: TaskSizes | None = None,
    seed: int = 1234,
    device: str = "cpu",
    force: bool = False,
) -> dict[str, Any]:
    """Evaluate an exported model and write the result as JSON.

    Args:
        model_folder, baseline_folder: Hugging Face folders; the baseline is the untrained model.
        held_out: corpus prefixes, one for each domain.
        held_out_text: the same documents as JSON lines {"text", "domain", ...}.
        work: where task files and caches go; None: a temporary folder of the system.
        output: a new file, or the result of the same evaluation.
        seq_length: context in tokens, as in training; None: all that the model admits.
        token_limit: predicted tokens at most of the held-out loss; None: all.
        force: the result of another evaluation may be replaced.

    Returns:
        {"format", "identity", "model": {"path", "held_out", "tasks", "seconds"}, "baseline": the same or None, "items":
        by task, "seed"}; it is written to `output`.

    Raises:
        UserError: a package, folder, corpus or file is missing or wrong, or `output` holds something else; the message
            names it.
    """
    from megatron_kaiyuan.evaluate.heldout import check_tokenizer, open_corpora

    sizes = sizes or TaskSizes()
    folders = [folder for folder in (model_folder, baseline_folder) if folder]
    files = [*map(idx_path, held_out), *held_out_text]
    settings = [seq_length, token_limit, dataclasses.asdict(sizes), seed]
    identity = identity_of("evaluation", files_identity(path for path in [*folders, *files] if path.exists()), settings)
    place = Output(output, "a result of kaiyuan eval", kind="file")
    with claim(place, identity, marked_json(FORMAT), force=force), _work_folder(work) as folder:
        with offline(folder / "cache"):
            for module in ("transformers", "lm_eval"):
                require(module, extra="eval", purpose="the evaluation")
            corpora = open_corpora(held_out)
            for model in folders:
                check_tokenizer(model, corpora)
            items = write_tasks(held_out_text, folder, sizes, seed)
            measured = [
                _measure(model, corpora, folder, list(items), seq_length, token_limit, device) if model else None
                for model in (model_folder, baseline_folder)
            ]
        result: dict[str, Any] = {"format": FORMAT, "identity": identity, "model": measured[0], "baseline": measured[1]}
        result |= {"items": items, "seed": seed}
        write_json(place.path, result)
    return result


@contextlib.contextmanager
def _work_folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    # Not beside the output: the libraries lock files in their caches, which a shared file system may not be able to do.
    with tempfile.TemporaryDirectory(prefix="kaiyuan-eval-") as folder:
        yield Path(folder)


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
    from megatron_kaiyuan.evaluate.heldout import held_out_loss, predictor_of_transformers
    from megatron_kaiyuan.export.loading import load_network, load_tokenizer

    print(f"evaluate: {folder}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    network, tokenizer = load_network(folder, device), load_tokenizer(folder)
    longest = network.config.max_position_embeddings
    context = seq_length or longest
    if context > longest:
        raise UserError(f"seq_length {context}: {folder} admits {longest} tokens at most")
    held_out = held_out_loss(predictor_of_transformers(network), corpora, context, token_limit)
    results = run_tasks(network, tokenizer, work, tasks, context)
    seconds = round(time.perf_counter() - started, 2)
    return {"path": str(folder), "held_out": held_out, "tasks": results, "seconds": seconds}
