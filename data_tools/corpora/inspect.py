"""Looking into a corpus: counts, and histograms of length and of each score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_tools.corpora.corpus_files import manifest_path, read_manifest
from data_tools.corpora.sidecar import sidecar_rows
from megatron_kaiyuan.data.indexed import IndexedCorpus
from megatron_kaiyuan.data.metadata import metadata_path, open_metadata

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
_ROWS_AT_ONCE = 1 << 22
# Lengths below this are counted one by one, so that quantiles are exact in bounded memory.
_COMMON_LENGTH = 1 << 20
_SCORE_BINS = 16
_BAR_WIDTH = 40


def inspect_corpus(prefix: Path) -> dict[str, Any]:
    """Counts, and lengths in tokens; works for a stock Megatron corpus too, which has no manifest and no metadata.

    Returns:
        `lengths`: quantiles; `length_histogram`: [from, to, sequences] with `to` excluded; `scores`: for each score
        its `least`, `mean`, `greatest`, `missing` rows and `histogram` of [from, to, sequences]; `domains`: for each
        its sequences, tokens and UTF-8 bytes.

    Raises:
        UserError: the corpus is damaged.
    """
    corpus = IndexedCorpus(prefix)
    lengths, counts = _length_counts(corpus.lengths)
    has_metadata = metadata_path(prefix).exists()
    return {
        "prefix": str(prefix),
        "sequences": len(corpus),
        "documents": len(corpus.document_indices) - 1,
        "tokens": corpus.num_tokens,
        "dtype": corpus.dtype.name,
        "lengths": _quantiles(lengths, counts),
        "length_histogram": _length_histogram(lengths, counts),
        "scores": {name: _score(metadata_path(prefix), name) for name in _score_names(prefix)} if has_metadata else {},
        "domains": _domains(metadata_path(prefix)) if has_metadata else {},
        "manifest": read_manifest(prefix) if manifest_path(prefix).exists() else None,
    }


def describe_corpus(found: dict[str, Any]) -> Iterator[str]:
    """What `inspect_corpus` found, in lines for a person."""
    yield "sequences by length in tokens:"
    yield from _bars(found["length_histogram"])
    for name, score in found["scores"].items():
        missing = f", {score['missing']:,} missing" if score["missing"] else ""
        if score["mean"] is None:
            yield f"{name}: no value{missing}"
            continue
        yield f"{name}: {score['least']:.4g} to {score['greatest']:.4g}, mean {score['mean']:.4g}{missing}"
        yield from _bars(score["histogram"])
    for name, domain in found["domains"].items():
        size = f"{domain['bytes'] / max(domain['tokens'], 1):.2f} bytes/token"
        yield f"{name or '(no domain)'}: {domain['sequences']:,} sequences, {domain['tokens']:,} tokens, {size}"
    lengths = ", ".join(f"{share} {length:,}" for share, length in found["lengths"].items())
    yield f"tokens a sequence, by quantile: {lengths}"
    yield f"inspect: {found['sequences']:,} sequences, {found['tokens']:,} tokens of {found['dtype']}"


def _length_counts(lengths: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct lengths, ascending, and how many sequences have each."""
    common: NDArray[np.int64] = np.zeros(_COMMON_LENGTH, np.int64)
    long: dict[int, int] = {}
    for at in range(0, len(lengths), _ROWS_AT_ONCE):
        part = lengths[at : at + _ROWS_AT_ONCE]
        is_common = part < _COMMON_LENGTH
        common += np.bincount(part[is_common], minlength=_COMMON_LENGTH)
        for length, count in zip(*np.unique(part[~is_common], return_counts=True), strict=True):
            long[int(length)] = long.get(int(length), 0) + int(count)
    present = np.flatnonzero(common)
    ordered = sorted(long)
    values = np.concatenate([present, np.array(ordered, np.int64)])
    return values, np.concatenate([common[present], np.array([long[length] for length in ordered], np.int64)])


def _quantiles(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, int]:
    """The least length that at least this share of the sequences does not pass."""
    if not len(lengths):
        return {}
    ends = np.cumsum(counts)
    wanted = np.maximum(np.ceil(np.array(_QUANTILES) * ends[-1]).astype(np.int64), 1)
    found = lengths[np.searchsorted(ends, wanted)]
    return {f"{share:.0%}": int(length) for share, length in zip(_QUANTILES, found, strict=True)}


def _length_histogram(lengths: NDArray[np.int64], counts: NDArray[np.int64]) -> list[list[int]]:
    """Sequences in [0, 1), [1, 2), [2, 4), [4, 8), ... tokens, from the first bin that holds some to the last."""
    if not len(lengths):
        return []
    bins = np.frexp(lengths)[1]  # 0 for 0, else the number of binary digits
    totals: NDArray[np.int64] = np.zeros(int(bins.max()) + 1, np.int64)
    np.add.at(totals, bins, counts)
    return [[(1 << number) >> 1, 1 << number, int(totals[number])] for number in range(int(bins.min()), len(totals))]


def _score_names(prefix: Path) -> list[str]:
    with open_metadata(metadata_path(prefix)) as file:
        return [column.name for column in file.schema_arrow if column.type == pa.float64()]


def _score(path: Path, name: str) -> dict[str, Any]:
    """Two passes over one column: the range, then the histogram."""
    least, greatest, total, count, missing = np.inf, -np.inf, 0.0, 0, 0
    for values in _finite(path, name):
        missing += values.missing
        if values.numbers.size:
            least, greatest = min(least, values.numbers.min()), max(greatest, values.numbers.max())
            total, count = total + float(values.numbers.sum()), count + values.numbers.size
    if not count:
        return {"least": None, "mean": None, "greatest": None, "missing": missing, "histogram": []}
    # A weighted mean, because the range of two large numbers may pass what a double holds.
    share = np.linspace(0, 1, _SCORE_BINS + 1 if least < greatest else 2)
    edges = np.maximum.accumulate(least * (1 - share) + greatest * share)
    bins: NDArray[np.int64] = np.zeros(len(edges) - 1, np.int64)
    for values in _finite(path, name):
        place = np.searchsorted(edges[1:-1], values.numbers, side="right")
        bins += np.bincount(place, minlength=len(bins))
    histogram = [[float(low), float(high), int(n)] for low, high, n in zip(edges, edges[1:], bins, strict=False)]
    return {
        "least": float(least),
        "mean": total / count,
        "greatest": float(greatest),
        "missing": missing,
        "histogram": histogram,
    }


class _Values:
    """The finite numbers of a batch, and how many rows had none."""

    def __init__(self, column: pa.Array):
        numbers = column.to_numpy(zero_copy_only=False)
        self.numbers = numbers[np.isfinite(numbers)]
        self.missing = len(numbers) - len(self.numbers)


def _finite(path: Path, name: str) -> Iterator[_Values]:
    for batch in sidecar_rows(path, [name]):
        yield _Values(batch.column(0))


def _domains(path: Path) -> dict[str, dict[str, int]]:
    """Largest first, by tokens."""
    found: dict[str, dict[str, int]] = {}
    for batch in sidecar_rows(path, ["domain", "tokens", "bytes"]):
        grouped = pa.Table.from_batches([batch]).group_by("domain")
        for row in grouped.aggregate([("tokens", "sum"), ("bytes", "sum"), ("tokens", "count")]).to_pylist():
            domain = found.setdefault(row["domain"] or "", {"sequences": 0, "tokens": 0, "bytes": 0})
            domain["sequences"] += row["tokens_count"]
            domain["tokens"] += row["tokens_sum"]
            domain["bytes"] += row["bytes_sum"]
    return dict(sorted(found.items(), key=lambda item: (-item[1]["tokens"], item[0])))


def _bars(histogram: list[list[Any]]) -> Iterator[str]:
    most = max((count for *_, count in histogram), default=0)
    for low, high, count in histogram:
        bar = "#" * -(-_BAR_WIDTH * count // most) if most else ""
        yield f"  {low:>10,.5g} to {high:>10,.5g} {count:>14,} {bar}".rstrip()
