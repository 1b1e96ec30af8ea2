"""Which engine does the work: `--engine`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from megatron_kaiyuan.errors import UserError, require_between

if TYPE_CHECKING:
    from data_tools.engines.stage import Engine

NAMES = ("auto", "local", "mpi", "slurm", "spark")
# More than any machine has cores; a mistyped number must not start millions of processes.
_MOST_WORKERS = 4096
HELP = (
    "who does the work: local processes, the ranks of mpirun (mpi) or srun and sbatch arrays (slurm), or spark; auto: "
    "the ranks if a launcher started this, else local. The result is the same"
)


def choose_engine(name: str, workers: int = 0, environ: Mapping[str, str] | None = None) -> Engine:
    """The engine of a name.

    Args:
        workers: processes of the local engine, or of each rank; 0: one a core. Spark has executors instead.

    Raises:
        UserError: it is unknown, not installed, or the environment is not that of its launcher.
    """
    # The command line wants the names alone, at once.
    from data_tools.engines.local import LocalEngine
    from data_tools.engines.ranks import RanksEngine
    from data_tools.reading.place import default_workers, find_place

    if name not in NAMES:
        raise UserError(f"--engine {name}: is not known; use {', '.join(NAMES)}")
    require_between("--workers", workers, 0, _MOST_WORKERS)
    if name == "spark":
        if workers:
            raise UserError(f"--workers {workers}: Spark's own options say how many executors and cores it takes")
        from data_tools.engines.spark import SparkEngine

        return SparkEngine()
    place = find_place(os.environ if environ is None else environ)
    if name in ("mpi", "slurm") or (name == "auto" and place.world > 1):
        return RanksEngine(place, workers or default_workers(place))
    if place.world > 1:
        raise UserError(f"--engine local: {place.world} ranks were started; use --engine auto, or start one process")
    return LocalEngine(workers or default_workers(place))
