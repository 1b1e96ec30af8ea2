"""Which step is taken, for every state that a run folder can be left in. One process; several in tests/train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_kaiyuan import platform
from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.errors import UserError
from tests.helpers.training.small_checkpoint import FILES, make_step


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (0, 10, 20):
        make_step(tmp_path, step)
    layout.point_latest(tmp_path, 20)
    return tmp_path


def choose(run_dir: Path, strict: bool = False) -> tuple[int | None, list[str]]:
    from megatron_kaiyuan.checkpoint.choose import choose_step

    choice = choose_step(run_dir, strict)
    return choice.step, choice.problems


def content(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_a_new_run_and_a_whole_one(run_dir: Path, tmp_path: Path) -> None:
    assert choose(tmp_path / "new") == (None, [])
    before = content(run_dir)
    assert choose(run_dir) == choose(run_dir, strict=True) == (20, [])
    assert content(run_dir) == before


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "removed", "zeroed"])
def test_damage_is_named_and_set_aside(harm: str, name: str, run_dir: Path) -> None:
    path = run_dir / "checkpoints" / "step_20" / name
    whole = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        path.write_bytes({"flipped": flipped, "cut": whole[:-2], "zeroed": bytes(len(whole))}[harm])
    before = content(run_dir)
    with pytest.raises(UserError, match=rf"{path}.*strict refuses"):
        choose(run_dir, strict=True)
    assert content(run_dir) == before
    step, problems = choose(run_dir)
    assert step == 10 and len(problems) == 1
    assert str(path) in problems[0] and problems[0].endswith("step_20 is set aside, step 10 is used")
    # Kept, byte for byte, under another name.
    aside = {key.replace("step_20/", "step_20.damaged/"): value for key, value in before.items()}
    assert content(run_dir) == {**aside, "latest": b"step_10\n"}
    assert choose(run_dir, strict=True) == (10, [])


def test_several_damaged_steps(run_dir: Path) -> None:
    for step in (10, 20):
        (run_dir / "checkpoints" / f"step_{step}" / "common.pt").unlink()
        (run_dir / "checkpoints" / f"step_{step}" / ".metadata").unlink()
    step, problems = choose(run_dir)
    assert step == 0 and len(problems) == 2
    assert "(and 1 more files)" in problems[0]
    assert layout.all_steps(run_dir) == [0]


def test_no_whole_step_is_refused_and_nothing_is_moved(run_dir: Path) -> None:
    for step in (0, 10, 20):
        (run_dir / "checkpoints" / f"step_{step}" / "common.pt").unlink()
    before = content(run_dir)
    with pytest.raises(UserError, match=r"no checkpoint is whole .*step_20/common\.pt: missing"):
        choose(run_dir)
    assert content(run_dir) == before


@pytest.mark.parametrize("latest", ["step_10\n", "", None])
def test_stale_latest(latest: str | None, run_dir: Path) -> None:
    """A job died after the rename of a step: that step counts, and nothing was lost."""
    (run_dir / "latest").unlink() if latest is None else (run_dir / "latest").write_text(latest)
    step, problems = choose(run_dir, strict=True)
    assert step == 20 and "step 20 is whole and is used" in problems[0]
    assert layout.read_latest(run_dir) == "step_20"
    assert choose(run_dir) == (20, [])


@pytest.mark.parametrize("latest", ["step_30\n", "step_2", "\0\0\0", "nonsense"])
def test_dangling_latest(latest: str, run_dir: Path) -> None:
    (run_dir / "latest").write_text(latest)
    lost = latest != "step_2"
    if lost:
        with pytest.raises(UserError, match="latest: says"):
            choose(run_dir, strict=True)
    step, problems = choose(run_dir)
    assert step == 20 and len(problems) == 1 and "latest: says" in problems[0]
    assert layout.read_latest(run_dir) == "step_20"


def test_checkpoints_that_are_all_gone_are_no_new_run(tmp_path: Path) -> None:
    layout.point_latest(tmp_path, 20)
    with pytest.raises(UserError, match="holds no checkpoint; bring them back"):
        choose(tmp_path)


def test_what_is_no_step_is_left_alone(run_dir: Path) -> None:
    for name in ("step_30.tmp", "step_40.damaged", "step_50.replaced", "notes"):
        (run_dir / "checkpoints" / name).mkdir()
    (run_dir / "checkpoints" / "step_60").write_text("a file")
    assert choose(run_dir) == (20, [])
