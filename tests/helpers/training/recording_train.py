"""Trains as `kaiyuan train` does, while several places record metrics; each rank lists what it recorded and got.

    recording_train.py FOLDER RECIPE [KEY=VALUE]...

FOLDER/recorded_RANK.json: [step, name, value] of each call; FOLDER/reduced_RANK.json: what each row got.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.metrics import record
from megatron_kaiyuan.train.rank import run_on_this_rank

platform.activate("cpu")

from megatron_kaiyuan.train import loop, step  # noqa: E402 - a platform has to be active before megatron-core
from megatron_kaiyuan.train.hooks import metrics  # noqa: E402

folder = Path(sys.argv[1])
real_step, real_loss, real_reduce = loop.training_step, step._mean_loss, metrics.reduce_metrics
recorded: list[tuple[int, str, float]] = []
reduced: list[dict[str, float | None]] = []
now = 0


def note(name: str, reduce: Any, on_device: bool = False, terminal: bool = False) -> None:
    value = math.sin(len(recorded) + 100 * torch.distributed.get_rank())
    recorded.append((now, name, value))
    record(name, torch.tensor(value, dtype=torch.float64) if on_device else value, reduce, terminal=terminal)


def mean_loss(*arguments: Any) -> Any:
    """On the last pipeline stage, once a micro-batch."""
    note("model/mean", "mean", on_device=True, terminal=True)
    note("model/max", "max", on_device=True)
    note("model/sum", "sum", on_device=True)
    return real_loss(*arguments)


def training_step(state: Any, *arguments: Any) -> Any:
    global now
    now, rank = state.progress.step + 1, torch.distributed.get_rank()
    note("data/sum", "sum")
    note("data/mean", "mean")
    if rank == 1:
        note("data/max_of_rank_1", "max")
        record("data/not_a_number", math.nan if now == 6 else 1.0, "max")
    result = real_step(state, *arguments)
    if now == 8 and rank == 0:
        # After the votes of the step whose row comes next.
        note("optim/late", "sum")
    return result


def reduce_metrics(*arguments: Any) -> Any:
    reduced.append(real_reduce(*arguments))
    rank = torch.distributed.get_rank()
    (folder / f"recorded_{rank}.json").write_text(json.dumps(recorded))
    (folder / f"reduced_{rank}.json").write_text(json.dumps(reduced))
    return reduced[-1]


loop.training_step, step._mean_loss, metrics.reduce_metrics = training_step, mean_loss, reduce_metrics  # type: ignore[assignment]
run_on_this_rank(Path(sys.argv[2]), sys.argv[3:])
