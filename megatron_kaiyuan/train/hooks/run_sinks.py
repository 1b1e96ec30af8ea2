"""The sinks of a run, from its start to its last entry."""

from __future__ import annotations

import torch

from megatron_kaiyuan.cluster.groups import agree_on_error
from megatron_kaiyuan.cluster.last_words import make_recorder_folder
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.monitor.sinks import Sinks, open_sinks
from megatron_kaiyuan.redaction import redact_values
from megatron_kaiyuan.train.hooks.hook import Hook
from megatron_kaiyuan.train.run_folder import write_config
from megatron_kaiyuan.train.session import Session


class RunSinks(Hook):
    """Opens the sinks when it is made, writes the last entry, and closes them. Collective.

    Attributes:
        sinks: on rank 0 those that the recipe asks for, elsewhere none.

    Raises:
        UserError: an optional package that the recipe asks for is not installed.
    """

    def __init__(self, run: RunConfig, total_steps: int):
        self.sinks = agree_on_error(lambda: _open(run, total_steps))

    def finish(self, session: Session) -> None:
        self.sinks.event("stop", step=session.state.progress.step, finished=session.finished)
        self.sinks.close()

    def give_up(self, session: Session) -> None:
        self.sinks.close()


def _open(run: RunConfig, total_steps: int) -> Sinks:
    if torch.distributed.get_rank() != 0:
        return Sinks([])
    write_config(run)
    make_recorder_folder(run.run_dir)
    config, alone = redact_values(run.model_dump(mode="json")), torch.distributed.get_world_size() == 1
    return open_sinks(run.run_dir, run.monitor, total_steps, config, alone)
