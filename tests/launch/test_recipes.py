"""The recipes that are shipped, against the tables of the report that they follow (arXiv 2512.07612)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from data_tools.curriculum.proportions import Kept, plan_copies
from data_tools.curriculum.recipe import OrderRecipe, load_order
from megatron_kaiyuan.config import load_run
from megatron_kaiyuan.network import count_parameters

RECIPES = Path(__file__).parents[2] / "launch/recipes"
ORDERS = sorted(RECIPES.glob("*/order*.yaml"))

# Tokens in billions where the report gives them.
KNOWN = {"fineweb_edu_zh": 430, "dclm": 610, "starcoder": 190, "fineweb_edu": 190, "finepdfs_en": 1100}
CHINESE = {"fineweb_edu_zh", "zh_dedup", "finewiki_zh", "baidu_baike"}
CODE = {"starcoder", "swallowcode_v2", "python_edu", "stackexchange", "megamath_text_code", "stack_v2_smol"}

# A dataset's five phases: t top, r random, x copies, - absent.
MIXTURES = {
    "dclm": "all t.40 t.10 t.06 t.03",
    "fineweb_edu": "- all t.50 t.30 t.10",
    "fineweb_edu_zh": "all t.20 t.12 t.10 t.05",
    "finepdfs_en": "- - all t.60 t.30",
    "zh_dedup": "- - - r.10 t.05",
    "finewiki_zh": "- all x2 x2 x2.5",
    "finewiki_en": "- all x2 x2 x1.5",
    "baidu_baike": "- - all x2 x1.5",
    "un_zh_en": "- - all - r.50",
    "arxiv": "- all r.60 r.80 r.40",
    "cosmopedia_v2": "- all r.20 r.40 r.10",
    "dolmino_flan": "- r.10 - - -",
    "dolmino_pes2o": "- r.05 - - -",
    "finemath": "- all t.60 t.80 t.40",
    "openwebmath": "- all t.40 t.90 t.60",
    "megamath_web_pro": "- all t.60 t.80 t.40",
    "llm360_math": "r.30 - - r.20 r.10",
    "automathtext": "- - t.40 all t.60",
    "swallowmath_v2": "- - r.40 all r.60",
    "jiuzhang_pt_cot": "- - - x2 x2",
    "starcoder": "r.10 t.10 t.05 t.04 t.01",
    "swallowcode_v2": "- - t.40 t.90 t.40",
    "python_edu": "- - t.50 all t.60",
    "stackexchange": "- all r.40 r.60 r.30",
    "megamath_text_code": "- r.50 - - -",
    "stack_v2_smol": "- - - - r.20",
    "algebraic_stack": "- - - - t.60",
    "downstream": "- - - x10 x30",
    "tulu_3_sft": "- - - - x7",
    "slimorca": "- - - - x2",
}
EMPTY = "-"


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> OrderRecipe:
    monkeypatch.setenv("CORPORA", "/data/corpora")
    return load_order(RECIPES / "kaiyuan-2b/order.yaml")


@pytest.mark.parametrize("recipe", ORDERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_order_recipe_is_valid(recipe: Path) -> None:
    order = load_order(recipe)
    assert set(order.corpora) == {dataset.corpus for phase in order.phases for dataset in phase.datasets}


def test_the_phases_have_the_reports_number_of_datasets(order: OrderRecipe) -> None:
    assert [len(phase.datasets) for phase in order.phases] == [4, 15, 19, 22, 27]
    assert [phase.order for phase in order.phases] == ["shuffle"] * 2 + ["curriculum"] * 3
    assert {phase.rank_by for phase in order.phases} == {"documents"}
    assert order.prefixes["dclm"] == Path("/data/corpora/dclm_text_document")


@pytest.mark.parametrize("corpus", MIXTURES)
def test_every_cell_of_the_table(order: OrderRecipe, corpus: str) -> None:
    for phase, cell in zip(order.phases, MIXTURES[corpus].split(), strict=True):
        found = [dataset for dataset in phase.datasets if dataset.corpus == corpus]
        if cell == EMPTY:
            assert not found
            continue
        (dataset,) = found
        copies = float(cell[1:]) if cell[0] == "x" else 1.0
        how = {"t": "top", "r": "random"}.get(cell[0], "all")
        fraction = Fraction(cell[1:]) if how != "all" else Fraction(1)
        assert (dataset.kept.how, dataset.kept.fraction, dataset.repeat) == (how, fraction, copies)


def test_shares_of_domains_follow_from_the_sizes_of_the_corpora(order: OrderRecipe) -> None:
    phase = order.phases[0]
    kept = [Kept(10**9, int(KNOWN.get(d.corpus, 50) * 10**9 * d.kept.fraction)) for d in phase.datasets]
    plan = plan_copies(phase, kept)
    tokens = {d.corpus: c.tokens(k) for d, c, k in zip(phase.datasets, plan.copies, kept, strict=True)}
    total = sum(tokens.values())
    assert total == (610 + 430 + 19 + 15) * 10**9  # with 50 B tokens for LLM360_math, whose size is not known
    assert float(sum(tokens.get(name, 0) for name in CHINESE) / total) == pytest.approx(430 / 1074)
    assert float(sum(tokens.get(name, 0) for name in CODE) / total) == pytest.approx(19 / 1074)
    assert plan.warnings == []


def test_copies_far_beyond_four_are_told(order: OrderRecipe) -> None:
    phase = order.phases[4]
    warnings = plan_copies(phase, [Kept(10, 1000)] * len(phase.datasets)).warnings
    assert [line.split("'")[1] for line in warnings] == ["downstream", "tulu_3_sft"]
    assert "is seen 30 times" in warnings[0]


def test_the_training_recipe_has_the_reports_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASES", "/data/phases")
    run = load_run(RECIPES / "kaiyuan-2b/train.yaml")
    assert run.train.tokens_per_step == 2048 * 4096 and run.train.precision == "fp16"
    assert [phase.peak_lr for phase in run.data.phases] == [5e-3, 3e-3, 3e-3, 3e-3, 3e-3]
    assert [phase.final_lr for phase in run.data.phases] == [None] * 4 + [6e-4]
    assert [str(phase.path) for phase in run.data.phases] == [f"/data/phases/phase_{at}" for at in range(1, 6)]
    assert run.checkpoint.save_every_steps * run.train.tokens_per_step == pytest.approx(3.36e9, rel=0.002)
    assert run.checkpoint.keep_last >= 8
    assert 2.2e12 / run.train.tokens_per_step == pytest.approx(262_000, rel=0.002)
    model = run.model
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size, model.vocab_size) == (28, 2048, 6144, 151_936)
    assert (model.num_attention_heads, model.num_query_groups, model.kv_channels) == (16, 8, 128)
    assert model.sandwich_norm and model.qk_layernorm
    assert (model.rotary_base, model.logits_soft_cap) == (1_000_000, 30)
    assert count_parameters(model) == pytest.approx(2.032e9, rel=0.001)
    assert run.optimizer.warmup_tokens == 2000 * run.train.tokens_per_step
    assert (run.data.phases[-1].decay_fraction, run.data.phases[-1].decay_shape) == (1, "one_minus_sqrt")
    assert (run.optimizer.adam_beta1, run.optimizer.adam_beta2) == (0.9, 0.95)
    assert (run.optimizer.weight_decay, run.optimizer.clip_grad) == (0.1, 1.0)


def test_the_recipe_in_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (RECIPES.parents[1] / "docs/order_recipes.md").read_text(encoding="utf-8")
    recipe = tmp_path / "order.yaml"
    recipe.write_text(page.split("```yaml\n")[1].split("```")[0])
    phase = load_order(recipe, ["phases[0].seed=7"]).phases[0]
    assert (phase.tokens, phase.seed, phase.datasets[1].repeat) == (2_500_000_000, 7, 2.5)
