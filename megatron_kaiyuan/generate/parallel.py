"""Logits of a network that lies on many ranks, in training's own pieces.

Tensor suffixes: b batch, s sequence, v padded vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.utils import get_model_config


def next_token_logits(models: Sequence[torch.nn.Module], ids_bs: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Predict the token after each sequence; FP32 logits [b, 1, v]. See `sequence_logits`."""
    last = ids_bs.shape[1] - 1
    return sequence_logits(models, ids_bs, vocabulary, slice(last, last + 1))


@torch.no_grad()
def sequence_logits(
    models: Sequence[torch.nn.Module], ids_bs: torch.Tensor, vocabulary: int, wanted: slice | None = None
) -> torch.Tensor:
    """Predict the token after each token; FP32 logits [b, s, v], the same on every rank that has a piece.

    Collective over the ranks of a model-parallel group, and over no others.

    Args:
        models: the chunks of the network on this rank, as `TrainState.models`; their weights are whole.
        ids_bs: int64, the same on every rank.
        vocabulary: v.
        wanted: the places of the sequence that are returned; None: all.
    """
    batch, length = ids_bs.shape
    places = range(length)[wanted or slice(length)]
    config = get_model_config(models[0])
    ranks = config.tensor_model_parallel_size if config.sequence_parallel else 1
    # Sequence parallelism cuts it into equal parts; no token sees the padding after it.
    padded_bs = torch.nn.functional.pad(ids_bs, (0, -length % ranks))
    # The interleaved schedule takes as many micro-batches as there are stages; here they are all the same.
    virtual = config.virtual_pipeline_model_parallel_size is not None
    count = config.pipeline_model_parallel_size if virtual else 1
    found = get_forward_backward_func()(
        forward_step_func=partial(_forward, wanted=slice(places.start, places.stop)),
        data_iterator=[itertools.repeat(padded_bs) for _ in models],
        model=list(models),
        num_microbatches=count,
        seq_length=padded_bs.shape[1],
        micro_batch_size=batch,
        forward_only=True,
        collect_non_loss_data=True,
    )
    logits_bsv = found[0] if found else torch.empty(batch, len(places), vocabulary, device=ids_bs.device)
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        torch.distributed.broadcast(logits_bsv, parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return logits_bsv


def _forward(batches: Iterator[torch.Tensor], model: torch.nn.Module, wanted: slice) -> tuple[torch.Tensor, Any]:
    ids_bs = next(batches)
    positions_bs = torch.arange(ids_bs.shape[1], device=ids_bs.device).expand_as(ids_bs)
    return model(ids_bs, positions_bs, None), partial(_gathered, wanted=wanted)


def _gathered(logits_bsv: torch.Tensor, wanted: slice, non_loss_data: bool) -> torch.Tensor:
    """Of the last stage, whole: each tensor-parallel rank has a part of the vocabulary."""
    whole: torch.Tensor = gather_from_tensor_model_parallel_region(logits_bsv[:, wanted].contiguous())
    return whole.float()
