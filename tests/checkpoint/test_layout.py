from __future__ import annotations

from pathlib import Path

from megatron_kaiyuan.checkpoint import layout
from tests.helpers.training.small_checkpoint import make_step


def test_steps_are_those_with_a_manifest(tmp_path: Path) -> None:
    assert layout.steps(tmp_path) == []
    for step in (10, 9, 100):
        make_step(tmp_path, step)
    for name in ("step_200", "step_300.tmp", "step_9.damaged", "step_007", "step_-1"):
        (layout.checkpoints_folder(tmp_path) / name).mkdir()
    assert layout.steps(tmp_path) == [9, 10, 100]
    assert layout.all_steps(tmp_path) == [9, 10, 100, 200]


def test_latest(tmp_path: Path) -> None:
    assert layout.read_latest(tmp_path) is None
    layout.point_latest(tmp_path, 7)
    layout.point_latest(tmp_path, 8)
    assert layout.read_latest(tmp_path) == "step_8"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    assert layout.step_of("step_8") == 8 and layout.step_of("step_08") is None and layout.step_of("8") is None


def test_a_folder_set_aside_is_kept_whole_and_no_step_any_more(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        make_step(tmp_path, 5, content)
        layout.set_aside(layout.step_folder(tmp_path, 5), "damaged")
    assert layout.steps(tmp_path) == []
    found = {path.name: (path / "__0_0.distcp").read_bytes() for path in layout.checkpoints_folder(tmp_path).iterdir()}
    assert found == {"step_5.damaged": b"first", "step_5.damaged.2": b"second"}
