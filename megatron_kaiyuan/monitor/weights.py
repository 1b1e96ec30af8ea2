"""Gradients and updates of the weights, by kind of weight (`network.py`) and layer."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import ChainedOptimizer

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.model.build import Network
from megatron_kaiyuan.monitor.table import Table
from megatron_kaiyuan.network import LAYERS, kind_of
from megatron_kaiyuan.optim.main_weights import main_weights
from megatron_kaiyuan.platform.blocks import block_elements

_LAYER = re.compile(re.escape(LAYERS) + r"(\d+)\.")


def add_weights(
    table: Table,
    prefix: str,
    network: Network,
    model: ModelConfig,
    optimizer: ChainedOptimizer,
    clipped_by: float,
    updated: bool,
) -> None:
    """Add squares of gradients, updates and weights, and the largest gradient, of what this rank updates.

    Every element of the network is counted once over all ranks.

    Args:
        table: has the names of `network.places` after a prefix.
        clipped_by: the factor that clipping multiplied the gradients by, which is taken out again.
        updated: the last step was not skipped.
    """
    places = {weight: place for chunk in network.chunks for weight, place in _places(chunk, model)}
    for weights in main_weights(optimizer):
        if not _counts_here(weights.parameter, optimizer):
            continue
        name, place = places[weights.parameter]
        assert weights.gradient is not None, "the optimizer has been given no gradients yet"
        for block in weights.blocks(block_elements(weights.values.device.type)):
            magnitudes = block.gradient.abs()  # type: ignore[union-attr]
            squares = [torch.linalg.vector_norm(magnitudes).div(clipped_by).square()]
            if updated:
                squares += [torch.linalg.vector_norm(part).square() for part in (block.last_update(), block.values)]
            table.add(prefix + name, place, tuple(squares), magnitudes.amax() / clipped_by)


def _places(chunk: GPTModel, model: ModelConfig) -> Iterator[tuple[torch.nn.Parameter, tuple[str, int]]]:
    """Kind and place of every parameter.

    Raises:
        KeyError: `network.py` does not list one.
    """
    for name, parameter in chunk.named_parameters():
        layer = _LAYER.match(name)
        place = chunk.decoder.layers[int(layer[1])].layer_number - 1 if layer else 0
        yield parameter, (kind_of(name, model), place)


def _counts_here(parameter: torch.nn.Parameter, optimizer: ChainedOptimizer) -> bool:
    """Of replicas, over tensor-parallel ranks or (with the plain optimizer) data-parallel ones, the first counts."""
    if not (getattr(parameter, "tensor_model_parallel", False) or parallel_state.get_tensor_model_parallel_rank() == 0):
        return False
    return optimizer.config.use_distributed_optimizer or parallel_state.get_data_parallel_rank() == 0
