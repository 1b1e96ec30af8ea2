"""One answer to "which rank of how many am I" from the environment that a launcher leaves (`launchers.py`)."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from megatron_kaiyuan.cluster.launchers import LAUNCHERS, LOOPBACK, Environment, Launcher, in_slurm_step, number
from megatron_kaiyuan.cluster.rank import Rank
from megatron_kaiyuan.cluster.slurm import tasks_on
from megatron_kaiyuan.errors import UserError

__all__ = ["Rank", "discover"]


def discover(environ: Environment) -> Rank:
    """Find this process's place.

    The more specific launcher wins: torchrun inside a Slurm step counts as torchrun. Slurm counts inside an srun step
    only, because a batch script sees most of its variables too.

    Args:
        environ: usually `os.environ`; nothing else is read.

    Raises:
        UserError: a variable is missing, is no number, or contradicts another; the message names it.
    """
    present = [launcher for launcher in LAUNCHERS if launcher.applies(environ)]
    if not present:
        _refuse_traces_of_a_launcher(environ)
        return Rank(0, 1, 0, 1, LOOPBACK, _free_port(), "none")
    who = present[0].read(environ)
    if not who.is_scheduler:
        _refuse_contradictions(environ, who, present[1:])
    return who


def _refuse_traces_of_a_launcher(environ: Environment) -> None:
    """A process that is one of many must not take itself for the only one."""
    for launcher in LAUNCHERS:
        size = number(environ, launcher.size_variable, "none", default=1)
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
    if number(environ, "LOCAL_RANK", "none", default=0) > 0:
        raise UserError("LOCAL_RANK is set, but RANK and WORLD_SIZE are missing; set them or unset LOCAL_RANK")
    if "PMIX_RANK" in environ and "SLURM_JOB_ID" not in environ:
        raise UserError("PMIX_RANK is set, but no number of ranks; start the job through Open MPI's mpirun or srun")


def _refuse_contradictions(environ: Environment, who: Rank, others: Sequence[Launcher]) -> None:
    """What another launcher says of this process must fit, unless it only carries the launcher that counts."""
    by_hand = who.launcher == "torchrun" and "TORCHELASTIC_RUN_ID" not in environ
    for other in others if by_hand else ():
        rank = number(environ, other.rank_variable, who.launcher)
        size = number(environ, other.size_variable, who.launcher, default=who.world_size)
        if size > 1 and (rank, size) != (who.rank, who.world_size):
            raise UserError(
                f"RANK={who.rank} of WORLD_SIZE={who.world_size} contradicts {other.rank_variable}={rank} of "
                f"{other.size_variable}={size}; unset RANK and WORLD_SIZE, or set them inside each task"
            )
    if who.launcher != "torchrun":
        for name, value in (("WORLD_SIZE", who.world_size), ("LOCAL_RANK", who.local_rank)):
            if number(environ, name, who.launcher, default=value) != value:
                raise UserError(
                    f"{who.launcher}: {name}={environ[name]} is set besides, but the launcher says {value}; unset it"
                )
    if in_slurm_step(environ) and who.launcher != "slurm" and who.local_world_size == who.world_size:
        node = number(environ, "SLURM_NODEID", "slurm", default=0)
        tasks = tasks_on(environ.get("SLURM_STEP_TASKS_PER_NODE", ""), node) or 1
        # Only the first task of `srun --pty` is a shell that a user starts jobs from.
        if tasks > 1 and not by_hand and "SLURM_PTY_PORT" not in environ:
            raise UserError(
                f"srun runs {tasks} tasks on this node, and each starts {who.launcher} with a job of its own; start "
                "one a node (--ntasks-per-node=1), or unset SLURM_STEP_NUM_TASKS where separate jobs are meant"
            )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
