"""A checkpoint's weights as a network of transformers, without a folder between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import require
from megatron_kaiyuan.export.convert import check_weights, named
from megatron_kaiyuan.export.formats import empty_network, transformers_config
from megatron_kaiyuan.export.weights import WeightsInMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def network_of(
    weights: Mapping[str, torch.Tensor], model: ModelConfig, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The network that `export_model` writes in its format `kaiyuan`, in evaluation mode on the CPU.

    Args:
        weights: full tensors by megatron-core name, as for `export_model`.

    Raises:
        UserError: transformers is missing, or the weights are not those of `model`.
    """
    require("transformers", extra="eval", purpose="a network of transformers")
    network = empty_network(transformers_config(model, "kaiyuan", None, str(dtype).removeprefix("torch.")), "kaiyuan")
    source = WeightsInMemory(weights, model)
    check_weights(source, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}, model)
    state = {name: tensor.to(dtype) for piece in source.pieces() for name, tensor in named(piece, model).items()}
    network.load_state_dict(state, assign=True)
    return network.eval()
