from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.pruning import prune
from megatron_kaiyuan.checkpoint.retention import Retention
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_checkpoint import make_step


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (0, 10, 20, 30, 40):
        make_step(tmp_path, step)
    return tmp_path


def test_what_is_removed(run_dir: Path) -> None:
    told = prune(run_dir, Retention(2), dry_run=True)
    assert told.removed == [10, 20] and layout.steps(run_dir) == [0, 10, 20, 30, 40]
    assert told.summary().startswith("checkpoint prune: would remove 10, 20 (0.0 MB), kept 0, 30, 40")
    assert prune(run_dir, Retention(2, keep_every_steps=20)).removed == [10]
    assert layout.steps(run_dir) == [0, 20, 30, 40]


def test_nothing_is_removed_when_what_stays_is_damaged(run_dir: Path) -> None:
    """Sizes are right: only reading them tells."""
    (layout.step_folder(run_dir, 40) / "__0_0.distcp").write_bytes(b"some bytez")
    with pytest.raises(UserError, match=r"only 1 of the checkpoints that would stay are whole .*step_40"):
        prune(run_dir, Retention(2))
    assert layout.steps(run_dir) == [0, 10, 20, 30, 40]
    assert prune(run_dir, Retention(3)).removed == [10]


def test_mistakes(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoints"):
        prune(tmp_path / "absent", Retention(2))
    assert not (tmp_path / "absent").exists()
    assert prune(run_dir, Retention(9)).removed == []
