"""How many threads a rank of the CPU platform starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_kaiyuan.platform.cores import cores_for_rank, cpu_quota, share


@pytest.mark.parametrize(
    ("own", "launcher", "quota", "ranks", "expected"),
    [
        (64, 64, None, 1, 64),  # alone
        (64, 64, None, 8, 8),  # nobody bound the ranks
        (8, 64, None, 8, 8),  # the launcher bound each rank to cores of its own
        (32, 64, None, 8, 8),  # it bound four ranks to each of two sockets
        (4, 4, None, 2, 2),  # the whole job has only some of the machine's cores
        (64, 64, 6.5, 2, 3),  # a container with a limit
        (2, 2, 0.5, 1, 1),
        (2, 2, None, 5, 1),  # never less than one
    ],
)
def test_ranks_share_what_there_is(own: int, launcher: int, quota: float | None, ranks: int, expected: int) -> None:
    assert share(own, launcher, quota, ranks) == expected


def test_the_affinity_mask_counts() -> None:
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert cores_for_rank(1) == 1
    finally:
        os.sched_setaffinity(0, mask)
    assert cores_for_rank(len(mask)) == 1


def cgroups(folder: Path, files: dict[str, str], membership: str) -> float | None:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "self").write_text(membership)
    return cpu_quota(folder / "cgroup", folder / "self")


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({"job/cpu.max": "max 100000\n"}, "0::/job\n", None),
        ({"job/cpu.max": "150000 100000\n"}, "0::/job\n", 1.5),
        ({"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "max 100000\n"}, "0::/job/step\n", 4.0),
        ({"cpu.max": "200000 100000\n"}, "0::/not/visible/in/this/container\n", 2.0),
        (
            {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n",
            3.0,
        ),
        (
            {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/job\n3:cpuset:/\n",
            None,
        ),
        ({}, "", None),
    ],
)
def test_limits_of_control_groups(
    files: dict[str, str], membership: str, expected: float | None, tmp_path: Path
) -> None:
    assert cgroups(tmp_path, files, membership) == expected


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "self") is None
