"""On import, `cuda` means `npu` in all of torch."""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any

import torch

import torch_npu
from torch_npu import simulated

warnings.filterwarnings(action="once")
simulated.record("transfer_to_npu", megatron="megatron.core" in sys.modules)
warnings.warn("The torch.Tensor.cuda and torch.nn.Module.cuda are replaced", ImportWarning, stacklevel=2)


def _from_cuda(device: Any) -> Any:
    return torch.device(str(device).replace("cuda", "npu")) if "cuda" in str(device) else device


def _to_hccl(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple("hccl" if arg == "nccl" else arg for arg in args)
        return function(*args, **kwargs)

    return call


for _module, _names in ((torch.cuda, torch_npu.npu), (torch.cuda.random, torch_npu.npu.random)):
    for _name in _names.__all__:
        setattr(_module, _name, getattr(_names, _name))
torch_npu.replace_devices(_from_cuda)
torch.Tensor.cuda = torch.Tensor.npu
torch.Tensor.is_cuda = torch.Tensor.is_npu
torch.distributed.init_process_group = _to_hccl(torch.distributed.init_process_group)
torch.jit.script = lambda obj, *args, **kwargs: obj
