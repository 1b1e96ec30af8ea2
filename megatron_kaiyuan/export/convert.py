"""Weights by megatron-core's names to those of an exported folder: renamed, split, and rewritten for Gemma 3."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.export.formats import Format
from megatron_kaiyuan.export.weights import Piece, Weights
from megatron_kaiyuan.model import gemma3, names
from megatron_kaiyuan.network import EMBEDDING, GATE_AND_UP, QKV


def check_weights(source: Weights, expected: Mapping[str, tuple[int, ...]], model: ModelConfig) -> None:
    """Compare names and shapes with those of the folder's network.

    Raises:
        UserError: naming the first weight that is missing, of another shape, or too many.
    """
    found: dict[str, tuple[int, ...]] = {}
    for piece in source.described():
        found |= {name: tuple(tensor.shape) for name, tensor in named(piece, model).items()}
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"the weights hold nothing for {name!r}; export with the run's own config")
        if found[name] != shape:
            raise UserError(
                f"weights for {name!r} have shape {list(found[name])}, the config makes {list(shape)}; "
                "export with the run's own config"
            )
    if surplus := sorted(set(found) - set(expected)):
        raise UserError(f"the weights hold {surplus[0]!r}, which the config has not; export with the run's own config")


def named(piece: Piece, model: ModelConfig) -> dict[str, torch.Tensor]:
    """A piece under the names of the folder, its numbers not rewritten yet.

    Raises:
        UserError: the network has no such weight, or not of this shape.
    """
    if piece.layer is None:
        return {_renamed(piece.name, names.renamed_outside(model)): piece.tensor}
    return _convert_layer(piece.name, piece.tensor, piece.layer, model)


def _convert_layer(name: str, tensor: torch.Tensor, index: int, model: ModelConfig) -> dict[str, torch.Tensor]:
    """One weight of a layer, by its name in the layer, to one, two or three of the folder."""
    if name == QKV:
        parts = names.split_qkv(tensor, model)
    elif name == GATE_AND_UP:
        parts = names.split_gate_and_up(tensor)
    else:
        parts = {_renamed(name, names.renamed_in_layer(model)): tensor}
    return {f"model.layers.{index}.{part}": value for part, value in parts.items()}


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
