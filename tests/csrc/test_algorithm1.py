"""The order: against the slow reference for every option, its properties as the report states them, and its errors."""

from __future__ import annotations

import math
import tempfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools._curriculum import Builder
from tests.helpers.files.built_order import add, add_rows, build
from tests.helpers.references import algorithm1 as reference
from tests.helpers.references.algorithm1 import Data

BIG = 60_000  # rows: enough that sorts are shared by threads, and windows and parts of the range are many

seeds = st.integers(0, 2**64 - 1)
parts = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])


@st.composite
def datasets(draw) -> Data:
    """0 to 40 rows: many ties, any score, empty documents, every way to choose and to repeat."""
    size = draw(st.integers(0, 12) | st.integers(0, 40))
    score = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.5, math.inf, -math.inf, math.nan]), st.floats(allow_nan=False))
    scored = draw(st.booleans())
    return Data(
        lengths=draw(st.lists(st.integers(0, 3) | st.integers(0, 2**31 - 1), min_size=size, max_size=size)),
        scores=draw(st.lists(score, min_size=size, max_size=size)) if scored else None,
        seeds=(draw(seeds), draw(seeds)),
        drop_missing=scored and draw(st.booleans()),
        ranks=tuple(sorted((draw(parts), draw(st.just(1.0) | parts)))),
        random=draw(st.none() | parts),
        whole=draw(st.integers(0, 3)),
        probability=draw(st.just(0.0) | st.floats(0, 1, exclude_max=True)),
        extra=draw(st.none() | parts),
        first=draw(st.just(0) | st.integers(0, 2**48 - 41)),
        by_tokens=draw(st.booleans()),
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(datasets(), min_size=1, max_size=6),
    st.sampled_from([{}, {"shuffle": True}, {"by_tokens": True}]),
    st.just(0.0) | st.floats(0, 100) | st.floats(0, 1e9),
    st.integers(1, 4),
    st.sampled_from([0, 2000, 1 << 40]),
    st.sampled_from([0, 1, 5]),
)
def test_equals_the_slow_reference(data, order, perturb, threads, memory, window_rows):
    perturb = 0.0 if order.get("shuffle") else perturb
    buckets = 7
    built = build(
        data, memory=memory, threads=threads, perturb=perturb, buckets=buckets, window_rows=window_rows, **order
    )
    expected = reference.order(data, perturb=perturb, **order)
    assert built.words == reference.words(expected)
    assert built.tokens == reference.cumulative_tokens(expected)
    assert built.checks == reference.checks(built.words)
    assert built.groups == [reference.groups(own) for own in data]
    assert built.counts == [(len(rows), sum(r.tokens for r in rows)) for rows in map(reference.repeated, data)]
    assert built.profile == reference.profile(expected, len(data), buckets)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3) | st.integers(0, 10**6), max_size=40), min_size=1, max_size=4),
    st.sampled_from([{}, {"shuffle": True}, {"by_tokens": True}]),
    st.integers(1, 60),
    st.integers(2, 5),
)
def test_every_bucket_is_full_and_nothing_is_counted_twice(lengths, order, buckets, threads):
    data = [Data(own, [float(at) for at in range(len(own))], (number, 9)) for number, own in enumerate(lengths)]
    built = build(data, buckets=buckets, **order)
    tokens, quality = built.profile
    total = sum(map(sum, lengths))
    edges = [-(-total * bucket // buckets) for bucket in range(buckets + 1)]
    assert [sum(parts) for parts in zip(*tokens, strict=True)] == np.diff(edges).tolist()
    assert [sum(parts) for parts in tokens] == [sum(own) for own in lengths]
    assert [sum(parts) for parts in quality] == [
        sum(row.tokens * (2 * row.percentile + 1) for row in reference.ranked(own)) for own in data
    ]
    for memory in (0, 2000):
        assert build(data, threads=threads, memory=memory, buckets=buckets, window_rows=1, **order) == built


@settings(max_examples=200, deadline=None)
@given(datasets(), st.lists(st.tuples(parts, parts), max_size=4), st.booleans(), st.sampled_from([0, 2000, 1 << 40]))
def test_measured_spans_are_those_of_the_slow_reference(data, pairs, by_tokens, memory):
    data = data._replace(scores=data.scores or [0.0] * len(data.lengths), random=None, by_tokens=by_tokens)
    with tempfile.TemporaryDirectory() as folder:
        phase = builder(folder, memory=memory)
        add_rows(phase, data, 7)
        total = phase.weight if by_tokens else phase.rows
        spans = [tuple(sorted(math.floor(part * total) for part in pair)) for pair in pairs]
        found = phase.measure(spans, by_tokens)
        assert (phase.rows, phase.tokens) == (0, 0)
    everything = reference.kept(data._replace(ranks=(0.0, 1.0)))
    for pair, (documents, tokens, begin, end, lowest, highest) in zip(pairs, found, strict=True):
        rows = reference.kept(data._replace(ranks=tuple(sorted(pair))))
        assert (documents, tokens) == (len(rows), sum(row.tokens for row in rows))
        if rows:
            np.testing.assert_array_equal([lowest, highest], [rows[0].score, rows[-1].score])
            sizes = [max(1, row.tokens) if by_tokens else 1 for row in everything]
            first = everything.index(rows[0])
            assert (begin, end) == (sum(sizes[:first]), sum(sizes[: first + len(rows)]))
        else:
            assert (begin, end) == (0, 0) and math.isnan(lowest) and math.isnan(highest)


def random_datasets(sizes: list[int], levels: int = 50) -> list[Data]:
    generator = np.random.default_rng(5)
    return [
        Data(
            generator.integers(0, 30, size).tolist(),
            generator.integers(0, levels, size).astype(float).tolist() if number % 3 else None,
            (number, 100 + number),
        )
        for number, size in enumerate(sizes)
    ]


def given_rows(words: list[int]) -> np.ndarray:
    return np.asarray(words, np.int64) >> 48


@pytest.mark.parametrize(
    "order",
    [{}, {"perturb": 500.0}, {"shuffle": True}, {"by_tokens": True}, {"by_tokens": True, "perturb": 5e4}],
    ids=str,
)
def test_same_bytes_for_any_threads_memory_and_window(order):
    data = random_datasets([BIG, 7, 0, 1, BIG // 3, 5000])
    data[0] = data[0]._replace(whole=1, probability=0.5)
    data[4] = data[4]._replace(whole=2, extra=0.3, random=0.7)
    data[5] = data[5]._replace(ranks=(0.2, 0.7), by_tokens=True)
    once = build(data, threads=1, piece=9999, **order)
    for threads, memory, window_rows in ((2, 1 << 40, 0), (7, 1 << 40, 3000), (1, 300_000, 0), (3, 300_000, 1000)):
        assert build(data, threads=threads, memory=memory, window_rows=window_rows, piece=9999, **order) == once
    other = [own._replace(seeds=(8, 9)) for own in data]
    assert build(other, piece=9999, **order).words != once.words


def test_a_crowd_of_short_documents_is_taken_in_narrow_windows():
    """Ranked by tokens: half of the documents lie in a thousandth of the range."""
    lengths = [1] * 20_000 + [1000] * 20_000
    data = [Data(lengths, [float(row) for row in range(40_000)]), Data([500] * 1000, None, (3, 4))]
    built = build(data, by_tokens=True, window_rows=100, threads=2)
    assert built == build(data, by_tokens=True)
    assert [word for word in built.words if word >> 48 == 0] == list(range(40_000))


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_changes_no_choice_of_another(shuffle):
    alone, more = random_datasets([500, 400]), random_datasets([500, 400, 300])
    alone[0] = more[0] = alone[0]._replace(random=0.5, whole=1, probability=0.3)
    words = [word for word in build(more, shuffle=shuffle).words if word >> 48 < 2]
    if shuffle:
        assert build(alone, shuffle=True).words == words
    assert sorted(build(alone, shuffle=shuffle).words) == sorted(words)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.fractions(0, 1, max_denominator=50))
@settings(deadline=None)
def test_datasets_are_interleaved_in_proportion(sizes, part):
    """When R has reached p * N_total, dataset i has given floor(p * N_i) rows."""
    words = build(random_datasets(sizes)).words
    counts = [math.floor(part * size) for size in sizes]
    given_so_far = np.bincount(given_rows(words[: sum(counts)]), minlength=len(sizes))
    assert given_so_far.tolist() == counts


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
@settings(deadline=None)
def test_no_prefix_strays_further_than_the_bound(sizes):
    """csrc/curriculum/algorithm1.h: -(1 - N_i / N) <= given_i - k N_i / N <= (D - 1) N_i / N."""
    words = build(random_datasets(sizes)).words
    share = np.asarray(sizes) / sum(sizes)
    given_so_far = np.cumsum(given_rows(words)[:, None] == np.arange(len(sizes)), axis=0)
    ahead = given_so_far - np.arange(1, len(words) + 1)[:, None] * share
    assert np.all(ahead >= -(1 - share) - 1e-9)
    assert np.all(ahead <= (len(sizes) - 1) * share + 1e-9)


def test_the_bound_is_reached():
    words = build(random_datasets([40] * 5)).words
    given_so_far = np.cumsum(given_rows(words)[:, None] == np.arange(5), axis=0)
    ahead = given_so_far - np.arange(1, 201)[:, None] / 5
    assert ahead.min() == pytest.approx(-0.8)
    assert ahead.max() == pytest.approx(0.8)


@given(st.lists(st.lists(st.integers(1, 1000), min_size=1, max_size=40), min_size=1, max_size=6))
@settings(deadline=None)
def test_no_prefix_strays_further_in_tokens_than_the_bound(lengths):
    """The same in tokens, with the longest document of each dataset in the place of 1."""
    data = [Data(own, [float(length) for length in own], (number, 50 + number)) for number, own in enumerate(lengths)]
    words = np.asarray(build(data, by_tokens=True).words, np.int64)
    tokens = np.array([lengths[word >> 48][word & (2**48 - 1)] for word in words])
    share = np.array([sum(own) for own in lengths]) / tokens.sum()
    longest = np.array([max(own) for own in lengths])
    own = np.cumsum(tokens[:, None] * ((words >> 48)[:, None] == np.arange(len(lengths))), axis=0)
    ahead = own - np.cumsum(tokens)[:, None] * share
    assert np.all(ahead >= -(1 - share) * longest - 1e-6)
    assert np.all(ahead <= share * (longest.sum() - longest) + 1e-6)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(2, 9), st.booleans())
@settings(deadline=None)
def test_quality_never_falls_inside_a_dataset(sizes, levels, by_tokens):
    data = random_datasets(sizes, levels)
    words = np.asarray(build(data, by_tokens=by_tokens).words, np.int64)
    for number, own in enumerate(data):
        sequences = words[words >> 48 == number] & (2**48 - 1)
        assert sorted(sequences.tolist()) == list(range(len(own.lengths)))
        if own.scores is not None:
            assert np.all(np.diff(np.asarray(own.scores)[sequences]) >= 0)


def test_perturbation_moves_a_row_by_less_than_its_width():
    size, width = 20_000, 300.0
    data = [Data([1] * size, [float(row) for row in range(size)])]
    shift = np.asarray(build(data, perturb=width, threads=3).words) - np.arange(size)
    assert 0 < np.abs(shift).max() < width
    assert np.abs(shift).mean() > width / 10


def test_ties_between_datasets_fall_either_way():
    data = [Data([1] * 2000, [float(row) for row in range(2000)], (number, number)) for number in range(2)]
    first = given_rows(build(data).words)[::2]
    assert 800 < first.sum() < 1200


def test_copies_of_equal_scores_are_spread_over_them():
    built = build([Data([1] * 1000, [1.0] * 1000, whole=3)])
    apart = [np.flatnonzero(np.asarray(built.words) == sequence) for sequence in range(1000)]
    assert np.mean([np.diff(places).mean() for places in apart]) > 300


def test_nothing_and_one_document():
    assert build([]).words == []
    assert build([Data([]), Data([], [])]).words == []
    assert build([Data([]), Data([5], [0.5], first=7)]).words == [(1 << 48) + 7]
    assert build([Data([0], first=7)], shuffle=True)[:3] == ([7], [0, 0], reference.checks([7]))


def builder(folder, **settings) -> Builder:
    return Builder(str(folder), **{"memory": 1 << 30, "shuffle": False, **settings})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data([1], first=1 << 48), "sequence 281474976710656 does not fit in 48 bits"),
        (Data([1, -1]), "a length is negative"),
        (Data([1, 2], [1.0]), "1 scores for 2 lengths"),
        (Data([1, 2], [1.0, 2.0], ranks=(0.0, 2.0)), "ranks 0 to 4 of 2"),
        (Data([1, 2], [1.0, 2.0], ranks=(0.0, 2.0), by_tokens=True), "tokens 0 to 6 of 3"),
        (Data([1, 2], random=2.0), "4 documents asked of 2"),
    ],
)
def test_refuses_a_dataset(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        add(builder(tmp_path), data)


def test_refuses_what_cannot_be(tmp_path):
    phase = builder(tmp_path)
    add(phase, Data([1, 2]))
    for whole, probability, message in ((512, 0.0, "512 copies"), (1, 1.0, "probability is 1"), (1, math.nan, "nan")):
        with pytest.raises(ValueError, match=message):
            phase.repeat(0, whole, probability)
    with pytest.raises(ValueError, match="more is asked of the dataset than it holds, by 7"):
        phase.repeat_to(0, 1, 10)
    phase.repeat(0, 1)
    for perturb, message in ((-1.0, "perturb is -1"), (math.nan, "perturb is nan"), (math.inf, "perturb is inf")):
        with pytest.raises(ValueError, match=message):
            phase.interleave(str(tmp_path), perturb=perturb)
    with pytest.raises(OSError, match="No such file") as raised:
        phase.interleave(str(tmp_path / "absent"))
    assert raised.value.filename == str(tmp_path / "absent/order.bin")


def test_steps_out_of_turn_are_refused(tmp_path):
    phase = builder(tmp_path)
    with pytest.raises(RuntimeError, match="no dataset has begun"):
        phase.keep_random(1)
    phase.begin(scored=True, choice_seed=1, order_seed=1)
    for step in (lambda: phase.keep_random(0), lambda: phase.repeat(0, 1), lambda: phase.interleave(str(tmp_path))):
        with pytest.raises(RuntimeError):
            step()
    with pytest.raises(ValueError, match="scores are given, or not, for all documents"):
        phase.add(0, np.ones(1, np.int32), None)
    phase.keep(0, 0)
    phase.repeat(0, 1)
    for step in (lambda: phase.keep(0, 0), lambda: phase.keep_tokens(0, 0), lambda: phase.repeat(0, 1)):
        with pytest.raises(RuntimeError):
            step()


def test_a_perturbation_beyond_the_memory_is_refused_with_the_numbers(tmp_path):
    phase = builder(tmp_path, memory=100_000)
    add(phase, Data([1] * 100_000), 100_000)
    phase.repeat(0, 1)
    with pytest.raises(ValueError, match=r"perturb moves up to 40000 rows, which needs \d+ bytes, and --memory leaves"):
        phase.interleave(str(tmp_path), perturb=20_000.0)


def test_what_the_callback_raises_ends_the_work(tmp_path):
    phase = builder(tmp_path, threads=2)
    add(phase, Data([1] * BIG), BIG)
    phase.repeat(0, 1)

    def interrupt(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phase.interleave(str(tmp_path), progress=interrupt, window_rows=1000)
    seen: list[int] = []
    phase.interleave(str(tmp_path), progress=seen.append, window_rows=1000)
    assert seen == sorted(seen)
    assert BIG / 2 <= seen[-1] <= BIG


def test_as_many_datasets_as_an_order_holds(tmp_path):
    phase = builder(tmp_path)
    began = time.perf_counter()
    for number in range(65_535):
        phase.begin(scored=False, choice_seed=1, order_seed=number, expected=2)
        phase.add(3, np.array([5, 6], np.int32), None)
    with pytest.raises(ValueError, match="an order holds at most 65535 datasets"):
        phase.begin(scored=False, choice_seed=1, order_seed=1)
    for number in range(65_535):
        phase.repeat(number, 1)
    phase.interleave(str(tmp_path), buckets=2)
    words = np.fromfile(tmp_path / "order.bin", "<u8")
    assert sorted(words.tolist()) == sorted((number << 48) + row for number in range(65_535) for row in (3, 4))
    assert len(set((words[:65_535] >> np.uint64(48)).tolist())) == 65_535  # each gives one before any gives two
    assert time.perf_counter() - began < 60
