"""Weights to export, one piece at a time: of a mapping in memory, or of a checkpoint as its shards lie on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_kaiyuan.checkpoint.load import Stored
from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.model import names
from megatron_kaiyuan.network import LAYERS


@dataclass(frozen=True)
class Piece:
    """A weight of one layer, or rows of a weight outside the layers.

    Attributes:
        name: megatron-core's; of a layer's, its name in the layer.
        layer: its number; None: outside the layers.
        first_row: of those rows, in the whole weight.
    """

    name: str
    layer: int | None
    tensor: torch.Tensor
    first_row: int = 0


class Weights(Protocol):
    """All weights of one network."""

    def described(self) -> Iterator[Piece]:
        """Every weight, whole, on the meta device."""

    def pieces(self) -> Iterator[Piece]:
        """Every weight's numbers, in any order."""


class WeightsInMemory:
    """Full tensors by megatron-core name, layers stacked or numbered."""

    def __init__(self, weights: Mapping[str, torch.Tensor], model: ModelConfig):
        self._plain = names.split_layers(dict(weights), model.num_layers)

    def pieces(self) -> Iterator[Piece]:
        for name, tensor in self._plain.outer.items():
            yield Piece(name, None, tensor)
        for index, layer in enumerate(self._plain.layers):
            for name, tensor in layer.items():
                yield Piece(name, index, tensor)

    def described(self) -> Iterator[Piece]:
        for piece in self.pieces():
            yield Piece(piece.name, piece.layer, piece.tensor.to("meta"))


class WeightsOfCheckpoint:
    """Those of a checkpoint of any layout; memory holds one stored shard at a time.

    Args:
        stored: opened with the kind of weights that is meant, so that it holds nothing else.
    """

    def __init__(self, stored: Stored, model: ModelConfig):
        self._stored, self._layers = stored, model.num_layers
        self._names = list(stored.tensors)

    def described(self) -> Iterator[Piece]:
        for name in self._names:
            found = self._stored.tensors[name]
            empty = torch.empty(found.global_shape, dtype=found.dtype, device="meta")
            if not name.startswith(LAYERS):
                yield Piece(name, None, empty)
                continue
            if not empty.ndim or len(empty) != self._layers:
                raise UserError(
                    f"weight {name!r} has shape {list(empty.shape)}, but model.num_layers is {self._layers}; "
                    "the checkpoint is of another network than its configuration says"
                )
            for index in range(self._layers):
                yield Piece(name.removeprefix(LAYERS), index, empty[index])

    def pieces(self) -> Iterator[Piece]:
        for name in self._names:
            for piece in self._stored.cut(name):
                tensor = self._stored.read_pieces({name: piece})[name]
                first = piece.global_offset[0] if piece.global_offset else 0
                if not name.startswith(LAYERS):
                    yield Piece(name, None, tensor, first)
                    continue
                for index, layer in enumerate(tensor, first):
                    yield Piece(name.removeprefix(LAYERS), index, layer)


def dtype_of(weights: Weights) -> torch.dtype:
    """The precision that holds every weight."""
    found = torch.float16
    for number, piece in enumerate(weights.described()):
        found = torch.promote_types(found, piece.tensor.dtype) if number else piece.tensor.dtype
    return found
