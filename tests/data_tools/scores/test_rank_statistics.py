"""The figures of ranks against SciPy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_tools.scores.statistics import aucs, between_share, mean_ranks, spearman

values = st.lists(
    st.tuples(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e9, 1e9)), st.integers(-3, 3), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_ranks_and_figures_are_scipys(found: list) -> None:
    first, second = (np.array([item[at] for item in found], float) for at in (0, 1))
    groups = np.array([item[2] for item in found])
    assert mean_ranks(first) == pytest.approx(stats.rankdata(first))
    for group, auc in enumerate(aucs(first, groups, 3)):
        inside, outside = first[groups == group], first[groups != group]
        if not len(inside) or not len(outside):
            assert math.isnan(auc)
        else:
            assert auc == pytest.approx(stats.mannwhitneyu(inside, outside).statistic / len(inside) / len(outside))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stats.spearmanr(first, second).statistic if len(found) > 1 else math.nan
    assert spearman(first, second) == pytest.approx(expected, nan_ok=True, abs=1e-12)
    pieces = [first[groups == group] for group in range(3) if (groups == group).any()]
    if len(pieces) > 1 and len(set(first)) > 1:
        h = stats.kruskal(*pieces).statistic
        assert between_share(first, groups, 3) == pytest.approx(h / (len(first) - 1), abs=1e-12)


def test_documents_without_one_of_two_scores_do_not_count() -> None:
    draw = np.random.default_rng(1)
    first, second = draw.normal(size=(2, 200))
    first[::7], second[::5] = np.nan, np.nan
    expected = stats.spearmanr(first, second, nan_policy="omit").statistic
    assert spearman(first, second) == pytest.approx(expected)
    assert math.isnan(between_share(np.ones(5), np.zeros(5, int), 1))
