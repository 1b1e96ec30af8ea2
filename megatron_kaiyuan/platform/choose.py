"""From a name to a platform; `auto` takes the first accelerator that is there, and the CPU of a node without any."""

from __future__ import annotations

import importlib.util
import os

import torch

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform import present
from megatron_kaiyuan.platform.base import Platform


def platform_named(name: str, mindspeed: bool) -> Platform:
    """Build the platform `name`; see `megatron_kaiyuan.platform.activate`."""
    if name == "auto":
        name = _detect()
    if mindspeed and name != "npu":
        raise UserError(f"mindspeed: it is for platform npu, and this is {name}; set mindspeed=false")
    if name == "cpu":
        from megatron_kaiyuan.platform.cpu import CpuPlatform

        return CpuPlatform()
    if name == "cuda":
        from megatron_kaiyuan.platform.cuda import CudaPlatform

        return CudaPlatform()
    if name == "npu":
        from megatron_kaiyuan.platform.npu import NpuPlatform

        return NpuPlatform(mindspeed)
    raise UserError(f"platform {name!r} is unknown; use auto, cpu, cuda or npu")


def _detect() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if importlib.util.find_spec("torch_npu") is not None:
        return "npu"
    # Accelerators that this process cannot use: a mistake in how it was started, which training would hide for weeks.
    if found := present.accelerators(os.environ):
        raise present.hidden(found, os.environ, has_cuda=torch.version.cuda is not None)
    return "cpu"
