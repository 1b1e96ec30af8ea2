"""Memory, speed and links of devices, and which kernels torch has there: what planning needs to know of a machine.

Memory is what torch shows as the device's total, which is less than the name says. Peaks are dense. Links are one
direction of one device, as the maker gives them.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from typing import Any

from megatron_kaiyuan.errors import UserError

GIB = 1 << 30

# 61 days of 992 devices, 105 restarts.
_OPT = "OPT-175B, arXiv 2205.01068: 35 manual and about 70 automatic restarts in two months of 992 A100s"


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Attributes:
        memory_gib: GiB that a process can reach; None: a share of this machine's memory.
        half_tflops: peak of matrix products in FP16 or BF16, 1e12 FLOP/s; None: unknown.
        fp32_tflops: the same in FP32.
        memory_gb_per_second: 1e9 bytes/s of its memory; None: unknown.
        node_gb_per_second: 1e9 bytes/s to another device of the same node.
        network_gb_per_second: 1e9 bytes/s to another node.
        per_node: devices of a node.
        fused_attention: torch has an attention that does not keep the scores of all pairs of tokens.
        source: of the figures.
        assumed_mfu: part of the peak that matrix products reach; memory traffic and waiting take time besides.
        time_spread: what a step took of the planned time in published runs, the least and the most.
        mfu_source: where both are from (`benchmarks/published_runs.py`).
        hours_between_failures: of one device with its share of node and network, in a run that every failure ends.
        failures_source: where that is from.
        precisions: values of `train.precision` that it computes in.
        reported_as: names that the driver gives to devices with these peaks, letter for letter: others of the same
            family (H100 PCIe) are slower.
    """

    name: str
    platform: str
    memory_gib: float | None
    half_tflops: float | None
    fp32_tflops: float | None
    memory_gb_per_second: float | None
    node_gb_per_second: float | None
    network_gb_per_second: float | None
    per_node: int
    fused_attention: bool
    source: str
    assumed_mfu: float = 0.56
    time_spread: tuple[float, float] = (0.6, 1.95)
    mfu_source: str = "no published run on it; between the 38 on others"
    hours_between_failures: float = 13_800
    failures_source: str = _OPT
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    reported_as: tuple[str, ...] = ()

    def peak_tflops(self, precision: str) -> float | None:
        """Peak of matrix products in a recipe's `train.precision`, 1e12 FLOP/s."""
        return self.fp32_tflops if precision == "fp32" else self.half_tflops

    def memory_bytes(self, processes: int) -> int:
        """What one of so many processes may use; on a CPU they share this machine's memory."""
        if self.memory_gib is not None:
            return int(self.memory_gib * GIB)
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes


# Of each kind the value that is least wrong, as a ratio, for all of its runs; an H200 multiplies as fast as an H100.
_H100: dict[str, Any] = {
    "assumed_mfu": 0.40,
    "time_spread": (0.8, 1.25),
    "mfu_source": "16 published runs on H100s",
    # 54 days of 16,384 devices, 419 interruptions.
    "hours_between_failures": 50_700,
    "failures_source": "Llama 3, arXiv 2407.21783: 419 interruptions in 54 days of 16,384 H100s",
}

DEVICES = {
    device.name: device
    for device in (
        Device(
            name="h100",
            platform="cuda",
            memory_gib=79.1,
            half_tflops=989.4,
            fp32_tflops=66.9,
            memory_gb_per_second=3350,
            node_gb_per_second=450,
            network_gb_per_second=50,
            per_node=8,
            fused_attention=True,
            source="NVIDIA H100 data sheet (SXM5 80 GB); network of DGX H100, 400 Gb/s a GPU",
            **_H100,
            reported_as=("NVIDIA H100 80GB HBM3",),
        ),
        Device(
            name="h200",
            platform="cuda",
            memory_gib=139.8,
            half_tflops=989.4,
            fp32_tflops=66.9,
            memory_gb_per_second=4800,
            node_gb_per_second=450,
            network_gb_per_second=50,
            per_node=8,
            fused_attention=True,
            source="NVIDIA H200 data sheet (SXM 141 GB); network of DGX H200, 400 Gb/s a GPU",
            # This project's own run on one, alone, took 0.69 of the planned time (benchmarks/results/train_step.txt).
            **_H100 | {"time_spread": (0.65, 1.25), "mfu_source": "16 published runs on H100s, and ours on one H200"},
            reported_as=("NVIDIA H200",),
        ),
        Device(
            name="a100",
            platform="cuda",
            memory_gib=79.1,
            half_tflops=312,
            fp32_tflops=19.5,
            memory_gb_per_second=2039,
            node_gb_per_second=300,
            network_gb_per_second=25,
            per_node=8,
            fused_attention=True,
            source="NVIDIA A100 data sheet (SXM4 80 GB); network of DGX A100, 200 Gb/s a GPU",
            assumed_mfu=0.62,
            time_spread=(0.85, 1.2),
            mfu_source="17 published runs on A100s",
            reported_as=(
                *("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB"),
                *("NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB"),
            ),
        ),
        Device(
            name="910a",
            platform="npu",
            memory_gib=32,
            half_tflops=256,
            fp32_tflops=None,
            memory_gb_per_second=1200,
            # Three links of 240 Gb/s in a group of four; a ring over eight devices has one.
            node_gb_per_second=30,
            network_gb_per_second=12.5,
            per_node=8,
            fused_attention=False,
            source="Huawei, Ascend 910 at Hot Chips 2019 and Atlas 900 (32 GB, 100 Gb/s RoCE a device)",
            precisions=("fp32", "fp16"),
            # Huawei gives no figures for its relatives: in Ascend910B (no digit) and ProB two of 32 cores are off, and
            # Pro and Premium are faster (CANN's guides of atc --soc_version, names of its cost models).
            reported_as=("Ascend910A",),
        ),
        Device(
            name="910b",
            platform="npu",
            memory_gib=60.9,
            half_tflops=313,
            fp32_tflops=None,
            memory_gb_per_second=1600,
            node_gb_per_second=196,
            network_gb_per_second=25,
            per_node=8,
            fused_attention=True,
            source="Ascend 910B3 (64 GB), second-hand: users' reports, no data sheet of Huawei's",
            assumed_mfu=0.71,
            time_spread=(0.75, 1.3),
            mfu_source="5 published runs on Atlas A2s, which kind of 910B is not said",
            reported_as=("Ascend910B3",),
        ),
        Device(
            name="cpu",
            platform="cpu",
            memory_gib=None,
            half_tflops=None,
            fp32_tflops=None,
            memory_gb_per_second=None,
            node_gb_per_second=None,
            network_gb_per_second=None,
            per_node=1,
            fused_attention=True,
            source="this machine's memory, shared by the processes",
        ),
    )
}


def device_reported_as(name: str) -> Device | None:
    """The device that a driver calls so; None where the table does not have it."""
    return next((device for device in DEVICES.values() if name in device.reported_as), None)


def device_named(name: str, memory_gib: float | None = None, peak_tflops: float | None = None) -> Device:
    """The device of that name, the table's or its driver's, with figures given by hand in place of the table's.

    A name that the table does not have needs both figures, and is taken for a GPU of NVIDIA's without known links.

    Raises:
        UserError: the name is unknown and a figure is missing.
    """
    given: dict[str, Any] = {}
    if memory_gib is not None:
        given["memory_gib"] = memory_gib
    if peak_tflops is not None:
        given |= {"half_tflops": peak_tflops, "fp32_tflops": peak_tflops}
    if given:
        given["source"] = "given by hand"
    known = DEVICES.get(name.lower()) or device_reported_as(name)
    if known is not None:
        return replace(known, **given)
    if memory_gib is None or peak_tflops is None:
        near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"--gpu {name!r} is unknown; {hint}known: {', '.join(DEVICES)}; for any other give both --gpu-memory-gib "
            "and --peak-tflops (dense, in the recipe's precision)"
        )
    # An NVIDIA GPU whose links are not known, nor any run on it.
    h100 = DEVICES["h100"]
    return Device(
        name=name,
        platform=h100.platform,
        memory_gb_per_second=None,
        node_gb_per_second=None,
        network_gb_per_second=None,
        per_node=h100.per_node,
        fused_attention=h100.fused_attention,
        **given,
    )
