"""Ranks that end with a chosen exit code in the place of training, under any launcher."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.processes.launched import ROOT

# Python imports it at the start of every process. The last rank ends; the other waits, as in a collective.
_PROGRAM = """
import os, resource, signal, time

def _rank():
    words = open("/proc/self/cmdline").read().split("\\0")
    if "train" not in words or "--check" in words or os.environ.get("MS_ROLE") == "MS_SCHED":
        return None
    if any(name in word for word in words for name in ("first_failure", "cluster.torchrun", "cluster.parent")):
        return None
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "RANK_ID", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), None)

rank, code = _rank(), int(os.environ.get("KAIYUAN_TEST_CODE", "0"))
if rank is not None:
    if code == 0:
        os._exit(0)
    if rank == "0":
        time.sleep(600)
    # So that the other one is there.
    time.sleep(2)
    if code < 128:
        os._exit(code)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(code - 128, signal.SIG_DFL) if code != 137 else None
    os.kill(os.getpid(), code - 128)
    time.sleep(600)
"""


def ill_ranks(folder: Path, code: int) -> dict[str, str]:
    """Write the program; the environment in which the last of two ranks ends with this code, as shells count it."""
    (folder / "sitecustomize.py").write_text(_PROGRAM)
    return {"PYTHONPATH": f"{folder}:{ROOT}", "KAIYUAN_TEST_CODE": str(code)}
