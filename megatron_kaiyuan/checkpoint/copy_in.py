"""Weights of a Hugging Face folder into this rank's part of a network."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_kaiyuan.checkpoint.huggingface import HuggingFaceFolder, numbered_name
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.network import EMBEDDING, GATE_AND_UP, HEAD, LAYERS

_VOCABULARY = (EMBEDDING, HEAD)


@torch.no_grad()
def copy_into(network: GPTModel, folder: HuggingFaceFolder, model: ModelConfig) -> None:
    """Fill a part of the network.

    Raises:
        UserError: a weight is missing, damaged or of another shape.
    """
    first_layer = network.decoder.layers[0].layer_number - 1 if len(network.decoder.layers) else 0
    for name, parameter in network.named_parameters():
        index, inner = numbered_name(name)
        whole_name = name if index is None else f"{LAYERS}{first_layer + index}.{inner}"
        weight = folder.megatron_weight(whole_name, model)
        if weight is not None:
            part = _my_part(whole_name, weight, parameter, model)
            # Fewer rows: the padding of the vocabulary, which keeps its initial values.
            rows = len(part) if whole_name in _VOCABULARY else len(parameter)
            if part.shape != parameter[:rows].shape:
                raise UserError(
                    f"init_from: {folder.folder}: weights for {whole_name} make {list(part.shape)} of each rank, "
                    f"{list(parameter.shape)} are wanted"
                )
            parameter[:rows].copy_(part)


def _my_part(name: str, weight: torch.Tensor, parameter: torch.nn.Parameter, model: ModelConfig) -> torch.Tensor:
    """What this tensor-parallel rank holds of a whole weight; fewer rows where the vocabulary is padded."""
    rank, ranks = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    if name in _VOCABULARY:
        rows = model.padded_vocab_size // ranks
        return weight[: model.padded_vocab_size][rank * rows : (rank + 1) * rows]
    if not getattr(parameter, "tensor_model_parallel", False):
        return weight
    if name.endswith(GATE_AND_UP):
        return torch.cat([half.chunk(ranks)[rank] for half in weight.chunk(2)])
    return weight.chunk(ranks, dim=parameter.partition_dim)[rank]  # type: ignore[attr-defined]
