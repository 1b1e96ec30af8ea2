"""One training step: read, forward and backward through the pipeline, reduce, update.

Tensor suffixes: b micro-batch, s sequence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_kaiyuan.config import TrainConfig
from megatron_kaiyuan.data.stream import TokenStream
from megatron_kaiyuan.train.state import TrainState
from megatron_kaiyuan.train.votes import Votes

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one step gave, equal on every rank.

    Attributes:
        loss: mean over the global batch, nats per token, before the update.
        gradient_norm: before clipping; NaN when the step was skipped.
        loss_scale: the scale that the step used; 1 without a scaler.
        skipped: the gradients were not finite, so the weights stayed as they were.
        votes: how many ranks said what with this step.
        seconds: wall time, from reading the data to the update.
    """

    loss: float
    gradient_norm: float
    loss_scale: float
    skipped: bool
    votes: Votes
    seconds: float


def read_batches(stream: TokenStream, position: int, train: TrainConfig, device: torch.device) -> Iterator[Batch]:
    """This data-parallel rank's micro-batches of the global batch that starts at a token offset.

    Sample k of the global batch starts at `position + k * seq_length`; rank d takes its part of each stripe
    of `micro_batch_size * data-parallel size` samples, so that the set of samples is the same for any layout.
    """
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    stripe = train.micro_batch_size * ranks
    position_ids_bs = torch.arange(train.seq_length, device=device).expand(train.micro_batch_size, -1)
    for first in range(rank * train.micro_batch_size, train.global_batch_size, stripe):
        samples = [
            stream.sample(position + number * train.seq_length, train.seq_length)
            for number in range(first, first + train.micro_batch_size)
        ]
        tokens, labels = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*samples, strict=True))
        yield {"tokens": tokens, "labels": labels, "position_ids": position_ids_bs}


def training_step(state: TrainState, stream: TokenStream, train: TrainConfig, votes: Votes) -> StepResult:
    """Train on the global batch at the current position; does not advance the position. Collective.

    Args:
        votes: what this rank tells the others.
    """
    started = time.perf_counter()
    batches = read_batches(stream, state.progress.tokens, train, state.platform.device)
    loss_scale = float(state.optimizer.get_loss_scale())
    state.model.zero_grad_buffer()
    state.optimizer.zero_grad()
    losses = get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=batches,
        model=[state.model],
        num_microbatches=_micro_batches(train),
        seq_length=train.seq_length,
        micro_batch_size=train.micro_batch_size,
        forward_only=False,
    )
    updated, gradient_norm, _ = state.optimizer.step()
    loss, all_votes = _reduce(losses, votes, state.platform.device)
    return StepResult(
        loss=loss,
        gradient_norm=float(gradient_norm) if updated else math.nan,
        loss_scale=loss_scale,
        skipped=not updated,
        votes=all_votes,
        seconds=time.perf_counter() - started,
    )


def _micro_batches(train: TrainConfig) -> int:
    return train.global_batch_size // (train.micro_batch_size * parallel_state.get_data_parallel_world_size())


def _forward(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable]:
    batch = next(batches)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, _mean_loss


def _mean_loss(losses_bs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = losses_bs.float().mean()
    # A copy: megatron-core divides the first one by the number of micro-batches, in place.
    return loss, {"loss": loss.detach().clone()}


def _reduce(losses: list[dict[str, torch.Tensor]], votes: Votes, device: torch.device) -> tuple[float, Votes]:
    """Mean loss over micro-batches and ranks, and the sum of all votes, in one collective."""
    totals = torch.tensor([0.0, *map(float, astuple(votes))], device=device)
    if losses and parallel_state.get_tensor_model_parallel_rank() == 0:
        totals[0] = torch.stack([part["loss"] for part in losses]).mean()
        totals[0] /= parallel_state.get_data_parallel_world_size()
    torch.distributed.all_reduce(totals)
    loss, *counts = totals.tolist()
    return loss, Votes(*map(int, counts))
