"""Trains on NPUs as `kaiyuan train` does; on one rank a pass of chosen steps overflows, without harm elsewhere.

overflowing_train.py '{"rank": 0, "steps": {"2": "forward", "3": "backward"}}' RECIPE [KEY=VALUE]...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.train.rank import run_on_this_rank

fault = json.loads(sys.argv[1])
device = platform.activate("npu", int(os.environ.get("LOCAL_RANK", 0)))

from megatron_kaiyuan.train import loop, step  # noqa: E402 - a platform has to be active before megatron-core

real_step, real_forward = loop.training_step, step._forward
where: str | None = None


def training_step(state: Any, *arguments: Any) -> Any:
    global where
    if torch.distributed.get_rank() == fault["rank"]:
        where = fault["steps"].get(str(state.progress.step + 1))
    return real_step(state, *arguments)


def overflow(*_: Any) -> None:
    large = torch.full((4,), 60000.0, dtype=torch.float16, device=device.device)
    assert (large + large).isfinite().all()


def forward(*arguments: Any) -> Any:
    global where
    found = real_forward(*arguments)
    if where == "forward":
        overflow()
    elif where == "backward":
        found[0].register_hook(overflow)
    where = None
    return found


loop.training_step, step._forward = training_step, forward  # type: ignore[assignment]
run_on_this_rank(Path(sys.argv[2]), sys.argv[3:])
