"""One training step: read, forward and backward through the pipeline, reduce, update.

Tensor suffixes: b micro-batch, s sequence.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_kaiyuan.config import RunConfig, TrainConfig
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.metrics import calls, has_news
from megatron_kaiyuan.optim.update import apply_update, clip_gradients, measure_gradients
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.train.bad_steps import Fault, StepFigures
from megatron_kaiyuan.train.batch import Batch, GlobalBatch
from megatron_kaiyuan.train.cuda_graphs import GraphedPasses
from megatron_kaiyuan.train.parts import part
from megatron_kaiyuan.train.state import TrainState
from megatron_kaiyuan.train.votes import Votes


@dataclass(frozen=True)
class StepResult:
    """What one step gave, equal on every rank.

    Attributes:
        step: its number from 1.
        tokens: [start, stop) of its batch in the stream; its last label is the token at `stop`.
        loss: mean over the labels of the global batch that count, nats per token, before the update.
        gradient_norm: before clipping; NaN when the loss scaler found an overflow.
        overflow: gradients are not finite, or would not be if the device had infinities, and the loss scaler (FP16
            only) has answered.
        loss_scale: the scale that the step used; 1 without a scaler.
        fault: why the update was withheld, unless it was an overflow that dynamic loss scaling handles.
        votes: how many ranks reported what with this step.
        seconds: wall time, from reading the data to the update.
    """

    step: int
    tokens: tuple[int, int]
    loss: float
    gradient_norm: float
    overflow: bool
    loss_scale: float
    fault: Fault | None
    votes: Votes
    seconds: float

    @property
    def skipped(self) -> bool:
        """The update was withheld, so the weights stayed as they were."""
        return self.overflow or self.fault is not None

    @property
    def finite(self) -> bool:
        """Loss and gradients are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def training_step(
    state: TrainState,
    stream: TokenStream,
    run: RunConfig,
    votes: Votes,
    judge: Callable[[StepFigures], Fault | None],
    before_update: Callable[[], None],
) -> StepResult:
    """Train on the global batch at the current position; does not advance the position. Collective.

    Args:
        votes: what this rank reports to the others.
        judge: looks at the step before its update, which a fault withholds.
        before_update: called before weights and moments change.
    """
    started = time.perf_counter()
    start = state.progress.tokens
    state.own_time.begin()
    batches = GlobalBatch(stream, start, run, state.platform.device)
    # Both passes count: what overflows in a forward pass, or is no number, saturates like the rest, and looks healthy.
    state.platform.clear_overflow()
    losses = forward_and_backward(state, batches, run.train, state.graphs)
    weight = batches.loss_weight()
    if weight is not None:
        # Only now is the number of labels known; gradients of a sum over tokens instead would leave FP16's range.
        for model in state.models:
            model.scale_gradients(weight)
    with part("loss"):
        # The only place of a step where the host waits for its device, which has its next work at once.
        loss, all_votes = _reduce(losses, weight, replace(votes, metrics=int(has_news())), state.platform)
        loss_scale = float(state.optimizer.get_loss_scale())
    with part("gradient norm"):
        overflow, gradient_norm = measure_gradients(state.optimizer, overflowed=all_votes.overflow > 0)
    phase, _ = stream.phase_at(start)
    fault = judge(StepFigures(loss, gradient_norm, loss_scale, overflow, phase, start))
    if fault is None and not overflow:
        with part("hooks"):
            before_update()
        with part("gradient clip"):
            clip_gradients(state.optimizer, gradient_norm)
        with part("optimizer"):
            apply_update(state.optimizer)
    return StepResult(
        step=state.progress.step + 1,
        tokens=(start, start + run.train.tokens_per_step),
        loss=loss,
        gradient_norm=gradient_norm,
        overflow=overflow,
        loss_scale=loss_scale,
        fault=fault,
        votes=all_votes,
        seconds=time.perf_counter() - started,
    )


def forward_and_backward(
    state: TrainState,
    batches: GlobalBatch,
    train: TrainConfig,
    graphs: GraphedPasses | None = None,
) -> list[dict[str, torch.Tensor]]:
    """The passes of one step through the pipeline; the gradients of all ranks are reduced afterwards. Collective.

    Args:
        graphs: plays the passes if they are those that it has captured.

    Returns:
        {"loss": mean of a micro-batch, FP32 scalar} for each one, on the last stage.
    """
    with part("zero gradients"):
        for model in state.models:
            model.zero_grad_buffer()
        state.optimizer.zero_grad()
    if graphs is not None:
        losses = graphs.run(batches, partial(_both_passes, state.models[0], _micro_batches(train)))
        if losses is not None:
            return losses
    called = calls()
    losses = get_forward_backward_func()(
        forward_step_func=_forward,
        # Each chunk of the network asks for every micro-batch, which is read once.
        data_iterator=list(itertools.tee(batches, len(state.models))),
        model=state.models,
        num_microbatches=_micro_batches(train),
        seq_length=train.seq_length,
        micro_batch_size=train.micro_batch_size,
        forward_only=False,
    )
    if graphs is not None and calls() > called:
        # The passes record metrics, which takes Python.
        graphs.play_no_more()
    return losses


def _both_passes(model: torch.nn.Module, count: int, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
    """What megatron-core's schedule does with one of so many micro-batches, if there is one stage; its mean loss."""
    output = model(batch["tokens"], batch["position_ids"], batch["documents"], labels=batch["labels"])
    loss, reported = _mean_loss(batch["loss_mask"], output)
    (loss / count * scale).backward()
    return reported["loss"]


def _micro_batches(train: TrainConfig) -> int:
    return train.global_batch_size // (train.micro_batch_size * parallel_state.get_data_parallel_world_size())


def _forward(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
    with part("data"):
        batch = next(batches)
    output = model(batch["tokens"], batch["position_ids"], batch["documents"], labels=batch["labels"])
    return output, partial(_mean_loss, batch["loss_mask"])


def _mean_loss(mask_bs: torch.Tensor | None, losses_bs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean over all labels, masked ones as zeros: `GlobalBatch.loss_weight` makes it one over those that count."""
    losses_bs = losses_bs.float()
    loss = (losses_bs if mask_bs is None else losses_bs * mask_bs).mean()
    # A copy: megatron-core divides the first one by the number of micro-batches, in place.
    return loss, {"loss": loss.detach().clone()}


def _reduce(
    losses: list[dict[str, torch.Tensor]], weight: torch.Tensor | None, votes: Votes, platform: Platform
) -> tuple[float, Votes]:
    """Mean loss over micro-batches and ranks, and the sum of all votes, in one collective.

    Where a device keeps overflows, those of this step on this rank become its vote.
    """
    names = ["loss", *asdict(votes)]
    totals = torch.tensor([0.0, *map(float, asdict(votes).values())]).to(platform.device, non_blocking=True)
    overflowed = platform.overflow_flag()
    if overflowed is not None:
        place = names.index("overflow")
        totals[place] = torch.maximum(totals[place], overflowed)
    if losses and parallel_state.get_tensor_model_parallel_rank() == 0:
        totals[0] = torch.stack([part["loss"] for part in losses]).mean()
        totals[0] /= parallel_state.get_data_parallel_world_size()
        if weight is not None:
            totals[0] *= weight
    torch.distributed.all_reduce(totals)
    loss, *counts = totals.tolist()
    return loss, Votes(*map(int, counts))
