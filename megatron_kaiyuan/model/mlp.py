"""What stands between the two linears of an MLP."""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule

from megatron_kaiyuan.backend.torch_ops import swiglu


class Swiglu(MegatronModule):
    """megatron-core's `activation_func`, which it takes with `use_te_activation_func`: silu(gate) * up."""

    def forward(self, gate_and_up_sb2f: torch.Tensor) -> torch.Tensor:
        """[s, b, 2f] to [s, b, f], f the MLP's inner size on this rank."""
        return swiglu(gate_and_up_sb2f)
