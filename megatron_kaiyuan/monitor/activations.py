"""The forward hooks that measure activations: those of `monitor/spots.py` that `monitor/tensors.py` names."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch.utils.hooks import RemovableHandle

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.model.loss import soft_cap
from megatron_kaiyuan.monitor.sizes import Change, largest_attention_logit, sizes
from megatron_kaiyuan.monitor.spots import spots
from megatron_kaiyuan.monitor.table import Table
from megatron_kaiyuan.monitor.tensors import ATTENTION_LOGITS, activation_places


def watch_activations(network: GPTModel, model: ModelConfig, table: Table) -> list[RemovableHandle]:
    """Add the size of every watched activation of this rank to a table, until the hooks are removed.

    They change nothing. All micro-batches are measured, and what is recomputed once more. Setting up some hundred
    hooks takes a millisecond, so that they are there for the steps that are watched and for no other.
    """

    @torch.no_grad()
    def observe(name: str, place: int, tensor: torch.Tensor, change: Change | None = None) -> None:
        mean, mean_square, peak = sizes(tensor, change)
        table.add(name, place, (table.one, mean, mean_square), peak)

    @torch.no_grad()
    def attention_logits(module: torch.nn.Module, inputs: tuple[Any, ...], place: int, scale: float | None) -> None:
        query, key, _, documents = inputs[:4]
        peak = largest_attention_logit(query, key, scale or query.size(-1) ** -0.5, documents)
        table.add(ATTENTION_LOGITS, place, (), peak)

    measured, handles = activation_places(model), []
    for spot in spots(network):
        if spot.tensor in measured:
            handles.append(spot.watch(partial(observe, spot.tensor, (spot.layer or 1) - 1)))
        if spot.tensor == "logits" and (cap := model.logits_soft_cap) is not None:
            # No tensor of the step holds them whole: the loss caps block by block.
            capped = partial(observe, "capped_logits", 0, change=partial(soft_cap, cap=cap))
            handles.append(spot.watch(capped))
    for layer in network.decoder.layers:
        look = partial(attention_logits, place=layer.layer_number - 1, scale=layer.config.softmax_scale)
        handles.append(layer.self_attention.core_attention.register_forward_pre_hook(look))
    return handles
