"""Held-out loss while a run trains, as columns of its metrics."""

from __future__ import annotations

import logging

import torch

from megatron_kaiyuan.cluster.groups import agree_on_error
from megatron_kaiyuan.cluster.watchdog import Watchdog
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.data.held_out import open_held_out, trained_on
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.evaluate.heldout import held_out_loss
from megatron_kaiyuan.evaluate.predictor import Predictor, predictor_of_megatron
from megatron_kaiyuan.evaluate.text_bytes import text_bytes
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.hooks.stop import StopOnSignal
from megatron_kaiyuan.train.measuring import is_due, measuring
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult

log = logging.getLogger(__name__)

_LOSS = "validation/loss"


class Validation(Hook):
    """Predict the corpora of `validation.corpora`, as `kaiyuan eval --held-out` does, with all ranks.

    Columns: `validation/NAME_loss` in nats a token, `validation/NAME_bits_per_byte` where the corpus counts its bytes,
    and `validation/loss`, the mean of the domains by their weights. Values are of this step and are in its own row.
    Step 0 has no row, and no validation.

    A run that is asked to stop leaves the measurement out, also between two corpora: its time is the checkpoint's.

    Attributes:
        columns: of the step's row; none where nothing was measured.
        shown: those of them that the terminal's lines have.
    """

    def __init__(self, run: RunConfig, sinks: Sinks, stop: StopOnSignal, watchdog: Watchdog | None):
        self._options, self._sinks, self._stop = run.validation, sinks, stop
        self.shown = [_LOSS] if run.validation.corpora else []
        self._beat = (lambda tokens: None) if watchdog is None else lambda tokens: watchdog.beat()
        self._corpora: dict[str, IndexedCorpus] = {}
        self._predictor: Predictor | None = None
        self.columns: dict[str, float | None] = {}

    def start(self, session: Session) -> None:
        if not self._options.corpora:
            return
        self._corpora = agree_on_error(lambda: self._open(session))
        state = session.state
        self._predictor = predictor_of_megatron(
            state.models, session.run.model.padded_vocab_size, state.platform.device
        )
        self._sinks.show(self.shown)
        if torch.distributed.get_rank() == 0:
            for warning in trained_on(self._corpora, session.stream):
                log.warning(warning)

    def _open(self, session: Session) -> dict[str, IndexedCorpus]:
        corpora = open_held_out(self._options.corpora, session.stream)
        for corpus in corpora.values():
            text_bytes(corpus)
        return corpora

    def after_step(self, session: Session, result: StepResult) -> None:
        self.columns = {}
        asked = self._options
        if self._predictor is not None and is_due(session, result, asked.every_steps, asked.every_tokens):
            with measuring(session.state):
                self.columns = self._measure(self._predictor, session.run.train.seq_length)

    def rolled_back(self, session: Session) -> None:
        self.columns = {}

    def _measure(self, predictor: Predictor, seq_length: int) -> dict[str, float | None]:
        """Return the columns, or none when the run is asked to stop meanwhile. Collective."""
        share = None if self._options.tokens is None else self._options.tokens // len(self._corpora)
        columns: dict[str, float | None] = {}
        losses: dict[str, float] = {}
        for name, corpus in self._corpora.items():
            if self._stop.asked(predictor.device):
                return {}
            found = held_out_loss(predictor, {name: corpus}, seq_length, share, self._beat)
            losses[name] = columns[f"validation/{name}_loss"] = found["nats_per_token"]
            if found["bits_per_byte"] is not None:
                columns[f"validation/{name}_bits_per_byte"] = found["bits_per_byte"]
        weights = {name: self._options.weights.get(name, 1.0) for name in losses}
        total = sum(weights[name] * loss for name, loss in losses.items())
        return {_LOSS: total / sum(weights.values()), **columns}
