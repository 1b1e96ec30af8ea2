"""Weights by megatron-core's names to those of an exported folder: renamed, split, and rewritten for Gemma 3."""

from __future__ import annotations

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.formats import Format
from megatron_kaiyuan.model import gemma3, names
from megatron_kaiyuan.network import EMBEDDING, GATE_AND_UP, QKV


def convert_layer(name: str, tensor: torch.Tensor, index: int, model: ModelConfig) -> dict[str, torch.Tensor]:
    """One weight of a layer, by its name in the layer, to one, two or three of the folder, not rewritten yet.

    Raises:
        UserError: the network has no such weight, or not of this shape.
    """
    if name == QKV:
        parts = names.split_qkv(tensor, model)
    elif name == GATE_AND_UP:
        parts = names.split_gate_and_up(tensor)
    else:
        parts = {_renamed(name, names.renamed_in_layer(model)): tensor}
    return {f"model.layers.{index}.{part}": value for part, value in parts.items()}


def convert_outer(name: str, model: ModelConfig) -> str:
    """The folder's name of a weight outside the layers.

    Raises:
        UserError: the network has no such weight.
    """
    return _renamed(name, names.renamed_outside(model))


def is_rewritten(name: str, tensor: torch.Tensor, chosen: Format, model: ModelConfig) -> bool:
    """Whether the folder stores other numbers than the weight's own: Gemma 3's gains and its embedding."""
    return chosen == "gemma3" and (tensor.ndim == 1 or name == names.renamed_outside(model)[EMBEDDING])


def in_folder(name: str, tensor: torch.Tensor, chosen: Format, dtype: torch.dtype, model: ModelConfig) -> torch.Tensor:
    """The numbers that the folder stores of a weight (or of some rows of it), contiguous, on the CPU."""
    tensor = tensor.detach().cpu()
    if is_rewritten(name, tensor, chosen, model):
        tensor = gemma3.stored(tensor, model)
    return tensor.to(dtype).contiguous()


def _renamed(name: str, table: dict[str, str]) -> str:
    if name not in table:
        raise UserError(f"weight {name!r}: not part of the exported network; is the config that of another model?")
    return table[name]
