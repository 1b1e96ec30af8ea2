"""A checkpoint's weights as a network of transformers, without a folder between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import require
from megatron_kaiyuan.export import huggingface
from megatron_kaiyuan.export.loading import quiet_transformers
from megatron_kaiyuan.model import names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def network_of(
    weights: Mapping[str, torch.Tensor], model: ModelConfig, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """The network that `export_model` would write, in evaluation mode on the CPU.

    Args:
        weights: full tensors by megatron-core name, as for `export_model`.

    Raises:
        UserError: transformers is missing, no stock class represents the model, or the weights are not those of
            `model`.
    """
    require("transformers", extra="eval", purpose="a network of transformers")
    huggingface._check_representable(model)
    empty = huggingface._empty_network(model, None)
    state = huggingface._to_transformers(names.split_layers(dict(weights), model.num_layers), model)
    huggingface._check_state(state, empty)
    with quiet_transformers():
        network: PreTrainedModel = type(empty).from_pretrained(
            None, config=empty.config, state_dict=state, dtype=dtype, trust_remote_code=False
        )
    return network.eval()
