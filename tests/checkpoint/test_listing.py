from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from megatron_kaiyuan.checkpoint import layout, listing
from megatron_kaiyuan.checkpoint.retention import Retention, prune
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_checkpoint import make_step


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (0, 10, 20):
        make_step(tmp_path, step)
    layout.point_latest(tmp_path, 20)
    return tmp_path


def test_list(run_dir: Path) -> None:
    make_step(run_dir, 30)
    layout.set_aside(layout.step_folder(run_dir, 30), "damaged")
    (layout.step_folder(run_dir, 10) / layout.MANIFEST).write_text("{")
    found = listing.list_checkpoints(run_dir)
    assert [(one.name, one.step, one.is_latest) for one in found] == [
        ("step_0", 0, False),
        ("step_10", 10, False),
        ("step_20", 20, True),
        ("step_30.damaged", None, False),
    ]
    assert "not valid JSON" in str(found[1].problem) and found[0].problem is None
    lines = listing.as_table(found).splitlines()
    assert len(lines) == 5 and lines[3].endswith("latest")
    assert listing.summary(found).startswith("3 steps, 1 set aside, 0.0 MB, latest is step_20")


def test_verify(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listing.verify_and_tell(run_dir, None, as_json=False).startswith("checkpoint verify: 3 checkpoints whole")
    victim = layout.step_folder(run_dir, 10) / "__0_0.distcp"
    victim.write_bytes(b"other bytes")
    capsys.readouterr()
    with pytest.raises(UserError, match=r"1 of 3 checkpoints damaged \(step_10\)"):
        listing.verify_and_tell(run_dir, None, as_json=False)
    assert f"step_10: {victim}: damaged, 11 bytes instead of 10" in capsys.readouterr().out
    assert "1 checkpoints whole" in listing.verify_and_tell(run_dir, 20, as_json=False)
    # Looking moves nothing.
    assert layout.all_steps(run_dir) == [0, 10, 20]


def test_beside_a_run_that_prunes(run_dir: Path) -> None:
    """Steps come and go while they are listed and verified: none of them is called damaged."""
    stop = threading.Event()

    def train() -> None:
        step = 30
        while not stop.is_set():
            # As a run does: a step gets its name when it is whole.
            os.rename(make_step(run_dir / "elsewhere", step), layout.step_folder(run_dir, step))
            prune(run_dir, Retention(keep_last=2), lambda *_: None)
            step += 10

    job = threading.Thread(target=train)
    job.start()
    try:
        for _ in range(200):
            for listed in (
                listing.list_checkpoints(run_dir),
                [found for found, _ in listing.verify_checkpoints(run_dir)],
            ):
                assert {one.name for one in listed if one.problem and one.step is not None} == set()
            listing.verify_and_tell(run_dir, None, as_json=False)
    finally:
        stop.set()
        job.join()


def test_mistakes(run_dir: Path, tmp_path: Path) -> None:
    for action in (
        lambda: listing.list_checkpoints(tmp_path / "absent"),
        lambda: listing.verify_and_tell(run_dir, 15, as_json=False),
        lambda: listing.checkpoint_named(run_dir, "15"),
        lambda: listing.checkpoint_named(run_dir, "elsewhere"),
    ):
        with pytest.raises(UserError):
            action()
    # A run means its newest step.
    assert listing.checkpoint_named(run_dir, str(run_dir)).folder == layout.step_folder(run_dir, 20)
    assert listing.checkpoint_named(run_dir, "10").folder == layout.step_folder(run_dir, 10)
    assert listing.checkpoint_named(run_dir, str(run_dir / "checkpoints" / "step_0")).folder.name == "step_0"
