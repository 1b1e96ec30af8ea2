"""Ranks on the cores of a NUMA node: that of their GPU, or their share of the nodes where they train on processors.

Memory is taken where the thread that first writes it runs. A rank that the system moves to the other socket reads its
batches, and fills the buffers that are copied to its GPU, across the link between sockets.

Sources: Linux's sysfs-devices-node and sysfs-bus-pci documents (`cpulist`, `numa_node`), sched_setaffinity(2); the
NVIDIA driver's /proc/driver/nvidia/gpus for the bus address of a GPU; srun(1) for SLURM_CPU_BIND_TYPE.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Set
from pathlib import Path

# 0 turns it off.
VARIABLE = "KAIYUAN_NUMA_BIND"
_ROOT = Path("/")


def bind_beside_gpu(uuid: str, environ: Mapping[str, str], root: Path = _ROOT) -> str | None:
    """Bind this process to the cores of its GPU's NUMA node; return what was done, None if nothing.

    Args:
        uuid: as the driver calls the GPU, without its prefix `GPU-`.
        root: of the file system, for /proc and /sys.
    """
    node = _node_of_gpu(uuid, root)
    nodes = _nodes(root)
    if node not in nodes or len(nodes) == 1:
        return None
    return _bind(nodes[node], f"of NUMA node {node}, the GPU's", environ)


def bind_to_share(local_rank: int, ranks: int, environ: Mapping[str, str], root: Path = _ROOT) -> str | None:
    """Bind one of several ranks that train on this node's processors to its share of the NUMA nodes."""
    nodes = _nodes(root)
    chosen = share(sorted(nodes), local_rank, ranks)
    if len(chosen) == len(nodes):
        return None
    cores = set().union(*(nodes[node] for node in chosen))
    return _bind(cores, f"of NUMA node {', '.join(map(str, chosen))}", environ)


def share(nodes: list[int], local_rank: int, ranks: int) -> list[int]:
    """Return the nodes of one rank: neighbours share a node where there are more ranks than nodes."""
    first = local_rank * len(nodes) // ranks
    return nodes[first : max(first + 1, (local_rank + 1) * len(nodes) // ranks)]


def bound_by_launcher(own: Set[int], launcher: Set[int], environ: Mapping[str, str]) -> bool:
    """Whether the launcher has bound this rank: to fewer cores than it has itself, or by srun's --cpu-bind.

    A step of Slurm may have fewer cores than its daemon and leave its tasks unbound on these.
    """
    kind = environ.get("SLURM_CPU_BIND_TYPE")
    if kind is not None:
        return kind not in ("", "none")
    return own < launcher and "SLURM_STEP_ID" not in environ


def _bind(cores: Set[int], what: str, environ: Mapping[str, str]) -> str | None:
    own = os.sched_getaffinity(0)
    left = own & cores
    launcher = os.sched_getaffinity(os.getppid())
    if environ.get(VARIABLE) == "0" or not left or left == own or bound_by_launcher(own, launcher, environ):
        return None
    # Threads that are there already, too; one may end meanwhile.
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(thread), left)
    return f"the {len(left)} cores {what}"


def _nodes(root: Path) -> dict[int, set[int]]:
    """Return the cores of each NUMA node that has any."""
    found = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        cores = _numbers(_read(folder / "cpulist"))
        if cores:
            found[int(folder.name.removeprefix("node"))] = cores
    return found


def _node_of_gpu(uuid: str, root: Path) -> int | None:
    for folder in (root / "proc/driver/nvidia/gpus").glob("*"):
        if re.search(rf"^GPU UUID:\s*GPU-{re.escape(uuid)}\s*$", _read(folder / "information"), re.MULTILINE):
            node = _read(root / "sys/bus/pci/devices" / folder.name / "numa_node").strip()
            # -1 where the firmware does not say.
            return int(node) if node.isdigit() else None
    return None


def _numbers(text: str) -> set[int]:
    """Return the numbers of a list such as `0-3,8-11`."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
