"""Which checkpoint a path means."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.find import find_checkpoint
from megatron_kaiyuan.checkpoint.listing import verify_checkpoints
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_checkpoint import make_step


def averaged(run_dir: Path, *steps: int) -> Path:
    """An average of steps by its manifest."""
    folder = make_step(run_dir.with_name("other"), 1).rename(run_dir / "averaged")
    layout.write_manifest(folder, averaged_steps=list(steps))
    return folder


def test_a_run_means_its_newest_finished_step(tmp_path: Path) -> None:
    for step in (0, 9, 10):
        make_step(tmp_path, step)
    # Not finished, as a kill leaves it; and one that was set aside.
    (tmp_path / "checkpoints" / "step_30").mkdir()
    layout.set_aside(make_step(tmp_path, 20), "damaged")
    found = find_checkpoint(tmp_path)
    assert (found.folder, found.run_dir) == (layout.step_folder(tmp_path, 10), tmp_path)
    assert found.name == f"{tmp_path}, step 10"


def test_a_step_of_a_run(tmp_path: Path) -> None:
    for step in (0, 9, 10):
        make_step(tmp_path, step)
    (tmp_path / "checkpoints" / "step_30").mkdir()
    assert find_checkpoint(tmp_path, 9).name == f"{tmp_path}, step 9"
    assert find_checkpoint(tmp_path, 0).folder == layout.step_folder(tmp_path, 0)
    with pytest.raises(UserError, match=r"holds no finished checkpoint of step 30, but of 0, 9, 10$"):
        find_checkpoint(tmp_path, 30)
    for step in range(100, 120):
        make_step(tmp_path, step)
    with pytest.raises(UserError, match=r"of step 30, but of 0, 9, 10, 100, 101, 102 and others$"):
        find_checkpoint(tmp_path, 30)
    with pytest.raises(UserError, match=r"step_9: is one checkpoint, of which --step 9 chooses none; name its run"):
        find_checkpoint(layout.step_folder(tmp_path, 9), 9)


def test_a_checkpoint_means_itself_and_knows_its_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    step = make_step(run_dir, 7)
    assert find_checkpoint(step).name == f"{run_dir}, step 7" and find_checkpoint(step).run_dir == run_dir
    mean = averaged(run_dir, 5, 7)
    assert find_checkpoint(mean).name == f"{run_dir}, mean of steps 5, 7" and find_checkpoint(mean).folder == mean
    alone = mean.rename(tmp_path / "mean")
    assert find_checkpoint(alone).run_dir is None and find_checkpoint(alone).name == f"{alone}, mean of steps 5, 7"


def test_what_is_neither_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: not found; name a run's folder, or a checkpoint's"):
        find_checkpoint(tmp_path / "gone")
    with pytest.raises(UserError, match="is neither a run's folder"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        find_checkpoint(tmp_path)
    # An export has a manifest of its own kind.
    (tmp_path / layout.MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="manifest"):
        find_checkpoint(tmp_path)


def test_a_single_checkpoint_is_verified(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    make_step(run_dir, 7)
    folder = averaged(run_dir, 5, 7)
    ((found, problems),) = verify_checkpoints(folder)
    assert found.name == "averaged" and problems == []
    shard = folder / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[::-1])
    ((_, problems),) = verify_checkpoints(folder)
    assert len(problems) == 1 and "__0_0.distcp" in problems[0]
