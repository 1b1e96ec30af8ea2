"""The preset against what Kaiyuan-Spark's own code gave (make_kaiyuan_golden.py) and against its rules in Python."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _dedup
from data_tools.dedup.signatures import kaiyuan_preset, text_memory
from tests.helpers.references.deduplication import KNOWN, UNKNOWN, kaiyuan_hashes, kaiyuan_minima

GOLDEN = json.loads(Path(__file__).with_name("kaiyuan_golden.json").read_text())
BLOCKS = [*"aZ09 .,-\tΣσİ'§ा한漢１٣٫\u00a0\u0301\u0345\u1fef"]
PIECES = st.one_of(st.sampled_from(BLOCKS), st.sampled_from(KNOWN), st.text("abcdefgh", min_size=1, max_size=30))
TEXTS = st.lists(PIECES, max_size=120).map("".join)


@pytest.fixture(params=_dedup.vector_names())
def vectors(request: pytest.FixtureRequest):
    _dedup.use_vectors(request.param)
    yield request.param
    _dedup.use_vectors(_dedup.vector_names()[-1])


def test_the_settings_are_the_released_ones() -> None:
    recipe = kaiyuan_preset()
    released = GOLDEN["settings"]
    assert (recipe.bands, recipe.rows) == (released["bands"], released["rows"])
    generator = np.random.RandomState(recipe.seed)
    drawn = [generator.randint(1, 2**61 - 1, recipe.permutations, dtype=np.uint64).tolist() for _ in range(2)]
    assert drawn == [released["perm_a"], released["perm_b"]]


@pytest.mark.usefixtures("vectors")
def test_bands_are_the_released_ones_bit_for_bit() -> None:
    texts = [text for text, _ in GOLDEN["sha256_of_all_bands"]]
    signatures, shingles, _ = kaiyuan_preset().signer().sign(*text_memory(pa.array(texts)))
    has_bands = 0
    for (text, expected), signature, count in zip(
        GOLDEN["sha256_of_all_bands"], signatures, shingles.tolist(), strict=True
    ):
        bands = signature.astype(">u8").tobytes()
        assert (hashlib.sha256(bands).hexdigest() if count else None) == expected, ascii(text)
        has_bands += count > 0
    assert has_bands > 80


@pytest.mark.usefixtures("vectors")
def test_long_words_are_hashed_over_many_blocks() -> None:
    """Lengths around the blocks of SHA-1, mixed, so that lanes end at different blocks."""
    texts = [" ".join("x" * (length + i) for i in range(8)) for length in [*range(1, 40), 100, 200, 1000, 3000]]
    texts.append(" ".join("y" * (i * i) for i in range(1, 60)))
    offsets, hashes = kaiyuan_preset().signer().shingle_sets(*text_memory(pa.array(texts)))
    for number, text in enumerate(texts):
        assert hashes[offsets[number] : offsets[number + 1]].tolist() == sorted(kaiyuan_hashes(text))


def test_every_code_point() -> None:
    texts = [f"a {c} b{c}c {c}{c} d1{c}2 e" for c in [*KNOWN, *UNKNOWN]]
    offsets, hashes = kaiyuan_preset().signer().shingle_sets(*text_memory(pa.array(texts, pa.large_string())))
    for number, text in enumerate(texts):
        assert hashes[offsets[number] : offsets[number + 1]].tolist() == sorted(kaiyuan_hashes(text)), ascii(text)


@given(st.lists(TEXTS, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_texts_of_all_scripts(texts: list[str]) -> None:
    signer = kaiyuan_preset().signer()
    memory = text_memory(pa.array(texts, pa.large_string()))
    signatures, shingles, _ = signer.sign(*memory)
    offsets, hashes = signer.shingle_sets(*memory)
    for number, text in enumerate(texts):
        expected = kaiyuan_hashes(text)
        assert hashes[offsets[number] : offsets[number + 1]].tolist() == sorted(expected), ascii(text)
        assert (shingles[number] > 0) == (len(expected) > 0)
        assert np.array_equal(signatures[number], kaiyuan_minima(expected)), ascii(text)


@pytest.mark.usefixtures("vectors")
def test_remainders_at_the_edges_of_the_modulus() -> None:
    """One n-gram of hash h, and increments that make h + b any value."""
    text = "one two three four five"
    (shingle,) = kaiyuan_hashes(text)
    prime = 2**61 - 1
    values = [multiple * prime + more for multiple in range(8) for more in (-1, 0, 1, 2, 6, 7)]
    values = [value for value in [*values, 2**61, 2**63, 2**64 - 1] if 0 <= value < 2**64]
    increments = np.array([(value - shingle) % 2**64 for value in values], np.uint64)
    signer = _dedup.KaiyuanSigner(np.ones_like(increments), increments, 5)
    signatures = signer.sign(*text_memory(pa.array([text])))[0]
    assert signatures[0].tolist() == [value % prime for value in values]
