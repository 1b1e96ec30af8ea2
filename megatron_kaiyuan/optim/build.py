"""megatron-core's optimizers, distributed or not, round our AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import megatron.core.optimizer as megatron_optimizer
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_kaiyuan import platform
from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.optim.adamw import AdamW


def build_optimizer(run: RunConfig, models: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """FP32 main weights and AdamW, by default cut over the data-parallel ranks; dynamic loss scaling with FP16.

    Learning rate and weight decay are set before each step by `set_step_options`.
    """
    options = run.optimizer
    optimizer = megatron_optimizer.get_megatron_optimizer(
        megatron_optimizer.OptimizerConfig(
            optimizer="adam",
            lr=0.0,
            min_lr=0.0,
            adam_beta1=options.adam_beta1,
            adam_beta2=options.adam_beta2,
            adam_eps=options.adam_eps,
            clip_grad=options.clip_grad,
            fp16=run.train.precision == "fp16",
            bf16=run.train.precision == "bf16",
            params_dtype=models[0].config.params_dtype,
            initial_loss_scale=options.initial_loss_scale,
            min_loss_scale=options.min_loss_scale,
            loss_scale_window=options.loss_scale_window,
            hysteresis=options.hysteresis,
            use_distributed_optimizer=run.parallel.use_distributed_optimizer,
        ),
        list(models),
        # For megatron-core's own ways to save the optimizer, which we do not take.
        use_gloo_process_groups=False,
    )
    if megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        # Without Apex or Transformer Engine megatron-core takes torch's AdamW, which does not survive a resume.
        for part in optimizer.chained_optimizers:
            part.optimizer = AdamW.in_place_of(part.optimizer, platform.current().has_fused_adamw)
    return optimizer


def set_step_options(optimizer: MegatronOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Set what the next step uses. Norm gains and biases do not decay: megatron-core marks them `wd_mult` 0."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]
