"""Where runs are trained at the same time: one a CPU core, or one a device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from megatron_kaiyuan.errors import UserError
from megatron_kaiyuan.platform.cores import cores_for_rank

# Of the process that forks runs: one thread a run, and libraries' own threads would make its forks unsafe.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# What chooses the devices that a process sees.
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}
# One file a device, from which they are counted without touching any: a process that has touched one cannot be forked.
_DEVICES = Path("/dev")
_DEVICE_FILES = {"cuda": "nvidia[0-9]*", "npu": "davinci[0-9]*"}


def find_platform(wanted: set[str]) -> str:
    """The platform of all runs of a list: `cpu`, `cuda` or `npu`.

    Args:
        wanted: what their recipes say; `auto` is the first accelerator that is there.

    Raises:
        UserError: they say different things.
    """
    if len(wanted) > 1:
        raise UserError(f"queue: the runs are for platforms {' and '.join(sorted(wanted))}; set one in all recipes")
    (name,) = wanted
    if name != "auto":
        return name
    return next((kind for kind in _DEVICE_FILES if _devices(kind, os.environ)), "cpu")


def find_slots(
    platform: str, count: int | None = None, environ: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """Variables for each of the runs that are trained at the same time.

    Args:
        count: so many; None: one a core on the platform `cpu`, else one a device. More than there are devices share
            them.

    Raises:
        UserError: there is no such device.
    """
    if platform == "cpu":
        return [{} for _ in range(count or _cores(environ))]
    devices = _devices(platform, environ)
    if not devices:
        raise UserError(f"queue: no {platform} device was found; check {_VISIBLE[platform]}, or set platform=cpu")
    return [{_VISIBLE[platform]: devices[slot % len(devices)]} for slot in range(count or len(devices))]


def _cores(environ: Mapping[str, str]) -> int:
    """Cores that this process may use: what it is bound to, and no more than Slurm has given, bound or not."""
    given = environ.get("SLURM_CPUS_ON_NODE", "")
    return min(cores_for_rank(1), int(given)) if given.isdigit() and int(given) else cores_for_rank(1)


def _devices(platform: str, environ: Mapping[str, str]) -> list[str]:
    if platform not in _VISIBLE:
        return []
    visible = environ.get(_VISIBLE[platform])
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    return [str(number) for number in range(len(list(_DEVICES.glob(_DEVICE_FILES[platform]))))]
