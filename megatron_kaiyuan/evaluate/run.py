"""A whole evaluation: held-out loss and tasks of lm-eval, beside an untrained model where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_kaiyuan.checkpoint.find import Weights
from megatron_kaiyuan.data.indexed import IndexedCorpus, idx_path
from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.evaluate.harness import offline, run_tasks
from megatron_kaiyuan.evaluate.results import FORMAT, HELD_OUT, read_entries, refuse_replaced, replaced, with_entry
from megatron_kaiyuan.evaluate.source import Model, ModelSource, find_source, open_source
from megatron_kaiyuan.evaluate.task_selection import TaskSelection, require_tasks
from megatron_kaiyuan.evaluate.tasks import CONTINUATION, ROLLING, TaskSizes, read_domains, write_tasks
from megatron_kaiyuan.files import write_json
from megatron_kaiyuan.outputs import Output, claim, files_identity, identity_of, marked_json
from megatron_kaiyuan.progress import Progress

log = logging.getLogger(__name__)

# Where `kaiyuan report` looks for it, in a run's folder.
RESULT = "evaluation.json"


@dataclass(frozen=True)
class Measures:
    """What an evaluation measures; at least one of the first three.

    Attributes:
        held_out: corpus prefixes, one for each domain.
        held_out_text: documents as JSON lines {"text", "domain", ...}, of which two tasks are made.
        tasks: of lm-eval, by name.
        seq_length: context in tokens; None: as in training, or all that an exported model admits.
        token_limit: predicted tokens at most of the held-out loss; None: all.
        sizes, seed: of the tasks that are made of held-out text.
    """

    held_out: Sequence[Path] = ()
    held_out_text: Sequence[Path] = ()
    tasks: TaskSelection = field(default_factory=lambda: TaskSelection(()))
    seq_length: int | None = None
    token_limit: int | None = 100_000
    sizes: TaskSizes = field(default_factory=TaskSizes)
    seed: int = 1234

    @property
    def held_out_identity(self) -> str:
        """What the held-out loss depends on besides the weights, with the state of all files."""
        return identity_of(_state(map(idx_path, self.held_out)), self.seq_length, self.token_limit)

    @property
    def text_identity(self) -> str:
        """Likewise for the tasks that are made of held-out text."""
        return identity_of(_state(self.held_out_text), self.seq_length, dataclasses.asdict(self.sizes), self.seed)

    @property
    def tasks_identity(self) -> str:
        """Likewise for each of the tasks of lm-eval."""
        folder = self.tasks.include_path
        return identity_of(
            _state([folder] if folder else []), self.seq_length, self.tasks.num_fewshot, self.tasks.limit
        )

    def made_from(self) -> dict[str, str]:
        """The identity of each measure that is asked for by name, as results name it."""
        found = {HELD_OUT: self.held_out_identity} if self.held_out else {}
        found |= dict.fromkeys((ROLLING, CONTINUATION), self.text_identity) if self.held_out_text else {}
        return found | dict.fromkeys(self.tasks.names, self.tasks_identity)

    def require_inputs(self) -> None:
        """Look for everything that is to be read, before hours are spent or a refusal sends the user elsewhere.

        Raises:
            UserError: a corpus, a text or a task is missing or wrong.
        """
        from megatron_kaiyuan.evaluate.heldout import open_corpora

        if self.held_out:
            open_corpora(self.held_out)
        if self.held_out_text:
            read_domains(self.held_out_text)
        if self.tasks.names:
            require_tasks(self.tasks)


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
    device: Any = "cpu",
    force: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Evaluate a model and write the result as JSON.

    Args:
        model: a Hugging Face folder, a checkpoint, or a run.
        step: the run's checkpoint; None: its newest.
        weights: of a checkpoint: the network's own, or the EMA of them that the run keeps.
        output: a file, to which the results are added; None: `evaluation.json` in the model's run.
        baseline: as `model`; the untrained one. Of a run the newest checkpoint.
        tokenizer: folder of a checkpoint's tokenizer, for what is measured on text.
        work: where task files and caches go; None: a temporary folder of the system.
        device: a torch device. For a checkpoint a platform is active and process groups are those of one.
        force: results of the same model or step, but of other data, settings or weights, may be replaced.

    Returns:
        {"model": {"path", "name", "held_out", "tasks", "seconds"}, "baseline": the same or None, "items": by task made
        of held-out text, "seed", "made_from": fingerprints by measure}: what was measured now; and the file that it was
        added to.

    Raises:
        UserError: a package, folder, corpus, task or file is missing or wrong, or `output` holds something else; the
            message names it.
    """
    source, untrained = find_source(model, step, weights), find_source(baseline) if baseline else None
    _check(measures, [source, untrained], tokenizer)
    place = Output(_output(output, source), "a result of kaiyuan eval", kind="file")
    asked = _asked(source, untrained, measures)
    # An earlier file of results is added to: what would be replaced is looked for by `refuse_replaced`.
    with claim(place, "", lambda output: marked_json(FORMAT)(output) and ""), _work_folder(work) as folder:
        entries = read_entries(place.path)
        if not force and replaced(entries, asked):
            measures.require_inputs()
            refuse_replaced(place.path, entries, asked)
        # The data of tasks that were asked for may have to be fetched, or lie in the user's own caches.
        with contextlib.nullcontext() if measures.tasks.names else offline(folder / "cache"):
            made, selections = _selections(measures, folder)
            measured = _measure(source, tokenizer, measures, selections, device)
            beside = _measure(untrained, tokenizer, measures, selections, device) if untrained else None
        result = {"model": measured, "baseline": beside, "items": made, "seed": measures.seed}
        # A name that was asked for may stand for several tasks.
        result["made_from"] = dict.fromkeys(measured["tasks"], measures.tasks_identity) | asked["made_from"]
        write_json(place.path, with_entry(entries, result))
    return result, place.path


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
        UserError: a package is missing, or a text is missing or wrong.
    """
    for module in ("transformers", "lm_eval"):
        require(module, extra="eval", purpose="the evaluation")
    texts = measures.held_out_text
    made = write_tasks(texts, folder, measures.sizes, measures.seed) if texts else {}
    selections = [TaskSelection(tuple(made), folder)] if made else []
    selections += [measures.tasks] if measures.tasks.names else []
    return made, selections


def _check(measures: Measures, sources: Sequence[ModelSource | None], tokenizer: Path | None) -> None:
    on_text = measures.held_out_text or measures.tasks.names
    for source in sources:
        if on_text and tokenizer is None and source and source.checkpoint:
            raise UserError(f"--tokenizer: {source.name} has none of its own; name the folder with its tokenizer.json")
    if not (measures.held_out or measures.held_out_text or measures.tasks.names):
        raise UserError("evaluation: nothing to measure; name corpora (--held-out), text (--held-out-text) or --tasks")


def _state(paths: Iterable[Path]) -> list[list[Any]]:
    return files_identity(path for path in paths if path.exists())


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
    source: ModelSource, tokenizer: Path | None, measures: Measures, selections: Sequence[TaskSelection], device: Any
) -> dict[str, Any]:
    from megatron_kaiyuan.evaluate.heldout import open_corpora

    log.info(f"evaluate: {source.name}, on {device}")
    started = time.perf_counter()
    corpora = open_corpora(measures.held_out) if measures.held_out else {}
    # A Hugging Face folder has its own.
    folder = (tokenizer if source.checkpoint else source.path) if selections else None
    model = open_source(source, folder, corpora, device)
    context = measures.seq_length or model.context
    if context > model.longest:
        raise UserError(f"seq_length {context}: {source.path} admits {model.longest} tokens at most")
    held_out = _held_out(model, corpora, context, measures.token_limit) if corpora else None
    tasks = _tasks(model, selections, context) if selections else {}
    seconds = round(time.perf_counter() - started, 2)
    return {
        "path": os.path.abspath(source.path),
        "name": source.name,
        "held_out": held_out,
        "tasks": tasks,
        "seconds": seconds,
    }


def _held_out(
    model: Model, corpora: Mapping[str, IndexedCorpus], context: int, token_limit: int | None
) -> dict[str, Any]:
    from megatron_kaiyuan.evaluate.heldout import held_out_loss, tokens_to_predict

    total = tokens_to_predict(corpora, context, token_limit)
    with Progress("evaluate: held-out text", total, "tokens") as progress:
        return held_out_loss(model.predictor, corpora, context, token_limit, progress.advance)


def _tasks(model: Model, selections: Sequence[TaskSelection], context: int) -> dict[str, dict[str, float]]:
    from megatron_kaiyuan.evaluate.lm_eval_model import lm_eval_model

    assert model.tokenizer is not None
    found: dict[str, dict[str, float]] = {}
    # On a terminal lm-eval counts by itself.
    with Progress("" if sys.stderr.isatty() else "evaluate: lm-eval", None, "texts") as progress:
        harness = lm_eval_model(model.predictor.counted(progress.advance), model.tokenizer, context)
        for selection in selections:
            found |= run_tasks(harness, selection, model.predictor.generate is not None)
    return found
