"""The section `optimizer`: AdamW, the length of the learning rate's schedule, and the loss scale."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from megatron_kaiyuan.config.section import Section
from megatron_kaiyuan.config.weights import WeightKind


class OptimizerConfig(Section):
    """AdamW and the dynamic loss scaler (used with `precision: fp16` only)."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1, description="decay of the gradient's running mean")] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1, description="decay of the squared gradient's running mean")] = 0.95
    adam_eps: Annotated[float, Field(gt=0, description="added to the root of that mean")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="decoupled, of matrices; norms have none (wd_mult)")] = 0.1
    wd_mult: Annotated[
        dict[WeightKind, Annotated[float, Field(ge=0)]],
        Field(description="weight decay of a kind of weight, as a multiple; else 1 for matrices, 0 for norms"),
    ] = {}
    lr_mult: Annotated[
        dict[WeightKind, Annotated[float, Field(ge=0)]],
        Field(description="learning rate of a kind of weight, as a multiple of the schedule's; else 1"),
    ] = {}
    decoupled_lr: Annotated[
        float | None,
        Field(
            gt=0,
            description="learning rate of embedding and head where that of the others is the highest peak_lr; they "
            "follow the same schedule; null: as the others",
        ),
    ] = None
    clip_grad: Annotated[float, Field(ge=0, description="largest gradient norm; 0 turns clipping off")] = 1.0
    qk_clip_tau: Annotated[
        float | None,
        Field(gt=0, description="QK-clip: the attention logit beyond which a head is scaled back; null: none"),
    ] = None
    warmup_tokens: Annotated[int, Field(ge=0, description="over which the learning rate rises from 0 to its peak")] = 0
    schedule_tokens: Annotated[
        int | None,
        Field(
            gt=0,
            description="length of the learning rate's schedule: fewer tokens than the phases hold cut it short, and "
            "the rate stays where it ends; more make the last phase longer; null: what the phases hold",
        ),
    ] = None
    initial_loss_scale: Annotated[float, Field(gt=0, description="FP16: what the loss is multiplied by at first")] = (
        65536.0
    )
    min_loss_scale: Annotated[float, Field(gt=0, description="FP16: an overflow at this scale is a bad step")] = 1.0
    loss_scale_window: Annotated[int, Field(gt=0, description="good steps before the scale doubles")] = 1000
    hysteresis: Annotated[
        int, Field(gt=0, description="overflows before the scale halves; counted from 0 again only when it has doubled")
    ] = 2

    @model_validator(mode="after")
    def _check_scales(self) -> OptimizerConfig:
        if self.min_loss_scale > self.initial_loss_scale:
            raise ValueError(
                f"min_loss_scale {self.min_loss_scale:g} is above initial_loss_scale {self.initial_loss_scale:g}"
            )
        return self

    @model_validator(mode="after")
    def _check_rates(self) -> OptimizerConfig:
        for kind in ("embedding", "head"):
            if self.decoupled_lr is not None and kind in self.lr_mult:
                raise ValueError(f"decoupled_lr and lr_mult.{kind} both set the learning rate of {kind}; leave one out")
        return self
