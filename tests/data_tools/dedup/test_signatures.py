"""Recipes, and signatures against NumPy and against the theory of MinHash."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_tools import _dedup
from data_tools.dedup.signatures import Recipe, kaiyuan_preset, text_memory
from megatron_kaiyuan.errors import UserError
from tests.helpers.references.deduplication import shingle_set


def random_text(generator: np.random.Generator, words: int) -> str:
    digits = np.array(list("abcdefghij"))
    return " ".join("".join(digits[row]) for row in generator.integers(10, size=(words, 6)))


@pytest.mark.parametrize("name", _dedup.vector_names())
def test_minima_are_those_of_numpy(name: str) -> None:
    generator = np.random.default_rng(1)
    texts = [random_text(generator, words) for words in (0, 1, 4, 5, 6, 7, 100, 1000)]
    recipe = Recipe(permutations=131)
    draws = np.random.RandomState(recipe.seed)
    a, b = (draws.randint(0, 2**32, recipe.permutations, dtype=np.uint32) for _ in range(2))
    _dedup.use_vectors(name)
    try:
        signatures, shingles, _ = recipe.signer().sign(*text_memory(pa.array(texts)))
    finally:
        _dedup.use_vectors(_dedup.vector_names()[-1])
    assert shingles.tolist() == [0, 1, 1, 1, 2, 3, 96, 996]
    assert (signatures[0] == 0xFFFFFFFF).all()
    for text, signature in zip(texts[1:], signatures[1:], strict=True):
        hashes = np.array(sorted(shingle_set(text)), np.uint64) >> np.uint64(32)
        assert np.array_equal(signature, (hashes.astype(np.uint32)[:, None] * (a | 1) + b).min(axis=0))


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="has no avx1024"):
        _dedup.use_vectors("avx1024")


@pytest.mark.parametrize("recipe", [Recipe(), kaiyuan_preset()], ids=["default", "kaiyuan"])
def test_the_estimate_errs_as_theory_says(recipe: Recipe) -> None:
    """Root mean square error of 128 permutations at Jaccard J: sqrt(J (1 - J) / 128)."""
    generator = np.random.default_rng(2)
    texts, exact = [], []
    for _ in range(600):
        words = random_text(generator, 400).split()
        edited = list(words)
        for place in generator.integers(len(words), size=int(generator.integers(4, 40))):
            edited[place] = random_text(generator, 1)
        texts += [" ".join(words), " ".join(edited)]
    signer = recipe.signer()
    memory = text_memory(pa.array(texts))
    signatures = signer.sign(*memory)[0]
    pairs = np.arange(len(texts)).reshape(-1, 2)
    exact = _dedup.jaccard(pairs, *signer.shingle_sets(*memory))
    estimate = (signatures[::2] == signatures[1::2]).mean(axis=1)
    assert 0.35 < exact.min() < 0.6 and exact.max() > 0.85
    standardised = (estimate - exact) / np.sqrt(exact * (1 - exact) / recipe.permutations)
    # Of 600 pairs the mean has a deviation of 1 / sqrt(600) = 0.041, the root mean square one of 0.029.
    assert abs(standardised.mean()) < 0.17
    assert 0.88 < np.sqrt((standardised**2).mean()) < 1.12


def test_bands_join_with_the_probability_of_theory() -> None:
    """1 - (1 - J^rows)^bands, over pairs of known J."""
    generator = np.random.default_rng(3)
    recipe = Recipe()
    texts = []
    for _ in range(1500):
        words = random_text(generator, 200).split()
        edited = list(words)
        for place in generator.integers(len(words), size=9):
            edited[place] = random_text(generator, 1)
        texts += [" ".join(words), " ".join(edited)]
    signer = recipe.signer()
    memory = text_memory(pa.array(texts))
    keys = _dedup.band_keys(signer.sign(*memory)[0], recipe.bands, recipe.rows)
    pairs = np.arange(len(texts)).reshape(-1, 2)
    exact = _dedup.jaccard(pairs, *signer.shingle_sets(*memory))
    joined = (keys[:, ::2] == keys[:, 1::2]).any(axis=0)
    expected = 1 - (1 - exact**recipe.rows) ** recipe.bands
    deviation = np.sqrt((expected * (1 - expected)).sum())
    assert abs(joined.sum() - expected.sum()) < 4 * deviation
    assert deviation**2 > 50  # the test would be blind if nearly all were joined


def test_signatures_do_not_depend_on_the_batch() -> None:
    generator = np.random.default_rng(4)
    texts = [random_text(generator, int(words)) for words in generator.integers(0, 300, size=50)]
    for recipe in (Recipe(), kaiyuan_preset()):
        signer = recipe.signer()
        whole = signer.sign(*text_memory(pa.array(texts)))
        halves = [signer.sign(*text_memory(pa.array(texts)[part])) for part in (slice(0, 17), slice(17, 50))]
        for number, array in enumerate(whole):
            assert np.array_equal(array, np.concatenate([half[number] for half in halves]))


def test_the_recipe_changes_the_bits() -> None:
    texts = text_memory(pa.array(["the quick brown fox jumps over the lazy dog 42 times 漢字かな交じり文"]))
    base = Recipe()
    changes: list[dict[str, Any]] = [
        {"seed": 5},
        {"ngram": 3},
        {"shingles": "words"},
        {"shingles": "characters"},
        {"numbers": "keep"},
    ]
    found = [replace(base, **change).signer().sign(*texts)[0].tobytes() for change in [{}, *changes]]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preset", "spark"),
        ("shingles", "lines"),
        ("numbers", "drop"),
        ("ngram", 0),
        ("ngram", 99999999999),
        ("permutations", 10_000_000),
        ("bands", 10**30),
        ("threshold", float("nan")),
        ("threshold", float("inf")),
        ("seed", 2**32),
        ("bands", 0),
        ("rows", 22),
        ("permutations", 125),
        ("threshold", 0.0),
        ("threshold", 1.5),
        ("seed", -1),
    ],
)
def test_wrong_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(
        UserError, match=rf"^--{'permutations 128' if field == 'rows' else f'{field} {value}'}: must be"
    ):
        Recipe(**{field: value})  # type: ignore[arg-type]


def test_the_largest_numbers_work() -> None:
    signer = Recipe(ngram=1000, permutations=2**14, bands=2, rows=2**13, seed=2**32 - 1).signer()
    assert signer.sign(*text_memory(pa.array(["some words"])))[0].shape == (1, 2**14)


def test_text_memory_of_all_arrow_strings() -> None:
    texts = ["a", None, "", "déjà", "漢字", "end"]
    wanted = ["a", "", "", "déjà", "漢字", "end"]
    forms = [pa.array(texts, kind) for kind in (pa.string(), pa.large_string(), pa.string_view())]
    forms += [form[:] for form in forms]
    forms.append(pa.chunked_array([["a", None], [], ["", "déjà", "漢字", "end"]], pa.string()))
    forms.append(pa.array(["cut", *texts, "off"], pa.large_string())[1:-1])
    for form in forms:
        offsets, data = text_memory(form)
        read = [bytes(data[first:last]).decode() for first, last in pairwise(offsets)]
        assert read == wanted
    for empty in (pa.array([], pa.string()), pa.chunked_array([], pa.large_string()), pa.array([None], pa.string())):
        offsets, data = text_memory(empty)
        assert len(offsets) == len(empty) + 1 and not data.any()
