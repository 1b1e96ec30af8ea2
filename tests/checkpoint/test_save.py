"""Saves of one process: real files, real limits."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.checkpoint import layout
from megatron_kaiyuan.checkpoint.verify import read_manifest, verify
from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.files import checksum


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    device = platform.activate("cpu")
    from megatron_kaiyuan.cluster.groups import single_process

    with single_process(device):
        yield


def state(weight: torch.Tensor) -> dict[str, Any]:
    from megatron_kaiyuan.checkpoint.load import whole

    return {**whole({"layer.weight": weight}), "run": {"config": {}}}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    before, bytecode = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the limit would cut it off
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = bytecode


def finish(saver: Any) -> Any:
    """Steps of training while a save goes on."""
    while True:
        while saver.busy:
            pass
        if saved := saver.advance(writing=0, failed=int(saver.failed)):
            return saved


def test_what_was_there_at_the_beginning_is_saved(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.load import load_common, load_weights
    from megatron_kaiyuan.checkpoint.save import Saver

    saver, called = Saver(), threading.Event()
    weight = torch.arange(10_000, dtype=torch.float32).view(100, 100)
    # The second save uses the first one's memory, the third one its plan too.
    for step in (1, 2, 3, 4):
        before = weight.clone()
        saver.begin(layout.step_folder(tmp_path, step), state(weight), {"step": step, "tokens": 7}, after=called.set)
        saver.wait_for_copy()
        weight += 1000
        assert layout.steps(tmp_path) == list(range(1, step))
        saved = finish(saver)
        assert called.is_set() and layout.steps(tmp_path) == list(range(1, step + 1))
        folder = layout.step_folder(tmp_path, step)
        assert torch.equal(load_weights(folder)["layer.weight"], before)
        assert load_common(folder)["run"] == {"config": {}}
        assert saved.folder == folder and saved.bytes > weight.nbytes and 0 < saved.stall_seconds <= saved.seconds
    assert saver.wait() is None and saver.advance(0, 0) is None


def test_manifest_holds_what_lies_there(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.save import save_folder

    save_folder(tmp_path / "step_3", state(torch.ones(3)), step=3, tokens=99)
    verify(tmp_path / "step_3")
    manifest = read_manifest(tmp_path / "step_3")
    assert (manifest["step"], manifest["tokens"]) == (3, 99)
    # Hashed while they were written; here the files are read.
    assert {name: entry["checksum"] for name, entry in manifest["files"].items()} == {
        path.name: checksum(path) for path in (tmp_path / "step_3").iterdir() if path.name != layout.MANIFEST
    }
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_an_existing_step_is_never_written_into(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.load import load_weights
    from megatron_kaiyuan.checkpoint.save import save_folder

    save_folder(tmp_path / "step_3", state(torch.ones(3)))
    save_folder(tmp_path / "step_3", state(torch.zeros(3)))
    assert load_weights(tmp_path / "step_3")["layer.weight"].tolist() == [0, 0, 0]
    assert load_weights(tmp_path / "step_3.replaced")["layer.weight"].tolist() == [1, 1, 1]
    # An average is made again on purpose.
    for _ in range(2):
        save_folder(tmp_path / "averaged", state(torch.ones(3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["averaged", "step_3", "step_3.replaced"]


@pytest.mark.parametrize("limit", [0, 3000], ids=["first file", "in the middle"])
def test_a_failed_write_is_an_error_of_the_next_step(limit: int, tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.save import Saver, save_folder

    save_folder(layout.step_folder(tmp_path, 1), state(torch.ones(3)))
    saver = Saver()
    with largest_file(limit):
        saver.begin(layout.step_folder(tmp_path, 2), state(torch.ones(5000)), {})
        while saver.busy:
            pass
    assert saver.failed
    with pytest.raises(UserError, match=r"step_2: the checkpoint could not be written \(rank 0: .*File too large") as e:
        saver.advance(writing=0, failed=1)
    assert e.value.every_rank and saver.wait() is None
    assert [path.name for path in layout.checkpoints_folder(tmp_path).iterdir()] == ["step_1"]


def test_metadata_that_cannot_be_written(tmp_path: Path) -> None:
    """Rank 0's thread fails when the ranks have written their parts: no step appears."""
    from megatron_kaiyuan.checkpoint.save import Saver

    saver = Saver()
    saver.begin(layout.step_folder(tmp_path, 2), state(torch.ones(5)), {})
    while saver.busy:
        pass
    with largest_file(100):
        assert saver.advance(0, 0) is None
        while saver.busy:
            pass
    with pytest.raises(UserError, match="step_2: the checkpoint could not be written"):
        saver.wait()
    assert list(layout.checkpoints_folder(tmp_path).iterdir()) == []


def test_room_is_asked_for_first(tmp_path: Path) -> None:
    from megatron_kaiyuan.checkpoint.save import require_room

    require_room(tmp_path / "step_1", 1000)
    with pytest.raises(UserError, match=r"step_1: the checkpoint needs [\d,]+\.\d MB, but [\d,]+\.\d MB are free"):
        require_room(tmp_path / "step_1", 1 << 60)
