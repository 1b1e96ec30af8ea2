"""Algorithm 1, selection and repetition once more: slow, in plain Python, written from the report and not from csrc/.
Even the hash is written again, from its published constants."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate
from typing import NamedTuple

MASK = (1 << 64) - 1
ROW, PERTURBATION, ORDER_TIE, SELECTION, REPETITION = range(5)
BLOCK = 256


class Data(NamedTuple):
    """One dataset and what becomes of it.

    Attributes:
        scores: NaN is missing; None: unscored.
        ranks: ascending ranks by score that stay; random: how many stay at random.
        by_tokens: `ranks` are of tokens: a row stays that ends within them.
        probability, extra_tokens: which rows are taken once more than `whole`; one of the two.
    """

    lengths: list[int]
    scores: list[float] | None = None
    seeds: tuple[int, int] = (1, 2)
    drop_missing: bool = False
    ranks: tuple[float, float] = (0.0, 1.0)
    random: float | None = None
    whole: int = 1
    probability: float = 0.0
    extra: float | None = None
    first: int = 0
    by_tokens: bool = False


class Row(NamedTuple):
    sequence: int
    tokens: int
    score: float
    percentile: int
    copy: int = 0

    @property
    def number(self) -> int:
        return self.copy << 48 | self.sequence


def splitmix(x: int) -> int:
    """One output of SplitMix64 from state x."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(seed: int, purpose: int, row: int) -> int:
    return splitmix(splitmix(splitmix(seed) ^ purpose) ^ row)


def uniform(bits: int) -> float:
    return (bits >> 11) / 2**53


def ranked(data: Data) -> list[Row]:
    """All rows of the corpus, ascending by (score, hash), missing scores below all; unscored ones as they are."""
    rows = [Row(data.first + at, tokens, 0.0, 127) for at, tokens in enumerate(data.lengths)]
    if data.scores is None:
        return rows
    rows = [row._replace(score=score) for row, score in zip(rows, data.scores, strict=True)]
    rows.sort(
        key=lambda row: (
            not math.isnan(row.score),
            0.0 if math.isnan(row.score) else row.score,
            draw(data.seeds[0], SELECTION, row.sequence),
        )
    )
    return [row._replace(percentile=rank * 100 // len(rows)) for rank, row in enumerate(rows)]


def kept(data: Data) -> list[Row]:
    rows = [row for row in ranked(data) if not (data.drop_missing and math.isnan(row.score))]
    if data.scores is not None and data.by_tokens:
        ends = list(accumulate(max(1, row.tokens) for row in rows))
        first, last = (math.floor(part * sum(max(1, row.tokens) for row in rows)) for part in data.ranks)
        rows = [row for row, end in zip(rows, ends, strict=True) if first < end <= last]
    elif data.scores is not None:
        first, last = (math.floor(part * len(rows)) for part in data.ranks)
        rows = rows[first:last]
    if data.random is not None:
        count = math.floor(data.random * len(rows))
        lowest = set(sorted(rows, key=lambda row: draw(data.seeds[1], SELECTION, row.sequence))[:count])
        rows = [row for row in rows if row in lowest]
    return rows


def extra_tokens(data: Data, rows: list[Row]) -> int | None:
    return None if data.extra is None else math.floor(data.extra * sum(row.tokens for row in rows))


def repeated(data: Data) -> list[Row]:
    """Every copy, in no order that matters."""
    rows = kept(data)
    drawn = {row.sequence: draw(data.seeds[1], REPETITION, row.sequence) for row in rows}
    again = {sequence for sequence, bits in drawn.items() if uniform(bits) < data.probability}
    if (left := extra_tokens(data, rows)) is not None:
        again = set()
        for row in sorted(rows, key=lambda row: drawn[row.sequence]):
            if left <= 0:
                break
            again.add(row.sequence)
            left -= row.tokens
    return [row._replace(copy=c) for row in rows for c in range(data.whole + (row.sequence in again))]


def ordered(data: Data, shuffle: bool) -> list[Row]:
    """Step 2."""
    rows = repeated(data)
    if data.scores is None or shuffle:
        return sorted(rows, key=lambda row: draw(data.seeds[1], ROW, row.number))
    missing_last = [(not math.isnan(row.score), 0.0 if math.isnan(row.score) else row.score) for row in rows]
    keyed = [
        (key, draw(data.seeds[0], SELECTION, row.number), row) for key, row in zip(missing_last, rows, strict=True)
    ]
    return [row for _, _, row in sorted(keyed)]


def order(
    datasets: list[Data], *, shuffle: bool = False, by_tokens: bool = False, perturb: float = 0.0
) -> list[tuple[int, Row]]:
    """Steps 3 and 4: (dataset, row) in the order of the phase."""
    groups = [ordered(data, shuffle) for data in datasets]
    weights = [[max(1, row.tokens) if by_tokens else 1 for row in rows] for rows in groups]
    total = sum(map(sum, weights))
    keyed = []
    for dataset, (rows, own) in enumerate(zip(groups, weights, strict=True)):
        reached = 0
        for row, weight in zip(rows, own, strict=True):
            reached += weight
            drawn = draw(datasets[dataset].seeds[1], ROW, row.number)
            shift = perturb * uniform(splitmix(drawn ^ PERTURBATION)) if perturb else 0.0
            # float(Fraction) rounds the exact quotient once, so equal rationals are equal.
            position = drawn if shuffle else float(Fraction(reached, sum(own))) * float(total) + shift
            keyed.append((position, splitmix(drawn ^ ORDER_TIE), dataset << 48 | row.sequence, dataset, row))
    return [(dataset, row) for *_, dataset, row in sorted(keyed)]


def words(entries: list[tuple[int, Row]]) -> list[int]:
    return [dataset << 48 | row.sequence for dataset, row in entries]


def cumulative_tokens(entries: list[tuple[int, Row]]) -> list[int]:
    """tokens.bin."""
    before, sums = 0, []
    for at, (_, row) in enumerate(entries):
        if at % BLOCK == 0:
            sums.append(before)
        before += row.tokens
    return [*sums, before]


def checks(numbers: list[int]) -> list[int]:
    """checks.bin."""
    found = []
    for block in range(0, len(numbers), BLOCK):
        check = splitmix(block // BLOCK)
        for number in numbers[block : block + BLOCK]:
            check = splitmix(check ^ number)
        found.append(check)
    return found


def profile(entries: list[tuple[int, Row]], datasets: int, buckets: int) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens, and sums of tokens * (2 * percentile + 1), of each dataset in each bucket of the phase's tokens."""
    total = sum(row.tokens for _, row in entries)
    tokens = [[0] * buckets for _ in range(datasets)]
    quality = [[0] * buckets for _ in range(datasets)]
    edges = [-(-total * bucket // buckets) for bucket in range(buckets + 1)]
    before = 0
    for dataset, row in entries:
        for bucket in range(buckets):
            here = max(0, min(edges[bucket + 1], before + row.tokens) - max(edges[bucket], before))
            tokens[dataset][bucket] += here
            quality[dataset][bucket] += here * (2 * row.percentile + 1) if row.percentile < 100 else 0
        before += row.tokens
    return tokens, quality


def groups(data: Data) -> list[tuple[int, int, int, int]]:
    """Of each tenth of the corpus by score, or of all: documents and tokens with every copy, and in the corpus."""
    count = 1 if data.scores is None else 10
    found = [[0, 0, 0, 0] for _ in range(count)]
    for rows, at in ((repeated(data), 0), (ranked(data), 2)):
        for row in rows:
            group = found[0 if count == 1 else row.percentile // 10]
            group[at] += 1
            group[at + 1] += row.tokens
    return [(a, b, c, d) for a, b, c, d in found]
