"""The exposure table against counting documents one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.pages.exposure import exposure_table, read_appearances
from tests.helpers.training.sample_run import groups


def phase(best: float, scored: bool = True, column: str = "score") -> dict:
    return read_appearances({"web": {"score": column if scored else None, "groups": groups(best, scored)}})


def test_nested_top_fractions_make_a_staircase():
    table = exposure_table([("p1", phase(1)), ("p2", phase(0.4)), ("p3", phase(0.1)), ("p4", phase(0.06))])
    (row,) = table
    assert row.seen == pytest.approx([1] * 6 + [2] * 3 + [3.6])
    assert row.whole == pytest.approx(1.56) and row.spread == []


@given(st.lists(st.tuples(st.integers(1, 1000), st.booleans()), min_size=1, max_size=5))
def test_seen_is_what_counting_documents_gives(phases):
    table = exposure_table([(f"p{at}", phase(best / 1000, scored)) for at, (best, scored) in enumerate(phases)])
    (row,) = table
    counts = [0.0] * 1000
    for best, scored in phases:
        for document in range(1000):
            if not scored:
                counts[document] += best / 1000
            elif document >= 1000 - best:
                counts[document] += 1
    if any(scored for _, scored in phases):
        assert row.seen == pytest.approx([sum(counts[at : at + 100]) / 100 for at in range(0, 1000, 100)])
        assert row.spread == [f"p{at}" for at, (_, scored) in enumerate(phases) if not scored]
    else:
        assert row.seen == pytest.approx([sum(counts) / 1000]) and row.score is None
    assert row.whole == pytest.approx(sum(counts) / 1000)


def test_a_second_score_column_has_a_row_of_its_own():
    table = exposure_table([("p1", phase(0.5)), ("p2", phase(0.1, column="other"))])
    assert [(row.score, row.spread) for row in table] == [("score", ["p2"]), ("other", ["p1"])]
    assert table[0].seen == pytest.approx([0.1] * 5 + [1.1] * 5)
    assert table[1].seen == pytest.approx([0.5] * 9 + [1.5])


def test_a_decile_without_tokens_has_no_figure():
    appearance = read_appearances({"web": {"score": "s", "groups": [dict.fromkeys(groups(1)[0], 0), *groups(1)[1:]]}})
    (row,) = exposure_table([("p1", appearance), ("p2", appearance)])
    assert row.seen == [None] + [2.0] * 9 and row.whole == 2.0
