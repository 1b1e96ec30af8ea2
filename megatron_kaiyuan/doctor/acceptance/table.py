"""The checks, in their order: the cheap ones that explain later failures come first.

A new one is a function and a line here. Time limits are for a 910A, which compiles an operator when it is first called.
"""

from __future__ import annotations

from megatron_kaiyuan.doctor.acceptance.check import ONE_AT_A_TIME, Check

CHECKS = (
    Check("machine.devices", "devices", 120),
    Check("machine.versions", "versions", 120),
    Check("machine.modes", "BF16, and infinities or saturation", 120),
    Check("numbers.half_product", "product in half precision against the CPU", 180, ONE_AT_A_TIME),
    Check("numbers.fp32_product", "product of FP32: exact, or saturated", 180, ONE_AT_A_TIME),
    Check("numbers.overflow", "exp(12) in FP16 is seen and cleared", 180, ONE_AT_A_TIME),
    Check("numbers.masks", "which uses of -inf set the float status", 300, ONE_AT_A_TIME),
    Check("operators.attention", "attention of 4,096 tokens", 300, ONE_AT_A_TIME),
    Check("operators.stream", "product on another stream", 180, ONE_AT_A_TIME),
    Check("operators.npu_rms_norm", "npu_rms_norm", 180, ONE_AT_A_TIME),
    Check("operators.npu_swiglu", "npu_swiglu", 180, ONE_AT_A_TIME),
    Check("operators.adamw", "AdamW, plain and fused", 300, ONE_AT_A_TIME),
    Check("operators.indexing", "gather, scatter, repeat, embedding backward", 300, ONE_AT_A_TIME),
    Check("training.without_fallback", "one step with CPU fall-back disabled", 600),
    Check("ranks.exchanges", "two ranks: all exchanges of training", 600),
    Check("ranks.doctor", "all ranks: doctor", 600),
    Check("training.against_cpu", "quickstart in FP16 against the CPU", 900),
    Check("training.recompute", "recompute full and selective: no skipped step", 1200),
    Check("training.resume", "loss scale 2^31 on all ranks, kill, resume", 1200),
    Check("largest.largest", "one step of Kaiyuan-2B, peak against planned", 1800),
)
