"""Which pairs a band's groups give: with documents left out, without pairs of earlier ones, as stars."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools._dedup import group_pairs, sort_run


def pairs_of(
    folder: Path, keys: list[int], cut: int, stars: bool, earlier: int, omitted: list[int]
) -> list[tuple[int, int]]:
    """Two runs: the documents before and from `cut` on."""
    runs = []
    for name, first, last in (("a", 0, cut), ("b", cut, len(keys))):
        found = sort_run(np.array(keys[first:last], np.uint64), np.arange(last - first, dtype=np.uint32))
        with open(folder / name, "wb") as file:
            for values in found:
                values.tofile(file)
        if first < last:
            runs.append((os.fsencode(folder / name), 0, last - first, first))
    flags = np.zeros(len(keys), bool)
    flags[omitted] = True
    bits = np.packbits(flags, bitorder="little").tobytes() if omitted else b""
    group_pairs(runs, os.fsencode(folder / "pairs"), stars=stars, earlier=earlier, omitted=bits)
    return sorted(map(tuple, np.fromfile(folder / "pairs", np.uint64).reshape(-1, 2).tolist()))


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.integers(0, 4), min_size=1, max_size=40), data=st.data(), stars=st.booleans())
def test_pairs_are_those_of_the_groups(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], data: st.DataObject, stars: bool
) -> None:
    cut, earlier = (data.draw(st.integers(0, len(keys))) for _ in range(2))
    omitted = data.draw(st.lists(st.integers(0, len(keys) - 1), unique=True))
    groups: dict[int, list[int]] = {}
    for number, key in enumerate(keys):
        if number not in omitted:
            groups.setdefault(key, []).append(number)
    expected = [
        (a, b) for g in groups.values() for a, b in combinations(g, 2) if b >= earlier and (not stars or a == g[0])
    ]
    folder = tmp_path_factory.mktemp("pairs")
    assert pairs_of(folder, keys, cut, stars, earlier, omitted) == sorted(expected)


@pytest.mark.parametrize("size", [64, 65, 200])
def test_a_large_group_is_one_component_of_few_pairs(tmp_path: Path, size: int) -> None:
    found = pairs_of(tmp_path, [7] * size, size // 3, False, 0, [])
    assert len(set(found)) == len(found) <= 64 * size
    assert all(len({a, b} & {0}) or (0, b) in found for a, b in found)
    assert pairs_of(tmp_path, [7] * size, size // 3, True, 0, []) == [(0, b) for b in range(1, size)]
