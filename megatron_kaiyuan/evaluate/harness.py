"""lm-eval's own metrics of tasks, and bits per byte of their right answers where these can be scored."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_kaiyuan.environment import environment
from megatron_kaiyuan.errors import UserError, excerpt
from megatron_kaiyuan.evaluate.calibration import calibrations
from megatron_kaiyuan.evaluate.cloze import bits_per_byte, right_answers, why_no_cloze
from megatron_kaiyuan.evaluate.quiet import quiet
from megatron_kaiyuan.evaluate.replicas import OF_TASKS, from_rank_0, is_first
from megatron_kaiyuan.evaluate.task_selection import (
    TaskSelection,
    build_requests,
    fields_of,
    load_tasks,
    prepare,
    task_manager,
)

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

    from megatron_kaiyuan.evaluate.shared_model import SharedModel

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_CACHES = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "LM_HARNESS_CACHE_PATH")
BITS_PER_BYTE = "bits_per_byte"


def offline(cache: Path) -> contextlib.AbstractContextManager[None]:
    """Hugging Face's libraries stay off the network and keep their caches in `cache`.

    They read the environment once, when first imported: enter this before that.
    """
    return environment({**dict.fromkeys(_OFFLINE, "1"), **dict.fromkeys(_CACHES, str(cache.resolve()))})


@dataclass(frozen=True)
class TaskResults:
    """What tasks gave.

    Attributes:
        metrics: by name of a task or group, plain floats: those that lm-eval computes (acc, acc_norm, ...), and
            bits_per_byte of the right answers, as `cloze` defines it.
        documents: by task, how many were scored.
        shots: by task, how many examples stood before each question.
        calibration: by name of a multiple-choice task, or of a group of them, figures of `calibration.py`.
    """

    metrics: dict[str, dict[str, float]]
    documents: dict[str, int]
    shots: dict[str, int] = field(default_factory=dict)
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_on_all_ranks(model: SharedModel, selection: TaskSelection, loaded: dict[str, Any] | None = None) -> TaskResults:
    """Run tasks by lm-eval on rank 0, on the networks of all ranks; every rank has the results. Collective.

    Args:
        loaded: by `load_selection`, on rank 0; None: they are loaded now.

    Raises:
        UserError: what stopped rank 0, on every rank.
    """
    if not is_first():
        model.served.serve()
        return from_rank_0(lambda: TaskResults({}, {}))
    with model.served.led():
        found = run_tasks(model, loaded or load_selection(selection), selection)
    return from_rank_0(lambda: found)


def load_selection(selection: TaskSelection) -> dict[str, Any]:
    """Tasks with their data, in the form that lm-eval's `evaluate` takes.

    Raises:
        UserError: a task is unknown, cannot be loaded, or cannot be run here.
    """
    manager = task_manager(selection)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    if not selection.runs_code:
        # Before it is loaded: HumanEval runs code then already.
        for name in selection.names:
            _refuse_code(name, any(fields.get("unsafe_code") for fields in fields_of(name, manager)))
    with _code(selection):
        for found in load_tasks(selection, manager).values():
            for kind, entries in found.items():
                loaded[kind].update(entries)
    for name, task in loaded["tasks"].items():
        _refuse_code(name, getattr(task, "UNSAFE_CODE", False) and not selection.runs_code)
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"task {name!r}: has images or sound, which a language model does not read")
    return loaded


def metrics_of(loaded: dict[str, Any], selection: TaskSelection) -> dict[str, list[str]]:
    """Names of metrics that `run_tasks` may return, by task or group, before anything is measured.

    Raises:
        UserError: lm-eval cannot write the requests of a task.
    """
    found: dict[str, list[str]] = {}
    for name, task in loaded["tasks"].items():
        build_requests(task, selection)
        filters = [one.name for one in task._filters] or ["none"]
        keys = [f"{metric},{filtered}" for metric in task.aggregation() for filtered in filters]
        found[name] = list(dict.fromkeys([*_names(keys).values(), *([] if why_no_cloze(task) else [BITS_PER_BYTE])]))
    of_groups = list(dict.fromkeys(metric for metrics in found.values() for metric in metrics))
    return found | {name: of_groups for name in loaded["groups"]}


def run_tasks(model: HFLM, loaded: dict[str, Any], selection: TaskSelection) -> TaskResults:
    """Run lm-eval's `evaluate` on tasks.

    Args:
        loaded: by `load_selection`.

    Raises:
        UserError: lm-eval cannot run a task on its data.
    """
    from lm_eval import evaluator

    try:
        for task in loaded["tasks"].values():
            # At each run: its few-shot examples are drawn again, the same ones.
            prepare(task, selection)
        with quiet(), _code(selection):
            results: Any = evaluator.evaluate(
                model,
                loaded,
                selection.limit,
                bootstrap_iters=0,
                log_samples=False,
                confirm_run_unsafe_code=selection.runs_code,
            )
    except OF_TASKS as error:
        raise UserError(
            f"tasks {', '.join(selection.names)}: lm-eval stopped ({type(error).__name__}: {excerpt(error)})"
        ) from error
    rows = {name: _metrics(row) for name, row in results["results"].items()}
    tasks: dict[str, Task] = loaded["tasks"]
    for name, task in tasks.items():
        if BITS_PER_BYTE not in rows[name] and (bits := _answers_bits(task)) is not None:
            rows[name][BITS_PER_BYTE] = bits
    documents = {name: counts["effective"] for name, counts in results["n-samples"].items()}
    shots = {name: task.get_config("num_fewshot") or 0 for name, task in tasks.items()}
    return TaskResults(rows, documents, shots, calibrations(selection.names, loaded["tasks"], loaded["group_map"]))


def _refuse_code(name: str, runs_code: bool) -> None:
    if runs_code:
        raise UserError(
            f"task {name!r}: runs code that the model writes; in a sandbox, such as a container without a network, "
            "allow it with --confirm-run-unsafe-code"
        )


def _code(selection: TaskSelection) -> contextlib.AbstractContextManager[None]:
    """What Hugging Face's `code_eval` asks for before it runs code."""
    return environment({"HF_ALLOW_CODE_EVAL": "1"}) if selection.runs_code else contextlib.nullcontext()


def _answers_bits(task: Task) -> float | None:
    """Of a task that lm-eval has run; None: it has no answers to score."""
    if why_no_cloze(task):
        return None
    try:
        answers = right_answers(task)
    except UserError:
        return None
    return bits_per_byte(answers, [answer.resps[0] for answer in answers])


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """lm-eval's keys are `metric,filter`; the standard errors need bootstraps, which are off."""
    found = {
        key: float(value)
        for key, value in row.items()
        if "," in key and "_stderr" not in key and isinstance(value, float | int)
    }
    return {name: found[key] for key, name in _names(found).items()}


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Metrics by lm-eval's keys `metric,filter`: with the filter where there are several, as in GSM8K."""
    pairs = [key.split(",", 1) for key in keys]
    counts = Counter(metric for metric, _ in pairs)
    return {
        f"{metric},{filtered}": metric if counts[metric] == 1 else f"{metric}_{filtered}" for metric, filtered in pairs
    }
