"""What is read of drivers' tools: recorded outputs of healthy devices, the same with faults, and tools that fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.doctor.health import (
    examine_health,
    npu_ecc_problems,
    npu_problems,
    nvidia_problems,
    xid_problems,
)

RECORDED = Path(__file__).with_name("driver_output")


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


@pytest.mark.parametrize("name", ["nvidia_smi_l4.xml", "nvidia_smi_laptop.xml"])
def test_healthy_gpus(name: str) -> None:
    assert list(nvidia_problems(recorded(name))) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("<dram_uncorrectable>0", "<dram_uncorrectable>2", "2 uncorrectable memory errors since its driver was loaded"),
        ("<remapped_row_pending>No", "<remapped_row_pending>Yes", "remapped_row_pending is Yes; reset the GPU"),
        ("<remapped_row_failure>No", "<remapped_row_failure>Yes", "remapped_row_failure is Yes"),
        ("<sram_threshold_exceeded>No", "<sram_threshold_exceeded>Yes", "sram_threshold_exceeded is Yes"),
        ("<reset_required>No", "<reset_required>Yes", "reset_required is Yes"),
        ("<current_link_width>16x", "<current_link_width>8x", "its PCIe link has 8x lanes of 16x"),
        ("hw_thermal_slowdown>Not Active", "hw_thermal_slowdown>Active", "slowed down by the hardware (hw_thermal"),
        ("<state>N/A", "<state>In Progress", "NVLink fabric is In Progress"),
        ("<bandwidth>N/A", "<bandwidth>Degraded", "bandwidth is Degraded"),
    ],
)
def test_a_fault_of_a_gpu(right: str, wrong: str, said: str) -> None:
    text = recorded("nvidia_smi_l4.xml")
    assert right in text
    (problem,) = nvidia_problems(text.replace(right, wrong, 1))
    assert problem.startswith("GPU 00000000:01:00.0 (NVIDIA L4): ") and said in problem


def test_a_recovery_that_newer_drivers_ask_for() -> None:
    text = recorded("nvidia_smi_laptop.xml").replace("action>None<", "action>Drain and Reset<")
    (problem,) = nvidia_problems(text)
    assert "gpu_recovery_action is Drain and Reset" in problem


def test_errors_of_the_kernels_log() -> None:
    log = (
        "[   10.000000] NVRM: Xid (PCI:0000:01:00): 79, pid=1122, GPU has fallen off the bus.\n"
        "[100000.500000] NVRM: Xid (PCI:0000:00:06): 31, pid=79749, name=exe, Ch 0000000a, intr 00000000. MMU Fault\n"
        "[100001.500000] NVRM: Xid (PCI:0000:23:00): 79, GPU has fallen off the bus.\n"
        "[100002.500000] NVRM: Xid (PCI:0000:23:00): 79, GPU has fallen off the bus.\n"
    )
    (problem,) = xid_problems(log, 100_100.0)
    assert problem.startswith("GPU 0000:23:00: Xid 79 2 times within a day, the GPU has fallen off the bus")
    assert len(list(xid_problems(log, 50_000.0))) == 2, "31 is a program's error"


def test_npus() -> None:
    text = recorded("npu_smi_info.txt")
    assert list(npu_problems(text)) == []
    ill = text.replace("| 1     910B3               | OK   ", "| 1     910B3               | Alarm")
    assert list(npu_problems(ill)) == ["NPU 1 (910B3): health is Alarm; see npu-smi info -t health -i 1 -c 0"]
    ecc = recorded("npu_smi_ecc.txt")
    assert list(npu_ecc_problems(ecc)) == []
    wrong = ecc.replace("Double Bit Error Count               : 0", "Double Bit Error Count : 3")
    (problem,) = npu_ecc_problems(wrong)
    assert problem.startswith("NPU 0: HBM Double Bit Error Count is 3")
    corrected = ecc.replace("Single Bit Error Count               : 0", "Single Bit Error Count : 3")
    assert list(npu_ecc_problems(corrected)) == [] and corrected != ecc


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error'; exit 15", "exit code 15"),
        ("exec sleep 60", "did not answer within 0.5 s: a device or its driver hangs"),
        ("echo nonsense", "prints no XML"),
    ],
)
def test_a_tool_that_fails_is_the_nodes(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "nvidia-smi", script)
    tool(tmp_path, "dmesg", "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr("megatron_kaiyuan.doctor.health._SECONDS", 0.5)
    found = Examination()
    examine_health(found)
    (finding,) = found.findings
    assert said in finding.message and finding.of_node and finding.level == "problem"


def test_npus_are_asked_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(
        tmp_path,
        "npu-smi",
        f'if [ "$2" = -t ]; then sed "s/NPU ID .*: 0/NPU ID : $5/; s/Double Bit Error Count .*: 0/Double Bit Error '
        f'Count : $5/" {RECORDED}/npu_smi_ecc.txt; else cat {RECORDED}/npu_smi_info.txt; fi',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    found = Examination()
    examine_health(found)
    assert [one.message.partition(";")[0] for one in found.findings] == [
        "health: NPU 1: HBM Double Bit Error Count is 1",
        "health: NPU 2: HBM Double Bit Error Count is 2",
    ]
