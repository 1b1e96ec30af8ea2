"""Accelerators of a node that is a folder: what drivers and Slurm list."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_kaiyuan.platform.present import Present, accelerators, for_own_tasks


def node(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@pytest.mark.parametrize(
    ("paths", "environ", "expected"),
    [
        ((), {}, None),
        (("dev/null", "dev/nvidiactl", "dev/nvidia-uvm", "dev/davinci_manager"), {}, None),
        (
            ("proc/driver/nvidia/gpus/0000:17:00.0", "proc/driver/nvidia/gpus/0000:2a:00.0", "dev/nvidia0"),
            {},
            Present("cuda", 2, "/proc/driver/nvidia/gpus"),
        ),
        (("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl"), {}, Present("cuda", 2, "/dev")),
        (("dev/davinci0", "dev/davinci7", "dev/davinci_manager"), {}, Present("npu", 2, "/dev")),
        ((), {"SLURM_JOB_GPUS": "0,1,2,3"}, Present("cuda", 4, "SLURM_JOB_GPUS")),
        ((), {"SLURM_STEP_GPUS": "3", "SLURM_GPUS_ON_NODE": "4"}, Present("cuda", 4, "SLURM_JOB_GPUS")),
        ((), {"SLURM_JOB_GPUS": "", "SLURM_GPUS_ON_NODE": ""}, None),
    ],
)
def test_accelerators(
    paths: tuple[str, ...],
    environ: dict[str, str],
    expected: Present | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert accelerators(environ, node(tmp_path, *paths)) == expected


def test_nvidia_smi_where_there_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)'\necho '  MIG 1g.5gb'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert accelerators({}, tmp_path) == Present("cuda", 1, "nvidia-smi")
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'\nexit 9\n")
    assert accelerators({}, tmp_path) is None


def test_devices_of_all_ranks_together(tmp_path: Path) -> None:
    root = node(tmp_path, "dev/nvidia0", "dev/nvidia1", "dev/nvidia2", "dev/nvidia3")
    assert for_own_tasks({}, "cuda", root) == 4 and for_own_tasks({}, "npu", root) == 0
    assert for_own_tasks({"SLURM_STEP_GPUS": "1", "SLURM_GPUS_ON_NODE": "2"}, "cuda", root) == 2
    for shared in ("TORCHELASTIC_RUN_ID", "KAIYUAN_PARENT"):
        assert for_own_tasks({shared: "0"}, "cuda", root) == 0
