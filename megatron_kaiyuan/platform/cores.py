"""How many cores one of several ranks on a node may keep busy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cores_for_rank(local_world_size: int) -> int:
    """This rank's share of what its affinity mask, its launcher's mask and its control groups leave.

    Args:
        local_world_size: ranks on this node.
    """
    own, launcher = len(os.sched_getaffinity(0)), len(os.sched_getaffinity(os.getppid()))
    return share(own, launcher, cpu_quota(), local_world_size)


def share(own: int, launcher: int, quota: float | None, ranks: int) -> int:
    """Cores for one rank, at least one.

    Args:
        own: cores in this process's affinity mask.
        launcher: cores in the mask of the process that started it. Larger than `own` when the launcher bound each
            rank to cores of its own: those are not divided once more.
        quota: CPU time a second that all ranks of the node share, in cores.
    """
    together = launcher if quota is None else min(launcher, math.floor(quota))
    return max(1, min(own, together // ranks))


def cpu_quota(control_groups: Path = _CONTROL_GROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """CPU time a second that the control groups of this process grant, in cores; None: no limit.

    A limit of any group above counts too. Sources: Linux's cgroup-v2 (`cpu.max`) and sched-bwc (version 1:
    `cpu.cfs_quota_us`, `cpu.cfs_period_us`) documents, and cgroups(7) for the file of memberships.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            quotas += [_quota(folder, "cpu.max") for folder in _upwards(control_groups, group)]
        elif "cpu" in controllers.split(","):
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quotas += [_quota(folder, *files) for folder in _upwards(control_groups / "cpu", group)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """The folders of a group and of those above it. In a container the group's own folder may not be visible."""
    folder = mount / group.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _quota(folder: Path, *files: str) -> float | None:
    try:
        quota, period = " ".join((folder / name).read_text() for name in files).split()
    except (OSError, ValueError):
        return None
    # No limit is `max` in version 2 and -1 in version 1.
    return int(quota) / int(period) if quota.isdigit() else None
