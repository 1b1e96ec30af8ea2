"""One run from its lock to its result, in a process of its own."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from contextlib import ExitStack
from typing import Any

import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.cluster.discover import discover
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.evaluate.cloze import measure, read_task
from megatron_kaiyuan.evaluate.heldout import held_out_loss
from megatron_kaiyuan.evaluate.lm_eval_model import lm_eval_model
from megatron_kaiyuan.evaluate.predictor import Predictor, predictor_of_megatron
from megatron_kaiyuan.export.loading import load_tokenizer
from megatron_kaiyuan.files import write_sealed_json
from megatron_kaiyuan.locks import lock
from megatron_kaiyuan.research.queue.request import TASK, Run
from megatron_kaiyuan.research.queue.task import ELSEWHERE, FORMAT, RESULT, ReadyRun
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.start import train
from megatron_kaiyuan.train.startup import Startup
from megatron_kaiyuan.train.step import StepResult

log = logging.getLogger(__name__)

_MISTAKE, _FAILED = 2, 1


def run_to_result(task: ReadyRun) -> int:
    """Train and measure a run unless another process is at it; its exit code. For a fork that does nothing else.

    What is printed goes to the run's log from the moment that its lock is held. A run that was killed is resumed from
    its newest checkpoint.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(task.lock, seconds=0, keep=False))
        except BlockingIOError:
            return ELSEWHERE
        _print_to(task)
        try:
            return _run(task)
        except (UserError, OSError) as error:
            log.error(describe(error))
            return _MISTAKE
        except Exception:
            traceback.print_exc()
            return _FAILED


def _run(task: ReadyRun) -> int:
    if task.result() is None:
        started = time.perf_counter()
        device = platform.current()
        if device.name == "cpu":
            torch.set_num_threads(1)
        measure = _Measure(task)
        ending = train(task.config, discover({}), device, Startup(), [measure])
        if ending.signal:
            return 128 + ending.signal
        seconds = round(time.perf_counter() - started, 3)
        content = {"format": FORMAT, "fingerprint": task.fingerprint, **measure.reached, "seconds": seconds}
        write_sealed_json(task.folder / RESULT, content)
    task.remove_checkpoints()
    return 0


class _Measure(Hook):
    """Measures the network on held-out text and on tasks when the run has come to its end."""

    def __init__(self, task: ReadyRun):
        self._task = task
        self._seconds = 0.0
        self.reached: dict[str, Any] = {}

    def after_step(self, session: Session, result: StepResult) -> None:
        self._seconds += result.seconds

    def finish(self, session: Session) -> None:
        if not session.finished:
            return
        progress, state = session.state.progress, session.state
        self.reached = {
            "steps": progress.step,
            "tokens": progress.tokens,
            "parameters": sum(parameter.numel() for parameter in state.network.parameters()),
            "training_seconds": round(self._seconds, 3),
            "bits_per_byte": self._bits_per_byte(session),
        }

    def _bits_per_byte(self, session: Session) -> dict[str, float]:
        run, task, state = session.run, self._task.run, session.state
        if not (task.held_out or task.tasks):
            return {}
        state.gather_weights()
        (network,) = state.network.chunks
        network.eval()
        predictor = predictor_of_megatron([network], run.model.padded_vocab_size, state.platform.device)
        return {**_of_domains(predictor, run, task), **_of_tasks(predictor, run, task)}


def _of_domains(predictor: Predictor, run: RunConfig, task: Run) -> dict[str, float]:
    if not task.held_out:
        return {}
    corpora = {domain: IndexedCorpus(prefix) for domain, prefix in task.held_out.items()}
    found = held_out_loss(predictor, corpora, run.train.seq_length, task.held_out_tokens)["domains"]
    for domain, prefix in task.held_out.items():
        if found[domain]["bits_per_byte"] is None:
            raise UserError(
                f"{prefix}: has no .meta.parquet, which counts the bytes of its text; make the held-out corpus "
                "with kaiyuan-data preprocess"
            )
    return {domain: figures["bits_per_byte"] for domain, figures in found.items()}


def _of_tasks(predictor: Predictor, run: RunConfig, task: Run) -> dict[str, float]:
    if not task.tasks or task.tokenizer is None:
        return {}
    model = lm_eval_model(predictor, load_tokenizer(task.tokenizer), run.train.seq_length)
    return {f"{TASK}{name}": measure(model, read_task(path)) for name, path in task.tasks.items()}


def _print_to(task: ReadyRun) -> None:
    task.folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
