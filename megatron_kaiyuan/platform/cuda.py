"""NVIDIA GPUs: megatron-core's home. Nothing is patched."""

from __future__ import annotations

from typing import Any

import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform.base import Platform


class CudaPlatform(Platform):
    """One GPU a rank, NCCL between them."""

    name = "cuda"
    collective_backend = "nccl"

    def activate(self, local_rank: int) -> None:
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(
                f"platform cuda: local rank {local_rank} has no GPU, this node shows {count}; "
                "start fewer processes a node, or set platform=cpu"
            )
        self.device = torch.device("cuda", local_rank)
        torch.cuda.set_device(self.device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def peak_memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)

    def device_names(self) -> list[str]:
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [f"{one.name}, {one.total_memory / (1 << 30):.0f} GiB" for one in found]

    def rng_state(self) -> Any:
        return torch.cuda.get_rng_state(self.device)

    def set_rng_state(self, state: Any) -> None:
        torch.cuda.set_rng_state(state, self.device)
