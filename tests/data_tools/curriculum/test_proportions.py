"""How often each dataset is taken: exact arithmetic, against sums done another way, and refusals with the numbers."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_tools.curriculum.proportions import Bernoulli, Copies, Kept, Tokens, plan_copies
from data_tools.curriculum.recipe import PhaseRecipe, exactly
from megatron_kaiyuan.errors import UserError

SIZES = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 10**12)), min_size=1, max_size=6)


def phase(datasets: list[dict[str, Any]], **fields: Any) -> PhaseRecipe:
    rows = [{"corpus": f"c{at}", **dataset} for at, dataset in enumerate(datasets)]
    return PhaseRecipe.model_validate({"name": "p", "order": "curriculum", "datasets": rows, **fields})


def kept_of(sizes: list[tuple[int, int]]) -> list[Kept]:
    return [Kept(rows, rows + tokens) for rows, tokens in sizes]


def drawn_tokens(copies: Copies, lengths: list[int], seed: int) -> int:
    """What a builder takes that follows the words of `Tokens` and `Copies`."""
    taken = copies.whole * sum(lengths)
    assert not isinstance(copies.extra, Bernoulli)
    if copies.extra:
        extra, order = 0, random.Random(seed).sample(lengths, len(lengths))
        while extra < copies.extra.amount:
            extra += order.pop()
        taken += extra
    return taken


@st.composite
def shared(draw: st.DrawFn) -> tuple[list[list[int]], list[float]]:
    """Lengths of documents by dataset, and shares that sum to 1 in thousandths."""
    lengths = draw(st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=30), min_size=1, max_size=5))
    weights = draw(st.lists(st.integers(1, 9), min_size=len(lengths), max_size=len(lengths)))
    thousandths = [1000 * weight // sum(weights) for weight in weights]
    thousandths[0] += 1000 - sum(thousandths)
    return lengths, [part / 1000 for part in thousandths]


@given(shared(), st.integers(0, 5000), st.integers(0, 99))
def test_shares_are_met_within_one_document(case, tokens: int, seed: int) -> None:
    lengths, shares = case
    recipe = phase([{"share": share} for share in shares], max_repeat=500, tokens=tokens or "all")
    kept = [Kept(len(part), sum(part)) for part in lengths]
    try:
        plan = plan_copies(recipe, kept)
    except UserError as error:
        assert "less than one of" in str(error) or "max_repeat is 500" in str(error)
        return
    targets = [copies.tokens(found) for copies, found in zip(plan.copies, kept, strict=True)]
    budget = tokens or min(
        int(found.tokens / exactly(share)) for found, share in zip(kept, shares, strict=True)
    )  # the first that is exhausted
    assert sum(targets) == budget
    for share, target, copies, part in zip(shares, targets, plan.copies, lengths, strict=True):
        assert abs(target - exactly(share) * budget) < 1
        assert target <= drawn_tokens(copies, part, seed) < target + max(part)


@given(shared())
def test_all_tokens_with_shares_ends_when_the_first_dataset_is_exhausted(case) -> None:
    lengths, shares = case
    kept = [Kept(len(part), sum(part)) for part in lengths]
    assume(all(int(min(k.tokens / exactly(s) for k, s in zip(kept, shares, strict=True)) * s) >= 1 for s in shares))
    copies = plan_copies(phase([{"share": share} for share in shares]), kept).copies
    assert all(one.whole <= 1 and (one.whole == 0 or one.extra is None) for one in copies)
    left = [found.tokens - one.tokens(found) for one, found in zip(copies, kept, strict=True)]
    assert min(left) < 1 / min(map(exactly, shares)) and min(left) >= 0


@given(SIZES, st.fractions(0, 1), st.data())
def test_a_budget_thins_every_dataset_alike(sizes, part, data: st.DataObject) -> None:
    repeats = [data.draw(st.integers(4, 20)) / 4 for _ in sizes]
    kept = kept_of(sizes)
    given_tokens = sum(found.tokens * exactly(repeat) for found, repeat in zip(kept, repeats, strict=True))
    budget = int(given_tokens * part)
    assume(budget >= 1)
    recipe = phase([{"repeat": repeat} for repeat in repeats], tokens=budget)
    try:
        plan = plan_copies(recipe, kept)
    except UserError as error:
        assert "less than one of" in str(error)
        return
    targets = [copies.tokens(found) for copies, found in zip(plan.copies, kept, strict=True)]
    assert sum(targets) == budget
    for target, found, repeat in zip(targets, kept, repeats, strict=True):
        assert abs(target - Fraction(budget) * found.tokens * exactly(repeat) / given_tokens) < 1


@given(SIZES, st.data())
def test_without_budget_and_shares_repeat_is_floor_and_chance(sizes, data: st.DataObject) -> None:
    repeats = [data.draw(st.decimals(1, 500, places=3).map(float)) for _ in sizes]
    copies = plan_copies(phase([{"repeat": repeat} for repeat in repeats]), kept_of(sizes)).copies
    for one, repeat in zip(copies, repeats, strict=True):
        assert one.whole == int(repeat)
        chance = one.extra.probability if isinstance(one.extra, Bernoulli) else 0
        assert exactly(chance) + one.whole == exactly(repeat)


def test_copies_in_figures() -> None:
    recipe = phase([{"share": 0.75, "max_repeat": 6}, {"share": 0.25}], tokens=4000)
    plan = plan_copies(recipe, [Kept(5, 550), Kept(100, 10_000)])
    assert plan.copies == [Copies(5, Tokens(250)), Copies(0, Tokens(1000))]
    assert plan.warnings == ["phase p: corpus 'c0' is seen 5.455 times; beyond 4 repeats teach much less than new text"]


@pytest.mark.parametrize(
    ("datasets", "fields", "kept", "message"),
    [
        (
            [{"repeat": 2.5}, {}],
            {"tokens": 4000},
            [(9, 1000), (9, 1499)],
            "tokens 4,000 is above the 3,999 that keep x repeat gives",
        ),
        (
            [{"share": 0.5}, {"share": 0.5, "keep": "random 0.1"}],
            {"tokens": 20_000},
            [(9, 100_000), (9, 2000)],
            "corpus 'c1' needs repeat 5 for share 0.5 of 20,000 tokens, and max_repeat is 4: it holds 2,000 tokens",
        ),
        (
            [{"share": 0.5}, {"share": 0.5, "max_repeat": 1}],
            {"tokens": 4003},
            [(9, 100_000), (9, 2000)],
            "max_repeat is 1: it holds 2,000 tokens after keep 'all'",
        ),
        ([{}, {"keep": "random 0.01"}], {}, [(9, 9), (0, 0)], "corpus 'c1' is empty after filtering: keep 'random 0.0"),
        ([{}, {}], {"tokens": 3}, [(9, 9), (1, 0)], "corpus 'c1' holds no token in its 1 documents; take it out"),
        ([{}, {}], {"tokens": 1}, [(9, 9), (1, 1)], "corpus 'c1' gets less than one of 1 tokens; raise tokens"),
    ],
)
def test_refuses_with_the_numbers(
    datasets, fields: dict[str, Any] | dict[str, int], kept: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(UserError) as error:
        plan_copies(phase(datasets, **fields), [Kept(*found) for found in kept])
    assert message in str(error.value) and str(error.value).startswith("phase p: ")


def test_a_cap_that_is_met_exactly_is_no_mistake() -> None:
    recipe = phase([{"share": 0.5}, {"share": 0.5, "max_repeat": 2.5}], tokens=5002)
    plan = plan_copies(recipe, [Kept(1, 9999), Kept(1, 1001)])
    assert plan.copies[1] == Copies(2, Tokens(499))


def test_shares_of_datasets_that_are_left_out_go_to_the_others() -> None:
    recipe = phase([{"share": 0.5}, {"share": 0.3}, {"share": 0.2, "optional": True}], tokens=800)
    present = recipe.model_copy(update={"datasets": recipe.datasets[:2]})
    plan = plan_copies(present, [Kept(9, 1000), Kept(9, 1000)])
    assert [copies.extra for copies in plan.copies] == [Tokens(500), Tokens(300)]
    assert plan.warnings == ["phase p: the shares of the datasets that exist sum to 0.8; each is divided by that"]


def test_copies_of_scored_documents_are_told_where_they_meet() -> None:
    datasets: list[dict[str, Any]] = [{"score": "s", "repeat": 2}, {"repeat": 2}]
    kept = [Kept(9, 9), Kept(9, 9)]
    warned = plan_copies(phase(datasets), kept).warnings
    assert warned == ["phase p: corpus 'c0' has a score and repeat 2: copies follow each other closely"]
    assert plan_copies(phase(datasets, order="shuffle"), kept).warnings == []
