"""The checks, in their order: the cheap ones that explain later failures come first.

A new one is a function and a line here. Time limits are for a chip of the first generation, which compiles an operator
when it is first called; and a start tries kernels, for at most 300 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from megatron_kaiyuan.doctor.acceptance.check import ONE_AT_A_TIME, Check


def _check(where: str, title: str, seconds: float, environment: Mapping[str, str] = MappingProxyType({})) -> Check:
    return Check(f"{__spec__.parent}.{where}", title, seconds, environment)


CHECKS = (
    _check("machine.devices", "devices", 420),
    _check("machine.versions", "versions", 420),
    _check("machine.modes", "BF16, and infinities or saturation", 420),
    _check("numbers.half_product", "product in half precision against the CPU", 420, ONE_AT_A_TIME),
    _check("numbers.fp32_product", "product of FP32: exact, or saturated", 420, ONE_AT_A_TIME),
    _check("numbers.overflow", "exp(12) in FP16 is seen and cleared", 420, ONE_AT_A_TIME),
    _check("numbers.masks", "which uses of -inf set the float status", 480, ONE_AT_A_TIME),
    _check("operators.attention", "attention of 4,096 tokens", 480, ONE_AT_A_TIME),
    _check("operators.stream", "product on another stream", 420, ONE_AT_A_TIME),
    _check("operators.npu_rms_norm", "npu_rms_norm", 420, ONE_AT_A_TIME),
    _check("operators.npu_swiglu", "npu_swiglu", 420, ONE_AT_A_TIME),
    _check("operators.adamw", "AdamW, plain and fused", 480, ONE_AT_A_TIME),
    _check("operators.indexing", "gather, scatter, repeat, embedding backward", 480, ONE_AT_A_TIME),
    _check("training.without_fallback", "one step with CPU fall-back disabled", 600),
    _check("ranks.exchanges", "two ranks: all exchanges of training", 600),
    _check("ranks.doctor", "all ranks: doctor", 1200),
    _check("training.against_cpu", "quickstart in FP16 against the CPU", 900),
    _check("training.recompute", "recompute full and selective: no skipped step", 1200),
    _check("training.resume", "loss scale 2^31 on all ranks, kill, resume", 2400),
    _check("largest.largest", "one step in the plan's first layout", 1800),
)
