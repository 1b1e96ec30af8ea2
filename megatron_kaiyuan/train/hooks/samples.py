"""Texts for fixed prompts while a run trains, as events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state

from megatron_kaiyuan.cluster.groups import agree_on_error
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.monitor.sinks import Sinks
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.measuring import measuring
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.state import TrainState
from megatron_kaiyuan.train.step import StepResult

if TYPE_CHECKING:
    from megatron_kaiyuan.generate.model import Generator


def samples(run: RunConfig, sinks: Sinks) -> list[Hook]:
    """The hook that the recipe asks for, or none."""
    return [Samples(run, sinks)] if run.samples.prompts else []


class Samples(Hook):
    """The first data-parallel replica writes them, by forward passes of the training network; the others wait.

    Nothing of training changes: no generator is drawn from but one that is put back, no gradient is computed.
    """

    def __init__(self, run: RunConfig, sinks: Sinks):
        self._options, self._every, self._sinks = run.samples, run.samples.every_steps, sinks
        self._at_every = self._every or run.checkpoint.save_every_steps
        self._written_step: int | None = None
        self._generator: Generator | None = None

    def start(self, session: Session) -> None:
        self._generator = agree_on_error(lambda: self._open(session))
        if session.resumed:
            self._written_step = session.state.progress.step
        elif self._every is None:
            self._write(session.state)

    def after_step(self, session: Session, result: StepResult) -> None:
        if session.state.progress.step % self._at_every == 0:
            self._write(session.state)

    def rolled_back(self, session: Session) -> None:
        self._written_step = session.state.progress.step

    def finish(self, session: Session) -> None:
        # Not where a job has to make room: its time is for the checkpoint.
        if session.finished and self._written_step != session.state.progress.step:
            self._write(session.state)

    def _open(self, session: Session) -> Generator | None:
        """Check tokenizer and prompts; None on ranks that write no samples."""
        if parallel_state.get_data_parallel_rank() != 0:
            return None
        from megatron_kaiyuan.export.loading import load_tokenizer
        from megatron_kaiyuan.export.run import check_tokenizer
        from megatron_kaiyuan.generate.adapter import LogitsModel
        from megatron_kaiyuan.generate.complete import encode
        from megatron_kaiyuan.generate.model import Generator, require_ids

        folder, model, state = self._options.tokenizer, session.run.model, session.state
        assert folder is not None
        check_tokenizer(session.stream.tokenizer, folder, session.run.run_dir)
        tokenizer = load_tokenizer(folder)
        require_ids("the network", model.padded_vocab_size, tokenizer)
        network = LogitsModel(lambda ids_bs: _logits(state, ids_bs, model.padded_vocab_size), torch.device("cpu"))
        generator = Generator("the network", network, tokenizer, model.max_position_embeddings)
        for number, prompt in enumerate(self._options.prompts, start=1):
            try:
                encode(generator, prompt)
            except UserError as error:
                raise UserError(f"samples.prompts: number {number}: {error}") from error
        return generator

    def _write(self, state: TrainState) -> None:
        self._written_step = state.progress.step
        with measuring(state):
            if self._generator is None:
                return
            found = self._complete(self._generator)
        progress = state.progress
        self._sinks.table("samples", step=progress.step, tokens=progress.tokens, samples=found)

    def _complete(self, generator: Generator) -> list[dict[str, Any]]:
        from megatron_kaiyuan.generate.complete import complete
        from megatron_kaiyuan.generate.sampling import Sampling

        options = self._options
        sampling = Sampling(
            options.max_new_tokens,
            options.do_sample,
            temperature=options.temperature,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
        )
        found = []
        for prompt in options.prompts:
            # Not `torch.manual_seed`, which seeds the devices too.
            torch.default_generator.manual_seed(options.seed)
            (one,) = complete(generator, prompt, sampling)
            found.append({"prompt": prompt, "text": one.text, "finish": one.finish})
        return found


def _logits(state: TrainState, ids_bs: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """On the CPU, where tokens are drawn: the device's generator is training's."""
    from megatron_kaiyuan.generate.parallel import next_token_logits

    return next_token_logits(state.models, ids_bs.to(state.platform.device), vocabulary).cpu()
