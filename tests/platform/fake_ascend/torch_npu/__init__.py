"""A torch_npu without an NPU: host memory and torch's CPU kernels, under the names and rules of the real one.

It behaves like the real one where our code could tell: an NPU is torch's renamed PrivateUse1 device; `cuda` means
nothing before `contrib.transfer_to_npu` is imported; tensors are of types like `torch.npu.HalfTensor`; collectives go
through a backend named `hccl`; in saturation mode gradients are judged by a register and not by their values, and to
ask for that register in the other mode is an error. What tests ask about is recorded.

`FAKE_NPU` in the environment says what is simulated, as JSON:
    devices      NPUs of this node; 8 by default
    soc          "910A" (saturation mode, no BF16) or "910B"
    overflows    by rank, in which backward passes its register is set, counted from 1 by calls that clear it; attention
                 sets it in each forward pass
    rms_norm     what npu_rms_norm is: "absent", "right", "wrong" or "failing"
    fused_adamw  whether torch's fused AdamW has a kernel
    log          file that calls are appended to, a JSON object each
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch.utils._device import _device_constructors

from torch_npu import simulated

torch.utils.rename_privateuse1_backend("npu")

from torch_npu import npu  # noqa: E402 - names the device that was renamed above

torch._register_device_module("npu", npu)


def on_host(device: Any) -> Any:
    """Where a tensor of a device lies in this simulation; a bare number is an accelerator's."""
    if isinstance(device, torch.device) and device.type == "npu":
        return torch.device("cpu")
    if isinstance(device, str) and device.startswith("npu"):
        return "cpu"
    return "cpu" if type(device) is int else device


def with_devices(function: Any, translate: Any) -> Any:
    """`function` with what it is told about devices translated."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(translate(arg) if isinstance(arg, torch.device | str) else arg for arg in args)
        if "device" in kwargs:
            kwargs["device"] = translate(kwargs["device"])
        return function(*args, **kwargs)

    return call


FACTORIES = [name for name, value in vars(torch).items() if callable(value) and value in _device_constructors()]
METHODS = ["to", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"]


def replace_devices(translate: Any) -> None:
    for owner, names in ((torch, FACTORIES), (torch.Tensor, METHODS)):
        for name in names:
            setattr(owner, name, with_devices(getattr(owner, name), translate))


replace_devices(on_host)
# Where torch looks for an accelerator itself, it looks for one that was registered in C++.
torch._C._get_accelerator = lambda *args: torch.device("cpu")
torch.Tensor.npu = lambda self, *args, **kwargs: self
torch.Tensor.is_npu = property(lambda self: False)

_type = torch.Tensor.type


def npu_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    answer = _type(self, *args, **kwargs)
    return answer.replace("torch.", "torch.npu.") if isinstance(answer, str) else answer


torch.Tensor.type = npu_type
torch._amp_foreach_non_finite_check_and_unscale_ = simulated.check_and_unscale
torch.nn.functional.scaled_dot_product_attention = simulated.attention

if simulated.options["rms_norm"] != "absent":
    npu_rms_norm = simulated.rms_norm
if simulated.options["fused_adamw"]:
    _library = torch.library.Library("aten", "IMPL")
    _library.impl("_fused_adamw_", lambda *args, **kwargs: None, "PrivateUse1")


def _hccl(store: Any, rank: int, size: int, timeout: Any) -> Any:
    simulated.record("hccl", size=size)
    return torch.distributed.ProcessGroupGloo(store, rank, size, timeout=timeout)


torch.distributed.Backend.register_backend("hccl", _hccl, devices=["npu", "cpu"])
torch.distributed.is_hccl_available = lambda: True
simulated.record("import", megatron="megatron.core" in sys.modules)
