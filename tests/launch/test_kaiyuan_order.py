"""The header of kaiyuan-2b/order.yaml, claim by claim: its phases built on small corpora with ties and missing scores,
beside the rules of the released pipeline (thu-pacman/Kaiyuan-Spark) written again in NumPy."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import DatasetRecipe, OrderRecipe, load_order
from tests.helpers.files.small_corpora import numbered_corpus

RECIPE = Path(__file__).parents[2] / "launch/recipes/kaiyuan-2b/order.yaml"
SIZE = 230
# As the released configs/phases/*/mix.yaml name them, without the structs that some lie in (metadata.score).
COLUMNS = {
    "dclm": "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob",
    "fineweb_edu": "score",
    "fineweb_edu_zh": "score",
    "finepdfs_en": "fineweb-edu-classifier",
    "zh_dedup": "pac_score",
    "finemath": "score",
    "openwebmath": "math_score",
    "megamath_web_pro": "math_score",
    "automathtext": "lm_q1q2_score",
    "starcoder": "max_stars_count",
    "swallowcode_v2": "score",
    "python_edu": "score",
    "algebraic_stack": "max_stars_count",
}
# Sorted by score where they are kept whole; every other line of a curriculum with no `top` comes in random order.
SORTED_WHOLE = {("phase_3", "finepdfs_en"), ("phase_4", "automathtext"), ("phase_4", "python_edu")}
Built = dict[str, list[tuple[str, int]]]


@pytest.fixture(scope="module")
def scores() -> dict[str, np.ndarray]:
    """Distinct for some corpora, few values for others; a tenth is missing."""
    found = {}
    for number, name in enumerate(COLUMNS):
        generator = np.random.default_rng(number)
        values = generator.permutation(SIZE).astype(float) if number % 2 else generator.integers(0, 6, SIZE) ** 2.0
        values[generator.permutation(SIZE)[: SIZE // 10]] = np.nan
        found[name] = values
    return found


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, np.ndarray]) -> OrderRecipe:
    folder = tmp_path_factory.mktemp("corpora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORPORA", str(folder))
        recipe = load_order(RECIPE)
    for name, prefix in recipe.prefixes.items():
        lengths = np.random.default_rng(len(name)).integers(1, 9, SIZE).tolist()
        columns = {COLUMNS[name]: scores[name].tolist()} if name in COLUMNS else None
        numbered_corpus(prefix, lengths, 0, scores=columns)
        if columns and len(name) % 2:
            _nan_to_null(Path(f"{prefix}.meta.parquet"), COLUMNS[name])
    return recipe


def _nan_to_null(metadata: Path, column: str) -> None:
    table = pq.read_table(metadata)
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, column, pa.array(table[column].to_numpy(), from_pandas=True)), metadata)
    assert pq.read_table(metadata)[column].null_count == SIZE // 10


@pytest.fixture(scope="module")
def built(order: OrderRecipe, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """(corpus, document) of each phase in its order."""
    folder = tmp_path_factory.mktemp("phases")
    found = {}
    for phase in order.phases:
        build_phase(phase, order.prefixes, folder / phase.name, threads=1)
        words = np.fromfile(folder / phase.name / "order.bin", "<u8").tolist()
        found[phase.name] = [(phase.datasets[word >> 48].corpus, word & (2**48 - 1)) for word in words]
    return found


def lines(order: OrderRecipe) -> list[tuple[str, str, DatasetRecipe]]:
    return [(phase.name, phase.order, line) for phase in order.phases for line in phase.datasets]


def documents(built: Built, phase: str, corpus: str) -> list[int]:
    return [document for name, document in built[phase] if name == corpus]


def released_top(scores: np.ndarray, fraction: float) -> set[int]:
    """Strictly above the quantile of the scores that are there; a comparison with null is not true."""
    there = np.sort(scores[~np.isnan(scores)])
    quantile = Fraction(1) - Fraction(str(fraction))
    threshold = there[max(math.ceil(quantile * len(there)), 1) - 1]
    return set(np.flatnonzero(scores > threshold).tolist())


def halves_up(fraction: Fraction, count: int) -> int:
    return math.floor(fraction * count + Fraction(1, 2))


def test_columns_and_missing_scores(order: OrderRecipe) -> None:
    for phase, kind, line in lines(order):
        top = line.kept.how == "top"
        sorted_whole = (phase, line.corpus) in SORTED_WHOLE
        assert line.score == (COLUMNS[line.corpus] if top or sorted_whole else None), (phase, line.corpus)
        assert line.missing_scores == ("drop" if top else "lowest" if sorted_whole else "refuse")
        assert kind == "curriculum" or not sorted_whole
    for built in order.phases:
        assert (built.rank_by, built.perturb, built.tokens, built.seed) == ("documents", 0, "all", 1234)


def test_top_keeps_what_the_release_keeps_and_the_ties_it_drops(order, built, scores) -> None:
    fewer = []
    for phase, _, line in lines(order):
        if line.kept.how != "top":
            continue
        ours, own = documents(built, phase, line.corpus), scores[line.corpus]
        released = released_top(own, float(line.kept.fraction))
        there = int((~np.isnan(own)).sum())
        assert len(ours) == len(set(ours)) == halves_up(line.kept.fraction, there)
        assert not np.isnan(own[ours]).any()
        assert released <= set(ours)
        more = set(ours) - released
        if len(np.unique(own[~np.isnan(own)])) == there:
            assert len(more) <= 1
        else:
            assert len({own[document] for document in more}) <= 1  # all at the threshold
            fewer.append(len(released) / len(ours))
    assert len(fewer) > 10 and np.mean(fewer) < 0.6


def test_random_fractions_and_copies(order, built) -> None:
    for phase, _, line in lines(order):
        if line.kept.how == "top":
            continue
        copies = Counter(documents(built, phase, line.corpus))
        if line.kept.how == "random":
            assert len(copies) == halves_up(line.kept.fraction, SIZE) and set(copies.values()) == {1}
            continue
        assert len(copies) == SIZE
        whole, chance = divmod(line.repeat, 1)
        assert set(copies.values()) == ({whole, whole + 1} if chance else {whole})
        assert sum(copies.values()) / SIZE == pytest.approx(line.repeat, abs=0.15)


def test_curricula_rise_in_every_scored_dataset_with_nulls_first(order, built, scores) -> None:
    for phase, kind, line in lines(order):
        there = documents(built, phase, line.corpus)
        if kind == "shuffle" or line.score is None:
            # In no order of scores, and in none of documents.
            ranks = np.corrcoef(np.arange(len(there)), there)[0, 1]
            assert len(there) < 20 or abs(ranks) < 0.4, (phase, line.corpus)
            continue
        values = np.nan_to_num(scores[line.corpus][there], nan=-math.inf)
        assert np.all(values[1:] >= values[:-1])
        if (phase, line.corpus) in SORTED_WHOLE:
            assert np.isneginf(values).sum() == SIZE // 10


@pytest.mark.parametrize("phase", ["phase_3", "phase_4", "phase_5"])
def test_curricula_are_interleaved_by_rank_of_documents(phase: str, built) -> None:
    """R = r / N_i * N_total never falls: no perturbation, and tokens count for nothing."""
    sizes = Counter(name for name, _ in built[phase])
    given: Counter[str] = Counter()
    before = Fraction(0)
    for name, _ in built[phase]:
        given[name] += 1
        rescaled = Fraction(given[name], sizes[name])
        assert rescaled >= before
        before = rescaled


def test_one_seed_nests_the_tops_of_dclm(built, scores) -> None:
    seen = Counter(document for phase in built for document in documents(built, phase, "dclm"))
    own = scores["dclm"]
    there = int((~np.isnan(own)).sum())
    tops = [halves_up(Fraction(share), there) for share in ("0.40", "0.10", "0.06", "0.03")]
    assert Counter(seen.values()) == {
        5: tops[3],
        4: tops[2] - tops[3],
        3: tops[1] - tops[2],
        2: tops[0] - tops[1],
        1: SIZE - tops[0],
    }
    best = [document for document, times in seen.items() if times == 5]
    assert own[best].min() >= np.sort(own[~np.isnan(own)])[-tops[3]]
    assert all(seen[document] == 1 for document in np.flatnonzero(np.isnan(own)).tolist())


def test_shuffled_phases_are_built_without_the_scores_that_only_sort(order, tmp_path) -> None:
    """Corpora that have no scores at all suffice for phase_1."""
    phase = order.phases[0]
    corpora = {line.corpus: numbered_corpus(tmp_path / line.corpus, [3] * SIZE, 0) for line in phase.datasets}
    built = build_phase(phase, corpora, tmp_path / "phase", threads=1)
    assert [documents for _, documents, _, _ in built.datasets] == [SIZE, SIZE, 69, 23]
