"""The trial of a device: what it says of one that computes wrongly, hangs, or ends the process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_kaiyuan import platform
from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.doctor.trial import overflow_seen, product_error, try_device, update_error
from megatron_kaiyuan.doctor.trial_process import TrialProcess
from megatron_kaiyuan.optim.adamw import AdamW
from megatron_kaiyuan.platform import Platform

CPU = torch.device("cpu")


@pytest.fixture
def device() -> Platform:
    return platform.activate("cpu")


def problems(device: Platform) -> list[str]:
    found = Examination()
    try_device(found, device, keep=lambda: None)
    return [one.message for one in found.findings if one.level == "problem"]


def test_a_cpu_is_well_and_parts_are_kept_before_they_begin(device: Platform) -> None:
    found, doing = Examination(), []
    try_device(found, device, keep=lambda: doing.append(found.doing))
    assert found.findings == [] and len(doing) == 4 and doing[0].startswith("a broadcast")
    assert found.facts["trial"]["collectives"] and found.facts["trial"]["adamw"] == "torch's fused kernel"
    assert set(found.facts["trial"]["product_errors"]) == {"fp32", "bf16", "fp16"}


def test_a_broadcast_that_fails(device: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.13's does on an NPU without a capability."""

    def broadcast(*_: object) -> None:
        raise TypeError("'NoneType' object is not subscriptable")

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    (line,) = problems(device)
    assert line.startswith("device: broadcast on one process fails ('NoneType' object is not subscriptable)")
    assert "every run would end at its start" in line


def test_products_that_are_wrong(device: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_kaiyuan.doctor.trial.product_error", lambda *_: float("nan"))
    lines = problems(device)
    assert [line.split(" are ")[0] for line in lines] == [
        f"device: products in {precision}" for precision in ("fp32", "bf16", "fp16")
    ]


def test_overflows_that_nobody_would_see(device: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that saturates, with a register that never rises, and one whose register never falls."""
    monkeypatch.setattr(device, "keeps_overflow", True)
    monkeypatch.setattr(device, "overflowed", lambda: False)
    unseen = problems(device)
    assert len(unseen) == 3 and all("the device's float status should" in line for line in unseen)
    assert unseen[0].startswith("device: exp(12) in FP16 leaves inf and nothing that tells of the overflow")
    monkeypatch.setattr(device, "overflowed", lambda: True)
    stuck = problems(device)
    assert "says overflow where nothing overflowed: every step would be skipped" in stuck[0]
    assert "stays set after it was cleared" in stuck[1]


def test_an_update_that_is_wrong(device: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(AdamW):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            return

    monkeypatch.setattr("megatron_kaiyuan.optim.adamw.AdamW", Lazy)
    (line,) = problems(device)
    assert "an update by AdamW (torch's fused kernel) is off by 1.0e+00 of its size" in line


def test_measures_against_numbers_by_hand(device: Platform) -> None:
    one = torch.tensor([[1.0, 1e-4]])
    # 1 + 1e-8 in FP64, and 1 in FP32.
    assert product_error(one, one.T, torch.float32, CPU) == pytest.approx(1e-8, rel=0.01)
    seen, left = overflow_seen(device, lambda place: torch.tensor([65504.0], dtype=torch.float16, device=place) * 2)
    assert seen and left == float("inf")
    assert not overflow_seen(device, lambda place: torch.ones(1, device=place))[0]
    half_as_far = update_error(CPU, lambda params: Slow(params))
    assert 0.3 < half_as_far < 0.7


class Slow(torch.optim.AdamW):
    """Half of each update."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["lr"] /= 2
        super().step()
        for group in self.param_groups:
            group["lr"] *= 2


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "was ended by SIGSEGV in the start of the platform",
        ),
        ("import time; time.sleep(600)", "did not end within"),
        ("raise OSError('libascendcl.so: cannot open')", "(libascendcl.so: cannot open)"),
    ],
    ids=["crash", "hang", "error"],
)
def test_a_driver_that_ends_or_stops_its_process(
    fault: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch_npu.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = Examination()
    began = time.monotonic()
    with TrialProcess("npu", 0, 1) as trial:
        works = trial.collect(found, 10.0 if "sleep" in fault else 120.0)
    assert not works and time.monotonic() - began < 125
    (finding,) = found.findings
    assert finding.level == "problem" and expected in finding.message and "\n" not in finding.message
    json.dumps(found.as_json(), allow_nan=False)
