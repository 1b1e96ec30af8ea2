"""Exact quantiles over shards against NumPy on the whole dataset, and against the order that the builder makes."""

from __future__ import annotations

import math
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.curriculum.keep import parse_keep
from data_tools.engines.local import LocalEngine
from data_tools.scores.quantiles import QuantileColumn, RankedRows, choice_seed, draws, parse_quantile, rank
from megatron_kaiyuan.errors import UserError

values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.5, math.inf, -math.inf]), st.just(math.nan), st.floats(allow_nan=False)
)
shards = st.lists(st.lists(st.tuples(values, st.integers(0, 9)), max_size=12), min_size=1, max_size=5)


def ranked(shards_of: list[RankedRows], quantile: QuantileColumn, seed: int, band_rows: int) -> list[float | None]:
    with tempfile.TemporaryDirectory() as folder:
        ranks = rank(LocalEngine(1), Path(folder), _same, shards_of, quantile, seed, band_rows)
        return [value for number in range(len(shards_of)) for value in ranks.quantiles(number).to_pylist()]


def _same(rows: RankedRows) -> RankedRows:
    return rows


@settings(max_examples=40, deadline=None)
@given(shards, st.booleans(), st.integers(0, 2**63), st.sampled_from([1, 3, 1000]))
def test_quantiles_are_those_of_one_sort(found: list, by_tokens: bool, seed: int, band_rows: int) -> None:
    flat = [item for shard in found for item in shard]
    ids = np.arange(len(flat), dtype=np.uint64) * np.uint64(2**40 + 1)
    scores = np.array([score for score, _ in flat], float)
    tokens = np.array([count for _, count in flat], np.int64)
    edges = np.cumsum([0, *map(len, found)])
    pieces = [
        RankedRows(scores[first:stop], ids[first:stop], tokens[first:stop] if by_tokens else None)
        for first, stop in pairwise(edges)
    ]
    expected = np.full(len(flat), np.nan)
    there = np.flatnonzero(~np.isnan(scores))
    order = there[np.lexsort((draws(seed, ids[there]), scores[there]))]
    weights = np.maximum(tokens, 1) if by_tokens else np.ones(len(flat), np.int64)
    if len(there):
        expected[order] = np.cumsum(weights[order]) / weights[there].sum()
    answer = ranked(pieces, QuantileColumn("score", by_tokens), seed, band_rows)
    assert [math.nan if value is None else value for value in answer] == pytest.approx(
        list(expected), abs=0, nan_ok=True
    )


def test_the_top_of_a_recipe_is_what_a_quantile_cuts(tmp_path: Path) -> None:
    """The same documents as `keep: top F`, ties and all: by the builder itself."""
    from data_tools import _curriculum

    draw = np.random.default_rng(5)
    scores = draw.integers(0, 6, 4000).astype(float)
    scores[draw.permutation(4000)[:400]] = np.nan  # so that each fraction is of whole documents
    lengths = draw.integers(1, 50, 4000).astype(np.int32)
    seed = choice_seed(1234, "code")
    rows = RankedRows(scores, np.arange(4000, dtype=np.uint64), None)
    quantiles = np.array(ranked([rows], QuantileColumn("score"), seed, 500), float)
    for fraction in ("0.15", "0.3", "0.6"):
        builder = _curriculum.Builder(str(tmp_path), memory=1 << 26, shuffle=False)
        builder.begin(scored=True, choice_seed=seed, order_seed=7, expected=4000)
        builder.add(0, lengths, scores, True)
        builder.keep(*parse_keep(f"top {fraction}").ranks(builder.rows))
        kept_tokens = builder.tokens
        taken = quantiles > 1 - float(fraction)
        assert builder.rows == taken.sum()
        assert kept_tokens == lengths[taken].sum()


def test_the_draws_are_those_of_the_builder() -> None:
    """SplitMix64's first output for the seed 0, as its authors publish it."""
    from data_tools.scores.quantiles import _mix

    assert int(_mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_what_is_no_quantile_is_refused() -> None:
    assert parse_quantile("edu") == QuantileColumn("edu")
    assert parse_quantile("edu,by=tokens") == QuantileColumn("edu", True)
    for text in ("", ",by=tokens", "edu,by=bytes", "edu,tokens"):
        with pytest.raises(UserError, match="write COLUMN"):
            parse_quantile(text)
