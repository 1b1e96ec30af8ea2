"""QK-clip in the loop: measure every attention logit of a step, shrink weights after its update."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.metrics import announce, record
from megatron_kaiyuan.monitor.sizes import largest_attention_logit_by_head
from megatron_kaiyuan.optim.build import parts_with
from megatron_kaiyuan.optim.qk_clip import row_factors, scale_rows
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session

_LARGEST = "attention/largest_logit"


def qk_clip(run: RunConfig) -> list[Hook]:
    """The hook that the recipe asks for, or none."""
    return [] if run.optimizer.qk_clip_tau is None else [QKClip(run.optimizer.qk_clip_tau)]


class QKClip(Hook):
    """S of a head is its largest logit over all pairs, samples, micro-batches and data-parallel ranks of the step.

    Measuring takes half of SDPA's forward pass (`monitor/sizes.py`), clipping one pass over the main weights of
    `linear_qkv` and a small all-reduce. The largest logit of all is a metric. A step without update clips nothing.
    Nothing is remembered between steps.
    """

    def __init__(self, tau: float):
        self._tau = tau

    def start(self, session: Session) -> None:
        announce(_LARGEST, "max", terminal=True)
        state = session.state
        self._optimizer = state.optimizer
        layers = [layer for chunk in state.network.chunks for layer in chunk.decoder.layers]
        self._layers = [layer.self_attention for layer in layers]
        heads = self._layers[0].num_attention_heads_per_partition
        self._largest = torch.zeros(len(self._layers), heads, device=state.platform.device)
        for place, attention in enumerate(self._layers):
            attention.core_attention.register_forward_pre_hook(partial(self._measure, place))
        for part in parts_with(state.optimizer, "qkv"):
            # Between the update of the main weights and their copy into the network.
            part.optimizer.register_step_post_hook(lambda *_: self._clip())

    def before_step(self, session: Session) -> None:
        self._largest.zero_()

    @torch.no_grad()
    def _measure(self, place: int, module: Any, inputs: tuple[Any, ...]) -> None:
        query, key, _, documents = inputs[:4]
        scale = module.softmax_scale or query.size(-1) ** -0.5
        found = largest_attention_logit_by_head(query, key, scale, documents)
        self._largest[place] = torch.maximum(self._largest[place], found)

    def _clip(self) -> None:
        # What a reduction makes of NaN differs between backends.
        self._largest.nan_to_num_(nan=0.0)
        group = parallel_state.get_data_parallel_group()
        torch.distributed.all_reduce(self._largest, op=torch.distributed.ReduceOp.MAX, group=group)
        record(_LARGEST, self._largest.max(), "max", terminal=True)
        scale_rows(
            self._optimizer,
            {
                attention.linear_qkv.weight: row_factors(
                    largest,
                    self._tau,
                    attention.num_query_groups_per_partition,
                    attention.hidden_size_per_attention_head,
                )
                for attention, largest in zip(self._layers, self._largest, strict=True)
            },
        )
