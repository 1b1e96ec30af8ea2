"""Which of how many processes that share the work this is, from the environment that a launcher leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from megatron_kaiyuan.cluster import discover
from megatron_kaiyuan.errors import UserError


class Place(NamedTuple):
    """Which of how many processes that share the work, each with workers of its own."""

    rank: int = 0
    world: int = 1
    on_this_node: int = 1


def find_place(environ: Mapping[str, str]) -> Place:
    """This process's place under mpirun, srun and the like, in a Slurm array, or in both at once.

    Raises:
        UserError: a variable is missing or contradicts another.
    """
    # Nobody connects to a master here, but of several nodes one is asked for.
    inner = discover({"MASTER_ADDR": "localhost", **environ})
    element, elements = _array_place(environ)
    on_this_node = inner.local_world_size or 1
    return Place(element * inner.world_size + inner.rank, elements * inner.world_size, on_this_node)


def _array_place(environ: Mapping[str, str]) -> tuple[int, int]:
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    if not any(name in environ for name in names):
        return 0, 1
    try:
        index, count = (int(environ[name]) for name in names)
        first, step = int(environ.get("SLURM_ARRAY_TASK_MIN", 0)), int(environ.get("SLURM_ARRAY_TASK_STEP", 1))
        element, rest = divmod(index - first, step)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"slurm: {' and '.join(names)} must both be whole numbers ({error})") from error
    if rest or not 0 <= element < count:
        raise UserError(
            f"slurm: task {index} of an array of {count} from {first} in steps of {step} has no place; give sbatch "
            "an array without gaps, as --array=0-9: what is finished is not done again"
        )
    return element, count


def default_workers(place: Place) -> int:
    """The cores that this process may use, shared with the other ranks of its machine."""
    return max(len(os.sched_getaffinity(0)) // place.on_this_node, 1)
