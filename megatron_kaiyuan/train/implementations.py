"""Which implementation computes what in this run; where there is a choice, read off the objects that compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import megatron.core.optimizer.clip_grads as clip_grads
import torch

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.optim.adamw import AdamW
from megatron_kaiyuan.train.rounding import rounded_products
from megatron_kaiyuan.train.state import TrainState

_NAMES = {
    "torch": "torch's kernels",
    "compiled": "kernels that torch compiled",
    "liger": "Liger Kernel",
    "npu": "torch_npu's kernel",
    "cudnn": "torch scaled_dot_product_attention, cuDNN",
    "flash": "torch scaled_dot_product_attention, FlashAttention",
    "split": "torch's kernels, on each document alone",
    "flex": "torch's FlexAttention",
    "blocked": "torch's kernels, a block of queries at a time",
    "cuda_graphs": "played as CUDA graphs",
    "fused": "products that add to the FP32 sum",
    "efficient": "torch scaled_dot_product_attention, memory-efficient",
}
_NO_LIBRARY = "Transformer Engine and Apex cannot be imported"


def implementations(state: TrainState, run: RunConfig) -> list[dict[str, str]]:
    """Rows of `op`, `implementation` and `why`; why is what the platform found, or the only reason there is."""
    platform, precision = state.platform, run.train.precision
    clipping = _library(clip_grads.l2_norm_impl)
    scaled = precision == "fp16"
    overflow = f", seen by {platform.findings.get('overflow', 'inf and NaN in gradients')}"
    rows = [
        *(
            (operation, _NAMES[choice.implementation], choice.why)
            for operation, choice in state.network.backend.choices.items()
        ),
        *(("optimizer", *_optimizer(part.optimizer)) for part in state.optimizer.chained_optimizers),
        (
            "clipping",
            clipping,
            _NO_LIBRARY if clipping.startswith(("Megatron", "torch")) else "first that could be imported",
        ),
        ("loss scaling", f"dynamic{overflow}" if scaled else "none", f"precision {precision}"),
        ("collectives", platform.collective_backend, f"platform {platform.name}"),
    ]
    if precision in platform.emulated:
        rows.append(("half precision", "products and attention in FP32, rounded once", ""))
    if platform.products_round_fp32:
        places = rounded_products(run)
        rows.append(("FP32 products", "from inputs rounded to FP16" if places else "none", ", ".join(places)))
    if "threads" in platform.findings:
        rows.append(("threads", f"{torch.get_num_threads()} a rank", ""))
    if "cores" in platform.findings:
        rows.append(("cores", "bound", ""))
    if "megatron-core" in platform.findings:
        rows.append(("megatron-core", "changed by MindSpeed", ""))
    return [
        {"op": op, "implementation": implementation, "why": platform.findings.get(op, why)}
        for op, implementation, why in rows
    ]


def _optimizer(optimizer: torch.optim.Optimizer) -> tuple[str, str]:
    """What updates the weights of a part, and why."""
    if isinstance(optimizer, AdamW):
        kernel = "torch's fused kernel" if optimizer.fused else "torch's kernel for each operation"
        return f"AdamW, {kernel}", _NO_LIBRARY
    return f"{type(optimizer).__name__} of {_library(type(optimizer))}", "first that could be imported"


def _library(part: type | Callable[..., Any]) -> str:
    """The library that a class or function comes from."""
    names = {
        "transformer_engine": "Transformer Engine",
        "transformer_engine_torch": "Transformer Engine",
        "apex": "Apex",
        "amp_C": "Apex",
        "megatron": "Megatron Core",
        "megatron_kaiyuan": "torch's kernels for lists",
    }
    package = part.__module__.partition(".")[0]
    return names.get(package, package)
