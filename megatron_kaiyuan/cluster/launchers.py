"""How each launcher is known, and which rank of how many it says this process is.

The only place that knows launchers. Sources: torchrun's documented environment; Open MPI's and Intel MPI's manuals;
MindSpore's msrun; Slurm's srun(1), "output environment variables", and its slurm.h for the numbers of its own steps;
Flux's flux-environment(7); for HPE's PALS, which documents three of its variables only, what jobs on Aurora and Polaris
read: PALS_RANKID, PALS_LOCAL_RANKID, PALS_LOCAL_SIZE, and PMI_SIZE where Cray's PMI is loaded.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from megatron_kaiyuan.cluster.rank import LauncherName, Rank
from megatron_kaiyuan.cluster.slurm import first_host, tasks_on
from megatron_kaiyuan.errors import UserError

Environment = Mapping[str, str]

LOOPBACK = "127.0.0.1"
# Ports for jobs that name none: below the range that systems hand out to outgoing connections (from 32768).
_FIRST_PORT, _PORTS = 15000, 15000
# SLURM_STEP_ID of what is not a step of srun's: the shell that salloc opens, and the batch script.
_SLURM_SHELLS = ("4294967290", "4294967291")


class Launcher(NamedTuple):
    """How one launcher is known and read, and where it says which rank of how many this is."""

    rank_variable: str
    size_variable: str
    applies: Callable[[Environment], bool]
    read: Callable[[Environment], Rank]


def _from_torchrun(environ: Environment) -> Rank:
    world_size = number(environ, "WORLD_SIZE", "torchrun")
    local_rank = _optional_number(environ, "LOCAL_RANK", "torchrun")
    if local_rank is None and world_size > 1:
        raise UserError(
            "torchrun: RANK is set, but LOCAL_RANK is missing; start the job through torchrun, or set LOCAL_RANK to "
            "this process's number on its node, from 0"
        )
    local_world_size = _optional_number(environ, "LOCAL_WORLD_SIZE", "torchrun")
    several_nodes = local_world_size != world_size
    return Rank(
        rank=number(environ, "RANK", "torchrun"),
        world_size=world_size,
        local_rank=local_rank or 0,
        local_world_size=1 if world_size == 1 else local_world_size,
        master_address=_master_address(environ, "torchrun", several_nodes and world_size > 1),
        master_port=_master_port(environ, "torchrun", job="torchrun"),
        launcher="torchrun",
    )


def _from_msrun(environ: Environment) -> Rank:
    address = environ.get("MS_SCHED_HOST", LOOPBACK)
    port = number(environ, "MS_SCHED_PORT", "msrun", default=8118)
    # The scheduler itself listens at MS_SCHED_PORT.
    port = number(environ, "MASTER_PORT", "msrun", default=port + 1)
    if environ.get("MS_ROLE") == "MS_SCHED":
        return Rank(0, 1, 0, None, address, port, "msrun", is_scheduler=True)
    workers = _optional_number(environ, "MS_WORKER_NUM", "msrun")
    world_size = number(environ, "RANK_SIZE", "msrun", default=workers)
    if workers not in (None, world_size):
        raise UserError(f"msrun: RANK_SIZE={world_size} contradicts MS_WORKER_NUM={workers}; unset RANK_SIZE")
    if world_size > 1 and "MS_NODE_ID" not in environ:
        raise UserError("msrun: MS_NODE_ID is missing, so two workers may hold the same rank; give msrun --node_rank")
    return Rank(
        rank=number(environ, "RANK_ID", "msrun"),
        world_size=world_size,
        local_rank=number(environ, "DEVICE_ID", "msrun", default=0 if world_size == 1 else None),
        local_world_size=1 if world_size == 1 else None,
        master_address=environ.get("MASTER_ADDR", address),
        master_port=port,
        launcher="msrun",
    )


def _from_open_mpi(environ: Environment) -> Rank:
    world_size = number(environ, "OMPI_COMM_WORLD_SIZE", "openmpi")
    local_world_size = number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", "openmpi")
    return Rank(
        rank=number(environ, "OMPI_COMM_WORLD_RANK", "openmpi"),
        world_size=world_size,
        local_rank=number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", "openmpi"),
        local_world_size=local_world_size,
        master_address=_master_address(environ, "openmpi", local_world_size < world_size),
        master_port=_master_port(environ, "openmpi", job=environ.get("PMIX_NAMESPACE", "openmpi")),
        launcher="openmpi",
    )


def _from_mpich(environ: Environment) -> Rank:
    world_size = number(environ, "PMI_SIZE", "mpich")
    local_world_size = _optional_number(environ, "MPI_LOCALNRANKS", "mpich")
    return Rank(
        rank=number(environ, "PMI_RANK", "mpich"),
        world_size=world_size,
        local_rank=number(environ, "MPI_LOCALRANKID", "mpich"),
        local_world_size=local_world_size,
        master_address=_master_address(environ, "mpich", local_world_size != world_size),
        master_port=_master_port(environ, "mpich", job="mpich"),
        launcher="mpich",
    )


def _from_pals(environ: Environment) -> Rank:
    given = _optional_number(environ, "PMI_SIZE", "pals") or _optional_number(environ, "WORLD_SIZE", "pals")
    if given is None:
        raise UserError("pals: no variable has the number of ranks; export WORLD_SIZE before mpiexec")
    local_world_size = _optional_number(environ, "PALS_LOCAL_SIZE", "pals")
    return Rank(
        rank=number(environ, "PALS_RANKID", "pals"),
        world_size=given,
        local_rank=number(environ, "PALS_LOCAL_RANKID", "pals"),
        local_world_size=local_world_size,
        master_address=_master_address(environ, "pals", local_world_size != given and given > 1),
        master_port=_master_port(environ, "pals", job=environ.get("PALS_APID", "pals")),
        launcher="pals",
    )


def _from_flux(environ: Environment) -> Rank:
    world_size = number(environ, "FLUX_JOB_SIZE", "flux")
    # Without it, all of them may be on this node.
    nodes = number(environ, "FLUX_JOB_NNODES", "flux", default=1)
    return Rank(
        rank=number(environ, "FLUX_TASK_RANK", "flux"),
        world_size=world_size,
        local_rank=number(environ, "FLUX_TASK_LOCAL_ID", "flux"),
        # flux-run(1) spreads tasks evenly unless asked otherwise; then nothing says how many a node has.
        local_world_size=world_size // nodes if world_size % nodes == 0 else None,
        master_address=_master_address(environ, "flux", nodes > 1),
        master_port=_master_port(environ, "flux", job=environ.get("FLUX_JOB_ID", "flux")),
        launcher="flux",
    )


def in_slurm_step(environ: Environment) -> bool:
    named = "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ
    return named and environ.get("SLURM_STEP_ID") not in _SLURM_SHELLS


def _from_slurm(environ: Environment) -> Rank:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "")
    tasks_per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    node = number(environ, "SLURM_NODEID", "slurm", default=0)
    job = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    world_size, local_world_size = number(environ, "SLURM_STEP_NUM_TASKS", "slurm"), tasks_on(tasks_per_node, node)
    # A node's own name need not be known to itself.
    first = LOOPBACK if local_world_size == world_size else first_host(nodes)
    if not first and "MASTER_ADDR" not in environ:
        raise UserError("slurm: SLURM_STEP_NODELIST is missing; export MASTER_ADDR with the first node's name")
    return Rank(
        rank=number(environ, "SLURM_PROCID", "slurm"),
        world_size=world_size,
        local_rank=number(environ, "SLURM_LOCALID", "slurm"),
        local_world_size=local_world_size,
        master_address=environ.get("MASTER_ADDR") or first,
        master_port=_master_port(environ, "slurm", job),
        launcher="slurm",
    )


# The more specific ones first.
LAUNCHERS = (
    Launcher("RANK", "WORLD_SIZE", lambda env: "RANK" in env, _from_torchrun),
    Launcher("RANK_ID", "RANK_SIZE", lambda env: "MS_ROLE" in env or "RANK_ID" in env, _from_msrun),
    Launcher("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", lambda env: "OMPI_COMM_WORLD_RANK" in env, _from_open_mpi),
    # Before MPICH, whose PMI variables its tasks have, and before Slurm, in whose jobs it is started.
    Launcher("FLUX_TASK_RANK", "FLUX_JOB_SIZE", lambda env: "FLUX_TASK_RANK" in env, _from_flux),
    Launcher(
        "PMI_RANK",
        "PMI_SIZE",
        # Slurm and Cray's PMI set PMI_RANK without the local rank, which MPICH and Intel MPI set.
        lambda env: (
            "PMI_RANK" in env and ("MPI_LOCALRANKID" in env or not (in_slurm_step(env) or "PALS_RANKID" in env))
        ),
        _from_mpich,
    ),
    Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", in_slurm_step, _from_slurm),
    # The last one: Slurm and Flux set its variables too, for Cray's MPI.
    Launcher("PALS_RANKID", "PALS_SIZE", lambda env: "PALS_RANKID" in env, _from_pals),
)


def _master_address(environ: Environment, launcher: LauncherName, several_nodes: bool) -> str:
    address = environ.get("MASTER_ADDR")
    if not address and several_nodes:
        raise UserError(f"{launcher}: several nodes, but MASTER_ADDR is missing; export the host name of rank 0")
    return address or LOOPBACK


def _master_port(environ: Environment, launcher: LauncherName, job: str) -> int:
    """MASTER_PORT, or a port that every rank of the job works out alike and that differs between jobs."""
    return number(environ, "MASTER_PORT", launcher, default=_FIRST_PORT + zlib.crc32(job.encode()) % _PORTS)


def number(environ: Environment, name: str, launcher: LauncherName, default: int | None = None) -> int:
    found = _optional_number(environ, name, launcher) if name in environ else default
    if found is None:
        raise UserError(f"{launcher}: {name} is missing in the environment; start the job through its launcher")
    return found


def _optional_number(environ: Environment, name: str, launcher: LauncherName) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{launcher}: {name}={text!r} is not a whole number; unset it or start through the launcher")
    return int(text)
