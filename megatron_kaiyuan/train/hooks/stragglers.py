"""Which rank the others wait for: how long each one takes to its own gradients, before they are reduced.

The seconds of a whole step are nearly the same on all ranks, as each waits for the slowest. What differs is the time
from a step's start to the point where the reduction of gradients begins. With tensor or pipeline parallelism it holds
the waiting inside one copy of the network, so that a slow rank shows as a slow copy.
"""

from __future__ import annotations

import statistics

import torch
from torch import distributed

from megatron_kaiyuan.cluster.bad_nodes import node_name
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.session import Session
from megatron_kaiyuan.train.step import StepResult

_LONGEST_NAME = 64


class Stragglers(Hook):
    """Columns for the row of a step that is logged: least, median and largest time of a rank, and the slowest's node.

    The mean over the steps since the row before is gathered by one small exchange, which is begun with the logged step
    and done long before its end: no rank waits for it. The first row of a job, and one between two intervals, has none.
    """

    def __init__(self) -> None:
        self._own: list[float] = []
        self._hosts: list[str] = []
        self._gathered: tuple[distributed.Work | None, torch.Tensor] | None = None
        self.columns: dict[str, float | str] = {}

    def start(self, session: Session) -> None:
        if distributed.get_world_size() > 1:
            self._hosts = _hosts(session.state.platform.device)

    def before_step(self, session: Session) -> None:
        self.columns = {}
        is_logged = (session.state.progress.step + 1) % session.run.monitor.log_every_steps == 0
        if self._hosts and is_logged and self._own:
            self._gathered = _begin_gather(statistics.fmean(self._own), session.state.platform.device)
            self._own.clear()

    def after_step(self, session: Session, result: StepResult) -> None:
        self._own.append(session.state.own_time.seconds())
        if self._gathered is not None:
            self.columns = columns(self._take(), self._hosts)

    def rolled_back(self, session: Session) -> None:
        self._own.clear()
        if self._gathered is not None:
            self._take()

    def _take(self) -> list[float]:
        assert self._gathered is not None
        (work, seconds), self._gathered = self._gathered, None
        if work is not None:
            work.wait()
        return seconds.tolist()


def columns(seconds: list[float], hosts: list[str]) -> dict[str, float | str]:
    """Return what a row has, of each rank's seconds and node."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return {
        "rank_seconds_min": min(seconds),
        "rank_seconds_median": statistics.median(seconds),
        "rank_seconds_max": seconds[slowest],
        "slowest_rank": slowest,
        "slowest_node": hosts[slowest],
    }


def _begin_gather(own: float, device: torch.device) -> tuple[distributed.Work | None, torch.Tensor]:
    """Begin to gather a number of each rank. Collective.

    Returns:
        What to wait for, and the numbers in the memory of the host; None: they are there once the host has waited for
        anything that the device does later.
    """
    mine = torch.tensor([own], dtype=torch.float32).to(device, non_blocking=True)
    everyone = torch.empty(distributed.get_world_size(), dtype=torch.float32, device=device)
    work = distributed.all_gather_into_tensor(everyone, mine, async_op=True)
    if device.type == "cpu":
        return work, everyone
    # The device's queue waits here, not the host.
    work.wait()
    return None, torch.empty(len(everyone), dtype=torch.float32, pin_memory=True).copy_(everyone, non_blocking=True)


def _hosts(device: torch.device) -> list[str]:
    """Return the node of each rank. Collective."""
    name = node_name().encode()[:_LONGEST_NAME].ljust(_LONGEST_NAME, b"\0")
    mine = torch.tensor(list(name), dtype=torch.uint8, device=device)
    everyone = torch.empty(distributed.get_world_size() * _LONGEST_NAME, dtype=torch.uint8, device=device)
    distributed.all_gather_into_tensor(everyone, mine)
    names = bytes(everyone.cpu().tolist())
    places = range(0, len(names), _LONGEST_NAME)
    return [names[place : place + _LONGEST_NAME].rstrip(b"\0").decode(errors="replace") for place in places]
