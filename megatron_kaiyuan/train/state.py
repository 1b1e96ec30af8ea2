"""The one object that holds everything that changes during a run; it is saved whole and restored whole."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from megatron_kaiyuan.model.build import Network
from megatron_kaiyuan.optim.ema import WeightEma
from megatron_kaiyuan.optim.main_weights import allocate_state
from megatron_kaiyuan.optim.scaler import adapt_scaler
from megatron_kaiyuan.optim.sharded import restore_optimizer, sharded_optimizer
from megatron_kaiyuan.platform import Platform
from megatron_kaiyuan.train.cuda_graphs import GraphedPasses
from megatron_kaiyuan.train.own_time import OwnTime


@dataclass
class RunProgress:
    """How far the run is.

    Attributes:
        tokens: the data position, the offset of the next token in the stream.
        skipped_steps: steps whose update was withheld.
        overflow_steps: those of them that the loss scaler answered by itself.
        left_out: token ranges [start, stop) that rollbacks took out of the stream.
    """

    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    overflow_steps: int = 0
    left_out: list[list[int]] = field(default_factory=list)

    def next_batch(self, tokens: int) -> int:
        """Where the next batch of so many tokens starts: it touches nothing that was left out."""
        position = self.tokens
        for start, stop in sorted(self.left_out):
            if start < position + tokens and position < stop:
                position = stop
        return position


class Monitor(Protocol):
    """Something that watches the run and remembers what it saw, the same on every rank."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers, texts, lists, dictionaries and tensors only."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` gave."""


@dataclass
class TrainState:
    """Weights, optimizer (with loss scaler), progress, monitors and random generators of this rank.

    Attributes:
        models: the chunks of the network, wrapped for data parallelism.
        own_time: how long this rank takes to its own gradients.
        graphs: plays the passes over micro-batches where they are CUDA graphs.
        ema: the average of the weights, where the run keeps one.
    """

    network: Network
    models: list[DistributedDataParallel]
    optimizer: ChainedOptimizer
    platform: Platform
    progress: RunProgress
    own_time: OwnTime
    graphs: GraphedPasses | None = None
    ema: WeightEma | None = None
    monitors: dict[str, Monitor] = field(default_factory=dict)

    def gather_weights(self) -> None:
        """Make the network whole, which it is not after a step with `overlap_param_gather`. Collective."""
        for model in self.models:
            if model.ddp_config.overlap_param_gather:
                model.start_param_sync(force_sync=True)

    def sharded(self, is_loading: bool = False, with_ema: bool = True) -> dict[str, Any]:
        """The state as megatron-core's sharded tensors plus common objects. Collective.

        Args:
            with_ema: with the average of the weights, if the run keeps one.
        """
        if is_loading:
            allocate_state(self.optimizer)
        else:
            self.gather_weights()
        network = self._sharded_network()
        state: dict[str, Any] = {"network": network, "optimizer": sharded_optimizer(self.optimizer, network)}
        if self.ema is not None and with_ema:
            state["ema"] = self.ema.sharded(network)
        if not is_loading:
            state["progress"] = asdict(self.progress)
            state["monitors"] = {name: monitor.state_dict() for name, monitor in self.monitors.items()}
            state["random"] = self._gather_random_states()
        return state

    def restore(self, loaded: dict[str, Any]) -> None:
        """Take over what was loaded into the form of `sharded(is_loading=True)`.

        Without an average of the weights in it, one that the run keeps begins at the weights that were loaded.
        """
        self.network.load_state_dict(loaded["network"])
        network = self._sharded_network()
        restore_optimizer(self.optimizer, network, loaded["optimizer"])
        if self.ema is not None and "ema" in loaded:
            self.ema.restore(network, loaded["ema"])
        elif self.ema is not None:
            self.ema.begin()
        adapt_scaler(self.optimizer, loaded["run"]["config"]["optimizer"]["hysteresis"])
        self.progress = RunProgress(**loaded["progress"])
        for name, content in loaded.get("monitors", {}).items():
            if name in self.monitors:
                self.monitors[name].load_state_dict(content)
        mine = loaded["random"]
        # Another number of ranks has no use for them: nothing that training draws depends on them then.
        if mine is not None:
            torch.set_rng_state(mine["host"])
            # Another kind of device has a generator of another kind, or none.
            if mine.get("platform") == self.platform.name:
                self.platform.set_rng_state(mine["device"])

    def _sharded_network(self) -> dict[str, Any]:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        return self.network.sharded_state_dict(metadata={"dp_cp_group": group})

    def _gather_random_states(self) -> list[dict[str, Any]]:
        """Return the states of all ranks on rank 0, which writes them, equal ones as one object; elsewhere none."""
        is_first = torch.distributed.get_rank() == 0
        states: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first else None
        device, name = self.platform.rng_state(), self.platform.name
        torch.distributed.gather_object({"host": torch.get_rng_state(), "device": device, "platform": name}, states)
        known: dict[bytes, dict[str, Any]] = {}
        return [known.setdefault(pickle.dumps(state), state) for state in states or []]
