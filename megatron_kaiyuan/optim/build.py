"""megatron-core's optimizers, distributed or not, round our own algorithms: one part for each algorithm of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig
from megatron.core.utils import unwrap_model

from megatron_kaiyuan.config import RunConfig, WeightKind
from megatron_kaiyuan.network import kind_of
from megatron_kaiyuan.optim.algorithms import ALGORITHMS
from megatron_kaiyuan.optim.scaler import loss_scaler
from megatron_kaiyuan.optimizers import ParameterGroup, parameter_groups
from megatron_kaiyuan.platform.megatron import optimizer_of

Parameters = list[tuple[WeightKind, torch.nn.Parameter]]


def build_optimizer(run: RunConfig, models: Sequence[DistributedDataParallel]) -> ChainedOptimizer:
    """Return FP32 main weights with their optimizers, by default cut over the data-parallel ranks; FP16 with a scaler.

    Learning rate and weight decay are set before each step by `set_step_options`.
    """
    parameters = _with_kinds(run, models)
    config = _megatron_config(run, models[0].config.params_dtype)
    parts = []
    for name, groups in parameter_groups(run):
        part = optimizer_of(config, models, [_param_group(group, parameters, run) for group in groups])
        part.optimizer = ALGORITHMS[name].build(part.optimizer, run)
        parts.append(part)
    optimizer = ChainedOptimizer(parts)
    _share_scaler(optimizer)
    return optimizer


def set_step_options(optimizer: ChainedOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Set what the next step uses, for each group by its rule."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]


def learning_rates(optimizer: ChainedOptimizer) -> dict[str, float]:
    """Return the learning rate of the last step for each kind of weight whose rate is not the schedule's: `lr_head`."""
    groups = [group for group in optimizer.param_groups if group["lr_mult"] != 1.0]
    return {f"lr_{kind}": group["lr"] for group in groups for kind in group["kinds"]}


def parts_with(optimizer: ChainedOptimizer, kind: WeightKind) -> list[Any]:
    """Return the parts of the optimizer that update weights of a kind, the same on every rank."""
    parts = optimizer.chained_optimizers
    return [part for part in parts if any(kind in group["kinds"] for group in part.param_groups)]


def _with_kinds(run: RunConfig, models: Sequence[DistributedDataParallel]) -> Parameters:
    """Return the parameters in the order of `named_parameters()`.

    Raises:
        KeyError: `network.py` does not list one.
    """
    networks = unwrap_model(list(models))
    return [(kind_of(name, run.model), each) for network in networks for name, each in network.named_parameters()]


def _param_group(group: ParameterGroup, parameters: Parameters, run: RunConfig) -> dict[str, Any]:
    rule = group.rule
    return {
        "params": [parameter for kind, parameter in parameters if kind in group.kinds],
        "kinds": group.kinds,
        "optimizer": rule.optimizer,
        "lr_mult": rule.lr_mult,
        "wd_mult": rule.wd_mult,
        "eps": run.optimizer.adam_eps * rule.eps_mult,
        # megatron-core's readers of a checkpoint distinguish groups by these too.
        "is_expert_parallel": False,
        "is_decoupled_lr": False,
    }


def _megatron_config(run: RunConfig, params_dtype: torch.dtype) -> OptimizerConfig:
    options = run.optimizer
    return OptimizerConfig(
        # What megatron-core makes first, whatever the algorithm.
        optimizer="adam",
        lr=0.0,
        min_lr=0.0,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_eps=options.adam_eps,
        clip_grad=options.clip_grad,
        fp16=run.train.precision == "fp16",
        bf16=run.train.precision == "bf16",
        params_dtype=params_dtype,
        initial_loss_scale=options.initial_loss_scale,
        min_loss_scale=options.min_loss_scale,
        loss_scale_window=options.loss_scale_window,
        hysteresis=options.hysteresis,
        use_distributed_optimizer=run.parallel.use_distributed_optimizer,
    )


def _share_scaler(optimizer: ChainedOptimizer) -> None:
    """Give all parts one loss scaler: an overflow in one of them is an overflow of the step."""
    scaler = loss_scaler(optimizer)
    if scaler is not None:
        for part in optimizer.chained_optimizers:
            part.grad_scaler = scaler
