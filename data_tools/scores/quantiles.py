"""Exact ranks over all shards of a dataset, as stages in bounded memory, and quantiles from them.

The order is that of Algorithm 1's builder (csrc/curriculum/dataset.h): ascending by score, equal scores by a hash of
the seed and the row. A quantile is r / N as in its step 3: r counts documents up to and with the row, or their tokens,
where an empty document counts one. So `quantile > 1 - F` is `keep: top F` but for rounding. Missing scores have no
rank.

Three stages: each shard sorts its scores (a run); bands of the sorted order are ranked apart, each from its slices of
all runs; each shard takes its ranks back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from data_tools.engines.stage import Engine, Record, Stage, Target
from megatron_kaiyuan.errors import UserError

SUFFIX = "_quantile"
# A band of so many rows takes about 150 MB.
_BAND_ROWS = 1 << 22
_SAMPLES = 256
_SIGN = np.uint64(1 << 63)
# csrc/common/hash.h, Purpose::selection: the draw between equal scores.
_SELECTION = 3


@dataclass(frozen=True)
class QuantileColumn:
    """A column and what is counted; the new column is `COLUMN_quantile`."""

    column: str
    by_tokens: bool = False

    @property
    def name(self) -> str:
        return f"{self.column}{SUFFIX}"

    def __str__(self) -> str:
        return f"{self.column},by={'tokens' if self.by_tokens else 'documents'}"


def parse_quantile(text: str) -> QuantileColumn:
    """Read `COLUMN[,by=documents|tokens]`.

    Raises:
        UserError: it is something else.
    """
    column, _, by = text.partition(",")
    if not column or by not in ("", "by=documents", "by=tokens"):
        raise UserError(f"--quantile {text!r}: write COLUMN, COLUMN,by=documents or COLUMN,by=tokens")
    return QuantileColumn(column, by == "by=tokens")


class RankedRows(NamedTuple):
    """What is ranked of a shard: scores (NaN: missing), row numbers that are unique in the dataset, and tokens."""

    scores: NDArray[np.float64]
    ids: NDArray[np.uint64]
    tokens: NDArray[np.int64] | None


class SortedRun(NamedTuple):
    """A sorted run on disk: uint64 keys, uint64 ties, int64 tokens or nothing, uint32 places in the shard."""

    path: Path
    rows: int
    ranked: int
    by_tokens: bool

    def part(self, name: str, first: int = 0, stop: int | None = None) -> NDArray[Any]:
        """One of `keys`, `ties`, `tokens` and `places`, read as it is needed."""
        kinds = {"keys": "<u8", "ties": "<u8", **({"tokens": "<i8"} if self.by_tokens else {}), "places": "<u4"}
        offset = 0
        for other, kind in kinds.items():
            if other == name:
                break
            offset += self.ranked * np.dtype(kind).itemsize
        if not self.ranked:
            return np.zeros(0, kinds[name])
        whole: NDArray[Any] = np.memmap(self.path, kinds[name], "r", offset, (self.ranked,))
        return whole[first:stop]

    def position(self, key: int, tie: int) -> int:
        """Rows before (key, tie)."""
        keys = self.part("keys")
        first, stop = (int(np.searchsorted(keys, np.uint64(key), side)) for side in ("left", "right"))
        return first + int(np.searchsorted(self.part("ties", first, stop), np.uint64(tie), "left"))


@dataclass(frozen=True)
class ShardRanks:
    """Where the quantiles of a dataset's shards are: the ranks within each band, and what comes before each.

    Attributes:
        pieces: rows of each run in each band.
        totals: what each band holds, in documents or tokens.
    """

    runs: tuple[SortedRun, ...]
    bands: tuple[Path, ...]
    pieces: tuple[tuple[int, ...], ...]
    totals: tuple[int, ...]

    def quantiles(self, shard: int) -> pa.Array:
        """float64, null for a missing score; in the order of the shard's rows."""
        run = self.runs[shard]
        found = np.full(run.rows, np.nan)
        ranks, before = [], 0
        for path, pieces, total in zip(self.bands, self.pieces, self.totals, strict=True):
            if pieces[shard]:
                start = sum(pieces[:shard])
                ranks.append(before + np.fromfile(path, "<i8", pieces[shard], offset=8 * start))
            before += total
        if ranks:
            found[run.part("places")] = np.concatenate(ranks) / before
        return pa.array(found, mask=np.isnan(found))


@dataclass(frozen=True)
class SortRun:
    """The work of the first stage.

    Attributes:
        read: a task's rows.
    """

    read: Callable[[Any], RankedRows]
    seed: int

    def __call__(self, task: Any, target: Target) -> Record:
        rows = self.read(task)
        places = np.flatnonzero(~np.isnan(rows.scores))
        keys, ties = ascending_bits(rows.scores[places]), draws(self.seed, rows.ids[places])
        order = np.lexsort((ties, keys))
        keys, ties, places = keys[order], ties[order], places[order]
        with target.file(".run") as path, open(path, "wb") as file:
            keys.astype("<u8").tofile(file)
            ties.astype("<u8").tofile(file)
            if rows.tokens is not None:
                np.maximum(rows.tokens[places], 1).astype("<i8").tofile(file)
            places.astype("<u4").tofile(file)
        picked = np.unique(np.linspace(0, len(places) - 1, _SAMPLES).astype(np.int64)) if len(places) else []
        sample = [[int(keys[place]), int(ties[place])] for place in picked]
        return {"rows": len(rows.scores), "ranked": len(places), "sample": sample}


@dataclass(frozen=True)
class RankBand:
    """The work of the second stage: a task is the first (key, tie) of the band and of the next; None at the ends."""

    runs: tuple[SortedRun, ...]

    def __call__(self, task: tuple[Any, Any], target: Target) -> Record:
        bounds = [
            (run.position(*task[0]) if task[0] else 0, run.position(*task[1]) if task[1] else run.ranked)
            for run in self.runs
        ]

        def gather(name: str) -> NDArray[Any]:
            return np.concatenate([run.part(name, *slice_) for run, slice_ in zip(self.runs, bounds, strict=True)])

        order = np.lexsort((gather("ties"), gather("keys")))  # stable: what is equal stays in the order of the shards
        ranks: NDArray[np.int64] = np.empty(len(order), "<i8")
        ranks[order] = np.cumsum(gather("tokens")[order]) if self.runs[0].by_tokens else np.arange(1, len(order) + 1)
        with target.file(".ranks") as path:
            ranks.tofile(path)
        return {"pieces": [stop - first for first, stop in bounds], "total": int(ranks.max(initial=0))}


def rank(
    engine: Engine,
    folder: Path,
    read: Callable[[Any], RankedRows],
    tasks: Sequence[Any],
    quantile: QuantileColumn,
    seed: int,
    band_rows: int = _BAND_ROWS,
) -> ShardRanks:
    """Rank the rows of a dataset's shards.

    Args:
        folder: of the stages; its name stands for the input and the settings.
        read: gives the rows of a task.
        tasks: the shards.
        seed: of the draws between equal scores, see `choice_seed`.
        band_rows: about so many rows are in memory at once. The result does not depend on it.
    """
    names = [f"{number:06d}" for number in range(len(tasks))]
    sort = Stage(f"sort {quantile.column}", folder / "runs", SortRun(read, seed), tasks, names)
    records = engine.run(sort)
    runs = tuple(
        SortedRun(sort.folder / f"{name}.run", record["rows"], record["ranked"], quantile.by_tokens)
        for name, record in zip(names, records, strict=True)
    )
    edges: list[Any] = [None, *_splitters(records, band_rows), None]
    bands = list(pairwise(edges))
    band_names = [f"{number:06d}" for number in range(len(bands))]
    stage = Stage(f"rank {quantile.column}", folder / "bands", RankBand(runs), bands, band_names)
    found = engine.run(stage)
    return ShardRanks(
        runs,
        tuple(stage.folder / f"{name}.ranks" for name in band_names),
        tuple(tuple(record["pieces"]) for record in found),
        tuple(record["total"] for record in found),
    )


def choice_seed(seed: int, dataset: str) -> int:
    """The seed of the draws between equal scores of a dataset, as the builder has it (`curriculum/build.py`)."""
    return xxhash.xxh3_64_intdigest("\0".join([str(seed), dataset]).encode())


def ascending_bits(scores: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Keys in the order of the scores; -0.0 is 0.0 (csrc/common/rows.h)."""
    bits = (scores + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def draws(seed: int, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of seed and row number, for each row (csrc/common/hash.h)."""
    state = _mix(_mix(np.array([seed], np.uint64)) ^ np.uint64(_SELECTION))
    return _mix(state ^ rows)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The step of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _splitters(records: Sequence[Record], band_rows: int) -> list[tuple[int, int]]:
    """The first (key, tie) of every band but the first, from regular samples of all runs."""
    total = sum(record["ranked"] for record in records)
    bands = math.ceil(total / band_rows)
    sample = sorted(
        (key, tie, record["ranked"] / len(record["sample"])) for record in records for key, tie in record["sample"]
    )
    found: list[tuple[int, int]] = []
    seen = 0.0
    for key, tie, rows in sample:
        if seen >= total * (len(found) + 1) / max(bands, 1) and (not found or (key, tie) > found[-1]):
            found.append((key, tie))
        seen += rows
    return found
