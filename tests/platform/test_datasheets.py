"""The table of devices by the names that drivers give them."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_kaiyuan.platform.ascend import FIRST_GENERATION
from megatron_kaiyuan.platform.datasheets import DEVICES, device_named, device_reported_as


@pytest.mark.parametrize(
    ("reported", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp32", 66.9),
        ("NVIDIA H200", "fp16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("Ascend910A", "fp16", 256),
        ("Ascend910A", "fp32", None),
        ("Ascend910B3", "bf16", 313),
    ],
)
def test_peaks_of_known_devices(reported: str, precision: str, peak: float | None) -> None:
    device = device_reported_as(reported)
    assert device is not None and device.peak_tflops(precision) == peak


@pytest.mark.parametrize(
    "reported",
    [
        *("NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA L4", "Ascend910B1", "cpu", ""),
        *(name for name in FIRST_GENERATION if name != "Ascend910A"),
    ],
)
def test_relatives_with_other_peaks_are_not_taken_for_them(reported: str) -> None:
    assert device_reported_as(reported) is None


def test_a_name_is_one_device() -> None:
    names = Counter(name for device in DEVICES.values() for name in device.reported_as)
    assert set(names.values()) == {1}


def test_a_device_by_its_drivers_name() -> None:
    """As doctor prints it."""
    assert device_named("Ascend910A") == device_named("910a")
    assert device_named("NVIDIA H200").name == "h200"
