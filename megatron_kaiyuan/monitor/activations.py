"""The forward hooks that watch activations; `monitor/tensors.py` names these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.utils.hooks import RemovableHandle

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.model.loss import soft_cap
from megatron_kaiyuan.monitor.sizes import Change, largest_attention_logit, sizes
from megatron_kaiyuan.monitor.table import Table
from megatron_kaiyuan.monitor.tensors import ATTENTION_LOGITS


def watch_activations(network: GPTModel, model: ModelConfig, table: Table) -> list[RemovableHandle]:
    """Add the size of every watched activation of this rank to a table, until the hooks are removed.

    They change nothing. All micro-batches are measured, and what is recomputed once more. Setting up some hundred
    hooks takes a millisecond, so that they are there for the steps that are watched and for no other.
    """
    watch = _Watch(table)
    if network.pre_process:
        watch.output(network.embedding, "embedding", 0)
    for layer in network.decoder.layers:
        _watch_layer(watch, layer, layer.layer_number - 1)
    if network.post_process:
        watch.output(network.output_layer, "logits", 0)
        if (cap := model.logits_soft_cap) is not None:
            # No tensor of the step holds them whole: the loss caps block by block.
            watch.output(network.output_layer, "capped_logits", 0, change=lambda logits: soft_cap(logits, cap))
    return watch.handles


class _Watch:
    """Registers hooks that add to a table."""

    def __init__(self, table: Table):
        self.table = table
        self.handles: list[RemovableHandle] = []

    def input(self, module: torch.nn.Module, name: str, place: int) -> None:
        self.call(module, lambda inputs: self.observe(name, place, inputs[0]))

    def output(self, module: torch.nn.Module, name: str, place: int, change: Change | None = None) -> None:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self.observe(name, place, output[0] if isinstance(output, tuple) else output, change)

        self.handles.append(module.register_forward_hook(hook))

    def call(self, module: torch.nn.Module, action: Callable[[tuple[Any, ...]], None]) -> None:
        """Have an action look at the positional inputs of a module."""

        def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            with torch.no_grad():
                action(inputs)

        self.handles.append(module.register_forward_pre_hook(hook))

    @torch.no_grad()
    def observe(self, name: str, place: int, tensor: torch.Tensor, change: Change | None = None) -> None:
        mean, mean_square, peak = sizes(tensor, change)
        self.table.add(name, place, (self.table.one, mean, mean_square), peak)


def _watch_layer(watch: _Watch, layer: TransformerLayer, place: int) -> None:
    attention = layer.self_attention

    def inputs_of_attention(inputs: tuple[Any, ...]) -> None:
        query, key, _, documents = inputs[:4]
        watch.observe("query", place, query)
        watch.observe("key", place, key)
        scale = layer.config.softmax_scale or query.size(-1) ** -0.5
        watch.table.add(ATTENTION_LOGITS, place, (), largest_attention_logit(query, key, scale, documents))

    watch.call(attention.core_attention, inputs_of_attention)
    watch.input(layer.pre_mlp_layernorm, "residual_after_attention", place)
    watch.input(layer.mlp.linear_fc2, "mlp_activation", place)
    watch.output(layer, "residual", place)
    for name, last in (("attention", attention.linear_proj), ("mlp", layer.mlp.linear_fc2)):
        if hasattr(last, "post_norm"):
            watch.input(last.post_norm, f"{name}_output", place)
            watch.output(last, f"{name}_post_norm", place)
        else:
            watch.output(last, f"{name}_output", place)
