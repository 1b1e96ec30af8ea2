"""Products of FP32 matrices on a chip that rounds their inputs to FP16 (`Platform.products_round_fp32`).

Elsewhere in a step FP32 tensors meet element by element or in sums: norms and their gradients, the softmax, rotations,
the cross-entropy, gradient sums, clipping and AdamW are computed in FP32 on such a chip too. A product of two FP16
numbers is exact in FP32.
"""

from __future__ import annotations

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.platform import Platform


def rounding_warning(run: RunConfig, platform: Platform) -> str | None:
    """A line about fields that promise products in FP32, where the device rounds their inputs; None: nothing to say."""
    if not platform.products_round_fp32:
        return None
    fields = {"train.precision=fp32": run.train.precision == "fp32", "model.fp32_head": run.model.fp32_head}
    asked = [field for field, is_set in fields.items() if is_set]
    if not asked:
        return None
    return (
        f"{' and '.join(asked)}: {platform.device_name()} rounds the inputs of products of FP32 matrices to FP16 "
        "(11 bits, at most 65,504) and keeps only their sums in FP32"
    )


def rounded_products(run: RunConfig) -> list[str]:
    """Places of a step that multiply FP32 matrices, their gradients included."""
    if run.train.precision == "fp32":
        places = ["linear layers", "attention", "output layer"]
        measured = run.optimizer.qk_clip_tau is not None or run.monitor.activations_every_steps > 0
        return places + ["attention logits that are measured"] * measured
    return ["output layer"] if run.model.fp32_head else []
