"""Where runs are trained: cores, or devices that are counted without touching one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.research.queue import slots
from megatron_kaiyuan.research.queue.slots import find_platform, find_slots


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /dev, without a device."""
    monkeypatch.setattr(slots, "_DEVICES", tmp_path)
    for name in ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_one_a_core(devices: Path) -> None:
    assert find_slots("cpu") == [{}] * len(find_slots("cpu")) and 1 <= len(find_slots("cpu")) <= (os.cpu_count() or 1)
    assert find_slots("cpu", 5) == [{}] * 5


@pytest.mark.parametrize(
    ("platform", "variable", "files"),
    [
        ("cuda", "CUDA_VISIBLE_DEVICES", ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"]),
        ("npu", "ASCEND_RT_VISIBLE_DEVICES", ["davinci0", "davinci1", "davinci_manager"]),
    ],
)
def test_one_a_device(devices: Path, platform: str, variable: str, files: list[str]) -> None:
    with pytest.raises(UserError, match=f"no {platform} device was found; check {variable}"):
        find_slots(platform)
    assert find_platform({"auto"}) == "cpu"
    for name in files:
        (devices / name).touch()
    assert find_slots(platform, environ={}) == [{variable: "0"}, {variable: "1"}]
    # More runs than devices share them; what the job may use of them is what its environment says.
    assert find_slots(platform, 3, {}) == [{variable: "0"}, {variable: "1"}, {variable: "0"}]
    assert find_slots(platform, environ={variable: "3, MIG-5f"}) == [{variable: "3"}, {variable: "MIG-5f"}]
    assert find_platform({"auto"}) == platform
    with pytest.raises(UserError, match=r"no .* device"):
        find_slots(platform, environ={variable: ""})


def test_all_runs_of_a_list_are_for_one_platform(devices: Path) -> None:
    assert find_platform({"npu"}) == "npu"
    with pytest.raises(UserError, match="platforms auto and cpu; set one in all recipes"):
        find_platform({"cpu", "auto"})
