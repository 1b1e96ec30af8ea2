"""What a folder in Gemma 3's form cannot hold of its weights, in a file that only import reads.

Servers and transformers read `*.safetensors`; this file has another name, and is there only where something is missing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_kaiyuan.config import ModelConfig
from megatron_kaiyuan.model import gemma3


class Remainders:
    """The remainders of one folder, as its weights are written."""

    def __init__(self, model: ModelConfig):
        self._model = model
        self._found: dict[str, torch.Tensor] = {}

    def add(self, name: str, shape: tuple[int, ...], weight: torch.Tensor, stored: torch.Tensor, first: int) -> None:
        """Note that of some rows of a weight.

        Args:
            shape: of the whole weight.
            first: row of it.
        """
        distance = gemma3.remainder(weight, stored, self._model)
        if distance is None:
            return
        whole = self._found.get(name)
        whole = torch.zeros(shape, dtype=torch.int8) if whole is None else whole
        # int32 as soon as one piece needs it.
        whole = whole.to(torch.promote_types(whole.dtype, distance.dtype))
        whole[first : first + len(distance)] = distance
        self._found[name] = whole

    def save(self, folder: Path) -> None:
        """Write the file, unless every weight comes back without it."""
        if self._found:
            from safetensors.torch import save_file

            save_file(self._found, folder / gemma3.REMAINDERS)
