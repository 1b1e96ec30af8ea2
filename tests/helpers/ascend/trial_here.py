"""On import: platform npu tries fused kernels in this process, not in a child, which would import torch for seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_kaiyuan.platform import npu_trial
from megatron_kaiyuan.platform.npu_kernels import problem


class TrialHere:
    def __init__(self, index: int, precisions: Sequence[str], operations: Sequence[str]):
        self._index, self._precisions, self._operations = index, precisions, operations

    def problems(self) -> dict[str, str | None]:
        import torch_npu

        device = torch.device("npu", self._index)
        return {operation: problem(torch_npu, operation, device, self._precisions) for operation in self._operations}


npu_trial.Trial = TrialHere  # type: ignore[assignment,misc]
