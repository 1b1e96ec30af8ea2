"""Collectives go through the real ProcessGroupHCCL to the host implementation of HCCL (`cann/hccl.c`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_npu
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.ascend.memory import as_host

# As it is before transfer_to_npu replaces it.
_empty = torch.empty
_NPU_KERNEL = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
_ALIGNMENT_BYTES = 512


def call(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """Run a c10d operator, with the copies and casts that ProcessGroupHCCL makes computed by `mode`."""

    def with_kernels(*arguments: Any, **options: Any) -> Any:
        with mode:
            return func.redispatch(_NPU_KERNEL, *arguments, **options)

    if func._schema.name == "c10d::allgather_":
        return args[0], _all_gather(lambda *lists: with_kernels(*lists, *args[2:])[1], *args[:2])
    return with_kernels(*args, **kwargs)


def replace_all_gather() -> None:
    """torch_npu's gather calls this one, without the dispatcher."""
    group = torch_npu._C._distributed_c10d.ProcessGroupHCCL
    original = group.allgather

    def allgather(self: Any, outputs: Any, inputs: Any, *options: Any) -> Any:
        return _all_gather(lambda *lists: original(self, *lists, *options), outputs, inputs)

    group.allgather = allgather


def _all_gather(gather: Callable[..., Any], outputs: Any, inputs: Any) -> Any:
    """With tensors of whole blocks: others ProcessGroupHCCL pads by a kernel that it calls past the dispatcher."""
    (given,), (wanted,) = inputs, outputs
    # What is to be sent may still wait in the task queue.
    torch.npu.synchronize()  # type: ignore[attr-defined]
    elements = _ALIGNMENT_BYTES // given.element_size()
    size = -(-given.numel() // elements) * elements
    padded, *pieces = (_empty(size, dtype=given.dtype, device=given.device) for _ in range(1 + len(wanted)))
    as_host(padded)[: given.numel()] = as_host(given).flatten()
    work = gather([pieces], [padded])
    torch.npu.synchronize()  # type: ignore[attr-defined]
    for piece, output in zip(pieces, wanted, strict=True):
        as_host(output).copy_(as_host(piece)[: output.numel()].view(output.shape))
    return work
