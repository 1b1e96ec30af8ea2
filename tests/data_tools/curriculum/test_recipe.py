"""Order recipes: what they mean, and one line for everything that is wrong in one."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.curriculum.keep import Keep, parse_keep
from data_tools.curriculum.recipe import load_order
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
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAIYUAN_TEST_CORPORA", "/data")
    path = tmp_path / "order.yaml"
    path.write_text(RECIPE)
    return path


def test_reads_a_recipe(recipe: Path) -> None:
    order = load_order(recipe, ["phases[1].seed=8", "corpora.code=other/code"])
    assert order.prefixes == {"code": Path("other/code"), "wiki": Path("/data/wiki")}
    assert [phase.order for phase in order.phases] == ["shuffle", "curriculum"]
    assert order.phases[1].seed == 8
    assert order.phases[1].datasets[1].repeat == 2.5


def test_the_quickstart_recipe_is_valid() -> None:
    order = load_order(Path(__file__).parents[3] / "launch/recipes/quickstart/order.yaml")
    assert [phase.name for phase in order.phases] == ["phase_1", "phase_2"]


def test_relative_prefixes_start_at_the_root(recipe: Path) -> None:
    recipe.write_text("root: data\n" + RECIPE)
    assert load_order(recipe).prefixes == {"code": Path("data/corpora/code"), "wiki": Path("/data/wiki")}
    assert load_order(recipe, ["root=/other"]).prefixes["code"] == Path("/other/corpora/code")


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
        ("top 0.4", "best 0.4", "keep is 'best 0.4'; write all, top 0.4, random 0.4 or window 0.30-0.32"),
        ("top 0.4", "top 40", "at most 1; for 40 % write top 0.4"),
        ("top 0.4", "top 40%", "keep is 'top 40%'; write it as a fraction: top 0.4"),
        ("top 0.4", "0.4", "keep is 0.4; write all, top 0.4, random 0.4 or window 0.30-0.32"),
        ("top 0.4", "window 0.32-0.30", "the bounds are reversed, write window 0.30-0.32"),
        ("top 0.4", "window 30%-32%", "write it in fractions: window 0.3-0.32"),
        ("top 0.4", "window 0.3", "write both bounds from the best score, as window 0.30-0.32"),
        ("top 0.4", "window 0.3-0.3", "the window is empty"),
        ("top 0.4", "window 0.3-1.2", "the bounds are fractions from the best score, at most 1"),
        (
            "top 0.4",
            "random 0.4 of tokens",
            "of tokens goes with top and window: for random ones set tokens of the phase",
        ),
        ("top 0.4", "all of tokens", "of tokens goes with top and window"),
        ("top 0.4", "top 0.4 of bytes", "fractions are of documents or of tokens, as top 0.4 of tokens"),
        ("top 0.4", "window 30%-32% of tokens", "write it in fractions: window 0.3-0.32"),
        ("random 0.5", "window 0.3-0.4", "keep 'window 0.3-0.4' of corpus 'wiki' needs a score"),
        ("top 0.4", "top half", "'half' is no number, write for example top 0.4"),
        ("repeat: 2.5", "repeat: 0.5", "repeat is 0.5; copies are at least 1: for a part write keep: random 0.5"),
        ("repeat: 2.5", "repeat: x2", "repeat is 'x2'; write the number alone: 2"),
        ("repeat: 2.5", "repeat: 250%", "repeat is '250%'; write it as a fraction: 2.5"),
        ("repeat: 2.5", "repeat: 501", "repeat is 501; write a number from 1 to 500"),
        ("repeat: 2.5", "repeat: often", "repeat is 'often', no number; write for example repeat: 2.5"),
        ("repeat: 2.5", "repeat: null", "repeat is empty; write a number of copies or remove it"),
        ("repeat: 2.5", "repeat: 5, max_repeat: 4", "repeat 5 of corpus 'wiki' is above its max_repeat 4"),
        ("repeat: 2.5", "repeat: 2.5, share: 0.5", "decides how often it repeats; remove repeat 2.5"),
        ("repeat: 2.5", "share: 0.5", "corpus 'code' has no share and others have; give every dataset one, or none"),
        ("repeat: 2.5", "share: 30%", "share is '30%'; write it as a fraction: 0.3"),
        ("repeat: 2.5", "share: 30", "share is 30; for 30 % write 0.3"),
        ("repeat: 2.5", "share: 0", "share is 0; write a fraction above 0 and at most 1, or take the dataset out"),
        ("repeat: 2.5", "missing_scores: drop", "missing_scores 'drop' of corpus 'wiki' needs a score"),
        ("repeat: 2.5", "score: s, missing_scores: skip", "input should be 'refuse', 'drop' or 'lowest', got 'skip'"),
        ("seed: 7", "tokens: 0.5", "tokens is 0.5; it counts tokens: for a part of each dataset write keep: random"),
        ("seed: 7", "tokens: 2 billion", "tokens is '2 billion'; write all, or a number of tokens such as 2.5e9"),
        ("seed: 7", "tokens: '1,5e9'", "tokens is '1,5e9'; write all, or a number of tokens such as 2.5e9"),
        ("seed: 7", "tokens: ''", "tokens is ''; write all, or a number"),
        ("code: corpora/code", "code: null", "code is None; write the prefix of its files, as runs/corpora/code"),
        ("seed: 7", "tokens: 0", "tokens is 0; it counts tokens"),
        ("seed: 7", "tokens: -1", "tokens is -1; write all, or a number"),
        ("seed: 7", "tokens: true", "tokens is True; write all, or a number"),
        ("seed: 7", "tokens: 1e20", "it must stay below 2^63"),
        ("seed: 7", "rank_by: token", "input should be 'documents' or 'tokens', got 'token'"),
        ("seed: 7", "pack: 0", "phases.1.pack: input should be greater than or equal to 2, got 0"),
        ("order: shuffle", "order: shuffle\n    rank_by: tokens", "rank_by tokens has no effect in a shuffled phase"),
        ("{corpus: wiki, repeat: 2.5}", "wiki", "a dataset is 'wiki'; write {corpus: wiki, keep: all}"),
        ("code: corpora/code", "code: corpora/code.bin", "code is corpora/code.bin; write the prefix alone: corpora"),
        ("corpus: wiki, repeat", "corpus: code, repeat", "corpus 'code' is listed twice"),
        (
            "order: curriculum",
            "order: sorted",
            "phases.1.order: input should be 'shuffle' or 'curriculum', got 'sorted'",
        ),
        ("order: shuffle", "order: shuffle\n    perturb: 3", "perturb 3 has no effect in a shuffled phase"),
        ("name: phase_2", "name: phase_1", "two phases are named 'phase_1'"),
        ("name: phase_2", "name: ../phase", "name is '../phase'; a folder gets it: write letters, digits"),
        ("name: phase_2", "name: 2", "name is 2; a folder gets it"),
        ("KAIYUAN_TEST_CORPORA", "KAIYUAN_TEST_ABSENT", "Environment variable 'KAIYUAN_TEST_ABSENT' not found"),
    ],
)
def test_refuses(recipe: Path, old: str, new: str, message: str) -> None:
    assert RECIPE.count(old) == 1
    recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(UserError) as error:
        load_order(recipe)
    assert message in str(error.value)
    assert str(recipe) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("datasets", ["[]", "", "{corpus: code}"])
def test_refuses_datasets_that_are_no_list(recipe: Path, datasets: str) -> None:
    recipe.write_text(RECIPE[: RECIPE.rindex("datasets:")] + f"datasets: {datasets}\n")
    with pytest.raises(
        UserError, match=r"phases.1.datasets: .*begin each with a dash, as - \{corpus: NAME, keep: all\}"
    ):
        load_order(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpora: {}", "corpora is {}; write one line each"),
        ("corpora: [code]", "corpora is ['code']; write one line each"),
        ("phases: []", "phases is empty; begin each with a dash"),
        ("phases: {phase_1: {}}", "phases is a dict, not a list; begin each with a dash, as - name: phase_1"),
        ("phases: [phase_1]", "a phase is 'phase_1'; begin it with - name: phase_1"),
    ],
)
def test_refuses_another_shape(recipe: Path, text: str, message: str) -> None:
    recipe.write_text(text)
    with pytest.raises(UserError) as error:
        load_order(recipe)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("all", "all"),
        ("2.5e9", 2_500_000_000),
        ("1.5e+9", 1_500_000_000),
        ("1_500", 1500),
        ("'1,500'", 1500),
        ("1.2T", 1_200_000_000_000),
        ("800M", 800_000_000),
        ("3 B", 3_000_000_000),
        (".5e3", 500),
        ("64k", 64_000),
    ],
)
def test_budgets_as_people_write_them(recipe: Path, written: str, tokens: int | str) -> None:
    recipe.write_text(RECIPE.replace("seed: 7", f"tokens: {written}"))
    assert load_order(recipe).phases[1].tokens == tokens
    recipe.write_text(RECIPE)
    assert load_order(recipe, [f"phases[1].tokens={written}"]).phases[1].tokens == tokens


def test_defaults_and_every_field(recipe: Path) -> None:
    phase = load_order(recipe).phases[1]
    assert (phase.tokens, phase.rank_by, phase.max_repeat, phase.pack) == ("all", "documents", 4, None)
    dataset = phase.datasets[0]
    assert (dataset.share, dataset.max_repeat, dataset.missing_scores, dataset.optional) == (
        None,
        None,
        "refuse",
        False,
    )
    recipe.write_text(
        RECIPE.replace("seed: 7", "tokens: 1e6\n    rank_by: tokens\n    pack: 4096\n    max_repeat: 8")
        .replace("keep: top 0.4", "keep: window 0.3 - 0.32, share: 0.6, missing_scores: drop")
        .replace("repeat: 2.5", "share: 0.4, max_repeat: 2, optional: true")
    )
    phase = load_order(recipe).phases[1]
    assert (phase.tokens, phase.rank_by, phase.max_repeat, phase.pack) == (1_000_000, "tokens", 8, 4096)
    assert phase.datasets[0].kept == Keep("window", Fraction(32, 100), Fraction(3, 10))
    assert [dataset.share for dataset in phase.datasets] == [0.6, 0.4]
    assert (phase.datasets[1].max_repeat, phase.datasets[1].optional) == (2, True)


@pytest.mark.parametrize(("second", "whole"), [("0.4", True), ("0.400001", True), ("0.41", False), ("0.3", False)])
def test_shares_sum_to_one(recipe: Path, second: str, whole: bool) -> None:
    text = RECIPE.replace("keep: top 0.4", "share: 0.6").replace("repeat: 2.5", f"share: {second}")
    recipe.write_text(text)
    if whole:
        load_order(recipe)
    else:
        with pytest.raises(UserError, match=rf"shares must sum to 1; 0.6 \+ {second} is 0.9|1.01"):
            load_order(recipe)


def test_a_phase_that_is_not_there_cannot_be_changed(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"override 'phases\[7\].seed=7'"):
        load_order(recipe, ["phases[7].seed=7"])


@given(st.integers(0, 10**12), st.fractions(0, 1), st.fractions(0, 1))
def test_windows_that_touch_share_no_row_and_lose_none(rows: int, one, other) -> None:
    near, far = sorted((one, other))
    whole = Keep("top", far).ranks(rows)
    parts = Keep("window", far, near).ranks(rows), Keep("top", near).ranks(rows)
    assert parts[0][0] == whole[0] and parts[0][1] == parts[1][0] and parts[1][1] == whole[1] == rows
    assert Keep("window", far, near).count(rows) == parts[0][1] - parts[0][0]


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("top 0.3 of tokens", Keep("top", Fraction(3, 10), by_tokens=True)),
        (" window 0.30 - 0.32  of tokens ", Keep("window", Fraction(32, 100), Fraction(3, 10), True)),
        ("window 0.30-0.32 of documents", Keep("window", Fraction(32, 100), Fraction(3, 10))),
        ("random 0.3 of documents", Keep("random", Fraction(3, 10))),
        ("all of documents", Keep("all", Fraction(1))),
    ],
)
def test_what_fractions_count(text: str, keep) -> None:
    assert parse_keep(text) == keep


@given(st.integers(0, 10**15), st.fractions(0, 1), st.fractions(0, 1))
def test_windows_of_tokens_that_touch_share_none(total: int, one, other) -> None:
    near, far = sorted((one, other))
    window, top = Keep("window", far, near, True).tokens(total), Keep("top", near, by_tokens=True).tokens(total)
    assert window[1] == top[0] and top[1] == total
    assert total - window[0] == math.ceil(far * total)  # as few as hold that fraction


@given(st.integers(0, 10**12), st.fractions(0, 1))
def test_random_takes_the_first_drawn_and_top_the_last_ranks(rows: int, fraction) -> None:
    first, last = Keep("random", fraction).ranks(rows)
    assert (first, last) == (0, Keep("random", fraction).count(rows))
    assert Keep("top", fraction).ranks(rows) == (rows - last, rows)
    assert Keep("all", Fraction(1)).ranks(rows) == (0, rows)


@given(st.decimals("0.0001", 1, places=4), st.integers(0, 10**12))
def test_counts_are_exact_with_halves_up(fraction, documents: int) -> None:
    count = parse_keep(f"top {fraction}").count(documents)
    assert count == int((fraction * documents).quantize(Decimal(1), ROUND_HALF_UP))


def test_a_decimal_fraction_is_not_a_little_less() -> None:
    assert math.floor(0.29 * 50 + 0.5) == 14  # as floats
    assert parse_keep("random 0.29").count(50) == 15
    assert parse_keep("all") == Keep("all", Fraction(1))


def test_thousands_of_datasets_are_a_recipe(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(2500)]
    datasets = "".join(f"      - {{corpus: {name}, keep: all}}\n" for name in names)
    corpora = "".join(f"  {name}: {name}\n" for name in names)
    path = tmp_path / "order.yaml"
    path.write_text(f"corpora:\n{corpora}phases:\n  - name: p\n    order: shuffle\n    datasets:\n{datasets}")
    assert len(load_order(path).phases[0].datasets) == 2500
