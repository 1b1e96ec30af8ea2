"""Trains as `kaiyuan train` does, on CPUs that keep overflows in a register as a 910A does.

    register_train.py '{"rank": 1, "steps": [2, 3]}' RECIPE [KEY=VALUE]...

What overflowed is made up: on that rank, in the last micro-batch of these steps. Each rank prints what was asked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.train.rank import run_on_this_rank

fault = json.loads(sys.argv[1])
device = platform.activate("cpu")
asked: list[str] = []
is_set = False


def clear() -> None:
    global is_set
    is_set = False
    asked.append("clear")


def read() -> torch.Tensor:
    asked.append("read")
    return torch.tensor(float(is_set))


device.keeps_overflow = True
device.clear_overflow, device.overflow_flag = clear, read  # type: ignore[method-assign]

from megatron_kaiyuan.train import step  # noqa: E402 - a platform has to be active before megatron-core

real_forward = step._forward


def forward(*arguments: Any) -> Any:
    global is_set
    asked.append("forward")
    if asked.count("clear") in fault["steps"] and torch.distributed.get_rank() == fault["rank"]:
        is_set = True
    return real_forward(*arguments)


step._forward = forward  # type: ignore[assignment]
run_on_this_rank(Path(sys.argv[2]), sys.argv[3:])
print(json.dumps(asked))
