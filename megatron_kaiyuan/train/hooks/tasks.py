"""Tasks of lm-eval while a run trains, as metrics `tasks/TASK_METRIC` in the rows of their steps."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from megatron_kaiyuan.cluster.groups import agree_on_error, broadcast_from_rank_0
from megatron_kaiyuan.cluster.watchdog import Watchdog
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.metrics import announce, record
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.only_job import OnlyJob
from megatron_kaiyuan.train.measuring import is_due, measuring
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.state import TrainState
from megatron_kaiyuan.train.step import StepResult

if TYPE_CHECKING:
    from megatron_kaiyuan.evaluate.harness import TaskResults
    from megatron_kaiyuan.evaluate.shared_model import SharedModel

log = logging.getLogger(__name__)

# What the terminal's lines show of a task: the first of these that it has.
_SHOWN = ("acc", "exact_match", "bits_per_byte")


def tasks(run: RunConfig, only_job: OnlyJob, watchdog: Watchdog | None) -> list[Hook]:
    """The hook that the recipe asks for, or none."""
    return [Tasks(run, only_job, watchdog)] if run.tasks.names else []


class Tasks(Hook):
    """Rank 0 runs lm-eval, with tasks that it has loaded at the start; every rank does its share of the requests.

    Nothing of training changes: no generator is drawn from but one that is put back, no gradient is computed. A task
    that fails on its data is reported; training continues.
    """

    def __init__(self, run: RunConfig, only_job: OnlyJob, watchdog: Watchdog | None):
        from megatron_kaiyuan.evaluate.task_selection import TaskSelection

        asked = run.tasks
        self._asked, self._only_job, self._watchdog = asked, only_job, watchdog
        self._selection = TaskSelection(tuple(asked.names), asked.include_path, asked.num_fewshot, asked.limit)
        self._loaded: dict[str, Any] = {}
        self._model: SharedModel | None = None

    def start(self, session: Session) -> None:
        self._model = self._open(session)
        # Before the first value: a row has only metrics that all ranks know.
        for name, shown in broadcast_from_rank_0(self._load):
            announce(name, terminal=shown)

    def after_step(self, session: Session, result: StepResult) -> None:
        if is_due(session, result, self._asked.every_steps, self._asked.every_tokens):
            with self._only_job.working("tasks of lm-eval"):
                self._measure(session.state)

    def _open(self, session: Session) -> SharedModel:
        """Check the tokenizer, and make the network a model of lm-eval. Collective."""
        from megatron_kaiyuan.evaluate.lm_eval_model import lm_eval_model
        from megatron_kaiyuan.evaluate.predictor import FEW_LOGITS, predictor_of_megatron
        from megatron_kaiyuan.export.loading import load_tokenizer
        from megatron_kaiyuan.export.run import check_tokenizer

        run, state, folder = session.run, session.state, self._asked.tokenizer
        assert folder is not None
        predictor = predictor_of_megatron(state.models, run.model.padded_vocab_size, state.platform.device)
        # The memory of the device is training's.
        predictor = replace(predictor, logits_per_batch=FEW_LOGITS, largest_batch=self._asked.batch_size)

        def make() -> SharedModel:
            check_tokenizer(session.stream.tokenizer, folder, run.run_dir)
            tokenizer = load_tokenizer(folder)
            return lm_eval_model(predictor.counted(self._alive), tokenizer, run.train.seq_length)

        return agree_on_error(make)

    def _load(self) -> list[tuple[str, bool]]:
        """Load the tasks; the names of their metrics, and whether the terminal shows them. Rank 0's."""
        from megatron_kaiyuan.evaluate.harness import load_selection, metrics_of

        self._loaded = load_selection(self._selection)
        return [
            (column(task, metric), metric == _shown(metrics))
            for task, metrics in metrics_of(self._loaded, self._selection).items()
            for metric in metrics
        ]

    def _alive(self, sequences: int) -> None:
        if self._watchdog is not None:
            self._watchdog.beat()

    def _measure(self, state: TrainState) -> None:
        found = self._run(state)
        if found is None or torch.distributed.get_rank() != 0:
            return
        for task, metrics in found.metrics.items():
            for metric, value in metrics.items():
                record(column(task, metric), value, terminal=metric == _shown(metrics))

    def _run(self, state: TrainState) -> TaskResults | None:
        """Run the tasks on the network as it is; None: lm-eval stopped. Collective."""
        from megatron_kaiyuan.evaluate.harness import run_on_all_ranks

        assert self._model is not None
        try:
            with measuring(state):
                return run_on_all_ranks(self._model, self._selection, self._loaded)
        except UserError as error:
            log.warning(f"tasks, step {state.progress.step}: {error}; training continues")
            return None


def column(task: str, metric: str) -> str:
    """The name of a task's metric among those of a run."""
    return f"tasks/{task}_{metric}".replace(" ", "_")


def _shown(metrics: Any) -> str:
    return next((name for name in (*_SHOWN, *metrics) if name in metrics), "")
