"""Which library computes each operation of a run: the first of this device's list that is there, or the one named.

| | |
|---|---|
| torch    | torch's own kernels, everywhere: the one that the others are tested against |
| compiled | the same formulas as kernels that torch compiles (`formulas.compiled`) |
| liger    | Liger Kernel's Triton kernels, for NVIDIA GPUs |
| npu      | torch_npu's, where the platform has found that they agree with torch |
| cudnn, flash, efficient | for attention, one of the kernels that torch would choose among |
| split    | for attention within documents on CPUs: torch's, on each document alone |
| blocked  | for attention where torch has no fused kernel: plain operations on a block of queries at a time |
| flex     | for attention within documents on NVIDIA GPUs: torch's FlexAttention |
| cuda_graphs | for the passes over a micro-batch, see `train/cuda_graphs.py` |
| fused    | for weight gradients: products that add themselves to the FP32 sum, by Apex or torch |

Orders of preference are measured: benchmarks/results/operations_*.txt.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_kaiyuan.backend import operations
from megatron_kaiyuan.backend.attention import (
    Attention,
    MaskedAttention,
    flex_attention,
    masked_attention,
    split_attention,
    torch_attention,
)
from megatron_kaiyuan.backend.blocked import blocked_attention, blocked_masked_attention
from megatron_kaiyuan.backend.formulas import EAGER, Formulas, compiled
from megatron_kaiyuan.backend.libraries import Norm, liger_norm, liger_swiglu, npu_norm, torch_norm
from megatron_kaiyuan.config import BackendConfig, RunConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.platform.base import first_line

# What `auto` takes, the first that is there; torch where nothing is listed.
_PREFERRED: dict[str, dict[str, Sequence[str]]] = {
    "cuda": {
        "norm": ("compiled",),
        "swiglu": ("liger", "compiled"),
        "rope": ("compiled",),
        "loss": ("compiled",),
        "document_attention": ("flex",),
        "weight_gradient": ("fused",),
    },
    "npu": {
        "norm": ("npu",),
        "swiglu": ("npu",),
        # Where there is a fused attention it is torch's.
        "attention": ("blocked",),
        "document_attention": ("blocked",),
    },
    # Compiling takes a CPU half a minute at a first start, and three quarters of a step are products and attention.
    "cpu": {"document_attention": ("split",)},
}
_ATTENTION = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Implementation:
    """What computes an operation, and why."""

    implementation: str
    why: str


@dataclass(frozen=True)
class Backend:
    """One function for each operation of the network, see `operations`.

    Attributes:
        norm: of input, weight, epsilon and the output's precision.
        loss: formulas of the cross-entropy.
        attention: of one document a sample.
        document_attention: within each of several.
        masked_attention: under Megatron's mask; it goes with `document_attention`.
        accumulates: whether products of weight gradients add themselves to the FP32 sum, in half precision.
        choices: by operation.
    """

    norm: Norm = torch_norm
    swiglu: Callable[[torch.Tensor], torch.Tensor] = operations.swiglu
    rope: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = operations.rotate
    loss: Formulas = EAGER
    attention: Attention = torch_attention
    document_attention: Attention = torch_attention
    masked_attention: MaskedAttention = masked_attention
    accumulates: bool = False
    choices: dict[str, Implementation] = field(default_factory=dict)


TORCH = Backend()


def choose(wanted: BackendConfig, platform: Platform, run: RunConfig | None = None) -> Backend:
    """The backend of a run.

    Args:
        run: its layout, on which it depends whether CUDA graphs are possible; None: one rank.

    Raises:
        UserError: naming what a wanted one needs and this machine has not.
    """
    choices = {operation: _choice(operation, named, platform, run) for operation, named in wanted}
    taken = {operation: choice.implementation for operation, choice in choices.items()}
    return Backend(
        norm=_norm(taken["norm"], platform),
        swiglu=_swiglu(taken["swiglu"], platform),
        rope=_of(operations.rotate, taken["rope"]),
        loss=_formulas(taken["loss"]),
        attention=_attention(taken["attention"]),
        document_attention=_attention(taken["document_attention"]),
        masked_attention=blocked_masked_attention if taken["document_attention"] == "blocked" else masked_attention,
        accumulates=taken["weight_gradient"] == "fused",
        choices=choices,
    )


def _choice(operation: str, named: str, platform: Platform, run: RunConfig | None) -> Implementation:
    if named != "auto":
        lack = _lack(operation, named, platform, run)
        if lack is not None:
            others = "auto or torch" if _lack(operation, "torch", platform, run) is None else "auto"
            raise UserError(f"backend.{operation}: {named} {lack}; use {others}")
        return Implementation(named, f"backend.{operation} says so")
    lacks: list[str] = []
    for candidate in _PREFERRED[platform.name].get(operation, ()):
        if candidate == "blocked" and platform.fused_attention:
            continue
        lack = _lack(operation, candidate, platform, run)
        if lack is None:
            return Implementation(candidate, f"first choice of {platform.name}" if not lacks else "; ".join(lacks))
        lacks.append(f"{candidate} {lack}")
    return Implementation("torch", "; ".join(lacks) or f"first choice of {platform.name}")


def _lack(operation: str, implementation: str, platform: Platform, run: RunConfig | None) -> str | None:
    """Why this machine cannot use it, or None."""
    if implementation == "torch":
        lacks_kernel = platform.name == "npu" and not platform.fused_attention
        return "does not run on this NPU" if lacks_kernel and operation.endswith("attention") else None
    if implementation == "compiled":
        return _compiler_lack(platform.name)
    if implementation == "cuda_graphs":
        return _recorder_lack(platform, run)
    if implementation == "npu":
        return None if operation in platform.fused else platform.findings.get(operation, "is for platform npu")
    if implementation == "split":
        return None if platform.name == "cpu" else f"is for CPUs, and this is platform {platform.name}"
    if implementation != "blocked" and platform.name != "cuda":
        return f"is for NVIDIA GPUs, and this is platform {platform.name}"
    if implementation == "liger":
        return _liger_lack()
    if implementation == "flex":
        return _compiler_lack(platform.name)
    if implementation == "fused":
        return platform.findings.get("weight_gradient")
    return None


def _recorder_lack(platform: Platform, run: RunConfig | None) -> str | None:
    if not platform.captures:
        return f"is nothing that platform {platform.name} does"
    if run is None:
        return None
    parallel = run.parallel
    reasons = {
        "parallel.tensor_model_parallel_size": parallel.tensor_model_parallel_size > 1,
        "parallel.pipeline_model_parallel_size": parallel.pipeline_model_parallel_size > 1,
        "parallel.overlap_grad_reduce": parallel.overlap_grad_reduce,
        "parallel.recompute_granularity": parallel.recompute_granularity is not None,
        "optimizer.qk_clip_tau": run.optimizer.qk_clip_tau is not None,
    }
    found = [field for field, is_set in reasons.items() if is_set]
    return f"cannot be together with {' and '.join(found)}" if found else None


def _liger_lack() -> str | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return "is not installed (pip install liger-kernel)"
    try:
        liger_norm(), liger_swiglu()
    except Exception as error:
        return f"cannot be used ({first_line(error)}; this project knows 0.8.5)"
    return None


def _compiler_lack(platform: str) -> str | None:
    if platform == "cuda":
        return None if importlib.util.find_spec("triton") is not None else "needs Triton (pip install triton)"
    if platform == "cpu":
        compiler = os.environ.get("CXX", "g++")
        return None if shutil.which(compiler) is not None else f"needs a C++ compiler, and there is no {compiler}"
    return "is not tried on NPUs"


def _formulas(implementation: str) -> Formulas:
    return compiled() if implementation == "compiled" else EAGER


def _of(operation: Callable, implementation: str) -> Callable:
    return operation if implementation == "torch" else partial(operation, formulas=_formulas(implementation))


def _attention(implementation: str) -> Attention:
    if implementation in _ATTENTION:
        return partial(torch_attention, kernel=partial(sdpa_kernel, _ATTENTION[implementation]))
    return {
        "blocked": blocked_attention,
        "split": split_attention,
        "flex": flex_attention,
        "torch": torch_attention,
    }[implementation]


def _norm(implementation: str, platform: Platform) -> Norm:
    if implementation == "liger":
        return liger_norm()
    if implementation == "npu":
        return partial(npu_norm, platform.fused["norm"])
    return torch_norm if implementation == "torch" else _of(operations.rms_norm, implementation)


def _swiglu(implementation: str, platform: Platform) -> Callable[[torch.Tensor], torch.Tensor]:
    if implementation == "liger":
        return liger_swiglu()
    return platform.fused["swiglu"] if implementation == "npu" else _of(operations.swiglu, implementation)
