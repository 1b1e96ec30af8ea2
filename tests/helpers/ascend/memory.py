"""The memory of a simulated NPU, which is the host's: an npu tensor as a tensor of the host, without a copy."""

from __future__ import annotations

import ctypes

import torch

# As they are before transfer_to_npu replaces them.
_empty_strided, _frombuffer = torch.empty_strided, torch.frombuffer


def on_npu(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "npu"


def as_host(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements: what is written to one is in the other."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if not size or not tensor.numel():
        return _empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    block = (ctypes.c_char * size).from_address(storage.data_ptr())
    flat = _frombuffer(block, dtype=tensor.dtype, count=size // tensor.element_size())
    return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
