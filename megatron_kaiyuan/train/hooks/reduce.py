"""Recorded metrics over the ranks: all of a row in one collective, and none where nothing was ever recorded."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import distributed

from megatron_kaiyuan.metrics import Metric, Recorder, finite_or_none
from megatron_kaiyuan.platform import Platform


def sum_dtype(platform: Platform) -> torch.dtype:
    """Return the type that the device sums metrics in."""
    return torch.float64 if platform.has_float64 else torch.float32


def agree(recorder: Recorder) -> None:
    """Let every rank know the metrics of all ranks. Collective.

    Raises:
        ValueError: on every rank: some record one name by two reductions.
    """
    known: list[list[Metric]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(known, recorder.news())
    recorder.agree(known)


def reduce_metrics(recorder: Recorder, platform: Platform) -> dict[str, float | None]:
    """Return the agreed metrics that some rank has recorded since the last call, equal on every rank. Collective.

    Gathered, and reduced on the host in the order of the ranks: the result does not depend on how a library adds.
    """
    totals = recorder.take()
    if not totals:
        return {}
    mine_mx = torch.tensor([[total.host, total.count] for total in totals], dtype=sum_dtype(platform))
    mine_mx = mine_mx.to(platform.device, non_blocking=True)
    for own, total in zip(mine_mx[:, 0], totals, strict=True):
        if total.device is None:
            continue
        if total.reduce != "max":
            own.copy_(own + total.device)
        else:
            # No arithmetic with the -inf of "no value yet": a 910A would take it for an overflow.
            own.copy_(total.device if total.host == -math.inf else own.maximum(total.device))
    ranks = distributed.get_world_size()
    everyone = mine_mx.new_empty(ranks * mine_mx.numel())
    distributed.all_gather_into_tensor(everyone, mine_mx.flatten())
    # Rank, metric, total and number of values.
    values_rm, counts_rm = everyone.cpu().double().numpy().reshape(ranks, len(totals), 2).transpose(2, 0, 1)
    found: dict[str, float | None] = {}
    for place, metric in enumerate(recorder.agreed):
        count = counts_rm[:, place].sum()
        if count:
            total = np.max(values_rm[:, place]) if metric.reduce == "max" else np.sum(values_rm[:, place])
            found[metric.name] = finite_or_none(float(total / count if metric.reduce == "mean" else total))
    return found
