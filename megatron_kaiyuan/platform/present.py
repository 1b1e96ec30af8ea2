"""Accelerators of this node as its drivers and its scheduler list them, whether this process may use them or not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_kaiyuan.platform.base import NoDevice

_VISIBLE = "CUDA_VISIBLE_DEVICES"
# What users and schedulers write for no device.
_NOTHING = ("", "-1", "NoDevFiles", "void")
# Of torchrun, and of our launchers that start the ranks themselves (`cluster/parent.py`).
_SHARED = {"TORCHELASTIC_RUN_ID", "KAIYUAN_PARENT"}
_WORDS = {"cuda": "GPU", "npu": "NPU"}
_NVIDIA_SMI_SECONDS = 30


@dataclass(frozen=True)
class Present:
    """Accelerators of one kind on this node.

    Attributes:
        platform: `cuda` or `npu`.
        source: where they are listed.
    """

    platform: str
    count: int
    source: str


def accelerators(environ: Mapping[str, str], root: Path = Path("/")) -> Present | None:
    """Return the accelerators of this node; None where there are none.

    Args:
        root: of the file system, for /proc and /dev.
    """
    for platform, folder, form in (
        ("cuda", "proc/driver/nvidia/gpus", r"[0-9a-f:.]+"),
        ("cuda", "dev", r"nvidia\d+"),
        ("npu", "dev", r"davinci\d+"),
    ):
        if count := _entries(root / folder, form):
            return Present(platform, count, f"/{folder}")
    if count := _given_by_slurm(environ):
        return Present("cuda", count, "SLURM_JOB_GPUS")
    # Windows' subsystem for Linux has GPUs without these files.
    if count := _named_by_nvidia_smi():
        return Present("cuda", count, "nvidia-smi")
    return None


def for_own_tasks(environ: Mapping[str, str], platform: str, root: Path = Path("/")) -> int:
    """Return how many accelerators the ranks of this node have together, where each may see its own ones only.

    0 under torchrun and launch/mpirun.sh, whose ranks share one environment: fewer visible devices than ranks are a
    mistake there.
    """
    if _SHARED & environ.keys():
        return 0
    if platform == "cuda" and "SLURM_STEP_GPUS" in environ:
        return _given_by_slurm(environ)
    found = accelerators(environ, root)
    return found.count if found is not None and found.platform == platform else 0


def hidden(present: Present, environ: Mapping[str, str], has_cuda: bool = True) -> NoDevice:
    """Return the error of a process that sees none of the accelerators that its node has.

    Args:
        has_cuda: this torch was built with CUDA.
    """
    what = f"{present.count} {_WORDS[present.platform]}{'s' if present.count > 1 else ''} ({present.source})"
    return NoDevice(
        f"platform: this node has {what} and this process sees none: {_reason(present, environ, has_cuda)}; or set "
        "platform=cpu to train on the processor",
        whole_node=True,
    )


def _reason(present: Present, environ: Mapping[str, str], has_cuda: bool) -> str:
    if present.platform == "npu":
        return "install the torch_npu of torch's version, and source CANN's set_env.sh"
    # The tasks of a step get no variable at all where the step was given no GPU.
    if "SLURM_STEP_ID" in environ and "SLURM_STEP_GPUS" not in environ:
        if "SLURM_JOB_GPUS" in environ:
            return "the job has them and srun's step does not; give srun --gpus-per-node, as launch/slurm.sbatch does"
        return "the Slurm job asked for none; submit it with --gpus-per-node"
    if environ.get(_VISIBLE) in _NOTHING:
        return f"{_VISIBLE}={environ[_VISIBLE]!r} hides them; unset it"
    if not has_cuda:
        return "this torch was built without CUDA; install one with CUDA, as launch/setup_env.sh does"
    return f"ask the scheduler or the container for them, see whether nvidia-smi works, and check {_VISIBLE}"


def _entries(folder: Path, form: str) -> int:
    try:
        return sum(re.fullmatch(form, entry.name) is not None for entry in folder.iterdir())
    except OSError:
        return 0


def _given_by_slurm(environ: Mapping[str, str]) -> int:
    """Return the GPUs of this job on this node; a list of them is one of a task where each has its own."""
    given = environ.get("SLURM_JOB_GPUS") or environ.get("SLURM_STEP_GPUS", "")
    together = environ.get("SLURM_GPUS_ON_NODE", "")
    return int(together) if together.isdigit() else len([one for one in given.split(",") if one])


def _named_by_nvidia_smi() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return len(re.findall(r"^GPU ", done.stdout, re.MULTILINE))
