from __future__ import annotations

import warnings

from torch_npu import simulated


def is_support_inf_nan() -> bool:
    return not simulated.saturates


def get_npu_overflow_flag() -> bool:
    if is_support_inf_nan():
        raise RuntimeError("Unsupported api when soc_version >= Ascend910B1, please use npu_check_overflow")
    simulated.record("get_npu_overflow_flag", after_pass=simulated.passes, flag=simulated.register)
    return simulated.register


def clear_npu_overflow_flag() -> None:
    if is_support_inf_nan():
        warnings.warn("When soc_version >= Ascend910B1, clear_npu_overflow_flag is useless.", stacklevel=2)
        return
    simulated.clear()
    simulated.record("clear_npu_overflow_flag", before_pass=simulated.passes)
