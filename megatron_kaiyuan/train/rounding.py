"""What a recipe asks for in FP32 and a device multiplies in less."""

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
