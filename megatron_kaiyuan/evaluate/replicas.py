"""Data-parallel copies of a network, which share what is to be measured, and rank 0, which leads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from megatron_kaiyuan.cluster.groups import broadcast_from_rank_0, scatter_from_rank_0
from megatron_kaiyuan.errors import UserError, describe

# What lm-eval raises over a task's fields or data; a device that fails raises others.
OF_TASKS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)

Result = TypeVar("Result")
T = TypeVar("T")


@dataclass(frozen=True)
class Replicas:
    """The copy of the network that this rank has a piece of.

    Attributes:
        index, count: the copy's number, and that of all copies.
        of_ranks: by rank, the copy that it has a piece of.
    """

    index: int = 0
    count: int = 1
    of_ranks: tuple[int, ...] = (0,)

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """Return what of some work is this copy's: every `count`-th piece."""
        return work[self.index :: self.count]

    def gather(self, value: T) -> list[T]:
        """Return the values of all copies, in their order. Collective."""
        if self.count == 1:
            return [value]
        everyone: list[Any] = [None] * len(self.of_ranks)
        torch.distributed.all_gather_object(everyone, value)
        return [everyone[self.of_ranks.index(copy)] for copy in range(self.count)]


ALONE = Replicas()


def many_ranks() -> bool:
    """Whether other processes take part."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this rank reads, writes and prints what is one for all."""
    return not many_ranks() or torch.distributed.get_rank() == 0


def replicas() -> Replicas:
    """Return this rank's copy, from megatron-core's groups. Collective."""
    if not many_ranks():
        return ALONE
    from megatron.core import parallel_state

    index = parallel_state.get_data_parallel_rank()
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, index)
    return Replicas(index, parallel_state.get_data_parallel_world_size(), tuple(everyone))


def from_rank_0(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 alone; every rank returns what it returned. Collective.

    Raises:
        UserError: what stopped rank 0.
    """
    return broadcast_from_rank_0(action) if many_ranks() else action()


class Served:
    """Work that rank 0 hands out, a job at a time, until it ends; each rank does its copy's share.

    Args:
        do: a job's name and the share of this rank's copy -> a result for each piece.
    """

    def __init__(self, copies: Replicas, do: Callable[[str, list[Any]], list[Any]]):
        self._copies, self._do = copies, do

    @contextmanager
    def led(self) -> Iterator[None]:
        """Rank 0's `share_out` is answered in the body by all ranks; the others call `serve` meanwhile. Collective.

        Raises:
            UserError: what stopped rank 0, on every rank.
        """
        try:
            yield
        except (UserError, OSError) as error:
            if many_ranks():
                raise UserError(self._end(describe(error)), every_rank=True) from error
            raise
        self._end(None)

    def _end(self, why: str | None) -> str:
        """Let the other ranks return from `serve`, or raise an error there."""
        if many_ranks():
            self._hand_out([(None, why, [])] * len(self._copies.of_ranks))
        return why or ""

    def serve(self) -> None:
        """Do this rank's share of jobs until rank 0 has no more.

        Raises:
            UserError: what stopped rank 0.
        """
        while True:
            name, why, share = self._hand_out([])
            if why is not None:
                raise UserError(why, every_rank=True)
            if name is None:
                return
            self._copies.gather(self._try(name, share))

    def share_out(self, name: str, work: Sequence[Any], together: Callable[[Any], Any]) -> list[Any]:
        """Have all copies do a job; a result for each piece, in the order of the work. Rank 0's.

        Args:
            together: of a piece, what it has in common with those that are better done by one copy.

        Raises:
            ValueError, ...: one of `OF_TASKS` that stopped a copy.
        """
        shares = deal(work, together, self._copies.count)
        if many_ranks():
            self._hand_out([(name, None, [work[place] for place in shares[copy]]) for copy in self._copies.of_ranks])
        mine = self._try(name, [work[place] for place in shares[self._copies.index]])
        found: list[Any] = [None] * len(work)
        for places, (results, error) in zip(shares, self._copies.gather(mine), strict=True):
            if error is not None:
                raise error
            for place, result in zip(places, results, strict=True):
                found[place] = result
        return found

    def _try(self, name: str, share: list[Any]) -> tuple[list[Any], Exception | None]:
        """Do a share, or return what stops it: the other ranks wait for an answer."""
        try:
            return self._do(name, share), None
        except OF_TASKS as error:
            return [], error

    @staticmethod
    def _hand_out(jobs: list[Any]) -> Any:
        return scatter_from_rank_0(lambda: jobs)


def deal(work: Sequence[Any], together: Callable[[Any], Any], count: int) -> list[list[int]]:
    """Cut work into shares of about the same length: the places of each share, in order.

    Pieces that have something in common stay in one share, unless they are more than a share.
    """
    groups: dict[Any, list[int]] = {}
    for place, piece in enumerate(work):
        groups.setdefault(together(piece), []).append(place)
    largest = -(-len(work) // count)
    pieces = [group[at : at + largest] for group in groups.values() for at in range(0, len(group), largest)]
    shares: list[list[int]] = [[] for _ in range(count)]
    for piece in sorted(pieces, key=len, reverse=True):
        min(shares, key=len).extend(piece)
    return [sorted(share) for share in shares]
