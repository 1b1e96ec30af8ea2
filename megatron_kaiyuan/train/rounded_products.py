"""Products of FP32 matrices on a chip that rounds their inputs to FP16 (`Platform.products_round_fp32`).

Elsewhere in a step FP32 tensors meet element by element or in sums: norms and their gradients, the softmax, rotations,
the cross-entropy, gradient sums, clipping and AdamW are computed in FP32 on such a chip too. A product of FP16 matrices
is exact in FP32, and only its sum may differ.
"""

from __future__ import annotations

from megatron_kaiyuan.config import RunConfig


def rounded_products(run: RunConfig) -> list[str]:
    """Places of a step that multiply FP32 matrices, their gradients included."""
    if run.train.precision == "fp32":
        places = ["linear layers", "attention", "output layer"]
        measured = run.optimizer.qk_clip_tau is not None or run.monitor.activations_every_steps > 0
        return places + ["attention logits that are measured"] * measured
    return ["output layer"] if run.model.fp32_head else []


def rounding_warning(run: RunConfig) -> str | None:
    """Why a recipe gets less than it asks for on such a chip; None where it asks for nothing in FP32."""
    rounds = "this device rounds the inputs of FP32 matrix products to FP16, and what is beyond 65,504 saturates"
    if run.train.precision == "fp32":
        return f"train.precision: {rounds}; fp16 is as exact in products, and takes half the memory"
    if run.model.fp32_head:
        return f"model.fp32_head: {rounds}; of the head only the results are in FP32"
    return None
