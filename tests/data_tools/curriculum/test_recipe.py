"""Order recipes: what they mean, and one line for everything that is wrong in one."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.curriculum.recipe import Keep, load_order, parse_keep
from megatron_kaiyuan.errors import UserError

RECIPE = """
corpora: {code: corpora/code, wiki: "${oc.env:KAIYUAN_TEST_CORPORA}/wiki"}
phases:
  - name: phase_1
    order: shuffle
    datasets:
      - {corpus: code, keep: all}
      - {corpus: wiki, keep: random 0.5, repeat: 2}
  - name: phase_2
    order: curriculum
    seed: 7
    perturb: 10
    datasets:
      - {corpus: code, score: score, keep: top 0.4}
      - {corpus: wiki, repeat: 2.5}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KAIYUAN_TEST_CORPORA", "/data")
    path = tmp_path / "order.yaml"
    path.write_text(RECIPE)
    return path


def test_reads_a_recipe(recipe):
    order = load_order(recipe, ["phases[1].seed=8", "corpora.code=other/code"])
    assert order.corpora == {"code": Path("other/code"), "wiki": Path("/data/wiki")}
    assert [phase.order for phase in order.phases] == ["shuffle", "curriculum"]
    assert order.phases[1].seed == 8
    assert order.phases[1].datasets[1].repeat == 2.5


def test_the_quickstart_recipe_is_valid():
    order = load_order(Path(__file__).parents[3] / "launch/recipes/quickstart/order.yaml")
    assert [phase.name for phase in order.phases] == ["phase_1", "phase_2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("perturb: 10", "pertrub: 10", "phases.1.pertrub: unknown field; did you mean 'perturb'?"),
        (
            "score: score, keep",
            "scores: score, keep",
            "phases.1.datasets.0.scores: unknown field; did you mean 'score'?",
        ),
        ("corpus: code, keep: all", "corpus: coed", "phase 'phase_1': unknown corpus 'coed'; did you mean 'code'?"),
        ("random 0.5", "random 0", "keep is 'random 0'; the fraction must be above 0 and at most 1"),
        ("random 0.5", "top 0.5", "keep 'top 0.5' of corpus 'wiki' needs a score"),
        ("top 0.4", "top 1.5", "keep is 'top 1.5'; the fraction must be above 0 and at most 1"),
        ("top 0.4", "best 0.4", "keep is 'best 0.4'; write all, top 0.4 or random 0.4"),
        ("top 0.4", "top half", "'half' is no number, write for example top 0.4"),
        ("keep: top 0.4", "repeat: 3", "corpus 'code' has a score and repeat 3"),
        (
            "repeat: 2.5",
            "repeat: 0.5",
            "phases.1.datasets.1.repeat: input should be greater than or equal to 1, got 0.5",
        ),
        ("corpus: wiki, repeat", "corpus: code, repeat", "corpus 'code' is listed twice"),
        (
            "order: curriculum",
            "order: sorted",
            "phases.1.order: input should be 'shuffle' or 'curriculum', got 'sorted'",
        ),
        ("order: shuffle", "order: shuffle\n    perturb: 3", "perturb 3 has no effect in a shuffled phase"),
        ("name: phase_2", "name: phase_1", "two phases are named 'phase_1'"),
        ("name: phase_2", "name: ../phase", "phases.1.name: string should match pattern"),
        ("KAIYUAN_TEST_CORPORA", "KAIYUAN_TEST_ABSENT", "Environment variable 'KAIYUAN_TEST_ABSENT' not found"),
    ],
)
def test_refuses(recipe, old, new, message):
    assert RECIPE.count(old) == 1
    recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(UserError) as error:
        load_order(recipe)
    assert message in str(error.value)
    assert str(recipe) in str(error.value)
    assert "\n" not in str(error.value)


@given(st.decimals("0.0001", 1, places=4), st.integers(0, 10**12))
def test_counts_are_exact_with_halves_up(fraction, documents):
    count = parse_keep(f"top {fraction}").count(documents)
    assert count == int((fraction * documents).quantize(Decimal(1), ROUND_HALF_UP))


def test_a_decimal_fraction_is_not_a_little_less():
    assert math.floor(0.29 * 50 + 0.5) == 14  # as floats
    assert parse_keep("random 0.29").count(50) == 15
    assert parse_keep("all") == Keep("all", 1)
