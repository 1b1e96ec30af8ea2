"""The files of a packed phase against their format, entry by entry."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest

from data_tools import _curriculum
from data_tools.curriculum import packing
from data_tools.curriculum.build import build_phase
from data_tools.curriculum.recipe import PhaseRecipe
from megatron_kaiyuan.data.phase import STRIDE
from megatron_kaiyuan.data.stream import PADDING as PADDING_MARK
from megatron_kaiyuan.data.stream import STARTS_ENTRY, TokenStream
from tests.helpers.files.small_corpora import numbered_corpus
from tests.helpers.references.algorithm1 import splitmix

PADDING = 65535


def fold(number: int, words: list[int]) -> int:
    check = splitmix(number)
    for word in words:
        check = splitmix(check ^ word)
    return check


@pytest.fixture(params=[0, 1, 3000])
def lengths(request: pytest.FixtureRequest) -> list[np.ndarray]:
    """Tokens of each sequence of two datasets, a few of them empty."""
    generator = np.random.default_rng(request.param)
    return [generator.integers(0, limit, request.param).astype(np.int32) for limit in (40, 200)]


def test_files(lengths: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    blocks = range(0, len(order), STRIDE)
    assert np.fromfile(tmp_path / "tokens.bin", "<u8").tolist() == [*before[:-1][::STRIDE], before[-1]]
    words = pieces.view("<u8").ravel()
    checks = [
        fold(number, [*order[at : at + STRIDE].tolist(), *words[at : at + STRIDE].tolist()])
        for number, at in enumerate(blocks)
    ]
    assert np.fromfile(tmp_path / "checks.bin", "<u8").tolist() == checks

    padding = pieces[order >> np.uint64(48) == PADDING, 1].sum()
    assert found.tokens == before[-1]
    assert found == (64, before[-1] // 64, padding, window)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checks.bin", "order.bin", "pieces.bin", "tokens.bin"]


def test_the_profile_counts_the_packs(
    lengths: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_CHUNK", 70)
    entries = np.array([d << 48 | s for d in (0, 1) for s in range(len(lengths[d]))], np.uint64)
    np.random.default_rng(0).shuffle(entries)
    entries.tofile(tmp_path / "order.bin")
    np.array([0, sum(int(part.sum()) for part in lengths)], "<u8").tofile(tmp_path / "tokens.bin")
    packed = packing.pack_phase(tmp_path, lengths, 64)
    before = {"tokens": [0] * 7, "datasets": {name: {"score": None, "tokens": []} for name in ("small", "large")}}
    profile = packing.packed_profile(before, tmp_path, packed)

    # The dataset of each place of the stream, one by one.
    order = np.fromfile(tmp_path / "order.bin", "<u8") >> np.uint64(48)
    places = np.repeat(order, np.fromfile(tmp_path / "pieces.bin", "<u4")[1::2].astype(np.int64))
    assert len(places) == packed.tokens
    edges = [-(-packed.tokens * bucket // 7) for bucket in range(8)]
    assert profile["tokens"] == edges[1:]
    for number, name in enumerate(("small", "large")):
        counted = [int((places[first:end] == number).sum()) for first, end in pairwise(edges)]
        assert profile["datasets"][name] == {"score": None, "tokens": counted}


def test_the_window_is_a_small_part_of_the_phase() -> None:
    assert packing.packing_window(10**12, 4096) == 1024
    assert packing.packing_window(32 * 100 * 4096, 4096) == 100
    assert packing.packing_window(5, 4096) == 16


@pytest.mark.parametrize("order", ["shuffle", "curriculum"])
def test_a_built_phase_gives_every_token_once(order: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    drawn = {name: generator.integers(1, limit, 500) for name, limit in (("code", 30), ("web", 300))}
    corpora = {
        name: numbered_corpus(tmp_path / name, lengths.tolist(), 0, scores={"score": generator.random(500).tolist()})
        for name, lengths in drawn.items()
    }
    datasets = [{"corpus": "code", "repeat": 2}, {"corpus": "web", "score": "score", "keep": "top 0.5"}]
    recipes = [
        PhaseRecipe.model_validate({"name": "packed", "order": order, "datasets": datasets, "pack": pack})
        for pack in (None, 128)
    ]
    plain, packed = (
        build_phase(recipe, corpora, tmp_path / "phases" / str(recipe.pack), threads=1) for recipe in recipes
    )
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert packed.tokens == manifest["tokens"] and packed.documents == plain.documents
    assert f"{packed.tokens // 128:,} packs of 128, " in str(packed) and "% padding" in str(packed)
    stream, packs = (TokenStream([built.folder], 1000) for built in (plain, packed))
    packs.phases[0].check(lengths=True)
    tokens, marks = packs.read_batch(range(0, packs.tokens, 128), 128, starts=True)
    padding = marks & PADDING_MARK != 0
    assert packs.tokens % 128 == 0 and padding.sum() == manifest["packing"]["padding_tokens"] > 0
    assert np.array_equal(np.sort(tokens[~padding]), np.sort(stream.read(0, stream.tokens)))
    # Documents of no more than a pack are whole: as many starts as in the stream, and the cuts of the longer ones.
    starts = (marks & STARTS_ENTRY != 0) & ~padding
    whole = np.fromfile(plain.folder / "order.bin", "<u8")
    lengths = np.array([[*drawn.values()][int(entry) >> 48][int(entry) & (1 << 48) - 1] for entry in whole])
    assert starts.sum() == (-(-lengths // 128)).sum()
    # Padding ends a pack, and every pack begins with an entry.
    assert starts[:, 0].all() and (np.diff(padding.astype(int), axis=1) >= 0).all()


def test_quality_rises_from_window_to_window(tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    scores = generator.random(20_000)
    prefix = numbered_corpus(tmp_path / "web", generator.integers(1, 60, 20_000).tolist(), 0, scores={"score": scores})
    recipe = {"name": "p", "order": "curriculum", "datasets": [{"corpus": "web", "score": "score"}], "pack": 64}
    built = build_phase(PhaseRecipe.model_validate(recipe), {"web": prefix}, tmp_path / "phase", threads=1)
    entries = np.fromfile(built.folder / "order.bin", "<u8")
    ranks = np.argsort(np.argsort(scores))[entries[entries >> np.uint64(48) == 0].astype(np.int64)]
    behind = np.maximum.accumulate(ranks) - ranks
    # A window is 1/32 of the phase; documents of a few tokens make it a little more in documents.
    assert 0 < behind.max() < 20_000 / 32 * 1.2
