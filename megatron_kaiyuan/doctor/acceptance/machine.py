"""What the machine is: devices, versions, and how its devices compute."""

from __future__ import annotations

import importlib
import platform as system
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_kaiyuan.doctor.acceptance.check import CheckFailed, Context

_PACKAGES = ("torch", "torch-npu", "megatron-core", "numpy", "mindspeed", "transformer-engine", "triton")
# Where Huawei's installers leave what they installed.
_INSTALLED = (
    ("CANN", "/usr/local/Ascend/cann*/*/ascend_*_install.info"),
    ("CANN", "/usr/local/Ascend/ascend-toolkit/latest/*/ascend_*_install.info"),
    ("driver", "/usr/local/Ascend/driver/version.info"),
    ("firmware", "/usr/local/Ascend/firmware/version.info"),
)
_SHOWS = {"npu": ("npu-smi", "info"), "cuda": ("nvidia-smi",)}


def devices(context: Context) -> tuple[str, dict[str, Any]]:
    """All devices, by the names that their driver gives; printed: what the driver's own tool shows."""
    platform = context.activate()
    names = platform.device_names()
    if command := _SHOWS.get(platform.name):
        _show(*command)
    found = {"platform": platform.name, "devices": len(names)}
    if platform.name == "cpu":
        return f"none: {system.machine()}, 2 processes", found
    kinds = list(dict.fromkeys(names))
    if len(kinds) > 1:
        raise CheckFailed(f"devices of several kinds: {', '.join(kinds)}; training needs one")
    return f"{len(names)} x {kinds[0]}", found


def versions(context: Context) -> str:
    """Packages, and for NPUs what CANN, driver and firmware say of themselves."""
    found = {"Python": system.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if context.platform == "npu":
        found |= _of_ascend()
        _require_one_version(found)
    return ", ".join(f"{name} {value}" for name, value in found.items())


def modes(context: Context) -> str:
    """Of a chip of the first generation: no BF16, and saturation. Later ones have BF16 and infinities."""
    context.require("npu", because="its devices have BF16 and infinities")
    platform = context.activate()
    from megatron_kaiyuan.platform.ascend import Chip

    torch_npu = importlib.import_module("torch_npu")
    chip = Chip(platform.device_name())
    bf16, infinities = torch_npu.npu.is_bf16_supported(), torch_npu.npu.utils.is_support_inf_nan()
    figure = f"{chip.name}: is_bf16_supported {bf16}, is_support_inf_nan {infinities}"
    if (bf16, infinities) != 2 * (not chip.first_generation,):
        raise CheckFailed(f"{figure}; both should be {not chip.first_generation} (INF_NAN_MODE_ENABLE?)")
    return figure


def _of_ascend() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, pattern in _INSTALLED:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            text = path.read_text(errors="replace")
            print(f"{path}:\n{text}")
            if match := re.search(r"^version\s*=\s*(\S+)", text, re.IGNORECASE | re.MULTILINE):
                found.setdefault(name, match[1])
    return found


def _require_one_version(found: dict[str, str]) -> None:
    torch, torch_npu = (found.get(name, "none").partition("+")[0] for name in ("torch", "torch-npu"))
    if torch_npu.partition(".post")[0] != torch:
        raise CheckFailed(f"torch {torch} with torch-npu {torch_npu}: they have to be of one version")


def _show(*command: str) -> None:
    if shutil.which(command[0]) is None:
        print(f"{command[0]}: not found")
        return
    print(f"$ {' '.join(command)}", flush=True)
    subprocess.run(command, check=False, timeout=60)
