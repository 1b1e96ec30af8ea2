"""Bands, sorted runs, candidate pairs, exact Jaccard and components against NumPy, Python's sets and SciPy."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_tools import _dedup


def write_runs(path: Path, shards: list[NDArray[np.uint64]]) -> list[tuple[bytes, int, int, int]]:
    """All shards in one file, each a sorted run."""
    runs, offset, ordinal = [], 0, 0
    with path.open("wb") as file:
        for keys in shards:
            sorted_keys, rows = _dedup.sort_run(keys, np.arange(len(keys), dtype=np.uint32))
            sorted_keys.tofile(file)
            rows.tofile(file)
            runs.append((os.fsencode(path), offset, len(keys), ordinal))
            offset, ordinal = offset + 12 * len(keys), ordinal + len(keys)
    return runs


def pairs_of(path: Path) -> NDArray[np.uint64]:
    return np.fromfile(path, np.uint64).reshape(-1, 2)


def expected_pairs(keys: NDArray[np.uint64]) -> set[tuple[int, int]]:
    """All pairs of a group of up to 64; else those with the first 32, and those at most 32 places apart."""
    groups: dict[int, list[int]] = {}
    for ordinal, key in enumerate(keys.tolist()):
        groups.setdefault(key, []).append(ordinal)
    found = set()
    for members in groups.values():
        for a, b in combinations(range(len(members)), 2):
            if len(members) <= 64 or a < 32 or b - a <= 32:
                found.add((members[a], members[b]))
    return found


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_band_keys_are_equal_where_bands_are(dtype: type):
    generator = np.random.default_rng(1)
    signatures = generator.integers(0, 2, size=(3000, 20)).astype(dtype)
    keys = _dedup.band_keys(signatures, 3, 6)
    assert keys.shape == (3, 3000)
    for band in range(3):
        groups = np.unique(signatures[:, band * 6 : band * 6 + 6], axis=0, return_inverse=True)[1].ravel()
        same = np.unique(keys[band], return_inverse=True)[1]
        assert (
            len({*zip(groups.tolist(), same.tolist(), strict=True)})
            == len(set(groups.tolist()))
            == len(set(same.tolist()))
        )
    with pytest.raises(ValueError, match="no 4 bands of 6"):
        _dedup.band_keys(signatures, 4, 6)


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=3000), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_runs_are_sorted_by_key_and_row(keys: list[int], source):
    rows = list(range(len(keys)))
    source.shuffle(rows)
    found = _dedup.sort_run(np.array(keys, np.uint64), np.array(rows, np.uint32))
    assert list(zip(*(array.tolist() for array in found), strict=True)) == sorted(zip(keys, rows, strict=True))


@given(
    st.lists(st.lists(st.integers(0, 40) | st.integers(2**63, 2**63 + 3), max_size=120), max_size=6),
    st.sampled_from([1, 100, 1 << 20]),
)
@settings(max_examples=150, deadline=None)
def test_pairs_of_groups(tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], memory: int):
    folder = tmp_path_factory.mktemp("pairs")
    keys = [np.array(shard, np.uint64) for shard in shards]
    runs = write_runs(folder / "runs", keys)
    count, groups, largest = _dedup.group_pairs(runs, os.fsencode(folder / "out"), memory)
    found = [tuple(pair) for pair in pairs_of(folder / "out").tolist()]
    flat = np.concatenate([*keys, np.zeros(0, np.uint64)])
    sizes = np.unique(flat, return_counts=True)[1]
    assert len(found) == len(set(found)) == count
    assert set(found) == expected_pairs(flat)
    assert (groups, largest) == ((sizes > 1).sum(), sizes.max(initial=0))


def test_a_large_group_is_one_component(tmp_path: Path):
    size = 50_000
    keys = np.full(size, 7, np.uint64)
    count, groups, largest = _dedup.group_pairs(write_runs(tmp_path / "runs", [keys]), os.fsencode(tmp_path / "out"))
    assert (groups, largest) == (1, size) and count <= 64 * size
    components = _dedup.Components(size)
    components.add(pairs_of(tmp_path / "out"))
    assert not components.labels(0, size).any()


@given(st.lists(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=300), max_size=4))
@settings(max_examples=100, deadline=None)
def test_unique_pairs_of_many_files(tmp_path_factory: pytest.TempPathFactory, files: list[list[tuple[int, int]]]):
    folder = tmp_path_factory.mktemp("unique")
    paths = []
    for number, pairs in enumerate(files):
        paths.append(os.fsencode(folder / str(number)))
        np.array(pairs, np.uint64).tofile(os.fsdecode(paths[-1]))
    expected = sorted({pair for pairs in files for pair in pairs})
    # 16 bytes a pair: the first two bounds make many runs on disk.
    for memory in (1 << 10, 1 << 13, 1 << 28):
        out = folder / "out"
        assert _dedup.unique_pairs(paths, os.fsencode(out), os.fsencode(folder / "scratch"), memory) == len(expected)
        assert [tuple(pair) for pair in pairs_of(out).tolist()] == expected
        assert not (folder / "scratch").exists()


def test_bad_files_are_named(tmp_path: Path):
    out = os.fsencode(tmp_path / "out")
    runs = tmp_path / "runs"
    np.array([5, 3], np.uint64).tofile(runs)
    with runs.open("ab") as file:
        np.zeros(2, np.uint32).tofile(file)
    with pytest.raises(ValueError, match="runs: its keys are not sorted"):
        _dedup.group_pairs([(os.fsencode(runs), 0, 2, 0)], out)
    with pytest.raises(ValueError, match="runs: its keys are not sorted"):
        _dedup.group_pairs([(os.fsencode(runs), 0, 2, 0)], out, 1)
    with pytest.raises(ValueError, match="runs: truncated"):
        _dedup.group_pairs([(os.fsencode(runs), 0, 3, 0)], out)
    with pytest.raises(FileNotFoundError) as missing:
        _dedup.group_pairs([(os.fsencode(tmp_path / "none"), 0, 1, 0)], out)
    assert os.fsdecode(missing.value.filename).endswith("none")
    (tmp_path / "odd").write_bytes(b"123")
    with pytest.raises(ValueError, match="odd: its size"):
        _dedup.unique_pairs([os.fsencode(tmp_path / "odd")], out, os.fsencode(tmp_path / "scratch"))


@given(st.lists(st.sets(st.integers(0, 30), max_size=25), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_jaccard_is_that_of_sets(sets: list[set[int]]):
    offsets = np.cumsum([0, *map(len, sets)])
    hashes = np.array([value * 0x123456789ABCDEF for each in sets for value in sorted(each)], np.uint64)
    pairs = np.array([(a, b) for a in range(len(sets)) for b in range(len(sets))])
    found = _dedup.jaccard(pairs, offsets, hashes)
    for (a, b), value in zip(pairs.tolist(), found.tolist(), strict=True):
        union = sets[a] | sets[b]
        assert value == (len(sets[a] & sets[b]) / len(union) if union else 0.0)


def test_jaccard_refuses_what_does_not_exist():
    hashes = np.arange(4, dtype=np.uint64)
    for pairs in ([[0, 2]], [[-1, 0]]):
        with pytest.raises(ValueError, match="pair 0"):
            _dedup.jaccard(np.array(pairs), np.array([0, 2, 4]), hashes)
    for offsets in ([0, 5], [3, 2], [-1, 2]):
        with pytest.raises(ValueError, match="set 0"):
            _dedup.jaccard(np.array([[0, 0]]), np.array(offsets), hashes)


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=80), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_components_are_those_of_scipy(nodes: int, edges: list[tuple[int, int]], batch: int):
    table = np.array([edge for edge in edges if max(edge) < nodes], np.uint64).reshape(-1, 2)
    components = _dedup.Components(nodes)
    for first in range(0, len(table), batch):
        components.add(np.ascontiguousarray(table[first : first + batch]))
    labels = components.labels(0, nodes)
    check_labels(table, labels)
    middle = nodes // 2
    assert np.array_equal(np.concatenate([components.labels(0, middle), components.labels(middle, nodes)]), labels)


def check_labels(edges: NDArray[np.uint64], labels: NDArray[np.uint64]) -> None:
    nodes = len(labels)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    count, groups = connected_components(graph, directed=False)
    smallest = np.full(count, nodes)
    np.minimum.at(smallest, groups, np.arange(nodes))
    assert np.array_equal(labels, smallest[groups])


@pytest.mark.parametrize("shape", ["random", "chain", "star", "reversed chain"])
def test_large_components_in_any_order(shape: str):
    generator = np.random.default_rng(5)
    nodes = 300_000
    if shape == "random":
        edges = generator.integers(nodes, size=(200_000, 2))
    elif shape == "star":
        edges = np.stack([np.full(nodes - 1, nodes - 1), np.arange(nodes - 1)], axis=1)
    else:
        edges = np.stack([np.arange(nodes - 1), np.arange(1, nodes)], axis=1)[:: -1 if shape == "reversed chain" else 1]
    table = np.ascontiguousarray(edges, np.uint64)
    found = []
    for order in (np.arange(len(table)), generator.permutation(len(table))):
        components = _dedup.Components(nodes)
        components.add(np.ascontiguousarray(table[order]))
        found.append(components.labels(0, nodes))
    check_labels(table, found[0])
    assert np.array_equal(*found)


def test_components_refuse_what_does_not_exist():
    components = _dedup.Components(3)
    with pytest.raises(ValueError, match="node 3, but there are 3"):
        components.add(np.array([[0, 1], [1, 3]], np.uint64))
    assert components.labels(0, 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no nodes from 2 to 4"):
        components.labels(2, 4)


MEASURED = """
import os, sys, resource
import numpy as np
from data_tools import _dedup
folder = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_dedup.unique_pairs([os.fsencode(folder + "/in")], os.fsencode(folder + "/out"), os.fsencode(folder + "/s"), 1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_unique_pairs_hold_no_more_than_they_may(tmp_path: Path):
    pairs = 4_000_000  # 64 MB; the bound is 16 MiB
    generator = np.random.default_rng(6)
    table = generator.integers(0, 3000, size=(pairs, 2), dtype=np.uint64)
    table.tofile(tmp_path / "in")
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1024
    assert grown < 1.3 * (1 << 24) or "asan" in os.environ.get("LD_PRELOAD", "")
    found = pairs_of(tmp_path / "out")
    assert np.array_equal(found[:, 0] * 3000 + found[:, 1], np.unique(table[:, 0] * 3000 + table[:, 1]))
