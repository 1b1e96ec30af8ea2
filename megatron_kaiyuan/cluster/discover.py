"""One answer to "which rank of how many am I" from the environment that a launcher leaves.

The only place that knows launchers. Sources: torchrun's documented environment; Open MPI's and Intel MPI's manuals;
MindSpore's msrun; Slurm's srun(1), "output environment variables", and its slurm.h for the numbers of its own steps;
Flux's flux-environment(7); for HPE's PALS, which documents three of its variables only, what jobs on Aurora and Polaris
read: PALS_RANKID, PALS_LOCAL_RANKID, PALS_LOCAL_SIZE, and PMI_SIZE where Cray's PMI is loaded.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from megatron_kaiyuan.cluster.slurm import first_host, tasks_on
from megatron_kaiyuan.errors import UserError

Environment = Mapping[str, str]
Launcher = Literal["torchrun", "msrun", "openmpi", "flux", "mpich", "slurm", "pals", "none"]

_LOOPBACK = "127.0.0.1"
# Ports for jobs that name none: below the range that systems hand out to outgoing connections (from 32768).
_FIRST_PORT, _PORTS = 15000, 15000
# SLURM_STEP_ID of what is no step of srun's: the shell that salloc opens, and the batch script.
_SLURM_SHELLS = ("4294967290", "4294967291")


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
        # Every launcher numbers the processes of a node in the order of their ranks; msrun's number is a device's.
        if self.local_rank > self.rank and self.launcher != "msrun":
            raise UserError(
                f"{self.launcher}: local rank {self.local_rank} is above rank {self.rank}, which cannot be; do several "
                "processes hold one rank?"
            )
        if not 0 < self.master_port < 65536:
            raise UserError(f"{self.launcher}: master port {self.master_port} is no port; set 1 to 65535")


class _Launcher(NamedTuple):
    """How one launcher is known and read, and where it says which rank of how many this is."""

    rank_variable: str
    size_variable: str
    applies: Callable[[Environment], bool]
    read: Callable[[Environment], Rank]


def discover(environ: Environment) -> Rank:
    """Find this process's place.

    The more specific launcher wins: torchrun inside a Slurm step counts as torchrun. Slurm counts inside an srun step
    only, because a batch script sees most of its variables too.

    Args:
        environ: usually `os.environ`; nothing else is read.

    Raises:
        UserError: a variable is missing, is no number, or contradicts another; the message names it.
    """
    present = [launcher for launcher in _LAUNCHERS if launcher.applies(environ)]
    if not present:
        _refuse_traces_of_a_launcher(environ)
        return Rank(0, 1, 0, 1, _LOOPBACK, _free_port(), "none")
    who = present[0].read(environ)
    if not who.is_scheduler:
        _refuse_contradictions(environ, who, present[1:])
    return who


def _refuse_traces_of_a_launcher(environ: Environment) -> None:
    """A process that is one of many must not take itself for the only one."""
    for launcher in _LAUNCHERS:
        size = _number(environ, launcher.size_variable, "none", default=1)
        if size > 1 and launcher.rank_variable not in environ:
            raise UserError(
                f"{launcher.size_variable} is {size}, but {launcher.rank_variable} is missing, which tells this "
                f"process its rank; set {launcher.rank_variable} or unset {launcher.size_variable}"
            )
    # Kubeflow's Trainer gives these to a pod, which is a node: torchrun makes its ranks.
    if environ.get("PET_NNODES", "1") not in ("", "1"):
        raise UserError(
            f"PET_NNODES={environ['PET_NNODES']} says that this is one of several nodes; start it with "
            "launch/torchrun.sh, which reads the PET_* variables, or unset them"
        )
    if _number(environ, "LOCAL_RANK", "none", default=0) > 0:
        raise UserError("LOCAL_RANK is set, but RANK and WORLD_SIZE are missing; set them or unset LOCAL_RANK")
    if "PMIX_RANK" in environ and "SLURM_JOB_ID" not in environ:
        raise UserError("PMIX_RANK is set, but no number of ranks; start the job through Open MPI's mpirun or srun")


def _refuse_contradictions(environ: Environment, who: Rank, others: Sequence[_Launcher]) -> None:
    """What another launcher says of this process must fit, unless it only carries the launcher that counts."""
    by_hand = who.launcher == "torchrun" and "TORCHELASTIC_RUN_ID" not in environ
    for other in others if by_hand else ():
        rank = _number(environ, other.rank_variable, who.launcher)
        size = _number(environ, other.size_variable, who.launcher, default=who.world_size)
        if size > 1 and (rank, size) != (who.rank, who.world_size):
            raise UserError(
                f"RANK={who.rank} of WORLD_SIZE={who.world_size} contradicts {other.rank_variable}={rank} of "
                f"{other.size_variable}={size}; unset RANK and WORLD_SIZE, or set them inside each task"
            )
    if who.launcher != "torchrun":
        for name, value in (("WORLD_SIZE", who.world_size), ("LOCAL_RANK", who.local_rank)):
            if _number(environ, name, who.launcher, default=value) != value:
                raise UserError(
                    f"{who.launcher}: {name}={environ[name]} is set besides, but the launcher says {value}; unset it"
                )
    if _in_slurm_step(environ) and who.launcher != "slurm" and who.local_world_size == who.world_size:
        node = _number(environ, "SLURM_NODEID", "slurm", default=0)
        tasks = tasks_on(environ.get("SLURM_STEP_TASKS_PER_NODE", ""), node) or 1
        # Only the first task of `srun --pty` is a shell that a user starts jobs from.
        if tasks > 1 and not by_hand and "SLURM_PTY_PORT" not in environ:
            raise UserError(
                f"srun runs {tasks} tasks on this node, and each starts {who.launcher} with a job of its own; start "
                "one a node (--ntasks-per-node=1), or unset SLURM_STEP_NUM_TASKS where separate jobs are meant"
            )


def _from_torchrun(environ: Environment) -> Rank:
    world_size = _number(environ, "WORLD_SIZE", "torchrun")
    local_rank = _optional_number(environ, "LOCAL_RANK", "torchrun")
    if local_rank is None and world_size > 1:
        raise UserError(
            "torchrun: RANK is set, but LOCAL_RANK is missing; start the job through torchrun, or set LOCAL_RANK to "
            "this process's number on its node, from 0"
        )
    local_world_size = _optional_number(environ, "LOCAL_WORLD_SIZE", "torchrun")
    several_nodes = local_world_size != world_size
    return Rank(
        rank=_number(environ, "RANK", "torchrun"),
        world_size=world_size,
        local_rank=local_rank or 0,
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
    workers = _optional_number(environ, "MS_WORKER_NUM", "msrun")
    world_size = _number(environ, "RANK_SIZE", "msrun", default=workers)
    if workers not in (None, world_size):
        raise UserError(f"msrun: RANK_SIZE={world_size} contradicts MS_WORKER_NUM={workers}; unset RANK_SIZE")
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


def _from_pals(environ: Environment) -> Rank:
    given = _optional_number(environ, "PMI_SIZE", "pals") or _optional_number(environ, "WORLD_SIZE", "pals")
    if given is None:
        raise UserError("pals: no variable has the number of ranks; export WORLD_SIZE before mpiexec")
    local_world_size = _optional_number(environ, "PALS_LOCAL_SIZE", "pals")
    return Rank(
        rank=_number(environ, "PALS_RANKID", "pals"),
        world_size=given,
        local_rank=_number(environ, "PALS_LOCAL_RANKID", "pals"),
        local_world_size=local_world_size,
        master_address=_master_address(environ, "pals", local_world_size != given and given > 1),
        master_port=_master_port(environ, "pals", job=environ.get("PALS_APID", "pals")),
        launcher="pals",
    )


def _from_flux(environ: Environment) -> Rank:
    world_size = _number(environ, "FLUX_JOB_SIZE", "flux")
    # Without it, all of them may be on this node.
    nodes = _number(environ, "FLUX_JOB_NNODES", "flux", default=1)
    return Rank(
        rank=_number(environ, "FLUX_TASK_RANK", "flux"),
        world_size=world_size,
        local_rank=_number(environ, "FLUX_TASK_LOCAL_ID", "flux"),
        # flux-run(1) spreads tasks evenly unless it is told otherwise; then no one says how many a node has.
        local_world_size=world_size // nodes if world_size % nodes == 0 else None,
        master_address=_master_address(environ, "flux", nodes > 1),
        master_port=_master_port(environ, "flux", job=environ.get("FLUX_JOB_ID", "flux")),
        launcher="flux",
    )


def _in_slurm_step(environ: Environment) -> bool:
    named = "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ
    return named and environ.get("SLURM_STEP_ID") not in _SLURM_SHELLS


def _from_slurm(environ: Environment) -> Rank:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "")
    tasks_per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    node = _number(environ, "SLURM_NODEID", "slurm", default=0)
    job = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    world_size, local_world_size = _number(environ, "SLURM_STEP_NUM_TASKS", "slurm"), tasks_on(tasks_per_node, node)
    # A node's own name need not be known to itself.
    first = _LOOPBACK if local_world_size == world_size else first_host(nodes)
    if not first and "MASTER_ADDR" not in environ:
        raise UserError("slurm: SLURM_STEP_NODELIST is missing; export MASTER_ADDR with the first node's name")
    return Rank(
        rank=_number(environ, "SLURM_PROCID", "slurm"),
        world_size=world_size,
        local_rank=_number(environ, "SLURM_LOCALID", "slurm"),
        local_world_size=local_world_size,
        master_address=environ.get("MASTER_ADDR") or first,
        master_port=_master_port(environ, "slurm", job),
        launcher="slurm",
    )


# The more specific ones first.
_LAUNCHERS = (
    _Launcher("RANK", "WORLD_SIZE", lambda env: "RANK" in env, _from_torchrun),
    _Launcher("RANK_ID", "RANK_SIZE", lambda env: "MS_ROLE" in env or "RANK_ID" in env, _from_msrun),
    _Launcher(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", lambda env: "OMPI_COMM_WORLD_RANK" in env, _from_open_mpi
    ),
    # Before MPICH, whose PMI variables its tasks have, and before Slurm, in whose jobs it is started.
    _Launcher("FLUX_TASK_RANK", "FLUX_JOB_SIZE", lambda env: "FLUX_TASK_RANK" in env, _from_flux),
    _Launcher(
        "PMI_RANK",
        "PMI_SIZE",
        # Slurm and Cray's PMI set PMI_RANK without the local rank, which MPICH and Intel MPI set.
        lambda env: (
            "PMI_RANK" in env and ("MPI_LOCALRANKID" in env or not (_in_slurm_step(env) or "PALS_RANKID" in env))
        ),
        _from_mpich,
    ),
    _Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", _in_slurm_step, _from_slurm),
    # The last one: Slurm and Flux set its variables too, for Cray's MPI.
    _Launcher("PALS_RANKID", "PALS_SIZE", lambda env: "PALS_RANKID" in env, _from_pals),
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
