"""Gradients and updates of the weights, by kind of weight and layer.

Kinds: embedding, embedding_norm (with model.embedding_norm), qkv (linear_qkv), proj (linear_proj), fc1, fc2, norms (all
gains of a layer together), final_norm, head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import ChainedOptimizer

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.model.build import Network
from megatron_kaiyuan.monitor.table import Table
from megatron_kaiyuan.optim.main_weights import main_weights
from megatron_kaiyuan.platform.blocks import block_elements

_IN_LAYERS = {
    "self_attention.linear_qkv.weight": "qkv",
    "self_attention.linear_proj.weight": "proj",
    "mlp.linear_fc1.weight": "fc1",
    "mlp.linear_fc2.weight": "fc2",
}
_NORMS = "norms"


def weight_places(model: ModelConfig) -> dict[str, int]:
    """The kinds of weights, and in how many places each one is."""
    return {
        "embedding": 1,
        **({"embedding_norm": 1} if model.embedding_norm else {}),
        **dict.fromkeys([*_IN_LAYERS.values(), _NORMS], model.num_layers),
        "final_norm": 1,
        "head": 1,
    }


def add_weights(
    table: Table, prefix: str, network: Network, optimizer: ChainedOptimizer, clipped_by: float, updated: bool
) -> None:
    """Add squares of gradients, updates and weights, and the largest gradient, of what this rank updates.

    Every element of the network is counted once over all ranks.

    Args:
        table: has the names of `weight_places` behind a prefix.
        clipped_by: the factor that clipping multiplied the gradients by, which is taken out again.
        updated: the last step was not skipped.
    """
    places = {weight: place for chunk in network.chunks for weight, place in _places(chunk)}
    for weights in main_weights(optimizer):
        if not _counts_here(weights.parameter, optimizer):
            continue
        name, place = places[weights.parameter]
        for block in weights.blocks(block_elements(weights.values.device.type)):
            magnitudes = block.gradient.abs()
            squares = [torch.linalg.vector_norm(magnitudes).div(clipped_by).square()]
            if updated:
                squares += [torch.linalg.vector_norm(part).square() for part in (block.last_update(), block.values)]
            table.add(prefix + name, place, tuple(squares), magnitudes.amax() / clipped_by)


def _places(chunk: GPTModel) -> Iterator[tuple[torch.nn.Parameter, tuple[str, int]]]:
    """Kind and place of every parameter."""
    for layer in chunk.decoder.layers:
        for name, parameter in layer.named_parameters():
            yield parameter, (_IN_LAYERS.get(name, _NORMS), layer.layer_number - 1)
    if chunk.pre_process:
        for name, parameter in chunk.embedding.named_parameters():
            yield parameter, ("embedding_norm" if name == "norm.weight" else "embedding", 0)
    if chunk.post_process:
        yield chunk.decoder.final_layernorm.weight, ("final_norm", 0)
        yield chunk.output_layer.weight, ("head", 0)


def _counts_here(parameter: torch.nn.Parameter, optimizer: ChainedOptimizer) -> bool:
    """Of replicas, over tensor-parallel ranks or (with the plain optimizer) data-parallel ones, the first counts."""
    if not (getattr(parameter, "tensor_model_parallel", False) or parallel_state.get_tensor_model_parallel_rank() == 0):
        return False
    return optimizer.config.use_distributed_optimizer or parallel_state.get_data_parallel_rank() == 0
