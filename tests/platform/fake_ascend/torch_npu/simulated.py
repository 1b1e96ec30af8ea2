"""The device: what is simulated, its overflow register, and a record of what was asked of it."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

options: dict[str, Any] = {"devices": 8, "soc": "910A", "overflows": {}, "rms_norm": "absent", "fused_adamw": True}
options |= json.loads(os.environ.get("FAKE_NPU", "{}"))
rank = os.environ.get("RANK", "0")

saturates = options["soc"] == "910A"
register = False
passes = 0
_attention = torch.nn.functional.scaled_dot_product_attention


def record(call: str, **details: Any) -> None:
    if "log" in options:
        with open(options["log"], "a") as log:
            log.write(json.dumps({"call": call, "rank": int(rank), **details}) + "\n")


def clear() -> None:
    """As at the start of a backward pass, in which the register may be set once more."""
    global register, passes
    passes += 1
    register = passes in options["overflows"].get(rank, [])


def attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Masked scores are minus infinity, which saturates."""
    global register
    register = True
    return _attention(*args, **kwargs)


def check_and_unscale(gradients: list[torch.Tensor], found_inf: torch.Tensor, inverse_scale: torch.Tensor) -> None:
    """In saturation mode the register alone decides, and an overflow leaves gradients as they are."""
    global register
    if not gradients:
        return
    if saturates:
        found, register = register, False
    else:
        found = not all(gradient.isfinite().all() for gradient in gradients)
    if found:
        found_inf.add_(1)
        return
    for gradient in gradients:
        gradient.mul_(inverse_scale)


def rms_norm(values: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    if options["rms_norm"] == "failing":
        raise RuntimeError("npu_rms_norm is not supported on this device\nERR01007 OPS feature not supported")
    record("npu_rms_norm", dtype=str(values.dtype))
    if options["rms_norm"] == "wrong":
        epsilon = 1.0
    inverse = torch.rsqrt(values.float().square().mean(-1, keepdim=True) + epsilon)
    return (values.float() * inverse).to(values.dtype) * gamma, inverse
