from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.retention import Retention, removable, remove_unfinished
from megatron_kaiyuan.checkpoint.retention import prune as prune_and_report
from megatron_kaiyuan.checkpoint.verify import read_manifest, usable_steps
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_checkpoint import make_step

TOKENS_PER_STEP = 100


def prune(run_dir: Path, retention: Retention) -> list[int]:
    """All that may go can be removed."""
    problems: dict[int, str] = {}
    removed = prune_and_report(run_dir, retention, problems.__setitem__)
    assert not problems
    return removed


def make(run_dir: Path, *steps: int, **about: Any) -> None:
    for step in steps:
        folder = make_step(run_dir, step)
        layout.write_manifest(folder, step=step, tokens=step * TOKENS_PER_STEP, **about)


def test_the_newest_and_step_0_stay(tmp_path: Path) -> None:
    make(tmp_path, 0, 10, 20, 30)
    assert prune(tmp_path, Retention(keep_last=2)) == [10]
    assert sorted(path.name for path in layout.checkpoints_folder(tmp_path).iterdir()) == [
        "step_0",
        "step_20",
        "step_30",
    ]


def test_some_stay_for_ever(tmp_path: Path) -> None:
    """As a run saves them: what is removed early must not change what is kept later."""
    for step in range(10, 110, 10):
        make(tmp_path, step)
        prune(tmp_path, Retention(keep_last=2, keep_every_tokens=2500))
    # First at or behind 2,500, 5,000, 7,500 and 10,000 tokens, and the newest two.
    assert layout.steps(tmp_path) == [30, 50, 80, 90, 100]
    assert removable(tmp_path, Retention(keep_last=2, keep_every_steps=40)) == [30, 50]


def test_two_whole_ones_are_left_whatever_the_rule_says(tmp_path: Path) -> None:
    make(tmp_path, 10, 20, 30, 40, 50)
    (layout.step_folder(tmp_path, 50) / "common.pt").write_bytes(b"")
    (layout.step_folder(tmp_path, 40) / "__0_0.distcp").unlink()
    (layout.step_folder(tmp_path, 20) / "manifest.json").write_text("{")
    assert removable(tmp_path, Retention(keep_last=2)) == [20]
    assert removable(tmp_path, Retention(keep_last=3)) == [20]


@given(st.data())
def test_never_fewer_than_two(tmp_path_factory: object, data: st.DataObject) -> None:
    run_dir = tmp_path_factory.mktemp("run")  # type: ignore[attr-defined]
    steps = sorted(data.draw(st.sets(st.integers(1, 30), max_size=7)))
    make(run_dir, *steps)
    broken = data.draw(st.sets(st.sampled_from(steps))) if steps else set()
    for step in broken:
        (layout.step_folder(run_dir, step) / "common.pt").unlink()
    every = data.draw(st.none() | st.integers(1, 10))
    removed = prune(run_dir, Retention(data.draw(st.integers(2, 4)), keep_every_steps=every))
    left = set(layout.steps(run_dir))
    assert left == set(steps) - set(removed)
    assert len(left - broken) >= min(2, len(set(steps) - broken))
    assert not every or {step for step in steps if step % every == 0} <= left


def test_what_a_dead_job_left_is_removed(tmp_path: Path) -> None:
    make(tmp_path, 10)
    for name in ("step_20.1a2b3c4d.tmp", "step_5.removed.tmp", "step_7.damaged"):
        (layout.checkpoints_folder(tmp_path) / name).mkdir()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in layout.checkpoints_folder(tmp_path).iterdir()) == ["step_10", "step_7.damaged"]


def test_what_a_user_named_so_is_left(tmp_path: Path) -> None:
    make(tmp_path, 10)
    folder = layout.checkpoints_folder(tmp_path)
    mine = ("step_20.tmp", "step_20.notes.tmp", "step_x.12345678.tmp", "step_20.notes.removed.tmp")
    for name in mine:
        (folder / name).mkdir()
    (tmp_path / "latest.0123abcd.tmp").write_text("half")
    remove_unfinished(tmp_path)
    prune(tmp_path, Retention(keep_last=2))
    assert sorted(path.name for path in folder.iterdir()) == sorted(["step_10", *mine])
    assert not (tmp_path / "latest.0123abcd.tmp").exists()


def test_a_step_that_cannot_be_removed_is_reported_and_tried_again(tmp_path: Path) -> None:
    """A link cannot be removed by anyone, not even by root: it is not the run's."""
    make(tmp_path, 10, 20, 30, 40)
    elsewhere = tmp_path / "larger disk"
    layout.step_folder(tmp_path, 10).rename(elsewhere)
    layout.step_folder(tmp_path, 10).symlink_to(elsewhere)
    for _ in range(2):
        problems: dict[int, str] = {}
        removed = prune_and_report(tmp_path, Retention(keep_last=2), problems.__setitem__)
        assert problems.keys() == {10} and "is a link" in problems[10]
        assert removed == ([20] if 20 in removed else [])
    assert layout.steps(tmp_path) == [10, 30, 40]
    assert (elsewhere / "manifest.json").exists()


@pytest.mark.root
def test_immutable_and_mounted_steps(tmp_path: Path) -> None:
    make(tmp_path, 10, 20, 30, 40)
    mounted = layout.step_folder(tmp_path, 20)
    subprocess.run(["mount", "--bind", mounted, mounted], check=True)
    locked = layout.step_folder(tmp_path, 10) / "common.pt"
    has_flags = subprocess.run(["chattr", "+i", locked], capture_output=True, check=False).returncode == 0
    try:
        problems: dict[int, str] = {}
        prune_and_report(tmp_path, Retention(keep_last=2), problems.__setitem__)
        assert 20 in problems and (10 in problems) == has_flags
        assert {30, 40} <= set(layout.steps(tmp_path))
    finally:
        subprocess.run(["umount", mounted], check=True)
        for path in layout.checkpoints_folder(tmp_path).rglob("common.pt"):
            subprocess.run(["chattr", "-i", path], capture_output=True, check=False)
    prune(tmp_path, Retention(keep_last=2))
    assert sorted(path.name for path in layout.checkpoints_folder(tmp_path).iterdir()) == ["step_30", "step_40"]


def test_a_copy_under_another_name_is_neither_used_nor_removed(tmp_path: Path) -> None:
    make(tmp_path, 10, 20, 30)
    shutil.copytree(layout.step_folder(tmp_path, 10), layout.step_folder(tmp_path, 15))
    with pytest.raises(UserError, match=r"step_15: its manifest is that of step 10, so this is a copy of it"):
        read_manifest(layout.step_folder(tmp_path, 15))
    assert prune(tmp_path, Retention(keep_last=2)) == [10]
    assert layout.steps(tmp_path) == [15, 20, 30]


def test_saves_on_request_do_not_push_scheduled_ones_out(tmp_path: Path) -> None:
    for step in (20, 40, 60, 80, 85, 86, 87, 88, 100):
        make(tmp_path, step, scheduled=step % 20 == 0)
        prune(tmp_path, Retention(keep_last=4))
    assert layout.steps(tmp_path) == [40, 60, 80, 88, 100]


def test_checkpoints_of_an_older_version_are_told_apart_by_their_steps(tmp_path: Path) -> None:
    for step in (20, 40, 60, 80, 85, 87, 88, 100):
        make(tmp_path, step)
    (tmp_path / "config.yaml").write_text("checkpoint: {save_every_steps: 20}\n")
    assert prune(tmp_path, Retention(keep_last=4)) == [20, 85, 87]
    (tmp_path / "config.yaml").unlink()
    # Nothing says which are which.
    assert removable(tmp_path, Retention(keep_last=4)) == [40]


def test_a_copy_under_another_name_takes_no_place(tmp_path: Path) -> None:
    make(tmp_path, 10, 20, 30)
    shutil.copytree(layout.step_folder(tmp_path, 10), layout.step_folder(tmp_path, 50))
    assert prune(tmp_path, Retention(keep_last=2)) == [10]
    assert usable_steps(tmp_path) == [20, 30] and layout.steps(tmp_path) == [20, 30, 50]


REMOVE = """
import os, sys
from pathlib import Path
from typing import Any
from megatron_kaiyuan.checkpoint.retention import Retention, prune, remove_unfinished
# Only now: the interpreter may lie where only root reads.
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(prune(Path(sys.argv[1]), Retention(keep_last=2), lambda step, why: print(step, why)))
print(*remove_unfinished(Path(sys.argv[1])))
"""


def test_what_cannot_be_removed_whole_is_reported_and_removed_later() -> None:
    """As a user who may not write into one of a step's folders; root may remove everything."""
    with tempfile.TemporaryDirectory() as place:
        run_dir = Path(place) / "run"
        make(run_dir, 10, 20, 30, 40)
        locked = layout.step_folder(run_dir, 10) / "locked"
        locked.mkdir()
        (locked / "file").write_text("stays")
        for path in (Path(place), *Path(place).rglob("*")) if os.getuid() == 0 else ():
            os.chown(path, 65534, 65534)
        locked.chmod(0o555)
        command = [sys.executable, "-c", REMOVE, str(run_dir)]
        for removed in ("[20]", "[]"):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            lines = done.stdout.splitlines()
            assert lines[0].startswith("10 ") and lines[0].endswith("Permission denied") and lines[1] == removed
            assert "an earlier job's leftover could not be removed" in lines[2]
            # Of the rest nothing is left.
            (left,) = layout.checkpoints_folder(run_dir).glob("step_10.*.removed.tmp")
            assert [path.name for path in left.iterdir()] == ["locked"]
        assert layout.steps(run_dir) == [30, 40]
        next(layout.checkpoints_folder(run_dir).rglob("locked")).chmod(0o755)
        assert prune(run_dir, Retention(keep_last=2)) == []
        assert sorted(path.name for path in layout.checkpoints_folder(run_dir).iterdir()) == ["step_30", "step_40"]


def test_without_scheduled_ones_the_newest_stay(tmp_path: Path) -> None:
    """A run that saves by the clock alone."""
    for step in (3, 7, 12, 18, 25):
        make(tmp_path, step, scheduled=False)
        prune(tmp_path, Retention(keep_last=3))
    assert layout.steps(tmp_path) == [12, 18, 25]
