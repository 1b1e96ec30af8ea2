"""This process's place in its job, and what cannot be one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_kaiyuan.errors import UserError

LauncherName = Literal["torchrun", "msrun", "openmpi", "flux", "mpich", "slurm", "pals", "none"]


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
    launcher: LauncherName
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
            raise UserError(f"{self.launcher}: master port {self.master_port} is not a port; set 1 to 65535")


def _require_below(name: str, value: int, limit_name: str, limit: int, launcher: LauncherName) -> None:
    if not 0 <= value < limit:
        raise UserError(f"{launcher}: {name} {value} is not below {limit_name} {limit}; correct the job's environment")
