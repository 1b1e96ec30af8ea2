"""The utilization of the matrix products at which a plan is right for a speed that was measured."""

from __future__ import annotations

import math

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.planning.speed import flops_per_token, speed
from megatron_kaiyuan.platform.datasheets import Device

_LEAST, _MOST = 1e-3, 10.0


def products_mfu(
    run: RunConfig, world_size: int, device: Device, tokens_per_second: float, tensor_overlap: bool = True
) -> float | None:
    """Part of the peak that the products reach, which may come out above 1; None where it would have to be endless.

    Args:
        tokens_per_second: of all devices.
        tensor_overlap: see `stage_time`.
    """

    def planned(mfu: float) -> float:
        found = speed(run, world_size, device, mfu, tensor_overlap)
        return math.inf if found is None else found.tokens_per_second

    if not planned(_LEAST) < tokens_per_second < planned(_MOST):
        return None
    low, high = _LEAST, _MOST
    while high > 1.0001 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if planned(middle) < tokens_per_second else (low, middle)
    return low


def from_measured(run: RunConfig, world_size: int, device: Device, measured: float) -> float:
    """Return the products' utilization that gives the whole run's, `mfu_causal` of its metrics, in the recipe's layout.

    Raises:
        UserError: the device's peak is not known, or products at their peak would be slower.
    """
    peak = device.peak_tflops(run.train.precision)
    if peak is None:
        raise UserError(f"--measured-mfu: the peak of --gpu {device.name} is not known; give --peak-tflops too")
    found = products_mfu(run, world_size, device, measured * peak * 1e12 * world_size / flops_per_token(run))
    if found is None or found > 1:
        raise UserError(
            f"--measured-mfu {measured:g}: more than the recipe's layout can reach on {world_size} x {device.name} by "
            "this plan; is it mfu_causal of metrics.jsonl, with this recipe and on so many devices?"
        )
    return found
