"""The machine without its devices: cores, memory, limits, room on disks. Needs no torch."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import uuid
from pathlib import Path

import psutil

from megatron_kaiyuan.doctor.examination import Examination

_GIB = 1 << 30
# A rank keeps open: two or three files a corpus, and in each of its groups a connection to every other rank.
_FILES, _FILES_PER_RANK = 1024, 16
# Below this no checkpoint of a serious model fits, and logs soon do not either.
_DISK_BYTES = 5 * _GIB
# What NVIDIA's documentation of NCCL asks containers for.
_SHARED_MEMORY_BYTES = 1 * _GIB
_INFINIBAND = Path("/sys/class/infiniband")


def examine_machine(found: Examination) -> None:
    """Host, cores and memory that this process may use."""
    memory = psutil.virtual_memory()
    found.facts["machine"] = {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": min(memory.total, _container_limit()),
        "available_bytes": memory.available,
    }


def examine_limits(found: Examination, world_size: int) -> None:
    """What a process may open and lock."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found.facts["limits"] = {"open_files": _limit(files), "locked_memory_bytes": _limit(locked)}
    needed = max(_FILES, _FILES_PER_RANK * world_size)
    if files != resource.RLIM_INFINITY and files < needed:
        found.problem(f"open files: {files} at most, {needed} are needed here; raise it (ulimit -n {needed})")
    if locked != resource.RLIM_INFINITY and _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()):
        found.problem(
            f"locked memory: {locked >> 10} KiB at most, but InfiniBand locks its buffers; set ulimit -l unlimited "
            "(in a container --ulimit memlock=-1)"
        )


def examine_disks(found: Examination, folder: Path, has_devices: bool) -> None:
    """Room where a run will be, and in shared memory, which NCCL and HCCL use inside a host.

    Args:
        folder: of the run; need not exist.
    """
    parent = existing(folder)
    free = shutil.disk_usage(parent).free
    found.facts["disk"] = {"folder": str(parent), "free_bytes": free}
    if free < _DISK_BYTES:
        found.problem(f"disk: {free / _GIB:.1f} GiB free at {parent}; make room, or put run_dir elsewhere")
    trial = parent / f".doctor-{uuid.uuid4().hex}"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        found.problem(f"disk: {parent} cannot be written ({error.strerror}); choose a run_dir that can")
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        found.facts["shared_memory"] = {"total_bytes": usage.total, "free_bytes": usage.free}
        if has_devices and usage.free < _SHARED_MEMORY_BYTES:
            found.problem(
                f"/dev/shm: {usage.free / _GIB:.2f} GiB free, too little between devices of one host; start the "
                "container with --shm-size=1g or --ipc=host"
            )


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _container_limit() -> int:
    """Bytes of memory that the control group grants (version 2); without one, more than any machine has."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return 1 << 62


def _limit(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value
