"""`kaiyuan doctor`, from its first line to its exit code."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_kaiyuan import logs
from megatron_kaiyuan.cluster import Rank, discover
from megatron_kaiyuan.doctor import report
from megatron_kaiyuan.doctor.examination import Examination
from megatron_kaiyuan.doctor.health import examine_health
from megatron_kaiyuan.doctor.machine import examine_disks, examine_limits, examine_machine
from megatron_kaiyuan.doctor.names import examine_names
from megatron_kaiyuan.doctor.software import examine_kernels, examine_torch, examine_versions
from megatron_kaiyuan.doctor.trial_process import TrialProcess

if TYPE_CHECKING:
    from megatron_kaiyuan.platform import Platform

# An NPU of the first generation compiles every operator at its first call.
_SECONDS, _NPU_SECONDS = 120.0, 600.0
_LAUNCHERS = ("torchrun", "srun", "mpirun", "msrun")


def run_doctor(platform: str, run_dir: Path | None, timeout: float | None, as_json: bool) -> int:
    """Examine this rank and, with the others, what lies between them. Rank 0 prints for all.

    Args:
        platform: as in a recipe.
        run_dir: where a run will write, which all ranks have to see.
        timeout: seconds for the trial of the device, again to wait for missing ranks, and again for all collectives;
            None: as long as operators of such a device may have to be compiled first.

    Returns:
        1 when rank 0 knows of a problem of any rank, or this rank cannot tell it of its own; else 0.
    """
    if timeout is None:
        timeout = _NPU_SECONDS if may_be_npu(platform) else _SECONDS
    found = Examination()
    who = _who(found)
    if who.is_scheduler:
        return 0
    with TrialProcess(platform, who.local_rank, who.local_world_size or who.world_size) as trial:
        has_torch, device = _examine_alone(found, who, platform, run_dir, trial, timeout)
    if who.world_size == 1 or not has_torch:
        return report.print_report([found], who, as_json)
    from megatron_kaiyuan.doctor.together import examine_together

    # Ends the process: after a failed collective the interpreter's own cleanup may wait for ranks that are gone.
    examine_together(found, who, device, run_dir, timeout, as_json)


def may_be_npu(platform: str) -> bool:
    """Whether a platform's name can mean `npu` on this machine."""
    return platform == "npu" or (platform == "auto" and importlib.util.find_spec("torch_npu") is not None)


def _who(found: Examination) -> Rank:
    who = discover({})
    with found.part("launcher"):
        who = discover(os.environ)
        logs.set_rank(who.rank)
    found.facts["launcher"] = {
        "name": who.launcher,
        "rank": who.rank,
        "world_size": who.world_size,
        "available": [name for name in _LAUNCHERS if shutil.which(name)],
    }
    return who


def _examine_alone(
    found: Examination, who: Rank, name: str, run_dir: Path | None, trial: TrialProcess, timeout: float
) -> tuple[bool, Platform | None]:
    """What needs no other rank; whether torch can be used, and the platform if other ranks need it and it works."""
    has_torch, device = False, None
    with found.part("machine"):
        examine_machine(found)
    with found.part("limits"):
        examine_limits(found, who.world_size)
    with found.part("own name"):
        examine_names(found, who)
    with found.part("software"):
        examine_versions(found)
        has_torch = examine_torch(found)
    if has_torch:
        with found.part("platform"):
            works = trial.collect(found, timeout)
            if works and who.world_size > 1:
                device = _activate(name, who)
    if found.facts.get("platform", {}).get("name") == "npu":
        with found.part("HCCL"):
            _examine_hccl(found, who)
    if who.local_rank == 0:
        with found.part("health"):
            examine_health(found)
    with found.part("kernels"):
        examine_kernels(found)
    with found.part("disk"):
        has_devices = bool(found.facts.get("platform", {}).get("devices"))
        examine_disks(found, run_dir or Path.cwd(), has_devices)
    return has_torch, device


def _examine_hccl(found: Examination, who: Rank) -> None:
    from megatron_kaiyuan.cluster.hccl import notices

    nodes = who.world_size // (who.local_world_size or who.world_size)
    for line in notices(who.world_size, nodes):
        found.note(f"HCCL: {line}")


def _activate(name: str, who: Rank) -> Platform:
    from megatron_kaiyuan import platform

    return platform.activate(name, who.local_rank, who.local_world_size or who.world_size)
