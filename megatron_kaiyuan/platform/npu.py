"""Huawei Ascend NPUs through torch_npu. Written from documentation; never run on the hardware yet."""

from __future__ import annotations

import sys
from typing import Any

import torch

from megatron_kaiyuan.errors import UserError, require
from megatron_kaiyuan.platform.base import Platform


class NpuPlatform(Platform):
    """One NPU a rank, HCCL between them.

    `transfer_to_npu` redirects torch.cuda to torch.npu, which is how megatron-core runs there; it must
    come before megatron-core is imported.
    """

    name = "npu"
    collective_backend = "hccl"

    def activate(self, local_rank: int) -> None:
        if "megatron.core" in sys.modules:
            raise RuntimeError("platform npu must be activated before megatron.core is imported")
        torch_npu = require("torch_npu", extra="npu", purpose="platform npu")
        require("torch_npu.contrib.transfer_to_npu", extra="npu", purpose="platform npu")
        if not torch_npu.npu.is_available():
            raise UserError("platform npu: torch_npu finds no device; check the driver and CANN's set_env.sh")
        torch_npu.npu.set_device(local_rank)
        self.device = torch.device("npu", local_rank)
        self._npu = torch_npu.npu
        if not torch_npu.npu.is_bf16_supported():
            self.precisions = ("fp32", "fp16")

    def synchronize(self) -> None:
        self._npu.synchronize()

    def peak_memory_bytes(self) -> int:
        return self._npu.max_memory_allocated()

    def device_names(self) -> list[str]:
        return [str(self._npu.get_device_name(index)) for index in range(self._npu.device_count())]

    def rng_state(self) -> Any:
        return self._npu.get_rng_state()

    def set_rng_state(self, state: Any) -> None:
        self._npu.set_rng_state(state)
