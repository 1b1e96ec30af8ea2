"""The section `data`: the phases of the token stream, and what resets at the end of a document."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megatron_kaiyuan.config.section import Section

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class PhaseConfig(Section):
    """One phase of the token stream and its learning rates."""

    path: Annotated[Path, Field(description="folder that kaiyuan-data curriculum wrote")]
    peak_lr: Annotated[float, Field(gt=0, description="learning rate after the warm-up, until the decay")]
    final_lr: Annotated[float | None, Field(gt=0, description="where the decay ends; null: no decay")] = None
    decay_fraction: Annotated[Fraction, Field(description="last part of the phase over which the LR decays")] = 0.2
    decay_shape: Annotated[
        Literal["one_minus_sqrt", "linear", "cosine"],
        Field(description="of the decay, t from 0 to 1: 1 - sqrt(t), 1 - t, or half a cosine"),
    ] = "one_minus_sqrt"

    @model_validator(mode="after")
    def _check_decay(self) -> PhaseConfig:
        if self.final_lr is not None and self.final_lr > self.peak_lr:
            raise ValueError(
                f"final_lr {self.final_lr:g} is above peak_lr {self.peak_lr:g}: the learning rate would rise where it "
                "is to decay; exchange them, or leave final_lr out"
            )
        return self


class DataConfig(Section):
    """Where the token stream comes from."""

    phases: Annotated[list[PhaseConfig], Field(min_length=1, description="trained on one after the other")]
    reset_position_ids: Annotated[bool, Field(description="position ids start again with each document")] = False
    reset_attention_mask: Annotated[bool, Field(description="attention stays inside each document")] = False
    eod_mask_loss: Annotated[
        bool, Field(description="no loss where the label is the first token of the next document")
    ] = False

    @model_validator(mode="after")
    def _check_resets(self) -> DataConfig:
        if self.reset_position_ids and not self.reset_attention_mask:
            raise ValueError(
                "reset_position_ids changes nothing alone, as rotary embeddings count from the start of the sample "
                "whatever the position ids; set reset_attention_mask, which makes positions relative to the document"
            )
        return self
