"""One answer to "which rank of how many am I" from the environment that a launcher leaves.

The only place that knows launchers. Sources: torchrun's documented environment; Open MPI's and Intel MPI's manuals;
MindSpore's msrun; Slurm's srun(1), "output environment variables".
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_kaiyuan.cluster.slurm import first_host, tasks_on
from megatron_kaiyuan.errors import UserError

Environment = Mapping[str, str]
Launcher = Literal["torchrun", "msrun", "openmpi", "mpich", "slurm", "none"]

_LOOPBACK = "127.0.0.1"
# Ports for jobs that name none: below the range that systems hand out to outgoing connections (from 32768).
_FIRST_PORT, _PORTS = 15000, 15000


@dataclass(frozen=True)
class Rank:
    """This process's place in the job.

    Attributes:
        local_rank: place among the processes of this node, which chooses the device.
        local_world_size: processes on this node; None where the launcher does not say.
        master_address: host at which rank 0 listens, at `master_port`.
        is_scheduler: msrun starts the script once more as its scheduler: such a process has to exit with 0 at once.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None
    master_address: str
    master_port: int
    launcher: Launcher
    is_scheduler: bool = False

    def __post_init__(self) -> None:
        _require_below("rank", self.rank, "world size", self.world_size, self.launcher)
        if self.local_world_size is not None:
            _require_below("local rank", self.local_rank, "local world size", self.local_world_size, self.launcher)
            if self.local_world_size > self.world_size:
                raise UserError(
                    f"{self.launcher}: local world size {self.local_world_size} is above world size "
                    f"{self.world_size}; correct the job's environment"
                )
        if not 0 < self.master_port < 65536:
            raise UserError(f"{self.launcher}: master port {self.master_port} is no port; set 1 to 65535")


def discover(environ: Environment) -> Rank:
    """Find this process's place.

    The more specific launcher wins: torchrun inside a Slurm step counts as torchrun. Slurm counts inside an srun step
    only, because a batch script sees most of its variables too.

    Args:
        environ: usually `os.environ`; nothing else is read.

    Raises:
        UserError: a variable is missing, is no number, or contradicts another; the message names it.
    """
    for applies, read in _LAUNCHERS:
        if applies(environ):
            return read(environ)
    if _number(environ, "WORLD_SIZE", "none", default=1) > 1:
        raise UserError("WORLD_SIZE is above 1, but no launcher gave this process a rank; set RANK or unset WORLD_SIZE")
    return Rank(0, 1, 0, 1, _LOOPBACK, _free_port(), "none")


def _from_torchrun(environ: Environment) -> Rank:
    world_size = _number(environ, "WORLD_SIZE", "torchrun")
    local_rank = _number(environ, "LOCAL_RANK", "torchrun", default=0 if world_size == 1 else None)
    local_world_size = _optional_number(environ, "LOCAL_WORLD_SIZE", "torchrun")
    several_nodes = local_world_size != world_size
    return Rank(
        rank=_number(environ, "RANK", "torchrun"),
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=1 if world_size == 1 else local_world_size,
        master_address=_master_address(environ, "torchrun", several_nodes and world_size > 1),
        master_port=_master_port(environ, "torchrun", job="torchrun"),
        launcher="torchrun",
    )


def _from_msrun(environ: Environment) -> Rank:
    address = environ.get("MS_SCHED_HOST", _LOOPBACK)
    port = _number(environ, "MS_SCHED_PORT", "msrun", default=8118)
    # The scheduler itself listens at MS_SCHED_PORT.
    port = _number(environ, "MASTER_PORT", "msrun", default=port + 1)
    if environ.get("MS_ROLE") == "MS_SCHED":
        return Rank(0, 1, 0, None, address, port, "msrun", is_scheduler=True)
    world_size = _number(environ, "RANK_SIZE", "msrun", default=_optional_number(environ, "MS_WORKER_NUM", "msrun"))
    if world_size > 1 and "MS_NODE_ID" not in environ:
        raise UserError("msrun: MS_NODE_ID is missing, so two workers may hold the same rank; give msrun --node_rank")
    return Rank(
        rank=_number(environ, "RANK_ID", "msrun"),
        world_size=world_size,
        local_rank=_number(environ, "DEVICE_ID", "msrun", default=0 if world_size == 1 else None),
        local_world_size=1 if world_size == 1 else None,
        master_address=environ.get("MASTER_ADDR", address),
        master_port=port,
        launcher="msrun",
    )


def _from_open_mpi(environ: Environment) -> Rank:
    world_size = _number(environ, "OMPI_COMM_WORLD_SIZE", "openmpi")
    local_world_size = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", "openmpi")
    return Rank(
        rank=_number(environ, "OMPI_COMM_WORLD_RANK", "openmpi"),
        world_size=world_size,
        local_rank=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", "openmpi"),
        local_world_size=local_world_size,
        master_address=_master_address(environ, "openmpi", local_world_size < world_size),
        master_port=_master_port(environ, "openmpi", job=environ.get("PMIX_NAMESPACE", "openmpi")),
        launcher="openmpi",
    )


def _from_mpich(environ: Environment) -> Rank:
    world_size = _number(environ, "PMI_SIZE", "mpich")
    local_world_size = _optional_number(environ, "MPI_LOCALNRANKS", "mpich")
    return Rank(
        rank=_number(environ, "PMI_RANK", "mpich"),
        world_size=world_size,
        local_rank=_number(environ, "MPI_LOCALRANKID", "mpich"),
        local_world_size=local_world_size,
        master_address=_master_address(environ, "mpich", local_world_size != world_size),
        master_port=_master_port(environ, "mpich", job="mpich"),
        launcher="mpich",
    )


def _in_slurm_step(environ: Environment) -> bool:
    return "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ


def _from_slurm(environ: Environment) -> Rank:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "")
    tasks_per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    node = _number(environ, "SLURM_NODEID", "slurm", default=0)
    job = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    if not nodes and "MASTER_ADDR" not in environ:
        raise UserError("slurm: SLURM_STEP_NODELIST is missing; export MASTER_ADDR with the first node's name")
    return Rank(
        rank=_number(environ, "SLURM_PROCID", "slurm"),
        world_size=_number(environ, "SLURM_STEP_NUM_TASKS", "slurm"),
        local_rank=_number(environ, "SLURM_LOCALID", "slurm"),
        local_world_size=tasks_on(tasks_per_node, node),
        master_address=environ.get("MASTER_ADDR") or first_host(nodes),
        master_port=_master_port(environ, "slurm", job),
        launcher="slurm",
    )


_LAUNCHERS: tuple[tuple[Callable[[Environment], bool], Callable[[Environment], Rank]], ...] = (
    (lambda env: "RANK" in env, _from_torchrun),
    (lambda env: "MS_ROLE" in env or "RANK_ID" in env, _from_msrun),
    (lambda env: "OMPI_COMM_WORLD_RANK" in env, _from_open_mpi),
    (lambda env: "PMI_RANK" in env and ("MPI_LOCALRANKID" in env or not _in_slurm_step(env)), _from_mpich),
    (_in_slurm_step, _from_slurm),
)


def _master_address(environ: Environment, launcher: Launcher, several_nodes: bool) -> str:
    address = environ.get("MASTER_ADDR")
    if not address and several_nodes:
        raise UserError(f"{launcher}: several nodes, but MASTER_ADDR is missing; export the host name of rank 0")
    return address or _LOOPBACK


def _master_port(environ: Environment, launcher: Launcher, job: str) -> int:
    """MASTER_PORT, or a port that every rank of the job works out alike and that differs between jobs."""
    return _number(environ, "MASTER_PORT", launcher, default=_FIRST_PORT + zlib.crc32(job.encode()) % _PORTS)


def _number(environ: Environment, name: str, launcher: Launcher, default: int | None = None) -> int:
    number = _optional_number(environ, name, launcher) if name in environ else default
    if number is None:
        raise UserError(f"{launcher}: {name} is missing in the environment; start the job through its launcher")
    return number


def _optional_number(environ: Environment, name: str, launcher: Launcher) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{launcher}: {name}={text!r} is no whole number; unset it or start through the launcher")
    return int(text)


def _require_below(name: str, value: int, limit_name: str, limit: int, launcher: Launcher) -> None:
    if not 0 <= value < limit:
        raise UserError(f"{launcher}: {name} {value} is not below {limit_name} {limit}; correct the job's environment")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((_LOOPBACK, 0))
        return int(listener.getsockname()[1])
