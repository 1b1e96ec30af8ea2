"""What all ranks measured in one step, added up by name and place in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

COLUMNS = 3


@dataclass(frozen=True)
class Cell:
    """One name at one place: three sums, and the largest value (inf where one was not finite)."""

    sums: tuple[float, float, float]
    peak: float


class Table:
    """Sums and largest values on the device. Every rank has the whole table and fills in what it sees.

    Replicas of a tensor may all be added where a mean is wanted: each one counts, and the mean stays what it is.

    Args:
        places: how many places each name has; the same on every rank.
    """

    def __init__(self, places: Mapping[str, int], device: torch.device):
        self._first: dict[str, int] = {}
        count = 0
        for name, number in places.items():
            self._first[name] = count
            count += number
        self._places = dict(places)
        self._sums = torch.zeros(count, COLUMNS, device=device)
        self._peaks = torch.zeros(count, device=device)
        self.one = torch.ones((), device=device)

    def add(self, name: str, place: int, sums: tuple[torch.Tensor, ...], peak: torch.Tensor) -> None:
        """Add up to three FP32 scalars to a cell's sums, and take over a larger peak. No wait for the device."""
        row = self._first[name] + place
        if sums:
            self._sums[row, : len(sums)] += torch.stack(sums)
        self._peaks[row] = torch.maximum(self._peaks[row], peak)

    def gather(self) -> dict[str, list[Cell]] | None:
        """The cells of all ranks together on rank 0, None elsewhere. Two small reductions, one wait, on rank 0.

        Collective.
        """
        # What a reduction makes of NaN differs between backends.
        self._peaks.nan_to_num_(nan=torch.inf, posinf=torch.inf)
        torch.distributed.reduce(self._sums, dst=0)
        torch.distributed.reduce(self._peaks, dst=0, op=torch.distributed.ReduceOp.MAX)
        if torch.distributed.get_rank() != 0:
            return None
        rows = torch.cat((self._sums, self._peaks[:, None]), dim=1).tolist()
        cells = [Cell((first, second, third), peak) for first, second, third, peak in rows]
        return {name: cells[start : start + self._places[name]] for name, start in self._first.items()}
