from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum


def make_step(run_dir: Path, step: int, content: bytes = b"some bytes") -> Path:
    folder = layout.step_folder(run_dir, step)
    folder.mkdir(parents=True)
    (folder / "data.distcp").write_bytes(content)
    (folder / ".metadata").write_bytes(b"hidden files count too")
    layout.write_manifest(folder)
    return folder


def test_steps_are_those_with_a_manifest(tmp_path: Path) -> None:
    assert layout.steps(tmp_path) == []
    for step in (10, 9, 100):
        make_step(tmp_path, step)
    (layout.checkpoints_folder(tmp_path) / "step_200").mkdir()
    (layout.checkpoints_folder(tmp_path) / "step_300.tmp").mkdir()
    assert layout.steps(tmp_path) == [9, 10, 100]


@given(st.binary(min_size=1, max_size=200), st.data())
def test_every_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    folder = make_step(tmp_path_factory.mktemp("run"), 1, content)
    layout.verify(folder)
    position, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    (folder / "data.distcp").write_bytes(damaged)
    with pytest.raises(UserError, match=r"data\.distcp: damaged, checksum xxh3:\w+ instead of xxh3:\w+"):
        layout.verify(folder)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    folder = make_step(tmp_path, 1)
    (folder / "data.distcp").write_bytes(b"short")
    with pytest.raises(UserError, match="5 bytes instead of 10"):
        layout.verify(folder)
    (folder / "data.distcp").unlink()
    with pytest.raises(UserError, match=r"data\.distcp: missing"):
        layout.verify(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        layout.verify(folder)


def test_newest_valid_falls_back_and_says_why(tmp_path: Path) -> None:
    assert layout.newest_valid(tmp_path) == (None, [])
    for step in (0, 10, 20):
        make_step(tmp_path, step)
    assert layout.newest_valid(tmp_path) == (20, [])
    (layout.step_folder(tmp_path, 20) / "data.distcp").write_bytes(b"other bytes")
    step, problems = layout.newest_valid(tmp_path)
    assert step == 10 and len(problems) == 1 and "step_20" in problems[0]
    for older in (0, 10):
        (layout.step_folder(tmp_path, older) / ".metadata").unlink()
    with pytest.raises(UserError, match="no checkpoint is whole"):
        layout.newest_valid(tmp_path)


def test_prune_keeps_the_newest_and_step_0(tmp_path: Path) -> None:
    for step in (0, 10, 20, 30):
        make_step(tmp_path, step)
    layout.prune(tmp_path, keep_last=2)
    assert layout.steps(tmp_path) == [0, 20, 30]


def test_latest(tmp_path: Path) -> None:
    layout.point_latest(tmp_path, 7)
    layout.point_latest(tmp_path, 8)
    assert (tmp_path / "latest").read_text() == "step_8\n"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_folder_set_aside_is_kept_whole_and_no_step_any_more(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        make_step(tmp_path, 5, content)
        layout.set_aside(layout.step_folder(tmp_path, 5), "damaged")
    assert layout.steps(tmp_path) == []
    found = {path.name: (path / "data.distcp").read_bytes() for path in layout.checkpoints_folder(tmp_path).iterdir()}
    assert found == {"step_5.damaged": b"first", "step_5.damaged.2": b"second"}


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", ".", "link/secret", "sub/../../secret"])
def test_a_manifest_cannot_name_what_lies_outside(name: str, tmp_path: Path) -> None:
    folder = make_step(tmp_path, 1)
    (folder.parent / "secret").write_bytes(b"x")
    (folder / "link").symlink_to(folder.parent)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "checksum": checksum(folder.parent / "secret")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not inside the checkpoint"):
        layout.verify(folder)
