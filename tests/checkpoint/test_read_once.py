"""What a resume costs more ranks: counted on two and on four real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.retention import Retention, removable
from megatron_kaiyuan.checkpoint.verify import read_manifest, shares, spread
from tests.helpers.processes.rank_server import run
from tests.helpers.training.small_checkpoint import make_step

WORKER = Path(__file__).with_name("read_once_worker.py")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    found = {}
    for ranks in (2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        done = run(ranks, [WORKER, folder])
        assert done.returncode == 0, done.stderr[-3000:]
        found[ranks] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    return found


def test_every_tensor_and_random_state_comes_back(answers: dict[int, list[dict[str, Any]]]) -> None:
    assert all(one["same"] for said in answers.values() for one in said)


def test_each_shard_is_read_by_one_rank(answers: dict[int, list[dict[str, Any]]]) -> None:
    two, four = (sum(one["shards"] for one in answers[ranks]) for ranks in (2, 4))
    assert two < four < 1.25 * two  # more rectangles, each in a form of a thousand bytes
    assert max(one["shards"] for one in answers[4]) < 0.4 * four


def test_files_looked_at_by_a_rank_do_not_grow_with_ranks(answers: dict[int, list[dict[str, Any]]]) -> None:
    for rank in (0, 1):
        assert answers[4][rank]["files"] <= answers[2][rank]["files"] + 4
    assert answers[4][1]["files"] < 40


def test_what_a_rank_receives_does_not_grow_with_ranks(answers: dict[int, list[dict[str, Any]]]) -> None:
    # Its own entries of the manifest and the metadata, and its own random state, of some 8 kB; with twice the ranks it
    # reads half as many weights. The metadata of all shards would be 7 kB for each rank.
    for rank in (1, -1):
        assert 8_000 < answers[4][rank]["objects"] < answers[2][rank]["objects"] + 200
    assert answers[4][1]["objects"] < 30_000


def test_no_groups_that_no_one_uses(answers: dict[int, list[dict[str, Any]]]) -> None:
    # megatron-core's gloo groups beside the others would be 3 descriptors more for each rank.
    assert answers[4][1]["groups"] - answers[2][1]["groups"] < 2 * 10


@given(sizes=st.lists(st.integers(0, 10**6), max_size=60), ranks=st.integers(1, 20))
def test_spread_is_even(sizes: list[int], ranks: int) -> None:
    found = spread(sizes, ranks)
    loads = [sum(size for size, rank in zip(sizes, found, strict=True) if rank == one) for one in range(ranks)]
    assert len(found) == len(sizes) and set(found) <= set(range(ranks))
    assert max(loads) - min(loads) <= max(sizes, default=0)
    assert spread(sizes, ranks) == found


def test_shares_of_8192_ranks() -> None:
    files = {f"__{rank}_0.distcp": {"bytes": 1000 + rank % 7} for rank in range(8192)}
    assert sorted(map(len, shares(files, 8192))) == [1] * 8192


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that stat, lstat and scandir are asked for."""
    import os

    seen: list[str] = []
    for name in ("stat", "lstat", "scandir"):
        action = getattr(os, name)

        def call(path: Any, *arguments: Any, action: Any = action, **options: Any) -> Any:
            seen.append(str(path))
            return action(path, *arguments, **options)

        monkeypatch.setattr(os, name, call)
    return seen


def make_wide_step(run_dir: Path, step: int, files: int) -> Path:
    folder = make_step(run_dir, step)
    (folder / layout.MANIFEST).unlink()
    for rank in range(2, files):
        (folder / f"__{rank}_0.distcp").write_bytes(b"x")
    layout.write_manifest(folder, step=step, tokens=step, scheduled=True)
    return folder


def test_looks_that_a_manifest_takes_do_not_grow_with_files(tmp_path: Path, looks: list[str]) -> None:
    counts = []
    for step, files in ((1, 10), (2, 200)):
        folder = make_wide_step(tmp_path, step, files)
        looks.clear()
        assert len(read_manifest(folder)["files"]) == files + 3
        counts.append(len(looks))
    assert counts[0] == counts[1] < 10


def test_looks_that_pruning_takes(tmp_path: Path, looks: list[str]) -> None:
    for step in range(1, 9):
        make_wide_step(tmp_path, step, 100)
    looks.clear()
    assert removable(tmp_path, Retention(keep_last=8)) == []
    assert len(looks) < 100
    looks.clear()
    assert removable(tmp_path, Retention(keep_last=7)) == [1]
    # Two steps are looked at file by file, not all eight.
    assert len(looks) < 2 * 103 + 100
