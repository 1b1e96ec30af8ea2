"""From losses of a known law to the answer and its files, without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.curriculum.recipe import load_order
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.mixture.answer import MixtureAnswer, answer
from megatron_kaiyuan.research.mixture.recipe import MixRecipe
from megatron_kaiyuan.research.mixture.study import drawn
from megatron_kaiyuan.research.mixture.write import as_json, order_text, refuse_edited, write_answer

NAMES = ["code", "math", "web"]
TOKENS = np.array([4e9, 2e9, 3e10])
SLOPES = {"code": np.array([-1.2, -0.1, 0.2]), "web": np.array([0.4, 0.3, -0.6])}


def recipe(**fields: object) -> MixRecipe:
    values = {
        "recipe": "probe.yaml",
        "corpora": {name: f"corpora/{name}" for name in NAMES},
        "held_out": {name: f"held_out/{name}" for name in SLOPES},
        "runs": 24,
        "tokens": "1M",
        "target_tokens": "10B",
        **fields,
    }
    return MixRecipe.model_validate(values)


def answered(of: MixRecipe, noise: float = 0.005) -> MixtureAnswer:
    shares = drawn(of, NAMES, TOKENS)
    generator = np.random.default_rng(0)
    losses = {
        name: 2 + np.exp(shares @ each) + generator.normal(0, noise, len(shares)) for name, each in SLOPES.items()
    }
    return answer(of, NAMES, TOKENS, shares, losses)


def test_bounds_and_repetition_hold() -> None:
    """`largest`, `smallest`, and a corpus of which target and passes leave less than the law would take."""
    found = answered(recipe(largest={"web": 0.5}, smallest={"math": 0.1}, objective={"code": 1}, max_repeat=1.5))
    shares = dict(zip(NAMES, found.best.shares_d, strict=True))
    assert shares["web"] <= 0.5 + 1e-9 and shares["math"] >= 0.1 - 1e-9
    # 4 B tokens read 1.5 times, of 10 B, at most: the second time is worth less.
    assert 0.4 < shares["code"] <= 0.6
    np.testing.assert_allclose(found.epochs_d, found.best.shares_d * 1e10 / TOKENS)
    assert found.gain[0] > 0 and found.gain[1] > 0


def test_the_best_is_never_looked_for_where_no_run_was() -> None:
    found = answered(recipe(objective={"code": 1}, runs=8))
    assert (found.best.shares_d <= found.shares_rd.max(0) + 1e-9).all()
    assert (found.best.shares_d >= found.shares_rd.min(0) - 1e-9).all()
    assert "8 runs for 3 datasets" in found.warnings[0]
    assert any("its best share is the largest that a run had" in warning for warning in found.warnings)


@pytest.fixture(scope="module")
def found_plainly() -> MixtureAnswer:
    return answered(recipe())


def test_the_order_recipe_is_one_that_the_builder_reads(found_plainly: MixtureAnswer, tmp_path: Path) -> None:
    of = recipe()
    found = replace(found_plainly, confirmed_s=np.array([0.02, 0.03]))
    write_answer(found, of, tmp_path)
    (phase,) = load_order(tmp_path / "order.yaml").phases
    assert phase.tokens == 10**10 and phase.max_repeat == 4
    shares = {dataset.corpus: dataset.share for dataset in phase.datasets}
    assert sum(shares.values()) == pytest.approx(1)  # type: ignore[arg-type]
    for name, share in zip(NAMES, found.best.shares_d, strict=True):
        assert shares.get(name, 0) == pytest.approx(share, abs=1.1e-3)
    text = (tmp_path / "order.yaml").read_text()
    assert "from 24 runs of 1,000,000 tokens" in text and "+0.0250 bits/byte (+0.0200, +0.0300)" in text
    told = json.loads((tmp_path / "mixture.json").read_text())
    assert told["best"]["shares"]["code"] == found.best.shares_d[0] and len(told["runs"]) == 24
    assert told == json.loads(json.dumps(as_json(found, of)))


def test_a_best_that_is_not_better_says_so(found_plainly: MixtureAnswer) -> None:
    found = replace(found_plainly, confirmed_s=np.array([-0.02, 0.01]))
    assert "not better, keep the corpora's own shares" in order_text(found, recipe())


def test_an_edited_order_recipe_is_never_replaced(found_plainly: MixtureAnswer, tmp_path: Path) -> None:
    of = recipe()
    write_answer(found_plainly, of, tmp_path)
    write_answer(found_plainly, of, tmp_path)
    path = tmp_path / "order.yaml"
    path.write_text(path.read_text().replace("max_repeat: 4", "max_repeat: 3"))
    with pytest.raises(UserError, match="was edited since kaiyuan mix wrote it"):
        write_answer(found_plainly, of, tmp_path)
    path.write_text("corpora: {}\n")
    with pytest.raises(UserError, match="was edited"):
        refuse_edited(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": {"cod": 1}}, "objective: 'cod' is none of code, web"),
        ({"objective": {"code": 0}}, "every weight is 0"),
        ({"largest": {"books": 0.5}}, "largest: 'books' is none of code, math, web"),
        ({"smallest": {"code": 0.6}, "largest": {"code": 0.5}}, "smallest: code is above its largest share"),
        ({"smallest": {"code": 0.6, "web": 0.6}}, "the shares sum to 1.2, above 1"),
        ({"tokens": "20B"}, "a small run of 20,000,000,000 is larger than the target"),
        ({"tokens": "all"}, "write a number of tokens"),
        ({"max_repeat": 40}, "less than or equal to 16"),
    ],
)
def test_a_wrong_recipe_names_its_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(**fields)


def test_bounds_that_leave_nothing() -> None:
    with pytest.raises(UserError, match="sum to less than 1: allow more repetition"):
        answered(recipe(largest={"web": 0.1}, max_repeat=1))
