"""A whole evaluation: held-out loss and tasks of lm-eval, beside an untrained model where there is one."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_kaiyuan.checkpoint.find import Weights
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.evaluate.data_at_hand import require_data
from megatron_kaiyuan.evaluate.harness import TaskResults, offline, run_on_all_ranks
from megatron_kaiyuan.evaluate.measures import Measures
from megatron_kaiyuan.evaluate.replicas import from_rank_0, is_first, many_ranks
from megatron_kaiyuan.evaluate.results import (
    FORMAT,
    Entry,
    read_entries,
    refuse_replaced,
    replaced,
    with_entry,
)
from megatron_kaiyuan.evaluate.source import Model, ModelSource, Settings, find_source, open_source
from megatron_kaiyuan.evaluate.task_selection import TaskSelection
from megatron_kaiyuan.evaluate.tasks import write_tasks
from megatron_kaiyuan.files import write_json
from megatron_kaiyuan.outputs import Output, claim, identity_of, marked_json
from megatron_kaiyuan.progress import Progress

log = logging.getLogger(__name__)

# Where `kaiyuan report` looks for it, in a run's folder.
RESULT = "evaluation.json"


def evaluate(
    model: Path,
    measures: Measures,
    output: Path | None = None,
    *,
    step: int | None = None,
    weights: Weights = "model",
    baseline: Path | None = None,
    tokenizer: Path | None = None,
    work: Path | None = None,
    settings: Settings | None = None,
    force: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Evaluate a model and write the result as JSON. Collective where there are several ranks; rank 0 writes.

    Args:
        model: a Hugging Face folder, a checkpoint, or a run.
        step: the run's checkpoint; None: its newest.
        weights: of a checkpoint, the network's own or their EMA.
        output: a file, to which the results are added; None: `evaluation.json` in the model's run.
        baseline: as `model`; the untrained one. Of a run the newest checkpoint.
        tokenizer: folder of a checkpoint's tokenizer, for what is measured on text.
        work: where task files and caches go; None: a temporary folder of the system.
        settings: how models are loaded. For a checkpoint a platform is active and megatron-core's groups are those of
            `settings.parallel`.
        force: results of the same model or step, but of other data, settings or weights, may be replaced.

    Returns:
        {"model": {"path", "name", "held_out", "tasks", "shots", "calibration", "seconds"}, "baseline": the same, or
        None, "items": documents by task, "seed", "made_from": fingerprints by measure}: what was measured now; and the
        file that it was added to.

    Raises:
        UserError: a package, folder, corpus, task or file is missing or wrong, or `output` holds something else; the
            message names it.
    """
    settings = settings or Settings()
    source, untrained = find_source(model, step, weights), find_source(baseline) if baseline else None
    _check(measures, [source, untrained], tokenizer)
    place = Output(_output(output, source), "a result of kaiyuan eval", kind="file")
    asked = _asked(source, untrained, measures)
    with contextlib.ExitStack() as stack:
        entries = from_rank_0(lambda: _claim(stack, place, asked, measures, force))
        folder = stack.enter_context(_work_folder(work))
        # The data of tasks that were asked for may have to be fetched, or lie in the user's own caches.
        with contextlib.nullcontext() if measures.selections else offline(folder / "cache"):
            made, selections = _selections(measures, folder)
            measured, items, made_from = _measure(source, tokenizer, measures, selections, settings)
            beside = _measure(untrained, tokenizer, measures, selections, settings)[0] if untrained else None
        result = {"model": measured, "baseline": beside, "items": {**items, **made}, "seed": measures.seed}
        # A name that was asked for may stand for several tasks.
        result["made_from"] = made_from | asked["made_from"]
        from_rank_0(lambda: write_json(place.path, with_entry(entries, result)))
    return result, place.path


def _claim(
    stack: contextlib.ExitStack, place: Output, asked: dict[str, Any], measures: Measures, force: bool
) -> list[Entry]:
    """Hold the file of results until the stack ends; what it holds already."""
    # An earlier file of results is added to: what would be replaced is looked for by `refuse_replaced`.
    stack.enter_context(claim(place, "", lambda output: marked_json(FORMAT)(output) and ""))
    entries = read_entries(place.path)
    if not force and replaced(entries, asked):
        measures.require_inputs()
        refuse_replaced(place.path, entries, asked)
    return entries


def _asked(source: ModelSource, untrained: ModelSource | None, measures: Measures) -> dict[str, Any]:
    """Return the entry of results that is asked for, before anything is measured."""
    made_from = {"model": identity_of(source.identity), **measures.made_from()}
    made_from |= {"baseline": identity_of(untrained.identity)} if untrained else {}
    return {"model": {"path": str(source.path), "name": source.name}, "made_from": made_from}


def _selections(measures: Measures, folder: Path) -> tuple[dict[str, int], list[TaskSelection]]:
    """Write the tasks that are made of held-out text into a folder.

    Returns:
        Their items, as `write_tasks` does; and the tasks to run, these and those that were asked for by name.

    Raises:
        UserError: a package is missing, or a text or, offline, the data of a task are missing or wrong.
    """
    for module in ("transformers", "lm_eval"):
        require(module, extra="eval", purpose="the evaluation")
    texts = measures.held_out_text
    made = write_tasks(texts, folder, measures.sizes, measures.seed) if texts else {}
    selections = [TaskSelection(tuple(made), folder)] if made else []
    from_rank_0(lambda: require_data(measures.selections))
    return made, [*selections, *measures.selections]


def _check(measures: Measures, sources: Sequence[ModelSource | None], tokenizer: Path | None) -> None:
    on_text = measures.held_out_text or measures.selections
    for source in sources:
        if on_text and tokenizer is None and source and source.checkpoint:
            raise UserError(f"--tokenizer: {source.name} has none of its own; name the folder with its tokenizer.json")
    if not (measures.held_out or on_text):
        raise UserError(
            "evaluation: nothing to measure; name corpora (--held-out), text (--held-out-text), --tasks or --preset"
        )


def _output(output: Path | None, source: ModelSource | None) -> Path:
    if output is not None:
        return output
    if source is None or source.run_dir is None:
        raise UserError(f"--output: name a JSON file; kaiyuan report reads {RESULT} in the folder of a run")
    return source.run_dir / RESULT


@contextlib.contextmanager
def _work_folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    # Not beside the output: the libraries lock files in their caches, which a shared file system may not be able to do.
    with tempfile.TemporaryDirectory(prefix="kaiyuan-eval-") as folder:
        yield Path(folder)


def _measure(
    source: ModelSource,
    tokenizer: Path | None,
    measures: Measures,
    selections: Sequence[TaskSelection],
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, int], dict[str, str]]:
    """Measure a model; with the documents of each task, and what each was made from."""
    from megatron_kaiyuan.evaluate.heldout import open_corpora

    log.info(f"evaluate: {source.name}, on {settings.device}{_on_ranks(settings)}")
    started = time.perf_counter()
    corpora = open_corpora(measures.held_out) if measures.held_out else {}
    # A Hugging Face folder has its own.
    folder = (tokenizer if source.checkpoint else source.path) if selections else None
    model = open_source(source, folder, corpora, settings)
    context = measures.seq_length or model.context
    if context > model.longest:
        raise UserError(f"seq_length {context}: {source.path} admits {model.longest} tokens at most")
    held_out = _held_out(model, corpora, context, measures.token_limit) if corpora else None
    found = _tasks(model, selections, context) if selections else []
    tasks = {name: row for results in found for name, row in results.metrics.items()}
    measured = {
        "path": os.path.abspath(source.path),
        "name": source.name,
        "held_out": held_out,
        "tasks": tasks,
        "shots": {name: number for results in found for name, number in results.shots.items()},
        "calibration": {name: figures for results in found for name, figures in results.calibration.items()},
        "seconds": round(time.perf_counter() - started, 2),
    }
    items = {name: count for results in found for name, count in results.documents.items()}
    pairs = zip(selections, found, strict=True)
    return measured, items, {name: measures.tasks_identity(one) for one, results in pairs for name in results.metrics}


def _on_ranks(settings: Settings) -> str:
    if not many_ranks():
        return ""
    import torch

    ranks, parallel = torch.distributed.get_world_size(), settings.parallel
    return (
        f", {ranks} ranks (tensor {parallel.tensor_model_parallel_size} x pipeline "
        f"{parallel.pipeline_model_parallel_size} x data {ranks // parallel.model_parallel_size})"
    )


def _held_out(
    model: Model, corpora: Mapping[str, IndexedCorpus], context: int, token_limit: int | None
) -> dict[str, Any]:
    from megatron_kaiyuan.evaluate.heldout import held_out_loss, tokens_to_predict

    total = tokens_to_predict(corpora, context, token_limit)
    with Progress("evaluate: held-out text" if is_first() else "", total, "tokens") as progress:
        return held_out_loss(model.predictor, corpora, context, token_limit, progress.advance)


def _tasks(model: Model, selections: Sequence[TaskSelection], context: int) -> list[TaskResults]:
    """Results of each selection, the same on every rank."""
    from megatron_kaiyuan.evaluate.lm_eval_model import lm_eval_model

    assert model.tokenizer is not None
    # On a terminal lm-eval counts by itself.
    shown = is_first() and not sys.stderr.isatty()
    with Progress("evaluate: lm-eval" if shown else "", None, "texts") as progress:
        harness = lm_eval_model(model.predictor.counted(progress.advance), model.tokenizer, context)
        return [run_on_all_ranks(harness, selection) for selection in selections]
