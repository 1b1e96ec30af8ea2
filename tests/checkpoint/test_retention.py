from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from small_checkpoint import make_step

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.retention import Retention, prune, removable, remove_unfinished

TOKENS_PER_STEP = 100


def make(run_dir: Path, *steps: int) -> None:
    for step in steps:
        folder = make_step(run_dir, step)
        layout.write_manifest(folder, step=step, tokens=step * TOKENS_PER_STEP)


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
