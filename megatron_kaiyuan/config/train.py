"""The section `train`: what a step is, and how many there are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_kaiyuan.config.section import Section


class TrainConfig(Section):
    """The step: batch, length, precision and how far to go."""

    seq_length: Annotated[int, Field(gt=0, description="tokens of a sample")]
    micro_batch_size: Annotated[int, Field(gt=0, description="samples of one pass on a data-parallel rank")]
    global_batch_size: Annotated[int, Field(gt=0, description="samples of a step, over all ranks")]
    train_tokens: Annotated[
        int | None,
        Field(ge=0, description="stop after these tokens, whatever the schedule; null: at the end of the phases"),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Field(description="of weights and activations; the optimizer's copy of the weights is FP32 in any case"),
    ] = "fp32"
    z_loss: Annotated[
        float,
        Field(ge=0, description="coefficient of (log Z)^2 in what is minimised; the reported loss has none"),
    ] = 0.0
    seed: Annotated[int, Field(ge=0, description="of fresh weights")] = 1234

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.seq_length
