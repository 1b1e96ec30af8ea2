"""The order: against the slow reference, its properties as the report states them, and its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import _curriculum
from tests.csrc import reference_algorithm1 as reference
from tests.csrc.reference_algorithm1 import Rows

BIG = 60_000  # rows: enough that the sorts are cut into pieces and merged, and the ranges of R are used


def build(datasets: list[Rows], seed: int = 1, **settings) -> list[int]:
    settings.setdefault("shuffle", False)
    arrays = [
        (
            f"dataset_{number}",
            np.asarray(rows.sequences, np.uint64),
            None if rows.scores is None else np.asarray(rows.scores, float),
            None if rows.copies is None else np.asarray(rows.copies, np.uint32),
        )
        for number, rows in enumerate(datasets)
    ]
    return _curriculum.order(arrays, seed=seed, **settings).tolist()


@st.composite
def rows(draw) -> Rows:
    """A dataset of 0 to 12 rows: many ties, any finite score, sequences up to the limit, copies from 0."""
    sequences = draw(st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**48 - 1)), max_size=12, unique=True))
    size = len(sequences)
    score = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.5, math.inf]), st.floats(allow_nan=False))
    scores = draw(st.none() | st.lists(score, min_size=size, max_size=size))
    copies = draw(st.none() | st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return Rows(sequences, scores, copies)


seeds = st.integers(0, 2**64 - 1)


@settings(max_examples=250)
@given(st.lists(rows(), max_size=8), seeds, st.one_of(st.just(0.0), st.floats(0, 100)), st.integers(1, 4))
def test_equals_the_slow_reference(datasets, seed, perturb, threads):
    assert build(datasets, seed, perturb=perturb, threads=threads) == reference.order(datasets, seed, perturb)
    assert build(datasets, seed, shuffle=True, threads=threads) == reference.shuffle(datasets, seed)


def random_datasets(sizes: list[int], levels: int = 50) -> list[Rows]:
    generator = np.random.default_rng(5)
    return [
        Rows(list(range(size)), generator.integers(0, levels, size).astype(float).tolist() if number % 3 else None)
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("settings", [{"perturb": 0.0}, {"perturb": 500.0}, {"shuffle": True}], ids=str)
def test_same_bytes_for_any_number_of_threads_and_any_run(settings):
    datasets = random_datasets([BIG, 7, 0, 1, BIG // 3])
    datasets.append(Rows(list(range(5000)), None, [1 + row % 3 for row in range(5000)]))
    once = build(datasets, threads=1, **settings)
    for threads in (1, 2, 4, 7):
        assert build(datasets, threads=threads, **settings) == once
    assert build(datasets, seed=2, **settings) != once
    assert sorted(build(datasets, seed=2, **settings)) == sorted(once)


def test_large_order_equals_numpy_lexsort():
    """Merged pieces and ranges of R, against NumPy; distinct scores and coprime sizes leave ties at the end only."""
    generator = np.random.default_rng(8)
    sizes = [100_003, 50_021, 7]
    scores = [generator.permutation(size).astype(float) for size in sizes]
    datasets = [Rows(list(range(size)), own.tolist()) for size, own in zip(sizes, scores, strict=True)]
    positions = np.concatenate([(own + 1) / size for own, size in zip(scores, sizes, strict=True)])
    identifiers = np.concatenate([np.arange(size) + (number << 48) for number, size in enumerate(sizes)])
    expected = identifiers[np.argsort(positions, kind="stable")]
    assert np.array_equal(build(datasets, threads=4)[:-3], expected[:-3])


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.fractions(0, 1, max_denominator=50))
def test_datasets_are_interleaved_in_proportion(sizes, part):
    """When R has reached p * N_total, dataset i has given floor(p * N_i) rows."""
    order = build(random_datasets(sizes))
    counts = [math.floor(part * size) for size in sizes]
    given_so_far = np.bincount(np.asarray(order[: sum(counts)], np.int64) >> 48, minlength=len(sizes))
    assert given_so_far.tolist() == counts
    assert all(abs(count - part * size) < 1 for count, size in zip(given_so_far.tolist(), sizes, strict=True))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
def test_no_prefix_strays_from_the_proportions(sizes):
    """Every other dataset may owe one row, so dataset i may be ahead by (datasets - 1) * N_i / N_total, never behind
    by more than one."""
    order = np.asarray(build(random_datasets(sizes)), np.int64)
    share = np.asarray(sizes) / sum(sizes)
    given_so_far = np.cumsum((order >> 48)[:, None] == np.arange(len(sizes)), axis=0)
    ahead = given_so_far - np.arange(1, len(order) + 1)[:, None] * share
    assert np.all(ahead >= -1 - 1e-9)
    assert np.all(ahead <= (len(sizes) - 1) * share + 1e-9)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(2, 9))
def test_quality_never_falls_inside_a_dataset(sizes, levels):
    datasets = random_datasets(sizes, levels)
    order = np.asarray(build(datasets), np.int64)
    for number, rows_ in enumerate(datasets):
        sequences = order[order >> 48 == number] & (2**48 - 1)
        assert sorted(sequences.tolist()) == rows_.sequences
        if rows_.scores is not None:
            assert np.all(np.diff(np.asarray(rows_.scores)[sequences]) >= 0)


def test_perturbation_moves_a_row_by_less_than_its_width():
    size, width = 20_000, 300.0
    datasets = [Rows(list(range(size)), [float(row) for row in range(size)])]
    shift = np.asarray(build(datasets, perturb=width)) - np.arange(size)
    assert 0 < np.abs(shift).max() < width
    assert np.abs(shift).mean() > width / 10


def test_ties_between_datasets_fall_either_way():
    datasets = [Rows(list(range(2000)), [float(row) for row in range(2000)]) for _ in range(2)]
    first = np.asarray(build(datasets), np.int64)[::2] >> 48
    assert 800 < first.sum() < 1200


def test_nothing_and_one_document():
    assert build([]) == []
    assert build([Rows([], None), Rows([], [])]) == []
    assert build([Rows([], None), Rows([7], [0.5])]) == [(1 << 48) + 7]
    assert build([Rows([7], None)], shuffle=True) == [7]


@pytest.mark.parametrize(
    ("datasets", "settings", "message"),
    [
        ([Rows([0, 1, 2], [math.nan, 1.0, math.nan])], {}, "dataset_0: 2 of 3 scores are NaN"),
        ([Rows([0]), Rows([1 << 48])], {}, "dataset_1: sequence 281474976710656 does not fit in 48 bits"),
        ([Rows([0, 1], [1.0])], {}, "dataset_0: 1 scores for 2 sequences"),
        ([Rows([0, 1], None, [1])], {}, "dataset_0: 1 copies for 2 sequences"),
        ([Rows([0])], {"perturb": -1.0}, "perturb is -1"),
        ([Rows([0])], {"perturb": math.nan}, "perturb is nan"),
        ([Rows([])] * 65_536, {}, "65536 datasets; an order holds at most 65535"),
    ],
)
def test_refuses(datasets, settings, message):
    with pytest.raises(ValueError, match=message):
        build(datasets, **settings)


def test_as_many_datasets_as_an_order_holds():
    order = build([Rows([3])] * 65_535)
    assert sorted(order) == [(number << 48) + 3 for number in range(65_535)]
