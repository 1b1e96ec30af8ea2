"""What this project reads, sets or replaces inside Megatron Core: every name there that is not its public interface.

`INTERNALS` lists the names, and `tests/platform/test_megatron_internals.py` looks for each in the installed version, so
that an upgrade fails there first, with a list. Functions here are the only ones that use them.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from megatron.core.optimizer import DistributedOptimizer, MegatronOptimizer, OptimizerConfig
    from megatron.core.optimizer.grad_scaler import DynamicGradScaler
    from megatron.core.optimizer.optimizer import MixedPrecisionOptimizer
    from torch.distributed.checkpoint.metadata import Metadata

# By module, or class, below megatron.core. Those that classes get in `__init__` are looked for in their source.
INTERNALS: dict[str, tuple[str, ...]] = {
    "optimizer.grad_scaler.DynamicGradScaler": ("_scale", "_growth_tracker", "_hysteresis_tracker"),
    "optimizer.distrib_optimizer.DistributedOptimizer": (
        "_build_gbuf_range_map",
        "_copy_model_grads_to_main_grads",
        "_get_model_param_range_map",
        "model_param_group_index_map",
    ),
    "optimizer": ("_get_megatron_optimizer_based_on_param_groups",),
    "optimizer.optimizer.MixedPrecisionOptimizer": ("_unscale_main_grads_and_check_for_nan",),
    "optimizer.optimizer.Float16OptimizerWithFloat16Params": ("_copy_model_grads_to_main_grads",),
    "optimizer.optimizer": ("clip_grad_by_total_norm_fp32", "Float16OptimizerWithFloat16Params"),
    "optimizer.clip_grads": ("l2_norm_impl", "multi_tensor_scale_impl"),
    "dist_checkpointing.strategies.filesystem_async": ("_results_queue",),
    "dist_checkpointing.strategies.torch": ("_get_filesystem_reader", "checkpoint"),
    "tensor_parallel.random": ("_get_cuda_rng_state", "_set_cuda_rng_state"),
    "tensor_parallel.layers": (
        "_grad_accum_fusion_available",
        "fused_weight_gradient_mlp_cuda",
        "linear_with_grad_accumulation_and_async_allreduce",
    ),
    "jit": ("disable_jit_fuser",),
}
# Every module of megatron-core 0.16 that names torch.cuda or device="cuda" on a path that training takes.
MODULES_THAT_NAME_CUDA = (
    "distributed.distributed_data_parallel",
    "distributed.param_and_grad_buffer",
    "dist_checkpointing.exchange_utils",
    "dist_checkpointing.strategies.async_utils",
    "dist_checkpointing.strategies.filesystem_async",
    "dist_checkpointing.strategies.fully_parallel",
    "dist_checkpointing.strategies.state_dict_saver",
    "models.common.embeddings.rotary_pos_embedding",
    "optimizer.clip_grads",
    "optimizer.distrib_optimizer",
    "optimizer.grad_scaler",
    "optimizer.optimizer",
    "parallel_state",
    "pipeline_parallel.p2p_communication",
    "pipeline_parallel.schedules",
    "tensor_parallel.layers",
    "tensor_parallel.mappings",
    "tensor_parallel.random",
    "tensor_parallel.utils",
    "utils",
)


def module(name: str) -> Any:
    """A module below megatron.core."""
    return importlib.import_module(f"megatron.core.{name}")


# The loss scaler.


def good_steps(scaler: DynamicGradScaler) -> int:
    """Steps without overflow since the scale last changed."""
    return scaler._growth_tracker


def hysteresis_left(scaler: DynamicGradScaler) -> int:
    """Overflows that are still to come before the scale halves; negative after more of them."""
    return scaler._hysteresis_tracker


def fit_scaler(scaler: DynamicGradScaler, hysteresis: int) -> None:
    """Apply the recipe's options to a loaded state at once; see `optim.scaler.adapt_scaler`."""
    scaler._scale = torch.maximum(scaler._scale, scaler.min_scale)
    scaler._hysteresis_tracker += scaler.hysteresis - hysteresis
    scaler._growth_tracker = min(scaler._growth_tracker, scaler.growth_interval - 1)


# Optimizers, each of some of the parameters.


def optimizer_of(config: OptimizerConfig, models: Sequence[Any], groups: list[dict[str, Any]]) -> MegatronOptimizer:
    """Return megatron-core's optimizer of the parameters of `groups`, one of possibly several of the same models."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    ranks = ProcessGroupCollection.setup_process_groups_for_optimizer(None, models, use_gloo_process_groups=False)
    with _ranges_of({id(parameter) for group in groups for parameter in group["params"]}):
        return module("optimizer")._get_megatron_optimizer_based_on_param_groups(
            config=config,
            model_chunks=models,
            param_groups=groups,
            per_model_buffers={number: model.buffers for number, model in enumerate(models)},
            model_parallel_group=ranks["mp_group"],
            data_parallel_group=ranks["intra_dp_cp_group"],
            # For megatron-core's own ways to save the optimizer, which we do not take.
            data_parallel_group_gloo=None,
            data_parallel_group_idx=ranks["mp_group"].rank(),
            intra_dist_opt_group=ranks["intra_dist_opt_group"],
        )


@contextlib.contextmanager
def _ranges_of(parameters: set[int]) -> Iterator[None]:
    """Let a distributed optimizer that is made in the body have no other parameters of its buffers than these (ids)."""
    owner = module("optimizer.distrib_optimizer").DistributedOptimizer
    kept, ranges_of_all = owner.__dict__["_build_gbuf_range_map"], owner._build_gbuf_range_map

    def ranges_of_these(buffer: Any) -> dict[Any, list[dict[str, Any]]]:
        ranges = ranges_of_all(buffer)
        for bucket in (bucket for buckets in ranges.values() for bucket in buckets):
            places = bucket["param_map"].items()
            bucket["param_map"] = {parameter: place for parameter, place in places if id(parameter) in parameters}
        return ranges

    owner._build_gbuf_range_map = staticmethod(ranges_of_these)
    try:
        yield
    finally:
        owner._build_gbuf_range_map = kept


def owned_main_weights(part: DistributedOptimizer) -> Iterator[tuple[torch.nn.Parameter, int, torch.Tensor]]:
    """Each parameter of which this rank has a range, with the range's start and its FP32 weights."""
    for parameter, (group, index) in part.model_param_group_index_map.items():
        start = part._get_model_param_range_map(parameter)["param"].start
        yield parameter, start, part.optimizer.param_groups[group]["params"][index]


def unscale_gradients(parts: Iterable[MixedPrecisionOptimizer]) -> bool:
    """Take the gradients into the optimizers, without the loss scale; whether any is not finite. Collective.

    `prepare_grads()` of a part does so too, and then changes the scale by what it found in this part alone.
    """
    overflows = []
    for part in parts:
        part._copy_model_grads_to_main_grads()
        overflows.append(part._unscale_main_grads_and_check_for_nan())
    return any(overflows)


# Checkpoints.


def own_writers() -> dict[str, str]:
    """Return the arguments of `async_save` by which megatron-core's own writers plan a save: none before 0.17."""
    strategy = module("dist_checkpointing.strategies.torch").TorchDistSaveShardedStrategy
    takes = inspect.signature(strategy.async_save).parameters
    return {"async_strategy": "mcore"} if "async_strategy" in takes else {}


# Replaced for the rest of the process.


def report_writes_to_this_process() -> None:
    """Let the writers of a checkpoint report to a queue here; megatron-core would start a manager process for one."""
    module("dist_checkpointing.strategies.filesystem_async")._results_queue = queue.SimpleQueue()


def keep_random_state_of_cpu() -> None:
    """Save and restore the CPU's random state where megatron-core does CUDA's."""
    random = module("tensor_parallel.random")
    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)


def give_no_advice_for_cuda() -> None:
    """Let tensor-parallel layers not ask for CUDA_DEVICE_MAX_CONNECTIONS=1, which means nothing on other devices."""
    module("tensor_parallel.layers").linear_with_grad_accumulation_and_async_allreduce.warned = True


def clip_with(norm: Callable[..., Any], scale: Callable[..., None]) -> None:
    """Take norm and scale of all gradients by these, where Apex and Transformer Engine are absent."""
    clipping = module("optimizer.clip_grads")
    if clipping.l2_norm_impl.__module__ == "megatron.core.utils":
        clipping.l2_norm_impl = norm
        clipping.multi_tensor_scale_impl = scale


def accumulates_weight_gradients() -> bool:
    """Whether a product of a weight gradient can add itself to the FP32 sum."""
    return module("tensor_parallel.layers")._grad_accum_fusion_available


def accumulate_weight_gradients_with(accumulate: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]) -> None:
    """Let layers with `gradient_accumulation_fusion` call this in the place of Apex's kernel."""
    layers = module("tensor_parallel.layers")
    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(wgrad_gemm_accum_fp32=accumulate)
    layers._grad_accum_fusion_available = True


# Replaced for a while.


@contextlib.contextmanager
def reading_without_other_ranks(folder: Path, metadata: Metadata) -> Iterator[None]:
    """Let megatron-core read a checkpoint by itself in the body, with metadata that are known.

    Else every rank would read the metadata, which describe every rank's shards, and rank 0 gather the plans of all,
    which torch's planner then leaves as they are.
    """
    from torch.distributed import checkpoint

    reader = checkpoint.FileSystemReader(folder)
    reader.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]
    strategy = module("dist_checkpointing.strategies.torch")
    load = partial(checkpoint.load_state_dict, no_dist=True)
    own: dict[str, Any] = {
        "_get_filesystem_reader": lambda *_, **__: reader,
        "checkpoint": SimpleNamespace(load_state_dict=load),
    }
    kept = {name: getattr(strategy, name) for name in own}
    for name, value in own.items():
        setattr(strategy, name, value)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        for name, value in kept.items():
            setattr(strategy, name, value)
