"""The files of a packed phase against their format, entry by entry."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from data_tools import _curriculum
from data_tools.curriculum import packing
from tests.csrc.reference_algorithm1 import splitmix

PADDING = 65535


def fold(number: int, words: list[int]) -> int:
    check = splitmix(number)
    for word in words:
        check = splitmix(check ^ word)
    return check


@pytest.fixture(params=[0, 1, 3000])
def lengths(request) -> list[np.ndarray]:
    """Tokens of each sequence of two datasets, a few of them empty."""
    generator = np.random.default_rng(request.param)
    return [generator.integers(0, limit, request.param).astype(np.int32) for limit in (40, 200)]


def test_files(lengths, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packing, "_CHUNK", 700)
    entries = np.array([d << 48 | s for d in (0, 1) for s in range(len(lengths[d]))], np.uint64)
    np.random.default_rng(0).shuffle(entries)
    entries.tofile(tmp_path / "order.bin")
    total = sum(int(part.sum()) for part in lengths)
    np.array([0, total], "<u8").tofile(tmp_path / "tokens.bin")
    told: list[int] = []
    found = packing.pack_phase(tmp_path, lengths, 64, told.append)
    assert sum(told) == len(entries)

    window = packing.packing_window(total, 64)
    packer = _curriculum.Packer(64, window)
    tokens = np.array([lengths[int(e) >> 48][int(e) & (1 << 48) - 1] for e in entries], np.int32)
    parts = [packer.add(entries, tokens), packer.finish()]
    order, pieces = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert np.array_equal(np.fromfile(tmp_path / "order.bin", "<u8"), order)
    assert np.array_equal(np.fromfile(tmp_path / "pieces.bin", "<u4").reshape(-1, 2), pieces)

    before = [0, *accumulate(pieces[:, 1].tolist())]
    blocks = range(0, len(order), 1024)
    assert np.fromfile(tmp_path / "tokens.bin", "<u8").tolist() == [*before[:-1][::1024], before[-1]]
    words = pieces.view("<u8").ravel()
    checks = [
        fold(number, [*order[at : at + 1024].tolist(), *words[at : at + 1024].tolist()])
        for number, at in enumerate(blocks)
    ]
    assert np.fromfile(tmp_path / "checks.bin", "<u8").tolist() == checks

    padding = pieces[order >> np.uint64(48) == PADDING, 1].sum()
    assert found == (64, before[-1] // 64, padding, window) and found.tokens == before[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checks.bin", "order.bin", "pieces.bin", "tokens.bin"]


def test_the_profile_ends_where_the_phase_ends() -> None:
    stretched = packing.stretch_profile({"tokens": [10, 20, 33], "datasets": {}}, packing.Packing(8, 5, 7, 16))
    assert stretched == {"tokens": [12, 24, 40], "datasets": {}}


def test_the_window_is_a_small_part_of_the_phase() -> None:
    assert packing.packing_window(10**12, 4096) == 1024
    assert packing.packing_window(32 * 100 * 4096, 4096) == 100
    assert packing.packing_window(5, 4096) == 16
