"""What stands between the two linears of an MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_kaiyuan.backend.choose import TORCH


class Swiglu(MegatronModule):
    """megatron-core's `activation_func`, which it takes with `use_te_activation_func`: silu(gate) * up."""

    def __init__(self, config: TransformerConfig, kernel: Callable[[torch.Tensor], torch.Tensor] = TORCH.swiglu):
        super().__init__(config)
        self._kernel = kernel

    def forward(self, gate_and_up_sb2f: torch.Tensor) -> torch.Tensor:
        """[s, b, 2f] to [s, b, f], f the MLP's inner size on this rank."""
        return self._kernel(gate_and_up_sb2f)
